"""The adaln family against what a user of torch would write instead.

Shapes are those of diffusion transformers on 256 and 64 tokens, and on the few that masking leaves. "mixed"
is what autocast makes of a block: rows x in float32; branch, modulation and h in bfloat16. memcpy copies as
many bytes as the op must read and write, once; with backward, as many as both passes must. The error is the
largest of all results and gradients, each relative to its largest number, against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.ops import adaln
from tenfold.ops.reference import adaln as reference

Compare = Callable[..., None]  # the fixture of conftest.py
Form = Callable[..., tuple[Tensor, ...]]

SHAPES = [(16, 256, 384), (16, 64, 384), (64, 16, 384), (16, 256, 1024)]
EPS = 1e-6

threads = pytest.mark.parametrize("threads", [1, 2])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
types = pytest.mark.parametrize("types", ["fp32", "mixed"])
passes = pytest.mark.parametrize("backward", [False, True], ids=["forward", "with backward"])


class Problem:
    """One op on one shape: leaves, and the forms of it that are compared."""

    def __init__(self, op: str, shape: tuple[int, int, int], types: str) -> None:
        samples, _, width = shape
        self.op, self.width = op, width
        self.low = torch.float32 if types == "fp32" else torch.bfloat16
        self.x = torch.randn(shape).to(torch.bfloat16 if types == "bf16" else torch.float32)
        self.branch = torch.randn(shape).to(self.low)
        self.mod = torch.randn(samples, 6 * width).to(self.low)
        self.qkv = torch.randn(*shape[:2], 3 * width).to(self.low)
        self.leaves: tuple[Tensor, ...] = {
            "adaln": (self.x, self.mod),
            "gated_residual": (self.x, self.branch, self.mod),
            "gated_residual_adaln": (self.x, self.branch, self.mod),
            "qk_norm": (self.qkv,),
        }[op]
        self.row = {"op": op, "shape": "x".join(map(str, shape)), "dtype": types}

    def tenfold(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        return self.through(adaln, leaves, self.low)

    def exact(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        return self.through(reference, leaves, None)

    def through(self, library: Any, leaves: tuple[Tensor, ...], dtype: Any) -> tuple[Tensor, ...]:
        if self.op == "qk_norm":
            q, k, _ = leaves[0].chunk(3, dim=-1)
            return library.qk_norm(q, k, EPS)  # type: ignore[no-any-return]
        gate, shift, scale, *_ = leaves[-1].chunk(6, dim=1)
        if self.op == "adaln":
            return (library.adaln(leaves[0], shift, scale, eps=EPS, dtype=dtype),)
        if self.op == "gated_residual":
            return (library.gated_residual(*leaves[:2], gate),)
        return library.gated_residual_adaln(*leaves[:2], gate, shift, scale, eps=EPS, dtype=dtype)  # type: ignore[no-any-return]

    def plain(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        """As published code has it."""
        if self.op == "qk_norm":
            q, k, _ = leaves[0].chunk(3, dim=-1)
            return F.layer_norm(q, (self.width,), eps=EPS), F.layer_norm(k, (self.width,), eps=EPS)
        gate, shift, scale, *_ = leaves[-1][:, None].chunk(6, dim=-1)
        x = leaves[0]
        results: tuple[Tensor, ...] = ()
        if self.op != "adaln":
            branch = leaves[1]
            # addcmul takes one type only.
            x = torch.addcmul(x, gate, branch) if x.dtype == branch.dtype else x + gate * branch
            results = (x,)
        if self.op != "gated_residual":
            h = F.layer_norm(x, (self.width,), eps=EPS).to(self.low)
            results += (torch.addcmul(shift, h, scale + 1),)
        return results

    def least_bytes(self, backward: bool) -> int:
        """What must be read and written once, by the forward pass and by the backward pass after it."""
        x, low = self.x.nbytes, self.branch.nbytes
        if self.op == "qk_norm":  # backward: gradient and result in, gradient out
            return 4 * low + (6 * low if backward else 0)
        if self.op == "adaln":  # backward: x and h's gradient in, x's out
            return x + low + (2 * x + low if backward else 0)
        if self.op == "gated_residual":  # backward: branch and the gradient in, branch's out
            return 2 * x + low + (x + 2 * low if backward else 0)
        return 2 * x + 2 * low + (3 * x + 3 * low if backward else 0)

    def error(self, backward: bool) -> float:
        """Of tenfold's results, and gradients."""
        runs = []
        upstream: list[Tensor] = []
        for form, kind in ((self.tenfold, None), (self.exact, torch.float64)):
            leaves = [leaf.detach().to(kind or leaf.dtype).requires_grad_() for leaf in self.leaves]
            results = form(*leaves)
            upstream = upstream or [torch.randn_like(result) for result in results]
            grads = [g.to(result.dtype) for g, result in zip(upstream, results, strict=True)]
            runs.append([*results, *(torch.autograd.grad(results, leaves, grads) if backward else ())])
        return max(
            float((got.detach().double() - want).abs().max() / want.abs().max())
            for got, want in zip(*runs, strict=True)
        )


def forward_of(form: Form, leaves: tuple[Tensor, ...]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return form(*leaves)

    return run


def backward_of(form: Form, leaves: list[Tensor], upstream: list[Tensor]) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(form(*leaves), leaves, upstream)


def race(compare: Compare, problem: Problem, threads: int, backward: bool) -> None:
    forms: dict[str, Form] = {"tenfold": problem.tenfold, "eager": problem.plain}
    if threads == 1:
        forms["torch.compile"] = torch.compile(problem.plain, dynamic=False)
    copied = torch.empty(problem.least_bytes(backward) // 2, dtype=torch.uint8)
    calls: dict[str, Callable[[], Any]] = {}
    if backward:
        leaves = [leaf.detach().requires_grad_() for leaf in problem.leaves]
        upstream = [torch.randn_like(result) for result in problem.plain(*leaves)]
        calls = {name: backward_of(form, leaves, upstream) for name, form in forms.items()}
    else:
        calls = {name: forward_of(form, problem.leaves) for name, form in forms.items()}
    calls["memcpy"] = copied.clone
    row = problem.row | {"op": problem.row["op"] + (" and backward" if backward else "")}
    compare(calls, threads, problem.error(backward), regime="fresh", targets={}, **row)


@threads
@passes
@types
@shapes
@pytest.mark.parametrize("op", ["adaln", "gated_residual", "gated_residual_adaln", "qk_norm"])
def test_adaln(
    compare: Compare, op: str, shape: tuple[int, int, int], types: str, backward: bool, threads: int
) -> None:
    race(compare, Problem(op, shape, types), threads, backward)
