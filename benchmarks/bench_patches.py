"""The patches family against what a user of torch would write instead.

"fresh" rows allocate their result, tenfold's and everyone's; "reused" rows write into a kept buffer, tenfold
and everyone else. Indices that an alternative needs (expanded, flat) are made beforehand and not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold.ops import patches
from tenfold.ops.reference import patches as reference

Compare = Callable[..., None]  # the fixture of conftest.py

# (batch, tokens, width): the three shapes of the targets; a quarter of the tokens is kept.
SHAPES = [(64, 256, 1024), (16, 1024, 1152), (256, 64, 384)]
KEPT = 4
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CACHE_LIMIT = 32 << 20  # the target for restore holds below: glibc maps larger results anew at every call

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
types = pytest.mark.parametrize("dtype", list(TYPES))
threads = pytest.mark.parametrize("threads", [1, 2])


class Problem:
    """Arrays of one shape and type, and the indices that each alternative wants."""

    def __init__(self, shape: tuple[int, int, int], dtype: str) -> None:
        self.batch, self.tokens, self.width = shape
        self.keep = self.tokens // KEPT
        self.dtype = TYPES[dtype]
        self.row = {"shape": "x".join(map(str, shape)), "dtype": dtype}
        self.x = torch.randn(*shape).to(self.dtype)
        self.ids, self.ranks = patches.random_keep_ids(self.batch, self.tokens, self.keep, 1, like=self.x)
        self.expanded = self.ids[..., None].expand(-1, -1, self.width)
        self.samples = torch.arange(self.batch)[:, None]
        self.flat = (self.ids + self.samples * self.tokens).flatten()
        self.kept = reference.gather_patches(self.x, self.ids)
        self.mask_token = torch.randn(self.width).to(self.dtype)

    def flatten(self, x: Tensor) -> Tensor:
        return x.view(-1, self.width)

    def bytes(self, x: Tensor) -> int:
        return x.numel() * x.element_size()


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).abs().max()) if got.numel() else 0.0


def only_one_thread(threads: int, targets: dict[str, Any]) -> dict[str, Any]:
    return targets if threads == 1 else {}


@shapes
@types
@threads
def test_gather_fresh(compare: Compare, shape: Any, dtype: str, threads: int) -> None:
    p = Problem(shape, dtype)
    plain = torch.compile(
        lambda x, ids: torch.gather(x, 1, ids[..., None].expand(-1, -1, p.width)), dynamic=False
    )
    calls: dict[str, Callable[[], Any]] = {
        "tenfold": lambda: patches.gather_patches(p.x, p.ids),
        "torch.gather": lambda: torch.gather(p.x, 1, p.expanded),
        "MAE repeat": lambda: torch.gather(p.x, 1, p.ids[..., None].repeat(1, 1, p.width)),
        "x[samples, ids]": lambda: p.x[p.samples, p.ids],
        "index_select": lambda: p.flatten(p.x).index_select(0, p.flat),
        "memcpy": lambda: p.kept.clone(),
    }
    if threads == 1:
        calls["torch.compile"] = lambda: plain(p.x, p.ids)
    speed = 11.0 if dtype == "fp32" else 30.0
    targets = {
        "torch.gather": (f"gather {dtype}", speed),
        "index_select": (f"gather {dtype}", 1.1),
        "memcpy": (f"gather {dtype}", -1.3),
    }
    wrong = error(patches.gather_patches(p.x, p.ids), p.kept)
    compare(
        calls, threads, wrong, op="gather", regime="fresh", targets=only_one_thread(threads, targets), **p.row
    )


@shapes
@types
@threads
def test_gather_reused(compare: Compare, shape: Any, dtype: str, threads: int) -> None:
    p = Problem(shape, dtype)
    out = torch.empty_like(p.kept)
    calls = {
        "tenfold": lambda: patches.gather_patches(p.x, p.ids, out=out),
        "torch.gather": lambda: torch.gather(p.x, 1, p.expanded, out=out),
        "index_select": lambda: torch.index_select(p.flatten(p.x), 0, p.flat, out=p.flatten(out)),
        "memcpy": lambda: out.copy_(p.kept),
    }
    speed = 11.0 if dtype == "fp32" else 30.0
    targets = {
        "torch.gather": (f"gather {dtype} reused", speed),
        "index_select": (f"gather {dtype} reused", 1.1),
        "memcpy": (f"gather {dtype} reused", -1.3),
    }
    wrong = error(patches.gather_patches(p.x, p.ids, out=out), p.kept)
    compare(
        calls,
        threads,
        wrong,
        op="gather",
        regime="reused",
        targets=only_one_thread(threads, targets),
        **p.row,
    )


def cat_gather(p: Problem) -> Tensor:
    """MAE's decoder: append mask tokens, gather by restore_ids."""
    fill = p.mask_token.repeat(p.batch, p.tokens - p.keep, 1)
    return torch.gather(torch.cat([p.kept, fill], 1), 1, p.ranks[..., None].expand(-1, -1, p.width))


