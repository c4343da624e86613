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
        *zip(("CUDA", ""), _cuda(), strict=False),
    ]
    lines += [("packages" if i == 0 else "", text) for i, text in enumerate(_packages())]
    return "\n".join(f"{name:<11} {text}".rstrip() for name, text in lines)


def _cuda() -> list[str]:
    """Whether ops can run on a GPU, and why not; what the kernels are compiled for."""
    if not _core.built_with_cuda():
        return [f"no CUDA code in this build: {_core.cuda_reason()}"]
    count = _core.cuda_device_count()
    devices = f"{count} device{'s' * (count != 1)}" if count else f"no device: {_core.cuda_reason()}"
    return [devices, f"kernels compiled for {_core.cuda_architectures()}"]


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
