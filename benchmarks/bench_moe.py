"""The moe family against what a user of torch would write instead.

The layer is the one of the targets: 16 samples of 256 tokens, 8 experts, two experts' worth of rows per token
(top-2, or expert choice with capacity 2), hidden layers four times as wide. Products count for the experts'
peak; the error of a layer is relative to its largest value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.ops import moe
from tenfold.ops.reference import moe as reference

Compare = Callable[..., None]  # the fixture of conftest.py

BATCH, TOKENS, EXPERTS, CAPACITY = 16, 256, 8, 64
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MANY_EXPERTS = 64

types = pytest.mark.parametrize("dtype", list(TYPES))
threads = pytest.mark.parametrize("threads", [1, 2])


def targets_of(threads: int, **targets: tuple[str, float]) -> dict[str, Any]:
    return {name.replace("_", " "): target for name, target in targets.items()} if threads == 1 else {}


def largest_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


# ---- routing ----


@threads
@pytest.mark.parametrize("experts", [EXPERTS, MANY_EXPERTS])
def test_route_topk(compare: Compare, experts: int, threads: int) -> None:
    logits = torch.randn(BATCH * TOKENS, experts)

    def plain(logits: Tensor) -> tuple[Tensor, ...]:
        """As Hugging Face's grouped experts: softmax, topk, sort, counts, inverse permutation."""
        gates, ids = logits.softmax(dim=-1).topk(2)
        order = ids.flatten().argsort(stable=True)
        ends = F.one_hot(ids.flatten(), experts).sum(dim=0).cumsum(0).int()
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        return gates.flatten()[order], order // 2, ends, inverse

    def with_bincount() -> tuple[Tensor, ...]:
        gates, ids = logits.softmax(dim=-1).topk(2)
        order = ids.flatten().argsort(stable=True)
        return gates, order, torch.bincount(ids.flatten(), minlength=experts).cumsum(0)

    calls: dict[str, Callable[[], Any]] = {
        "tenfold": lambda: moe.route_topk(logits, 2),
        "torch": with_bincount,
        "torch, inverse too": lambda: plain(logits),
    }
    if threads == 1:
        compiled = torch.compile(plain, dynamic=False)
        calls["torch.compile"] = lambda: compiled(logits)
    wrong = largest_error(moe.route_topk(logits, 2).gates, reference.route_topk(logits, 2).gates)
    targets = targets_of(threads, torch=("route top-k", 4.0)) if experts == EXPERTS else {}
    shape = f"{BATCH * TOKENS}x{experts}, k 2"
    compare(
        calls, threads, wrong, op="route_topk", shape=shape, dtype="fp32", regime="fresh", targets=targets
    )


@threads
@pytest.mark.parametrize("experts", [EXPERTS, MANY_EXPERTS])
def test_route_expert_choice(compare: Compare, experts: int, threads: int) -> None:
    logits = torch.randn(BATCH, TOKENS, experts)
    taken = BATCH * TOKENS * 2 // experts // BATCH

    def plain(logits: Tensor) -> tuple[Tensor, ...]:
        gates, ids = logits.softmax(dim=-1).transpose(1, 2).topk(taken)
        return gates, ids

    def everything(logits: Tensor) -> tuple[Tensor, ...]:
        """With the inverse map of every token, which combine needs."""
        gates, ids = plain(logits)
        flat = (ids + torch.arange(BATCH)[:, None, None] * TOKENS).transpose(0, 1).flatten()
        starts = torch.bincount(flat, minlength=BATCH * TOKENS).cumsum(0)
        return gates, flat, starts, flat.argsort(stable=True)

    calls: dict[str, Callable[[], Any]] = {
        "tenfold": lambda: moe.route_expert_choice(logits, taken),
        "softmax+topk": lambda: plain(logits),
        "torch, inverse too": lambda: everything(logits),
    }
    if threads == 1:
        compiled = torch.compile(plain, dynamic=False)
        calls["torch.compile"] = lambda: compiled(logits)
    got = moe.route_expert_choice(logits, taken).gates
    wrong = largest_error(got, reference.route_expert_choice(logits, taken).gates)
    targets = {}
    if threads == 1 and experts == EXPERTS:
        targets = {"softmax+topk": ("route expert choice", 3.0)}
    shape = f"{BATCH}x{TOKENS}x{experts}, capacity {taken}"
    compare(
        calls,
        threads,
        wrong,
        op="route_expert_choice",
        shape=shape,
        dtype="fp32",
        regime="fresh",
        targets=targets,
    )


