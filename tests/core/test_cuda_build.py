"""TENFOLD_CUDA: AUTO says what it found, ON never ends as OFF, in fresh and in used build folders."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pybind11 = pytest.importorskip("pybind11")
LEAST_CMAKE = (3, 26)


def cmake_version() -> tuple[int, ...]:
    """Of the cmake on PATH; zeros where there is none."""
    if shutil.which("cmake") is None:
        return (0, 0)
    said = subprocess.run(["cmake", "--version"], capture_output=True, text=True).stdout
    return tuple(int(part) for part in said.split()[2].split(".")[:2])


if cmake_version() < LEAST_CMAKE:
    why = "no cmake of 3.26 or newer on PATH (pip install 'tenfold[dev]' brings it)"
    pytest.skip(why, allow_module_level=True)

ROOT = Path(__file__).parents[2]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


def configure(
    folder: Path, nvcc: str | None = None, on_path: bool = False, **defines: str
) -> subprocess.CompletedProcess[str]:
    """Run CMake in `folder`, with this compiler for CUDA, with the one that PATH names, or with none."""
    environment = {**os.environ, "CUDACXX": nvcc or str(folder / "there is none")}
    if on_path:
        del environment["CUDACXX"]
    elif nvcc is None:
        # CMake also looks in PATH and in the toolkit's usual place: it is told to look in neither.
        defines["CMAKE_IGNORE_PATH"] = ";".join(
            {str(Path(found).parent) for found in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc") if found}
        )
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", "-DTENFOLD_CUDA_ARCHITECTURES=90a-real"]
    command += [f"-D{name}={value}" for name, value in defines.items()]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_auto_without_a_compiler_is_off_and_says_why(tmp_path):
    done = configure(tmp_path, TENFOLD_CUDA="AUTO")
    assert done.returncode == 0, done.stderr
    assert "tenfold: CUDA OFF (no nvcc was found when this was built)" in done.stdout


def test_on_without_a_compiler_fails_also_in_a_used_folder(tmp_path):
    for _ in range(2):
        done = configure(tmp_path, TENFOLD_CUDA="ON")
        assert done.returncode != 0
        assert "TENFOLD_CUDA=ON: no nvcc was found" in done.stderr


def test_a_value_that_is_none_is_refused(tmp_path):
    done = configure(tmp_path, TENFOLD_CUDA="YES")
    assert done.returncode != 0
    assert "TENFOLD_CUDA is YES, want AUTO, ON or OFF" in done.stderr


@needs_nvcc
@pytest.mark.slow
def test_a_folder_that_had_no_compiler_finds_a_new_one(tmp_path):
    assert "CUDA OFF" in configure(tmp_path, TENFOLD_CUDA="AUTO").stdout
    done = configure(tmp_path, shutil.which("nvcc"), TENFOLD_CUDA="ON", CMAKE_IGNORE_PATH="")
    assert "tenfold: CUDA ON (nvcc" in done.stdout, done.stderr


@needs_nvcc
@pytest.mark.slow
def test_a_folder_whose_compiler_is_gone_fails(tmp_path):
    wrapper = tmp_path / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec "{os.path.realpath(shutil.which("nvcc"))}" "$@"\n')
    wrapper.chmod(0o755)
    assert "CUDA ON" in configure(tmp_path / "build", str(wrapper), TENFOLD_CUDA="ON").stdout
    wrapper.unlink()
    assert configure(tmp_path / "build", TENFOLD_CUDA="ON").returncode != 0


def broken(folder: Path, version: str, complaint: str) -> str:
    """A compiler that says its version, and then compiles nothing."""
    folder.mkdir()
    wrapper = folder / "nvcc"
    answer = f"Cuda compilation tools, release {version}, V{version}.1"
    says = f"case \"$*\" in *--version*) echo '{answer}'; exit 0;; esac"
    wrapper.write_text("\n".join(["#!/bin/sh", says, f'echo "{complaint}" >&2', "exit 1"]) + "\n")
    wrapper.chmod(0o755)
    return str(wrapper)


def test_a_compiler_that_is_really_old_is_named_before_it_is_used(tmp_path):
    nvcc = broken(tmp_path / "old", "12.0", "Unsupported gpu architecture 'compute_100'")
    done = configure(tmp_path / "auto", nvcc, TENFOLD_CUDA="AUTO")
    assert done.returncode == 0, done.stderr
    assert "tenfold: CUDA OFF (nvcc 12.0.1 is older than 12.8)" in done.stdout
    done = configure(tmp_path / "on", nvcc, TENFOLD_CUDA="ON")
    assert done.returncode != 0
    assert "TENFOLD_CUDA=ON: nvcc 12.0.1 is older than 12.8" in done.stderr


def test_a_compiler_that_does_not_work_is_named(tmp_path, monkeypatch):
    nvcc = broken(tmp_path / "broken", "13.0", "unsupported GNU version")
    done = configure(tmp_path / "auto", nvcc, TENFOLD_CUDA="AUTO")
    assert done.returncode == 0, done.stderr
    assert f"tenfold: CUDA OFF ({nvcc} (13.0.1) failed on a test program" in done.stdout
    monkeypatch.setenv("PATH", f"{tmp_path / 'broken'}:{os.environ['PATH']}")
    done = configure(tmp_path / "by path", on_path=True, TENFOLD_CUDA="AUTO")
    assert f"tenfold: CUDA OFF ({nvcc} (13.0.1) failed on a test program" in done.stdout
    done = configure(tmp_path / "on", nvcc, TENFOLD_CUDA="ON")
    assert done.returncode != 0
    assert "failed on a test program" in " ".join(done.stderr.split())


@needs_nvcc
@pytest.mark.slow
def test_an_old_compiler_is_refused_under_on_and_left_out_under_auto(tmp_path):
    nvcc = shutil.which("nvcc")
    done = configure(tmp_path / "on", nvcc, TENFOLD_CUDA="ON", TENFOLD_LEAST_NVCC="99")
    assert done.returncode != 0
    assert "is older than 99" in done.stderr
    done = configure(tmp_path / "auto", nvcc, TENFOLD_CUDA="AUTO", TENFOLD_LEAST_NVCC="99")
    assert done.returncode == 0
    assert "is older than 99" in done.stdout
