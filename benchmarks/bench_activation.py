"""The activation family against what a user of torch would write instead.

Shapes are the hidden rows of a diffusion transformer's MLP, and of one with a gate. "copy" copies as many
bytes as the op must read and write, once; with backward, as many as both passes must. The error is the
largest of the result and the gradient, each relative to its largest number, against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold.ops import activation
from tenfold.ops.reference import activation as reference

Compare = Callable[..., None]  # the fixture of conftest.py

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

threads = pytest.mark.parametrize("threads", [1, 2])
types = pytest.mark.parametrize("dtype", list(TYPES))
passes = pytest.mark.parametrize("backward", [False, True], ids=["forward", "with backward"])
kinds = pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "silu", "relu"])
forms = pytest.mark.parametrize("gated", [False, True], ids=["activate", "gated"])


class Problem:
    """One op on one shape, and the forms of it that are compared."""

    def __init__(self, gated: bool, kind: str, dtype: str, backward: bool) -> None:
        rows, width = (1024, 1024) if gated else (4096, 1536)
        self.kind, self.backward = kind, backward
        self.op = "gated_activation" if gated else "activate"
        x = torch.randn(rows, (2 if gated else 1) * width).to(TYPES[dtype])
        self.x = x.requires_grad_(backward)
        self.grad = torch.randn(rows, width).to(TYPES[dtype])
        shape = f"{rows}x{'2x' if gated else ''}{width}"
        name = f"{self.op} {kind}" + (" and backward" if backward else "")
        self.row = {"op": name, "shape": shape, "dtype": dtype, "regime": "fresh"}
        # x and the result; then the gradient of the result and x again, and the gradient of x.
        moved = self.x.numel() + self.grad.numel()
        if backward:
            moved += self.grad.numel() + 2 * self.x.numel()
        self.bytes = torch.zeros(moved // 2, dtype=x.dtype)

    def run(self, function: Callable[[Tensor, str], Tensor], x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        if not self.backward:
            return (function(x, self.kind),)
        out = function(x, self.kind)
        return out, *torch.autograd.grad(out, x, grad)

    def form(self, function: Callable[[Tensor, str], Tensor]) -> Callable[[], Any]:
        return lambda: self.run(function, self.x, self.grad)

    def error(self) -> float:
        gots = self.run(getattr(activation, self.op), self.x, self.grad)
        exact = self.x.detach().double().requires_grad_(self.backward)
        wants = self.run(getattr(reference, self.op), exact, self.grad.double())
        pairs = ((a.detach().double(), b.detach()) for a, b in zip(gots, wants, strict=True))
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@threads
@types
@passes
@kinds
@forms
def test_activation(
    compare: Compare, gated: bool, kind: str, backward: bool, dtype: str, threads: int
) -> None:
    p = Problem(gated, kind, dtype, backward)
    plain = getattr(reference, p.op)
    calls: dict[str, Callable[[], Any]] = {
        "tenfold": p.form(getattr(activation, p.op)),
        "torch": p.form(plain),
        "copy": p.bytes.clone,
    }
    if threads == 1:
        calls["torch.compile"] = p.form(torch.compile(plain, dynamic=False))
    compare(calls, threads, p.error(), targets={}, **p.row)