@shapes
@types
@threads
def test_restore_fresh(compare: Compare, shape: Any, dtype: str, threads: int) -> None:
    p = Problem(shape, dtype)
    calls = {
        "tenfold": lambda: patches.restore_patches(p.kept, p.ids, p.tokens, p.mask_token),
        "cat+gather": lambda: cat_gather(p),
        "clone+index_put": lambda: (
            p.mask_token.expand(p.x.shape).clone().index_put_((p.samples, p.ids), p.kept)
        ),
        "memcpy": lambda: p.x.clone(),
    }
    targets = {"cat+gather": (f"restore {dtype}", 10.0)}
    if p.bytes(p.x) < CACHE_LIMIT:
        targets["clone+index_put"] = ("restore below 32 MiB", 1.3)
    wrong = error(
        patches.restore_patches(p.kept, p.ids, p.tokens, p.mask_token),
        reference.restore_patches(p.kept, p.ids, p.tokens, p.mask_token),
    )
    compare(
        calls,
        threads,
        wrong,
        op="restore",
        regime="fresh",
        targets=only_one_thread(threads, targets),
        **p.row,
    )


@shapes
@types
@threads
def test_restore_reused(compare: Compare, shape: Any, dtype: str, threads: int) -> None:
    p = Problem(shape, dtype)
    out = torch.empty_like(p.x)
    padded = torch.empty(p.batch, p.tokens, p.width, dtype=p.dtype)
    ranks = p.ranks[..., None].expand(-1, -1, p.width)

    def cat_gather_reused() -> None:
        padded[:, : p.keep] = p.kept
        padded[:, p.keep :] = p.mask_token
        torch.gather(padded, 1, ranks, out=out)

    calls = {
        "tenfold": lambda: patches.restore_patches(p.kept, p.ids, p.tokens, p.mask_token, out=out),
        "cat+gather": cat_gather_reused,
        "clone+index_put": lambda: out.copy_(p.mask_token.expand_as(out)).index_put_(
            (p.samples, p.ids), p.kept
        ),
        "copy+index_copy": lambda: p.flatten(out.copy_(p.mask_token.expand_as(out))).index_copy_(
            0, p.flat, p.flatten(p.kept)
        ),
        "memcpy": lambda: out.copy_(p.x),
    }
    targets = {"cat+gather": (f"restore {dtype} reused", 10.0)}
    if p.bytes(p.x) < CACHE_LIMIT:
        targets["clone+index_put"] = ("restore below 32 MiB reused", 1.3)
    wrong = error(
        patches.restore_patches(p.kept, p.ids, p.tokens, p.mask_token, out=out),
        reference.restore_patches(p.kept, p.ids, p.tokens, p.mask_token),
    )
    compare(
        calls,
        threads,
        wrong,
        op="restore",
        regime="reused",
        targets=only_one_thread(threads, targets),
        **p.row,
    )


