"""R4: a mean of products of degrees to an integer power, as matrix products.

With the product t-norm, the error of an implication, the error of a disjunction and the value of a
conjunction are products of affine functions of their parts. So the p-th power of what a quantifier averages
is a sum of products of powers, all terms positive (nothing cancels), and its mean over several axes goes axis
by axis (summation.py). A guard is one more factor, of zeros and ones. Sums of bfloat16 are taken in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from tenfold.logic.groundings import Axes, Guard, Values, aligned, replaced, union
from tenfold.logic.plan import Connect, Step
from tenfold.logic.semantics import Fuzzy
from tenfold.logic.summation import Computation, Polynomial, Summation, affine, times
from tenfold.ops.reference import fuzzy as reference

if TYPE_CHECKING:
    from tenfold.logic.execute import Run

MOST_TERMS = 16
HIGHEST_POWER = 8
# The most that the matrix products may cost, relative to the fused kernel.
PAYS = 1.0
# Elements below which the kernel takes less time than it takes to think of anything else.
LEAST = 2**15
MOST_PLANS = 64


class _Degree(NamedTuple):
    """``scale * degree + shift`` of a step: one of the affine forms of a degree."""

    step: Step
    scale: float
    shift: float


class _Terms:
    """Polynomials of the values and errors of steps; None where a term would be negative."""

    def __init__(self, plan: Summation, zipped: dict[str, str], eps: float) -> None:
        self.plan, self.zipped = plan, zipped
        self.eps, self.keep = eps, 1 - eps

    def value(self, step: Step) -> Polynomial | None:
        if not isinstance(step, Connect):
            return self._single(step, 1.0, 0.0)
        if step.sign == "not":
            return self.error(step.parts[0])
        if step.sign == "and":
            product = self.low(step.parts[0]) if len(step.parts) > 1 else self.value(step.parts[0])
            for number, part in enumerate(step.parts[1:], start=2):
                product = _times(product, self.low(part))
                if number < len(step.parts):  # the fold's next "and" projects what this one made
                    product = self._projected(product)
            return product
        return None

    def error(self, step: Step) -> Polynomial | None:
        if not isinstance(step, Connect):
            return self._single(step, -1.0, 1.0)
        if step.sign == "not":
            return self.value(step.parts[0])
        if step.sign == "implies":
            return _times(self.low(step.parts[0]), self.high_error(step.parts[1]))
        if step.sign == "or":
            product = self.high_error(step.parts[0]) if len(step.parts) > 1 else self.error(step.parts[0])
            for number, part in enumerate(step.parts[1:], start=2):
                product = _times(product, self.high_error(part))
                if number < len(step.parts):
                    product = self._projected(product)
            return product
        return None

    def low(self, step: Step) -> Polynomial | None:
        """pi0 of the value: (1 - eps) u + eps."""
        if not isinstance(step, Connect):
            return self._single(step, self.keep, self.eps)
        return self._projected(self.value(step))

    def high_error(self, step: Step) -> Polynomial | None:
        """1 - pi1 of the value: (1 - eps) (1 - u) + eps."""
        if not isinstance(step, Connect):
            return self._single(step, -self.keep, 1.0)
        return self._projected(self.error(step))

    def _projected(self, inner: Polynomial | None) -> Polynomial | None:
        if inner is None:
            return None
        scaled = {monomial: self.keep * factor for monomial, factor in inner.items()}
        if self.eps:
            scaled[()] = scaled.get((), 0.0) + self.eps
        return scaled

    def _single(self, step: Step, scale: float, shift: float) -> Polynomial:
        axes = replaced(step.axes, self.zipped)
        return {((self.plan.leaf(_Degree(step, scale, shift), axes), 1),): 1.0}


def _times(left: Polynomial | None, right: Polynomial | None) -> Polynomial | None:
    if left is None or right is None or len(left) * len(right) > MOST_TERMS**2:
        return None
    return times(left, right)


@dataclass(frozen=True)
class _Plan:
    """How the mean of the p-th power of what a quantifier averages is summed up."""

    summation: Summation
    terms: int
    mean: Polynomial
    """Under a guard the sum."""
    count: Polynomial | None
    """Of where the guard holds."""


class _Shape(NamedTuple):
    """What a plan depends on besides its formula."""

    sizes: tuple[tuple[str, int], ...]
    over: Axes
    guard: Axes | None
    zipped: tuple[tuple[str, str], ...]


def _planned(body: Step, shape: _Shape, kind: str, p: int, eps: float) -> _Plan | None:
    """The plan, made once for each shape; None where it does not apply."""
    key = (shape, kind, p, eps)
    if key not in body.plans:
        if len(body.plans) >= MOST_PLANS:
            body.plans.clear()
        body.plans[key] = _new_plan(body, shape, kind, p, eps)
    plan: _Plan | None = body.plans[key]
    return plan


def _new_plan(body: Step, shape: _Shape, kind: str, p: int, eps: float) -> _Plan | None:
    """None where the power is no polynomial, has too many terms, or no sum of matrix products."""
    plan = Summation(dict(shape.sizes))
    terms = _Terms(plan, dict(shape.zipped), eps)
    base = terms.high_error(body) if kind == "pmean_error" else terms.low(body)
    held: Polynomial = {(): 1.0}
    if shape.guard is not None:
        held = {((plan.leaf("guard", shape.guard), 1),): 1.0}
    power: Polynomial | None = held
    for _ in range(p):
        power = _times(power, base)
    if power is None or len(power) > MOST_TERMS:
        return None
    total, count = plan.summed(power, shape.over), plan.summed(held, shape.over)
    if total is None or count is None:
        return None
    if shape.guard is None:
        return _Plan(plan, len(power), {monomial: c / count[()] for monomial, c in total.items()}, None)
    return _Plan(plan, len(power), total, count)


def factorised(
    run: Run,
    body: Step,
    over: Axes,
    guard: Guard,
    kind: str,
    p: float,
    semantics: Fuzzy,
    quantifier: str,
) -> Values | None:
    """The quantifier by R4, or None where it does not apply or does not pay."""
    if semantics.tnorm != "product" or semantics.implication != "S" or p != int(p) or p > HIGHEST_POWER:
        return None
    own, guarded = run.axes(body), guard.axes if guard is not None else None
    if len(own) < 2 or len(over) < 2:
        return None
    sizes = {axis: run.grounding.size(axis) for axis in union([own, over, guarded or ()])}
    direct = math.prod(sizes.values())
    if direct < max(LEAST, 1):
        return None
    shape = _Shape(tuple(sizes.items()), over, guarded, tuple(run.zipped.items()))
    plan = _planned(body, shape, kind, int(p), semantics.eps)
    if plan is None or plan.summation.cost >= direct * PAYS:
        return None
    return _aggregate(run, body, plan, guard, kind, p, quantifier)


def _aggregate(
    run: Run, body: Step, plan: _Plan, guard: Guard, kind: str, p: float, quantifier: str
) -> Values:
    """The mean of the polynomial, its p-th root, and what that says of the quantifier."""
    dtype = torch.promote_types(run.grounding.dtype, torch.float32)
    affines: dict[object, Values] = {}

    def leaf(name: object) -> Values:
        if not isinstance(name, _Degree):
            assert guard is not None
            return Values(guard.tensor.to(dtype), guard.axes)
        degrees = run.value(name.step)
        key = (id(degrees.tensor), name.scale, name.shift)  # the same table for other variables
        if key not in affines:
            made = affine(degrees.tensor.to(dtype), name.scale, name.shift)
            affines[key] = Values(made, degrees.axes)
        return Values(affines[key].tensor, degrees.axes)

    computation = Computation(plan.summation, leaf)
    means = computation.polynomial(plan.mean)
    counts = computation.polynomial(plan.count) if plan.count is not None else None
    there = means.axes if counts is None else union([means.axes, counts.axes])
    axes = tuple(axis for axis in union([run.axes(body), there]) if axis in there)
    mean, count = aligned(*means, axes), None
    if counts is not None:
        count = aligned(*counts, axes)
        mean = mean / count.clamp(min=1)
    root = reference.root(mean, p)
    made = 1 - root if kind == "pmean_error" else root
    if count is not None:
        made = torch.where(count > 0, made, float(quantifier == "forall"))
    made = made.to(run.grounding.dtype)
    inputs = [value.tensor for value in computation.made.values()]
    rule = f"R4: {plan.terms} terms, {computation.sums} partial sums"
    run.kernels.note(body, rule, plan.summation.sizes, inputs, made, sum(t.nbytes for t in inputs))
    return Values(made, axes)
