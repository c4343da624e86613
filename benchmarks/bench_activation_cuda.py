"""The activation family on a GPU, against torch on that GPU: `tenfold bench activation --device cuda`.

Shapes are the hidden rows of a diffusion transformer's MLP, and of one with a gate; on_gpu.py says how they
are timed. "torch" is F.gelu(x), and F.silu(a) * b. "copy_" copies as many bytes as the op must read and
write, once; with backward, as many as both passes must. The error is the largest of the result and the
gradient, each relative to its largest number, against float64.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

import on_gpu
from on_gpu import TYPES, passes, types
from tenfold.ops import activation
from tenfold.ops.reference import activation as reference

SHAPES = [(4096, 4096), (16384, 4608)]  # rows of 16 samples of 256 tokens, and 1024; widths 1024 and 1152
COMPILED = (SHAPES[0], "bf16")

pytestmark = on_gpu.needs_gpu
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
cases = pytest.mark.parametrize("case", [("activate", "gelu"), ("gated_activation", "silu")], ids=" ".join)


@passes
@types
@shapes
@cases
def test_activation(
    benchmark: Any, case: tuple[str, str], shape: tuple[int, int], dtype: str, backward: bool
) -> None:
    op, kind = case
    rows, width = shape
    halves = 2 if op == "gated_activation" else 1

    def tenfold(x: Tensor) -> Tensor:
        return getattr(activation, op)(x, kind)  # type: ignore[no-any-return]

    def plain(x: Tensor) -> Tensor:
        return getattr(reference, op)(x, kind)  # type: ignore[no-any-return]

    def make(_: int) -> on_gpu.Problem:
        x = on_gpu.randn(rows, halves * width, dtype=dtype)
        return on_gpu.problem_of(tenfold, (x,), backward=backward)

    # x and the result; then the gradient of the result and x again, and the gradient of x.
    elements = rows * width * (halves + 1 + (1 + 2 * halves if backward else 0))
    moved = elements * TYPES[dtype].itemsize
    on_gpu.compare(
        benchmark,
        make,
        {"tenfold": on_gpu.calling(tenfold, backward), "torch": on_gpu.calling(plain, backward)},
        on_gpu.against(tenfold, plain, backward),
        on_gpu.sets_for(moved),
        optional=on_gpu.compiled(plain, backward) if (shape, dtype) == COMPILED else None,
        limits=on_gpu.copy_of(moved),
        op=f"{op} {kind}{' and backward' if backward else ''}",
        shape=f"{rows}x{'2x' if halves == 2 else ''}{width}",
        dtype=dtype,
    )
