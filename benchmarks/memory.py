"""The peak of memory that a call needs, as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # what clear_refs takes: VmHWM becomes VmRSS


def _kilobytes(name: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peak_mib(call: Callable[[], Any]) -> float | None:
    """MiB that this process held at most during the call, beyond what it held before; None but on Linux.

    The result counts. The call was made before, so that nothing is loaded or compiled in it; what earlier
    calls freed is given back first, so that no memory is used that cannot be seen.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    except (AttributeError, OSError):
        return None
    before = _kilobytes("VmRSS")
    result = call()
    after = _kilobytes("VmHWM")
    del result
    return max(0, after - before) / 1024
