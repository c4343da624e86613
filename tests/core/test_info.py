"""What `tenfold info` says."""

import subprocess
import sys

import pytest

from tenfold import __version__, _core, info


def test_report_says_what_the_build_is():
    text = info.report()
    for fact in (__version__, _core.compiler(), _core.isa()):
        assert fact in text
    assert str(_core.threads()) in text


def test_report_says_why_no_gpu_is_used(monkeypatch):
    hopper, turing = ("A Hopper", 9, 0), ("A Turing", 7, 5)
    for built, devices, reason, said in (
        (False, [], "no nvcc was found", "CUDA        no CUDA code in this build: no nvcc was found"),
        (True, [], "cudaErrorNoDevice: none", "CUDA        no device: cudaErrorNoDevice: none\n"),
        (True, [hopper], "", "CUDA        device 0: A Hopper, compute capability 9.0\n            kernels"),
        (True, [hopper, turing], "", "device 1: A Turing, compute capability 7.5; NO kernel of this build"),
    ):
        monkeypatch.setattr(info._core, "built_with_cuda", lambda built=built: built)
        monkeypatch.setattr(info._core, "cuda_devices", lambda devices=devices: devices)
        monkeypatch.setattr(info._core, "cuda_reason", lambda reason=reason: reason)
        monkeypatch.setattr(info._core, "cuda_architectures", lambda: "90a-real")
        assert said in info.report()


def test_the_core_knows_whether_there_is_a_device():
    # In every build: devices or a reason, never both and never neither.
    assert (_core.cuda_device_count() > 0) == (_core.cuda_reason() == "")
    assert _core.built_with_cuda() or _core.cuda_device_count() == 0


def test_an_absent_package_names_its_extra(monkeypatch):
    lines = [
        "torch<3,>=2.13; extra == 'train'",
        "absent>=1; extra == 'bench'",
        "numpy>=1",
        'tenfold[train]; extra == "all"',
    ]
    monkeypatch.setattr(info.metadata, "requires", lambda name: lines)
    text = info.report()
    assert "absent  missing; pip install 'tenfold[bench]' brings it" in text
    assert "packages    absent" in text


def test_info_needs_numpy_only():
    code = (
        "import sys; from tenfold import info; info.report();"
        "assert not {'torch', 'matplotlib', 'rich'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["torch", "pytest"])
def test_installed_packages_have_versions(name):
    from importlib.metadata import version

    assert any(line.split()[-2:] == [name, version(name)] for line in info.report().splitlines())


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("80-real 90a-real 100-real 100-virtual", (8, 0), True),
        ("80-real 90a-real 100-real 100-virtual", (8, 9), True),
        ("80-real 90a-real 100-real 100-virtual", (9, 0), True),
        ("80-real 90a-real 100-real 100-virtual", (10, 3), True),
        ("80-real 90a-real 100-real 100-virtual", (12, 0), True),
        ("80-real 90a-real 100-real 100-virtual", (7, 5), False),
        ("90a-real", (8, 0), False),
        ("90a-real", (10, 0), False),
        ("89-real", (8, 6), False),
        ("80", (12, 0), True),
        ("", (9, 0), True),
    ],
)
def test_which_devices_run_the_kernels(architectures, capability, runs):
    assert info.runs_on(architectures, *capability) == runs
