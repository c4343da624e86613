"""The attention family against what a user of torch would write instead.

Queries, keys and values are slices of one projection (self-attention) or two (cross-attention), as in a
transformer block, and the gradient is that of the projections. Errors are relative to the largest value of
the result (and of each gradient), against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from plain_dit import products, sdpa
from tenfold.ops.attention import attention_kvpacked, attention_qkvpacked
from tenfold.ops.reference import attention as reference

Compare = Callable[..., None]  # the fixture of conftest.py

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADS, WIDTH = 6, 64
SELF = [(64, 16), (16, 64), (16, 128), (16, 256), (2, 1024)]  # samples, tokens
CROSS = [(16, 64, 77), (16, 256, 77)]  # samples, queries, keys
TARGET_TOKENS = (64, 128, 256)

types = pytest.mark.parametrize("dtype", list(TYPES))
threads = pytest.mark.parametrize("threads", [1, 2])


def largest_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


class Problem:
    """Projections, a mask or none, and the attention in each form."""

    def __init__(self, samples: int, queries: int, keys: int, dtype: str, cross: bool, masked: bool) -> None:
        def leaf(*shape: int) -> Tensor:
            return torch.randn(samples, *shape).to(TYPES[dtype]).requires_grad_()

        self.leaves = (
            (leaf(queries, HEADS, WIDTH), leaf(keys, 2, HEADS, WIDTH))
            if cross
            else (leaf(queries, 3, HEADS, WIDTH),)
        )
        self.mask = torch.arange(keys) < torch.randint(1, keys + 1, (samples, 1)) if masked else None
        self.direction = torch.randn(samples, queries, HEADS, WIDTH).to(TYPES[dtype])
        kind = "cross" if cross else "self"
        shape = f"{samples}x{queries}x{keys}" if cross else f"{samples}x{queries}"
        self.row = {"shape": f"{kind} {shape}, {HEADS}x{WIDTH}{', mask' if masked else ''}", "dtype": dtype}

    def split(self, leaves: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        if len(leaves) == 1:
            return leaves[0].unbind(2)  # type: ignore[return-value]
        return leaves[0], *leaves[1].unbind(2)

    def tenfold(self) -> Tensor:
        if len(self.leaves) == 1:
            return attention_qkvpacked(self.leaves[0], key_mask=self.mask)
        return attention_kvpacked(*self.leaves, key_mask=self.mask)

    def calls(self, compiled: bool) -> dict[str, Callable[[], Tensor]]:
        mask = None if self.mask is None else self.mask[:, None, None, :]
        forms = {"SDPA": sdpa, "matmul-softmax-matmul": products}
        if compiled:
            forms["torch.compile"] = torch.compile(products, dynamic=False)
        others = {
            name: lambda form=form: form(*self.split(self.leaves), mask) for name, form in forms.items()
        }
        return {"tenfold": self.tenfold, **others}

    def exact(self) -> list[Tensor]:
        """The result and the gradients of the leaves, in float64."""
        wide = tuple(leaf.detach().double().requires_grad_() for leaf in self.leaves)
        out = reference.attention(*self.split(wide), self.mask)
        return [out.detach(), *torch.autograd.grad(out, wide, self.direction.double())]


CASES = [
    *((samples, tokens, tokens, False, False) for samples, tokens in SELF),
    *((*case, True, False) for case in CROSS),
    (*CROSS[0], True, True),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case[:3])))


@threads
@types
@cases
def test_forward(compare: Compare, case: tuple[Any, ...], dtype: str, threads: int) -> None:
    samples, queries, keys, cross, masked = case
    p = Problem(samples, queries, keys, dtype, cross, masked)
    want = p.exact()[0]
    with torch.no_grad():
        calls = p.calls(compiled=threads == 1)
        wrong = largest_error(p.tenfold(), want)
        compare(calls, threads, wrong, op="attention", regime="fresh", targets={}, **p.row)


@threads
@types
@cases
def test_forward_and_backward(compare: Compare, case: tuple[Any, ...], dtype: str, threads: int) -> None:
    samples, queries, keys, cross, masked = case
    p = Problem(samples, queries, keys, dtype, cross, masked)

    def with_backward(form: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(form(), p.leaves, p.direction)

    calls = {name: with_backward(form) for name, form in p.calls(compiled=threads == 1).items()}
    wrong = max(map(largest_error, calls["tenfold"](), p.exact()[1:]))
    targets = {}
    if threads == 1 and dtype == "bf16" and not cross and queries in TARGET_TOKENS:
        title = "attention forward and backward bf16, 64 to 256 tokens"
        targets = {"SDPA": (title, 2.0), "matmul-softmax-matmul": (title, 1.2)}
    compare(calls, threads, wrong, op="attention and backward", regime="fresh", targets=targets, **p.row)