# ---- rows there and back ----


class Rows:
    """Tokens, a top-2 routing and rows of one width and type."""

    def __init__(self, width: int, dtype: str) -> None:
        self.dtype = TYPES[dtype]
        self.routing = moe.route_topk(torch.randn(BATCH * TOKENS, EXPERTS), 2)
        self.ids = self.routing.token_ids.long()
        self.x = torch.randn(BATCH * TOKENS, width).to(self.dtype)
        self.y = torch.randn(len(self.ids), width).to(self.dtype)
        self.gates = self.routing.gates.to(self.dtype)[:, None]
        self.inverse = self.ids.argsort(stable=True)
        self.row = {"shape": f"{BATCH * TOKENS}x{width}, {len(self.ids)} rows", "dtype": dtype}


@threads
@types
@pytest.mark.parametrize("width", [384, 1024])
def test_dispatch(compare: Compare, width: int, dtype: str, threads: int) -> None:
    p = Rows(width, dtype)
    calls = {
        "tenfold": lambda: moe.dispatch(p.x, p.routing),
        "index_select": lambda: p.x.index_select(0, p.ids),
        "x[ids]": lambda: p.x[p.ids],
        "memcpy": lambda: p.y.clone(),
    }
    wrong = largest_error(moe.dispatch(p.x, p.routing), p.x[p.ids])
    compare(calls, threads, wrong, op="dispatch", regime="fresh", targets={}, **p.row)


@threads
@types
@pytest.mark.parametrize("width", [384, 1024])
def test_combine(compare: Compare, width: int, dtype: str, threads: int) -> None:
    p = Rows(width, dtype)

    def deterministic(y: Tensor) -> Tensor:
        """As Hugging Face's: rows back in the order of the tokens, then a sum over the two."""
        return (y * p.gates)[p.inverse].view(-1, 2, width).sum(dim=1)

    calls: dict[str, Callable[[], Any]] = {
        "tenfold": lambda: moe.combine(p.y, p.routing),
        "index_add_": lambda: torch.zeros_like(p.x).index_add_(0, p.ids, p.y * p.gates),
        "inverse+sum": lambda: deterministic(p.y),
        "memcpy": lambda: p.y.clone(),
    }
    if threads == 1:
        compiled = torch.compile(deterministic, dynamic=False)
        calls["torch.compile"] = lambda: compiled(p.y)
    targets = {}
    if threads == 1 and dtype == "fp32":
        targets = {"index_add_": ("combine", 4.5), "inverse+sum": ("combine", 15.0)}
    want = reference.combine(p.y.double(), p.routing)
    wrong = largest_error(moe.combine(p.y, p.routing), want)
    compare(calls, threads, wrong, op="combine", regime="fresh", targets=targets, **p.row)


# ---- the whole layer ----


