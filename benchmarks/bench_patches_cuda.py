"""The patches family on a GPU, against torch on that GPU: `tenfold bench patches --device cuda`.

on_gpu.py says how it is timed. Results go to memory that is there already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import on_gpu
from on_gpu import TYPES, types
from tenfold.ops import patches
from tenfold.ops.reference import patches as reference

SHAPES = [(64, 256, 1024), (16, 1024, 1152), (256, 64, 384)]
KEPT = 4

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
pytestmark = on_gpu.needs_gpu


class Problem:
    """One set of arrays on the GPU."""

    def __init__(self, shape: tuple[int, int, int], dtype: str, seed: int) -> None:
        self.batch, self.tokens, self.width = shape
        self.keep = self.tokens // KEPT
        self.x = torch.randn(*shape, device="cuda").to(TYPES[dtype])
        self.ids, self.ranks = patches.random_keep_ids(self.batch, self.tokens, self.keep, seed, like=self.x)
        self.flat = (self.ids + torch.arange(self.batch, device="cuda")[:, None] * self.tokens).flatten()
        self.expanded = self.ids[..., None].expand(-1, -1, self.width)
        self.samples = torch.arange(self.batch, device="cuda")[:, None]
        self.kept = reference.gather_patches(self.x, self.ids)
        self.mask_token = torch.randn(self.width, device="cuda").to(TYPES[dtype])
        self.small, self.large = torch.empty_like(self.kept), torch.empty_like(self.x)


Call = Callable[[Problem], Any]


def compare(
    benchmark: Any,
    op: str,
    shape: Any,
    dtype: str,
    calls: dict[str, Call],
    check: Callable[[Problem], float],
    touched: float,
) -> None:
    """One row. `touched` is the number of elements that the op reads and writes, over that of x."""
    sets = on_gpu.sets_for(int(touched * math.prod(shape)) * TYPES[dtype].itemsize)
    row = {"op": op, "shape": "x".join(map(str, shape)), "dtype": dtype, "regime": "reused"}
    on_gpu.compare(benchmark, partial(Problem, shape, dtype), calls, check, sets, **row)


def error(got: Tensor, want: Tensor) -> float:
    return on_gpu.error([got], [want])


@shapes
@types
def test_gather(benchmark: Any, shape: Any, dtype: str) -> None:
    calls: dict[str, Call] = {
        "tenfold": lambda p: patches.gather_patches(p.x, p.ids, p.small),
        "torch.gather": lambda p: torch.gather(p.x, 1, p.expanded, out=p.small),
        "index_select": lambda p: torch.index_select(
            p.x.view(-1, p.width), 0, p.flat, out=p.small.view(-1, p.width)
        ),
        "memcpy": lambda p: p.small.copy_(p.kept),
    }

    def check(p: Problem) -> float:
        return error(patches.gather_patches(p.x, p.ids), p.kept)

    compare(benchmark, "gather", shape, dtype, calls, check, 2 / KEPT)


@shapes
@types
def test_restore(benchmark: Any, shape: Any, dtype: str) -> None:
    def index_put(p: Problem) -> None:
        p.large.copy_(p.mask_token.expand_as(p.large))
        p.large.index_put_((p.samples, p.ids), p.kept)

    def cat_gather(p: Problem) -> Tensor:
        fill = p.mask_token.repeat(p.batch, p.tokens - p.keep, 1)
        ranks = p.ranks[..., None].expand(-1, -1, p.width)
        return torch.gather(torch.cat([p.kept, fill], 1), 1, ranks, out=p.large)

    calls: dict[str, Call] = {
        "tenfold": lambda p: patches.restore_patches(p.kept, p.ids, p.tokens, p.mask_token, p.large),
        "cat+gather": cat_gather,
        "copy+index_put": index_put,
        "memcpy": lambda p: p.large.copy_(p.x),
    }

    def check(p: Problem) -> float:
        want = reference.restore_patches(p.kept, p.ids, p.tokens, p.mask_token)
        return error(patches.restore_patches(p.kept, p.ids, p.tokens, p.mask_token), want)

    compare(benchmark, "restore", shape, dtype, calls, check, 1 + 1 / KEPT)


@shapes
@types
def test_gather_backward(benchmark: Any, shape: Any, dtype: str) -> None:
    def scatter(p: Problem) -> None:
        p.large.zero_().scatter_(1, p.expanded, p.kept)

    def index_copy(p: Problem) -> None:
        p.large.zero_().view(-1, p.width).index_copy_(0, p.flat, p.kept.view(-1, p.width))

    calls: dict[str, Call] = {
        "tenfold": lambda p: patches.restore_patches(p.kept, p.ids, p.tokens, None, p.large),
        "zero_+scatter_": scatter,
        "zero_+index_copy_": index_copy,
        "memcpy": lambda p: p.large.copy_(p.x),
    }

    def check(p: Problem) -> float:
        want = reference.restore_patches(p.kept, p.ids, p.tokens)
        return error(patches.restore_patches(p.kept, p.ids, p.tokens), want)

    compare(benchmark, "gather backward", shape, dtype, calls, check, 1 + 1 / KEPT)


@shapes
def test_ids(benchmark: Any, shape: Any) -> None:
    def mine(p: Problem) -> None:
        patches.random_keep_ids(p.batch, p.tokens, p.keep, 1, out=(p.ids, p.ranks))

    calls: dict[str, Call] = {
        "tenfold": mine,
        "argsort(rand)": lambda p: torch.rand(p.batch, p.tokens, device="cuda").argsort(1),
        "rand.topk": lambda p: torch.rand(p.batch, p.tokens, device="cuda").topk(p.keep, 1),
    }

    def check(p: Problem) -> float:
        want, _ = patches.random_keep_ids(p.batch, p.tokens, p.keep, 1)
        got, _ = patches.random_keep_ids(p.batch, p.tokens, p.keep, 1, like=p.x)
        return error(got.cpu(), torch.from_numpy(want))

    compare(benchmark, "ids", shape, "fp32", calls, check, 1.0)
