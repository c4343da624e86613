"""The limits of the machine that a benchmark runs on, measured in the same process."""

from __future__ import annotations

import platform
import time
from typing import Any

import numpy as np
import torch

from tenfold import __version__, _core
from tenfold.engine.machine import processor

COPY_MIB = (1, 8, 64)
"""Sizes of the copied array: inside the second-level cache, inside the last level, outside of all."""


def copy_bandwidth(mib: int, seconds: float = 0.3) -> float:
    """Bytes read plus bytes written per second by numpy's copy of a warm array on one thread."""
    source = np.ones(mib << 17)
    target = np.ones_like(source)
    best = float("inf")
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def gpu() -> str | None:
    """The GPU's name, memory and driver; None where ops cannot use one."""
    if not (torch.cuda.is_available() and _core.cuda_device_count()):
        return None
    facts = torch.cuda.get_device_properties(0)
    return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def describe() -> dict[str, Any]:
    """What stands above every table."""
    return {
        "gpu": gpu(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "last_level_cache_mib": _core.last_level_cache() / 2**20,
        "isa": _core.isa(),
        "compiler": _core.compiler(),
        "versions": {
            "tenfold": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "copy_gb_per_s": {f"{mib} MiB": copy_bandwidth(mib) / 1e9 for mib in COPY_MIB},
    }
