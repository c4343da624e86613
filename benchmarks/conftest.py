"""What the benchmark files share: alternatives timed side by side, in one process and interleaved."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch

import machine
from memory import peak_mib

Call = Callable[[], Any]

ROW_SECONDS = 3.0  # per row, all alternatives together
MIN_ROUNDS, MAX_ROUNDS = 5, 200
CALLS_PER_ROUND = 8  # in a row: each alternative is as warm as its own working set lets it be
ROUND_SECONDS = 0.1  # ... but no longer than this, for calls that flush every cache themselves
SHORTEST = 2e-4  # calls are repeated until one sample is about this long
TENFOLD = "tenfold"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()  # the default holds the host's name
    with one_thread():
        machine_info.update(machine.describe())


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    commit_info.pop("author_time", None)


class one_thread:  # noqa: N801
    """A context with another number of threads for torch and tenfold."""

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def seconds_per_call(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def race(calls: dict[str, Call]) -> dict[str, float]:
    """The fastest time of each alternative. They take turns, so that a slow phase of the machine hits all."""
    repeats, turns = {}, {}
    for name, call in calls.items():
        call()
        once = max(seconds_per_call(call, 1), 1e-9)
        repeats[name] = max(1, round(SHORTEST / once))
        turns[name] = max(1, min(CALLS_PER_ROUND, round(ROUND_SECONDS / once)))
    best = dict.fromkeys(calls, float("inf"))
    start = time.perf_counter()
    gc.disable()
    try:
        for done in range(MAX_ROUNDS):
            if done >= MIN_ROUNDS and time.perf_counter() - start > ROW_SECONDS:
                break
            for name, call in calls.items():
                for _ in range(turns[name]):
                    best[name] = min(best[name], seconds_per_call(call, repeats[name]))
    finally:
        gc.enable()
    return best


@pytest.fixture(autouse=True)
def compile_afresh() -> None:
    """torch.compile runs a function eagerly that it has compiled for eight shapes and types before."""
    torch.compiler.reset()


Compare = Callable[..., None]


@pytest.fixture
def compare(benchmark: Any) -> Iterator[Compare]:
    """`compare(calls, threads=1, error=0.0, targets={...}, memory=(), **row)`: one row of the table.

    `calls` maps names to functions, "tenfold" among them. `targets` maps an alternative's name to a pair
    (title, limit): the ratio of its time to tenfold's is wanted at least so large, or, for a negative limit,
    tenfold's time at most -limit times its. The alternative "seconds" stands for a limit in seconds.
    `memory` names the calls whose peak of memory is measured.
    """

    def run(
        calls: dict[str, Call], threads: int = 1, error: float = 0.0, memory: Iterable[str] = (), **row: Any
    ) -> None:
        with one_thread(threads):
            best = race(calls)
            peaks = {name: peak_mib(calls[name]) for name in memory}
            held = {name: peak for name, peak in peaks.items() if peak is not None}
            measured = {"threads": threads, "error": error, "seconds": best, "mib": held}
            benchmark.extra_info.update(row | measured)
            benchmark.pedantic(calls[TENFOLD], rounds=MIN_ROUNDS)

    yield run