@shapes
@types
@threads
def test_gather_backward_fresh(compare: Compare, shape: Any, dtype: str, threads: int) -> None:
    p = Problem(shape, dtype)
    calls = {
        "tenfold": lambda: patches.restore_patches(p.kept, p.ids, p.tokens),
        "scatter_add_": lambda: torch.zeros_like(p.x).scatter_add_(1, p.expanded, p.kept),
        "index_add_": lambda: p.flatten(torch.zeros_like(p.x)).index_add_(0, p.flat, p.flatten(p.kept)),
        "zeros+index_copy_": lambda: p.flatten(torch.zeros_like(p.x)).index_copy_(
            0, p.flat, p.flatten(p.kept)
        ),
        "memcpy": lambda: p.x.clone(),
    }
    wrong = error(
        patches.restore_patches(p.kept, p.ids, p.tokens), reference.restore_patches(p.kept, p.ids, p.tokens)
    )
    compare(calls, threads, wrong, op="gather backward", regime="fresh", targets={}, **p.row)


@shapes
@types
@threads
def test_gather_backward_reused(compare: Compare, shape: Any, dtype: str, threads: int) -> None:
    p = Problem(shape, dtype)
    out = torch.empty_like(p.x)
    calls = {
        "tenfold": lambda: patches.restore_patches(p.kept, p.ids, p.tokens, out=out),
        "scatter_add_": lambda: out.zero_().scatter_add_(1, p.expanded, p.kept),
        "zero_+index_copy_": lambda: p.flatten(out.zero_()).index_copy_(0, p.flat, p.flatten(p.kept)),
        "memcpy": lambda: out.copy_(p.x),
    }
    targets = {"zero_+index_copy_": (f"backward {dtype} reused", 2.0)}
    wrong = error(
        patches.restore_patches(p.kept, p.ids, p.tokens, out=out),
        reference.restore_patches(p.kept, p.ids, p.tokens),
    )
    compare(
        calls,
        threads,
        wrong,
        op="gather backward",
        regime="reused",
        targets=only_one_thread(threads, targets),
        **p.row,
    )


@shapes
@types
@threads
def test_mask_token_gradient(compare: Compare, shape: Any, dtype: str, threads: int) -> None:
    p = Problem(shape, dtype)
    dropped = p.ranks >= p.keep
    weight = dropped.to(p.dtype).flatten()
    dropped_sum = torch.ops.tenfold.dropped_sum.default
    calls = {
        "tenfold": lambda: dropped_sum(p.x, p.ids),
        "x[dropped].sum": lambda: p.x[dropped].sum(0),
        "weight @ x": lambda: weight @ p.flatten(p.x),
    }
    want = reference.dropped_sum(p.x, p.ids)
    wrong = error(dropped_sum(p.x, p.ids), want) / float(want.abs().max())
    compare(calls, threads, wrong, op="mask token gradient", regime="fresh", targets={}, **p.row)


@shapes
@types
def test_gather_from_a_convolution(compare: Compare, shape: Any, dtype: str) -> None:
    """Rows of a (B, D, N) array: patch embeddings before anybody made them contiguous."""
    p = Problem(shape, dtype)
    x = p.x.transpose(1, 2).contiguous().transpose(1, 2)
    calls = {
        "tenfold": lambda: patches.gather_patches(x, p.ids),
        "torch.gather": lambda: torch.gather(x, 1, p.expanded),
        "contiguous+index_select": lambda: p.flatten(x.contiguous()).index_select(0, p.flat),
    }
    wrong = error(patches.gather_patches(x, p.ids), p.kept)
    compare(calls, 1, wrong, op="gather, strided rows", regime="fresh", targets={}, **p.row)


