"""The adaln family on a GPU, against torch on that GPU: `tenfold bench adaln --device cuda`.

Shapes are those of wide diffusion transformers on 256 and 1024 tokens; the forms that are compared are those
of bench_adaln.py, and on_gpu.py says how they are timed. "eager" is F.layer_norm and addcmul. "mixed" is what
autocast makes of a block: rows x in float32; branch, modulation and h in bfloat16. "copy_" copies as many
bytes as the op must read and write, once; with backward, as many as both passes must. The error is the
largest of all results and gradients, each relative to its largest number, against float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import on_gpu
from bench_adaln import Problem as Block
from on_gpu import passes

SHAPES = [(64, 256, 1024), (16, 1024, 1152)]  # samples, tokens, width
OPS = ["adaln", "gated_residual", "gated_residual_adaln", "qk_norm"]
COMPILED = {"adaln": "mixed", "gated_residual_adaln": "mixed", "qk_norm": "bf16"}  # at the first shape

pytestmark = on_gpu.needs_gpu
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
types = pytest.mark.parametrize("types", ["fp32", "bf16", "mixed"])


@passes
@types
@shapes
@pytest.mark.parametrize("op", OPS)
def test_adaln(benchmark: Any, op: str, shape: tuple[int, int, int], types: str, backward: bool) -> None:
    if op == "qk_norm" and types == "mixed":
        pytest.skip("the same as bf16")

    def block() -> Block:
        with torch.device("cuda"):
            return Block(op, shape, types)

    forms = block()

    def make(_: int) -> on_gpu.Problem:
        return on_gpu.problem_of(forms.tenfold, block().leaves, backward=backward)

    compiled = shape == SHAPES[0] and types == COMPILED.get(op)
    moved = forms.least_bytes(backward)
    on_gpu.compare(
        benchmark,
        make,
        {
            "tenfold": on_gpu.calling(forms.tenfold, backward),
            "eager": on_gpu.calling(forms.plain, backward),
        },
        on_gpu.against(forms.tenfold, forms.exact, backward),
        on_gpu.sets_for(moved),
        optional=on_gpu.compiled(forms.plain, backward) if compiled else None,
        limits=on_gpu.copy_of(moved),
        **forms.row | {"op": op + (" and backward" if backward else "")},
    )
