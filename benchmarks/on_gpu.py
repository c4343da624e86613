"""What the benchmark files for a GPU share: alternatives timed with events, taking turns.

An alternative is captured in a CUDA graph that runs it once on each of several sets of arrays, together
larger than the second-level cache, so that neither launch overhead nor data left in the cache is timed; every
set's result has memory of its own. What waits for the device cannot be captured: it runs on the same sets
without a graph, and its launches are timed with it ("no graph").
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold import _core, ops

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROTATED_CACHES = 4  # the sets of arrays are together this many times as large as the second-level cache
LEAST_SETS = 16  # nodes of a graph: enough that starting it does not count
MOST_SETS = 64
MOST_BYTES = 2**32  # that one graph moves; results of every alternative take as much memory
LEAST_ROUNDS, ROUNDS = 3, 30
ROW_SECONDS = 0.25  # after LEAST_ROUNDS

Call = Callable[[Any], Any]  # of one set of arrays
Make = Callable[[int], Any]  # of a seed: one set of arrays
Form = Callable[..., Any]  # of arrays: a result, or a tuple of results

types = pytest.mark.parametrize("dtype", list(TYPES))
passes = pytest.mark.parametrize("backward", [False, True], ids=["forward", "with backward"])
needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and _core.cuda_device_count()),
    reason=f"no GPU here: {_core.cuda_reason() or 'torch found none'}",
)


# ---- time ----


@functools.cache
def side_stream() -> torch.cuda.Stream:
    """One for all warm calls and captures, so that what a library keeps per stream is there in a capture."""
    return torch.cuda.Stream()


def captured(call: Call, sets: list[Any]) -> torch.cuda.CUDAGraph:
    """Return a graph of `call` on each of `sets` in turn."""
    stream = side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for arrays in sets[:2]:  # what is allocated or compiled once must not be captured
            call(arrays)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = [call(arrays) for arrays in sets]  # all kept, so that none takes another's memory
    del results
    return graph


def each(call: Call, sets: list[Any]) -> None:
    for arrays in sets:
        call(arrays)


def race(work: dict[str, tuple[Call, list[Any]]], in_graphs: bool = True) -> dict[str, float]:
    """Fastest seconds of one call of each alternative, over interleaved runs on all of its sets."""
    runs: dict[str, Callable[[], None]] = {}
    for name, (call, sets) in work.items():
        runs[name] = captured(call, sets).replay if in_graphs else functools.partial(each, call, sets)
        runs[name]()
    torch.cuda.synchronize()
    best = dict.fromkeys(work, float("inf"))
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start = time.perf_counter()
    for done in range(ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() - start > ROW_SECONDS:
            break
        for name, run in runs.items():
            if in_graphs:
                run()  # the device is busy while the timed run is launched
            begin.record()
            run()
            end.record()
            end.synchronize()
            best[name] = min(best[name], begin.elapsed_time(end) / 1e3 / len(work[name][1]))
    return best


def sets_for(moved: int) -> int:
    """Sets of arrays for an op that moves so many bytes."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    wanted = max(LEAST_SETS, ROTATED_CACHES * cache // max(moved, 1))
    return max(2, min(wanted, MOST_SETS, MOST_BYTES // max(moved, 1)))


def compare(
    benchmark: Any,
    make: Make,
    calls: dict[str, Call],
    check: Callable[[Any], float],
    sets: int,
    *,
    optional: dict[str, Call] | None = None,
    limits: dict[str, tuple[Call, Make]] | None = None,
    scales: dict[str, float] | None = None,
    in_graphs: bool = True,
    regime: str = "fresh",
    **row: Any,
) -> None:
    """Record one row: the fastest time of each alternative, and tenfold's error.

    `optional` is left out, with a warning, where it fails: this machine may have no compiler, this torch no
    such function. `limits` have sets of arrays of their own. Times are multiplied by `scales`.
    """
    problems = [make(seed) for seed in range(sets)]
    wrong = check(problems[0])
    work = {name: (call, problems) for name, call in calls.items()}
    for name, call in (optional or {}).items():
        try:
            call(problems[0])
            work[name] = (call, problems)
        except Exception as why:
            what = f"{why}".partition("\n")[0]
            warnings.warn(f"{name} is left out: {type(why).__name__}: {what}", stacklevel=2)
    for name, (call, make_limit) in (limits or {}).items():
        work[name] = (call, [make_limit(seed) for seed in range(sets)])
    best = race(work, in_graphs)
    ops.synchronize()  # raises here what the kernels of this row found wrong
    best = {name: seconds * (scales or {}).get(name, 1.0) for name, seconds in best.items()}
    regime += "" if in_graphs else ", no graph"
    found = {"regime": regime, "threads": 1, "error": wrong, "seconds": best, "targets": {}}
    benchmark.extra_info.update(row | found)
    benchmark.pedantic(lambda: None, rounds=1)


# ---- forms of an op ----


@dataclass
class Problem:
    """One set of arrays: those with gradients, others, and the gradients of the results."""

    leaves: tuple[Tensor, ...]
    others: tuple[Any, ...]
    upstream: list[Tensor]


def randn(*shape: int, dtype: str = "fp32") -> Tensor:
    return torch.randn(*shape, device="cuda").to(TYPES[dtype])


def problem_of(form: Form, leaves: tuple[Tensor, ...], *others: Any, backward: bool) -> Problem:
    results = _tuple(form(*leaves, *others)) if backward else ()
    return Problem(leaves, others, [torch.randn_like(result) for result in results])


def calling(form: Form, backward: bool) -> Call:
    """Results, and with backward the gradients of the leaves too."""

    def forward_alone(p: Problem) -> list[Tensor]:
        return list(_tuple(form(*p.leaves, *p.others)))

    def with_backward(p: Problem) -> list[Tensor]:
        # New leaves: autograd knows a leaf by the stream of an earlier call, which must not enter a capture.
        leaves = [leaf.detach().requires_grad_() for leaf in p.leaves]
        results = _tuple(form(*leaves, *p.others))
        grads = torch.autograd.grad(results, leaves, p.upstream)
        return [*(result.detach() for result in results), *grads]

    return with_backward if backward else forward_alone


def compiled(form: Form, backward: bool) -> dict[str, Call]:
    """`form` under torch.compile."""
    return {"torch.compile": calling(torch.compile(form, dynamic=False), backward)}


def against(form: Form, exact: Form, backward: bool) -> Callable[[Problem], float]:
    """The error of `form`, given `exact`, which is called with leaves in float64."""

    def check(p: Problem) -> float:
        wide = Problem(
            tuple(leaf.double() for leaf in p.leaves), p.others, [grad.double() for grad in p.upstream]
        )
        return error(calling(form, backward)(p), calling(exact, backward)(wide))

    return check


def error(gots: Sequence[Tensor], wants: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest number of its array."""
    pairs = [(got.double(), want.double()) for got, want in zip(gots, wants, strict=True)]
    least = torch.finfo(torch.float32).tiny  # where all is to be zero
    return float(torch.stack([(a - b).abs().max() / b.abs().max().clamp_min(least) for a, b in pairs]).max())


def copy_of(moved: int) -> dict[str, tuple[Call, Make]]:
    """The limit of an op that must read and write `moved` bytes: copying half as many."""

    def make(_: int) -> tuple[Tensor, Tensor]:
        return tuple(torch.zeros(moved // 2, dtype=torch.uint8, device="cuda") for _ in range(2))  # type: ignore[return-value]

    return {"copy_": (lambda pair: pair[0].copy_(pair[1]), make)}


def _tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)
