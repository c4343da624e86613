"""The pairwise family on a GPU, against torch on that GPU: `tenfold bench pairwise --device cuda`.

The perceptrons of bench_pairwise.py, in the forms that are compared there; on_gpu.py says how they are timed.
"copy_" copies as many bytes as there are in the scores, and with backward in their gradient too, once. The
error is the largest of the scores and the gradients, each relative to its largest number, against float64.
"""

from __future__ import annotations

from typing import Any

import pytest

import bench_pairwise
import on_gpu
from on_gpu import passes

pytestmark = on_gpu.needs_gpu


@passes
@pytest.mark.parametrize("n", [200, 1000])
@pytest.mark.parametrize("layers", ["16-1", "16-16-1"])
def test_pair_perceptron(benchmark: Any, layers: str, n: int, backward: bool) -> None:
    forms = bench_pairwise.PERCEPTRONS
    moved = 4 * n * n * (2 if backward else 1)

    def make(_: int) -> on_gpu.Problem:
        tables = bench_pairwise.perceptron_tables(layers, n)
        return on_gpu.problem_of(forms["tenfold"], tuple(t.cuda() for t in tables), backward=backward)

    on_gpu.compare(
        benchmark,
        make,
        {name: on_gpu.calling(form, backward) for name, form in forms.items()},
        on_gpu.against(forms["tenfold"], forms["eager"], backward),
        on_gpu.sets_for(moved),
        optional=on_gpu.compiled(forms["eager"], backward),
        limits=on_gpu.copy_of(moved),
        op=f"pair perceptron {layers}{' and backward' if backward else ''}",
        shape=f"{n}x{n}",
        dtype="fp32",
    )
