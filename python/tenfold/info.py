"""What `tenfold info` prints: the build, the machine as the core sees it, and the optional packages."""

from __future__ import annotations

import importlib.metadata as metadata
import platform
import re

import numpy as np

from tenfold import __version__, _core

# One line of a package's metadata, such as: torch<3,>=2.13; extra == "train"
_REQUIREMENT = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)(?P<rest>[^;]*);\s*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]"
)


def report() -> str:
    """Version, build, instruction-set levels, threads, CUDA and packages, a line each."""
    build = f"{_core.compiler()}, {_core.build_type()}"
    if _core.sanitizers():
        build += f", sanitizers {_core.sanitizers()}"
    lines = [
        ("tenfold", __version__),
        ("python", f"{platform.python_version()}, numpy {np.__version__}"),
        ("build", build),
        ("ISA levels", f"compiled {' '.join(_core.isas_compiled())}"),
        ("", f"this processor runs {' '.join(_core.isas_supported())}"),
        ("", f"in use {_core.isa()} (TENFOLD_ISA=LEVEL forces another)"),
        ("last cache", f"{_core.last_level_cache() / 2**20:.0f} MiB"),
        ("threads", f"{_core.threads()} (OMP_NUM_THREADS, torch.set_num_threads)"),
        ("OpenMP", _core.openmp_runtime()),
        *(("" if i else "CUDA", text) for i, text in enumerate(_cuda())),
    ]
    lines += [("packages" if i == 0 else "", text) for i, text in enumerate(_packages())]
    return "\n".join(f"{name:<11} {text}".rstrip() for name, text in lines)


def _cuda() -> list[str]:
    """Whether ops can run on a GPU, and why not; what the kernels are compiled for."""
    if not _core.built_with_cuda():
        return [f"no CUDA code in this build: {_core.cuda_reason()}"]
    architectures = _core.cuda_architectures()
    lines = []
    for number, (name, major, minor) in enumerate(_core.cuda_devices()):
        missing = "" if runs_on(architectures, major, minor) else "; NO kernel of this build runs on it"
        lines.append(f"device {number}: {name}, compute capability {major}.{minor}{missing}")
    return [*(lines or [f"no device: {_core.cuda_reason()}"]), f"kernels compiled for {architectures}"]


def why_no_gpu() -> str:
    """Why ops cannot run on a GPU here, or nothing where they can."""
    return "" if _core.cuda_device_count() else _core.cuda_reason()


def runs_on(architectures: str, major: int, minor: int) -> bool:
    """Whether code for `architectures`, such as "80-real 90a-real 100-virtual", runs on a capability.

    Machine code runs on its own major version from its minor version on, and with an "a" on exactly its own;
    virtual code (and a number with no ending, which is both) on everything later too.
    """
    for entry in architectures.split():
        number, _, kind = entry.partition("-")
        own, alone = int(number.rstrip("af")), number.endswith("a")
        if alone:
            fits = own == 10 * major + minor
        else:
            fits = own <= 10 * major + minor and (kind != "real" or own // 10 == major)
        if fits:
            return True
    return not architectures


def _packages() -> list[str]:
    """A line per optional package: its version, or the extras that bring it."""
    extras = _extras_by_package()
    width = max((len(name) for name in extras), default=0)
    return [f"{name:<{width}}  {_state(name, extras[name])}" for name in sorted(extras, key=str.lower)]


def _extras_by_package() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in metadata.requires("tenfold") or []:
        match = _REQUIREMENT.match(line)
        if match and match["name"] != "tenfold":  # extras that name other extras
            found.setdefault(match["name"], []).append(match["extra"])
    return found


def _state(name: str, extras: list[str]) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"missing; pip install 'tenfold[{sorted(extras)[0]}]' brings it"
