"""The fuzzy family on a GPU, against torch on that GPU: `tenfold bench fuzzy --device cuda`.

The formulas K1 to K4 of bench_fuzzy.py, in the forms that are compared there; on_gpu.py says how they are
timed. "copy_" copies as many bytes as there are in the tables, and with backward in their gradients too,
once. The error is the largest of the result and the gradients, each relative to its largest number, against
float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import bench_fuzzy
import on_gpu
from on_gpu import Form, passes

# Of each formula: ours, the name and the form of the alternative, and sizes.
FORMULAS: dict[str, tuple[Form, str, Form, tuple[int, ...]]] = {
    "K1": (bench_fuzzy.k1, "eager", bench_fuzzy.k1_eager, (1000, 4096)),
    "K2": (bench_fuzzy.k2, "logaddexp", bench_fuzzy.k2_logaddexp, (1000, 4096)),
    "K3": (bench_fuzzy.k3, "logaddexp", bench_fuzzy.k3_logaddexp, (128, 256)),
    "K4": (bench_fuzzy.k4, "eager", bench_fuzzy.k4_eager, (1000, 4096)),
}
CASES = [(name, n) for name, (*_, sizes) in FORMULAS.items() for n in sizes]

pytestmark = on_gpu.needs_gpu


def tables(name: str, n: int) -> tuple[Tensor, ...]:
    shapes: list[tuple[int, ...]] = [(n, n), (n, n)] if name == "K3" else [(n,), (n,), (n, n)]
    draw = torch.rand if name == "K4" else bench_fuzzy.logs
    return tuple(draw(*shape).cuda() for shape in shapes)


@passes
@pytest.mark.parametrize(("name", "n"), CASES)
def test_formula(benchmark: Any, name: str, n: int, backward: bool) -> None:
    tenfold, alternative, plain, _ = FORMULAS[name]
    moved = sum(table.nbytes for table in tables(name, n)) * (2 if backward else 1)
    on_gpu.compare(
        benchmark,
        lambda _: on_gpu.problem_of(tenfold, tables(name, n), backward=backward),
        {"tenfold": on_gpu.calling(tenfold, backward), alternative: on_gpu.calling(plain, backward)},
        on_gpu.against(tenfold, plain, backward),
        on_gpu.sets_for(moved),
        optional=on_gpu.compiled(plain, backward),
        limits=on_gpu.copy_of(moved),
        op=f"{name}{' and backward' if backward else ''}",
        shape="x".join([str(n)] * (3 if name == "K3" else 2)),
        dtype="fp32",
    )
