"""Forms of one formula over tables, compared: tenfold's, and what a user of torch would write.

"copy" copies the bytes of the tables, with backward of their gradients too, once. The error is the largest of
the result and the gradients, each relative to its largest number, against float64; those of the alternatives
are in the report under "errors". With the backward pass the peak of memory is measured too, which cannot be
below the size of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Compare = Callable[..., None]  # the fixture of conftest.py
Form = Callable[..., Tensor]

threads = pytest.mark.parametrize("threads", [1, 2])
passes = pytest.mark.parametrize("backward", [False, True], ids=["forward", "with backward"])


def call(form: Form, tables: list[Tensor], backward: bool) -> Callable[[], Any]:
    if backward:
        leaves = [t.detach().requires_grad_() for t in tables]
        return lambda: torch.autograd.grad(form(*leaves), leaves)

    def run() -> Tensor:
        with torch.no_grad():
            return form(*tables)

    return run


def error(form: Form, tables: list[Tensor], backward: bool, twin: Form) -> float:
    worst = 0.0
    gots, wants = (
        (f, [t.detach().to(kind).requires_grad_() for t in tables])
        for f, kind in ((form, torch.float32), (twin, torch.float64))
    )
    got, want = gots[0](*gots[1]), wants[0](*wants[1])
    pairs = [(got, want)]
    if backward:
        pairs += zip(torch.autograd.grad(got, gots[1]), torch.autograd.grad(want, wants[1]), strict=True)
    for a, b in pairs:
        worst = max(worst, float((a.detach().double() - b.detach()).abs().max() / b.detach().abs().max()))
    return worst


def race(
    compare: Compare,
    name: str,
    shape: str,
    tables: list[Tensor],
    forms: dict[str, Form],
    backward: bool,
    threads: int,
    twin: Form,
    targets: dict[str, tuple[str, float]],
    compiled: Form | None = None,
) -> None:
    errors = {key: error(form, tables, backward, twin) for key, form in forms.items()}
    if compiled is not None:
        forms = {**forms, "torch.compile": torch.compile(compiled, dynamic=False, fullgraph=True)}
    calls = {key: call(form, tables, backward) for key, form in forms.items()}
    memory = list(calls) if backward else []
    copied = torch.zeros(sum(t.numel() for t in tables) * (2 if backward else 1))
    calls["copy"] = copied.clone
    op = name + (" and backward" if backward else "")
    compare(
        calls,
        threads,
        errors.pop("tenfold"),
        memory=memory,
        errors=errors,
        op=op,
        shape=shape,
        dtype="fp32",
        regime="fresh",
        targets=targets if backward else {},
    )


def wanted(threads: int, **targets: tuple[str, float]) -> dict[str, tuple[str, float]]:
    """Targets are set for all threads of the machine they were set on, which had two."""
    return {name.replace("_", "."): target for name, target in targets.items()} if threads == 2 else {}
