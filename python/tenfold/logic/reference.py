"""The semantics written down: every formula broadcast over all its axes. The compiler's specification."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tenfold.logic.groundings import Axes, Grounding, Values, aligned, union
from tenfold.logic.semantics import Aggregator, Fuzzy, LogProduct
from tenfold.logic.syntax import And, Atom, Compare, Formula, Iff, Implies, Not, Or, Quantified
from tenfold.ops.reference import fuzzy as ops


def evaluate(formula: Formula, grounding: Grounding, semantics: Fuzzy | LogProduct) -> Values:
    """Degrees of truth of ``formula`` over its free axes, or in log space their logarithms."""
    if isinstance(semantics, Fuzzy):
        return _Degrees(grounding, semantics).value(formula)
    return _Logs(grounding, semantics).value(formula, True)


def _joined(parts: list[Values]) -> tuple[list[Tensor], Axes]:
    axes = union(part.axes for part in parts)
    return [aligned(*part, axes) for part in parts], axes


def _quantified(
    node: Quantified,
    body: Values,
    grounding: Grounding,
    reduce: Callable[[Tensor, Tensor, list[int]], Tensor],
    empty: float,
) -> Values:
    """``reduce(values, mask, dimensions)`` of the body over the node's axes; ``empty`` over nothing."""
    guard = Values(torch.ones((), dtype=torch.bool), ()) if node.guard is None else grounding.mask(node.guard)
    (values, mask), axes = _joined([body, guard])
    shape = torch.broadcast_shapes(values.shape, mask.shape)
    values, mask = values.expand(shape), mask.to(values.device).expand(shape)
    dims = [number for number, axis in enumerate(axes) if axis in node.axes]
    kept = tuple(axis for axis in axes if axis not in node.axes)
    some = mask.sum(dims) > 0
    if values.numel() == 0:
        return Values(torch.where(some, 0.0, empty).to(values.dtype), kept)
    return Values(torch.where(some, reduce(values, mask, dims), empty), kept)


class _Degrees:
    def __init__(self, grounding: Grounding, semantics: Fuzzy) -> None:
        self.grounding, self.semantics = grounding, semantics

    def value(self, formula: Formula) -> Values:
        match formula:
            case Atom():
                return self.grounding.degrees(formula)
            case Compare():
                return self.grounding.compared(formula)
            case Quantified():
                return self._quantified(formula)
        tensors, axes = _joined([self.value(part) for part in formula.parts if isinstance(part, Formula)])
        match formula:
            case Not():
                return Values(1 - tensors[0], axes)
            case Implies():
                return Values(self._binary("implies", *tensors), axes)
            case Iff():
                there, back = self._binary("implies", *tensors), self._binary("implies", *tensors[::-1])
                return Values(self._binary("and", there, back), axes)
        joined = tensors[0]
        for tensor in tensors[1:]:
            joined = self._binary("and" if isinstance(formula, And) else "or", joined, tensor)
        return Values(joined, axes)

    def _binary(self, sign: str, left: Tensor, right: Tensor) -> Tensor:
        return ops.BINARY[self.semantics.signs[sign]](left, right, self.semantics.eps)

    def _quantified(self, node: Quantified) -> Values:
        aggregator = self.semantics.forall if node.kind == "forall" else self.semantics.exists
        p = power(node.p, aggregator)
        eps = self.semantics.eps

        def reduce(u: Tensor, mask: Tensor, dims: list[int]) -> Tensor:
            if aggregator.kind == "pmean":
                return ops.power_mean((1 - eps) * u + eps, mask, dims, p)
            if aggregator.kind == "pmean_error":
                return 1 - ops.power_mean(1 - (1 - eps) * u, mask, dims, p)
            if aggregator.kind == "mean":
                return torch.where(mask, u, 0.0).sum(dims) / mask.sum(dims).clamp(min=1)
            if aggregator.kind == "min":
                return torch.where(mask, u, math.inf).amin(dims)
            return torch.where(mask, u, -math.inf).amax(dims)

        return _quantified(node, self.value(node.body), self.grounding, reduce, float(node.kind == "forall"))


class _Logs:
    def __init__(self, grounding: Grounding, semantics: LogProduct) -> None:
        self.grounding, self.semantics = grounding, semantics

    def value(self, formula: Formula, positive: bool) -> Values:
        """The logarithm of the degree of ``formula``, or of its negation."""
        match formula:
            case Atom():
                return self.grounding.logs(formula, positive)
            case Compare():
                return self.grounding.compared(formula, positive)
            case Not(parts=(Formula() as part,)):
                return self.value(part, not positive)
            case Implies(parts=(Formula() as left, Formula() as right)):
                return self._connected(
                    not positive, [self.value(left, not positive), self.value(right, positive)]
                )
            case Iff(parts=(Formula() as left, Formula() as right)):
                both = [self.value(Implies(*pair), positive) for pair in ((left, right), (right, left))]
                return self._connected(positive, both)
            case And() | Or():
                parts = [self.value(part, positive) for part in formula.parts]
                return self._connected(isinstance(formula, And) == positive, parts)
            case Quantified():
                return self._quantified(formula, positive)
        raise TypeError(f"no semantics for {type(formula).__name__}")

    def _connected(self, conjunction: bool, parts: list[Values]) -> Values:
        tensors, axes = _joined(parts)
        stacked = torch.stack(torch.broadcast_tensors(*tensors))
        if conjunction:
            return Values(stacked.sum(0), axes)
        return Values(self._exists(stacked, torch.ones_like(stacked, dtype=torch.bool), [0]), axes)

    def _exists(self, values: Tensor, mask: Tensor, dims: list[int]) -> Tensor:
        kind, alpha = self.semantics.exists.kind, self.semantics.alpha
        if kind == "max":
            return torch.where(mask, values, -math.inf).amax(dims)
        return ops.log_mean_exp(values, mask, dims, alpha, kind == "lme")

    def _quantified(self, node: Quantified, positive: bool) -> Values:
        body = self.value(node.body, positive)
        if (node.kind == "exists") == positive:
            return _quantified(node, body, self.grounding, self._exists, ops.LOG_EMPTY["lme"])

        def forall(values: Tensor, mask: Tensor, dims: list[int]) -> Tensor:
            total = torch.where(mask, values, 0.0).sum(dims)
            return total if self.semantics.forall == "sum" else total / mask.sum(dims).clamp(min=1)

        return _quantified(node, body, self.grounding, forall, 0.0)


def power(own: float | None, aggregator: Aggregator) -> float:
    """The p of a quantifier: its own, or that of the semantics."""
    level = aggregator.level
    assert isinstance(level, int | float)
    return float(level) if own is None else own


def total(values: list[Tensor], weights: list[float], semantics: Fuzzy | LogProduct) -> Tensor:
    """All axioms together: a degree, or in log space its logarithm."""
    stacked = torch.stack(values)
    if isinstance(semantics, LogProduct) and semantics.total == "sum":
        return (stacked.new_tensor(weights) * stacked).sum()
    if isinstance(semantics, LogProduct) or semantics.total.kind == "mean":
        return _average(stacked, weights)
    if semantics.total.kind == "min":
        return stacked.min()
    p = power(None, semantics.total)
    error = 1 - (1 - semantics.eps) * stacked
    return 1 - ops.root(_average(error.pow(p), weights), p)


def _average(values: Tensor, weights: list[float]) -> Tensor:
    if len(set(weights)) == 1:
        return values.mean()
    weight = values.new_tensor(weights)
    return (weight * values).sum() / weight.sum()