@shapes
@threads
def test_random_ids(compare: Compare, shape: tuple[int, int, int], threads: int) -> None:
    batch, tokens, _ = shape
    keep = tokens // KEPT
    like = torch.empty(0)
    calls = {
        "tenfold": lambda: patches.random_keep_ids(batch, tokens, keep, 1, like=like),
        "argsort(rand)": lambda: torch.rand(batch, tokens).argsort(dim=1),
        "MAE two argsorts": lambda: torch.rand(batch, tokens).argsort(dim=1).argsort(dim=1),
        "rand.topk": lambda: torch.rand(batch, tokens).topk(keep, dim=1),
        "multinomial": lambda: torch.ones(batch, tokens).multinomial(keep),
    }
    got, _ = patches.random_keep_ids(batch, tokens, keep, 1, like=like)
    want, _ = reference.philox_keep_ids(batch, tokens, keep, 1)
    targets = {"argsort(rand)": ("ids", 25.0)}
    row = {"shape": f"{batch}x{tokens}", "dtype": "int64"}
    compare(
        calls,
        threads,
        error(got, want),
        op="ids",
        regime="fresh",
        targets=only_one_thread(threads, targets),
        **row,
    )


TINY = (2, 4, 2)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_overhead_with_out(compare: Compare, kind: str) -> None:
    x, ids, out = torch.randn(TINY), torch.tensor([[1, 2], [0, 3]]), torch.empty(2, 2, 2)
    flat, index, rows = torch.randn(8, 2), torch.tensor([1, 2, 4, 7]), torch.empty(4, 2)
    calls: dict[str, Callable[[], Any]]
    if kind == "numpy":
        arrays = x.numpy(), ids.numpy(), out.numpy()
        table, places, taken = flat.numpy(), index.numpy(), rows.numpy()
        calls = {
            "tenfold": partial(patches.gather_patches, *arrays),
            "take(out=)": partial(table.take, places, 0, taken, "clip"),
        }
    else:
        calls = {
            "tenfold": partial(patches.gather_patches, x, ids, out),
            "index_select(out=)": partial(torch.index_select, flat, 0, index, out=rows),
            "neg(out=)": partial(torch.neg, flat, out=flat),
        }
    targets = {"seconds": ("call with out=", 0.5e-6)}
    compare(calls, op=f"call overhead, {kind}", regime="out=", shape="2x4x2", dtype="fp32", targets=targets)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_overhead_with_allocation(compare: Compare, kind: str) -> None:
    x, ids = torch.randn(TINY), torch.tensor([[1, 2], [0, 3]])
    flat, index = torch.randn(8, 2), torch.tensor([1, 2, 4, 7])
    calls: dict[str, Callable[[], Any]]
    if kind == "numpy":
        arrays = x.numpy(), ids.numpy()
        table, places = flat.numpy(), index.numpy()
        calls = {"tenfold": partial(patches.gather_patches, *arrays), "take": partial(table.take, places, 0)}
    else:
        calls = {
            "tenfold": partial(patches.gather_patches, x, ids),
            "index_select": partial(torch.index_select, flat, 0, index),
            "torch.empty": partial(torch.empty, 2, 2, 2),
        }
    targets = {"seconds": ("call with allocation", 1e-6)}
    compare(calls, op=f"call overhead, {kind}", regime="fresh", shape="2x4x2", dtype="fp32", targets=targets)


def test_overhead_with_gradient(compare: Compare) -> None:
    x, ids = torch.randn(TINY, requires_grad=True), torch.tensor([[1, 2], [0, 3]])
    flat, index = torch.randn(8, 2, requires_grad=True), torch.tensor([1, 2, 4, 7])
    calls = {
        "tenfold": partial(patches.gather_patches, x, ids),
        "index_select": partial(torch.index_select, flat, 0, index),
    }
    targets = {"seconds": ("forward with requires_grad", 8e-6)}
    compare(
        calls, op="call overhead, torch", regime="requires_grad", shape="2x4x2", dtype="fp32", targets=targets
    )
