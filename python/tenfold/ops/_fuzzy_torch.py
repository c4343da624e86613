"""The torch half of tenfold.ops.fuzzy, on the plain-torch reference until its kernels are there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold.ops.reference import fuzzy as reference


def quantify(operands: Any, guards: Any, spec: Any, sizes: Any, grad_buffers: Any) -> Tensor:
    """See tenfold.ops.fuzzy: log_quantify and fuzzy_quantify, and what is made of them."""
    each, _, guard_axes = spec.axes.partition("|")
    axes = each.split(",")
    guard = (guards[0], guard_axes, spec.relation, spec.numbers[3], *guards[1:]) if guards else None
    order = reference.axis_order(axes, guard)
    reduce = [name for name in order if name not in spec.kept]
    number, eps, empty = spec.numbers[:3]
    if spec.formula in ("and", "or"):
        quant = "mean" if spec.quantifier == "copy" else spec.quantifier
        if spec.quantifier == "pmean":
            quant = "mean"
        weights = spec.numbers[4:] or None
        out = reference.log_quantify(
            operands, axes, reduce, conn=spec.formula, quant=quant, alpha=number, log_weights=weights,
            guard=guard, empty=empty,
        )  # fmt: skip
    else:
        agg = "mean" if spec.quantifier == "copy" else spec.quantifier
        out = reference.fuzzy_quantify(
            operands, axes, reduce, formula=spec.formula, agg=agg, p=number, eps=eps, guard=guard, empty=empty
        )
    left = [name for name in order if name in spec.kept]
    return out.permute([left.index(name) for name in spec.kept])


def logmatmul(a: Tensor, b: Tensor, alpha: float, mean: bool) -> Tensor:
    """See tenfold.ops.fuzzy.logmatmul."""
    return reference.logmatmul(a, b, alpha, mean)


def atom_logits(z: Tensor, softmax: bool, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """See tenfold.ops.fuzzy.atom_logits."""
    return reference.atom_logits(z, "softmax" if softmax else "sigmoid", index)


def pairs(mask: Tensor) -> Any:
    """See tenfold.ops.fuzzy.guarded_pairs."""
    return reference.guarded_pairs(mask)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of points."""
    return torch.cdist(a, b)


def segments(values: Tensor, row_ptr: Tensor, spec: Any) -> Tensor:
    """See tenfold.ops.fuzzy: segment_logmeanexp and segment_pmean."""
    number, eps, empty = spec.numbers[:3]
    if spec.quantifier == "lme":
        return reference.segment_logmeanexp(values, row_ptr, number, empty=empty)
    error = spec.quantifier == "pmean_error"
    return reference.segment_pmean(values, row_ptr, number, error=error, eps=eps, empty=empty)
