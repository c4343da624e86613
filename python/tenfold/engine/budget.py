"""A wall-clock budget turned into a number of steps, once, so that a run is fixed by its config."""

import math
import re
import statistics
import time
from collections.abc import Callable

from tenfold.errors import UserError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"\d+(?:\.\d+)?"
_DURATION = re.compile(rf"(?:{_NUMBER}[smhd])+|{_NUMBER}")


def parse_duration(text: str) -> float:
    """Seconds in "90s", "10m", "1h30m", "0.5h" or a bare number of seconds; `UserError` otherwise."""
    compact = text.strip().lower()
    if not _DURATION.fullmatch(compact):
        raise UserError(f"cannot read the duration {text!r}; write it like 90s, 10m, 1h30m or 600 (seconds)")
    parts = re.findall(rf"({_NUMBER})([smhd]?)", compact)
    seconds = sum(float(number) * _SECONDS[unit or "s"] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise UserError(f"the duration {text!r} must be more than nothing; write it like 90s or 10m")
    return seconds


def calibrate(
    step: Callable[[], object],
    warmup: int = 3,
    measure: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median seconds of one call of `step`, over `measure` calls after `warmup` untimed ones.

    The median, for one step that the system interrupts must not shorten the whole run.
    """
    if warmup < 0 or measure < 1:
        raise ValueError(f"calibrate wants warmup >= 0 and measure >= 1, got {warmup} and {measure}")
    for _ in range(warmup):
        step()
    times = []
    for _ in range(measure):
        start = clock()
        step()
        times.append(clock() - start)
    return statistics.median(times)


def steps_within(seconds: float, seconds_per_step: float) -> int:
    """How many steps fit into `seconds`; at least one."""
    return max(1, int(seconds / seconds_per_step))