class Layer:
    """Expert choice with capacity 2 and experts of one hidden layer, in the forms that people write."""

    def __init__(self, width: int, dtype: str, gradient: bool) -> None:
        self.width, self.dtype = width, TYPES[dtype]
        self.routing = moe.route_expert_choice(torch.randn(BATCH, TOKENS, EXPERTS), CAPACITY)
        self.ids = self.routing.token_ids.long()
        self.ends = self.routing.offsets.tolist()
        hidden = 4 * width
        self.x, self.w_in, self.w_out = (
            (torch.randn(*shape) * scale).to(self.dtype).requires_grad_(gradient)
            for shape, scale in (
                ((BATCH * TOKENS, width), 1.0),
                ((EXPERTS, width, hidden), width**-0.5),
                ((EXPERTS, hidden, width), hidden**-0.5),
            )
        )
        self.gates = self.routing.gates.to(self.dtype)[:, None]
        self.leaves = (self.x, self.w_in, self.w_out)
        self.flops = 4 * len(self.ids) * width * hidden
        self.row = {"shape": f"{BATCH * TOKENS}x{width}, {EXPERTS} experts", "dtype": dtype}
        # One-hot (E, C, B N): the dispatch tensor of the original implementations.
        rows = torch.arange(len(self.ids))
        one_hot = torch.zeros(len(self.ids), BATCH * TOKENS, dtype=self.dtype)
        one_hot[rows, self.ids] = 1
        self.one_hot = one_hot.view(EXPERTS, BATCH, CAPACITY, BATCH, TOKENS)
        self.one_hot = torch.stack([self.one_hot[:, b, :, b] for b in range(BATCH)], dim=1)

    def tenfold(self) -> Tensor:
        return moe.expert_ffn(self.x, self.routing, self.w_in, self.w_out)

    def loop(self) -> Tensor:
        """An expert at a time."""
        parts, begin = [], 0
        for expert, end in enumerate(self.ends):
            hidden = F.gelu(self.x[self.ids[begin:end]] @ self.w_in[expert])
            parts.append(hidden @ self.w_out[expert])
            begin = end
        return torch.zeros_like(self.x).index_add(0, self.ids, torch.cat(parts) * self.gates)

    def indices(self) -> Tensor:
        """All experts in one batched product: every expert has as many rows."""
        rows = self.x[self.ids].view(EXPERTS, -1, self.width)
        done = torch.bmm(F.gelu(torch.bmm(rows, self.w_in)), self.w_out)
        return torch.zeros_like(self.x).index_add(0, self.ids, done.flatten(0, 1) * self.gates)

    def one_hots(self) -> Tensor:
        """Dispatch and combine as products with one-hot tensors."""
        x = self.x.view(BATCH, TOKENS, self.width)
        rows = torch.einsum("ebcn,bnd->ebcd", self.one_hot, x).flatten(1, 2)
        done = torch.bmm(F.gelu(torch.bmm(rows, self.w_in)), self.w_out)
        done = done.view(EXPERTS, BATCH, CAPACITY, self.width)
        weighted = self.one_hot * self.gates.view(EXPERTS, BATCH, CAPACITY, 1)
        return torch.einsum("ebcn,ebcd->bnd", weighted, done).flatten(0, 1)

    def products_alone(self) -> Tensor:
        """The two products on rows that lie ready, and nothing else."""
        rows = self.x[: len(self.ids) // EXPERTS]
        return torch.stack([(rows @ self.w_in[e]) @ self.w_out[e] for e in range(EXPERTS)])

    def calls(self) -> dict[str, Callable[[], Tensor]]:
        return {
            "tenfold": self.tenfold,
            "expert loop": self.loop,
            "index+bmm": self.indices,
            "one-hot": self.one_hots,
        }


def layer_targets(threads: int, dtype: str) -> dict[str, Any]:
    if threads != 1:
        return {}
    speeds = (2.0, 2.5, 2.8) if dtype == "fp32" else (1.1, 1.4, 1.8)
    names = ("expert loop", "index+bmm", "one-hot")
    return {name: (f"expert layer {dtype}", speed) for name, speed in zip(names, speeds, strict=True)}


@threads
@types
def test_expert_layer(compare: Compare, dtype: str, threads: int) -> None:
    p = Layer(384, dtype, gradient=False)
    calls: dict[str, Callable[[], Any]] = {**p.calls(), "products alone": p.products_alone}
    if threads == 1:
        compiled = torch.compile(p.indices, dynamic=False)
        calls["torch.compile"] = compiled
    want = reference.expert_ffn(p.x.double(), p.routing, p.w_in.double(), p.w_out.double())
    wrong = largest_error(p.tenfold(), want)
    targets = layer_targets(threads, dtype)
    compare(calls, threads, wrong, op="expert_ffn", regime="fresh", targets=targets, **p.row)


@threads
@types
def test_expert_layer_with_backward(compare: Compare, dtype: str, threads: int) -> None:
    p = Layer(384, dtype, gradient=True)
    direction = torch.randn(BATCH * TOKENS, p.width).to(p.dtype)

    def with_backward(form: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(form(), p.leaves, direction)

    calls = {name: with_backward(form) for name, form in p.calls().items()}
    exact = [leaf.detach().double().requires_grad_() for leaf in p.leaves]
    out = reference.expert_ffn(exact[0], p.routing, *exact[1:])
    wants = torch.autograd.grad(out, exact, direction.double())
    gots = calls["tenfold"]()
    wrong = max(largest_error(got, want) for got, want in zip(gots, wants, strict=True))
    targets = {}
    if threads == 1 and dtype == "fp32":
        targets = dict.fromkeys(("expert loop", "index+bmm"), ("expert layer forward and backward fp32", 1.8))
    compare(calls, threads, wrong, op="expert_ffn and backward", regime="fresh", targets=targets, **p.row)
