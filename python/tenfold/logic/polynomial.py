"""R4: a mean of products of degrees to an integer power, as matrix products.

With the product t-norm, the error of an implication, the error of a disjunction and the value of a
conjunction are products of affine functions of their parts. So the p-th power of what a quantifier averages
is a sum of products of powers, all terms positive (nothing cancels), and its mean over several axes goes axis
by axis. A guard is one more factor, of zeros and ones. Sums of bfloat16 are taken in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tenfold.logic.groundings import Axes, Guard, Values, aligned, union
from tenfold.logic.plan import Connect, Step
from tenfold.logic.semantics import Fuzzy
from tenfold.ops.reference import fuzzy as reference

if TYPE_CHECKING:
    from tenfold.logic.execute import Run

MOST_TERMS = 16
HIGHEST_POWER = 8
# Multiplications of a matrix product take less than elements of the fused kernel; measured on two cores, the
# kernel makes about 7e9 elements a second and sgemm more than 5e10 multiplications.
PRODUCT_SPEED = 8
# The most that the matrix products may cost, relative to the fused kernel.
PAYS = 1.0
# Elements below which the kernel takes less time than it takes to think of anything else.
LEAST = 2**15


@dataclass(frozen=True)
class _Factor:
    """``scale * degree + shift`` of a step: one of the affine forms of a degree."""

    step: Step
    scale: float
    shift: float


Monomial = tuple[tuple[_Factor, int], ...]
Polynomial = dict[Monomial, float]


class _Terms:
    """Polynomials of the values and errors of steps; None where a term would be negative."""

    def __init__(self, eps: float) -> None:
        self.eps, self.keep = eps, 1 - eps

    def value(self, step: Step) -> Polynomial | None:
        if not isinstance(step, Connect):
            return _single(step, 1.0, 0.0)
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
            return _single(step, -1.0, 1.0)
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
            return _single(step, self.keep, self.eps)
        return self._projected(self.value(step))

    def high_error(self, step: Step) -> Polynomial | None:
        """1 - pi1 of the value: (1 - eps) (1 - u) + eps."""
        if not isinstance(step, Connect):
            return _single(step, -self.keep, 1.0)
        return self._projected(self.error(step))

    def _projected(self, inner: Polynomial | None) -> Polynomial | None:
        if inner is None:
            return None
        scaled = {monomial: self.keep * factor for monomial, factor in inner.items()}
        if self.eps:
            scaled[()] = scaled.get((), 0.0) + self.eps
        return scaled


def _single(step: Step, scale: float, shift: float) -> Polynomial:
    return {((_Factor(step, scale, shift), 1),): 1.0}


def _times(left: Polynomial | None, right: Polynomial | None) -> Polynomial | None:
    if left is None or right is None or len(left) * len(right) > MOST_TERMS**2:
        return None
    product: Polynomial = {}
    for one, first in left.items():
        for other, second in right.items():
            powers = dict(one)
            for factor, exponent in other:
                powers[factor] = powers.get(factor, 0) + exponent
            key = tuple(sorted(powers.items(), key=lambda item: (item[0].step.number, item[0].scale)))
            product[key] = product.get(key, 0.0) + first * second
    return product


def _expanded(body: Step, kind: str, p: int, eps: float) -> Polynomial | None:
    """The p-th power of what the aggregator averages."""
    terms = _Terms(eps)
    base = terms.high_error(body) if kind == "pmean_error" else terms.low(body)
    result: Polynomial | None = {(): 1.0}
    for _ in range(p):
        result = _times(result, base)
    return result if result is not None and len(result) <= MOST_TERMS else None


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
    guarded = guard.axes if guard is not None else ()
    sizes = {axis: run.grounding.size(axis) for axis in union([run.axes(body), over, guarded])}
    if semantics.tnorm != "product" or semantics.implication != "S" or p != int(p) or p > HIGHEST_POWER:
        return None
    if len(run.axes(body)) < 2 or len(over) < 2:
        return None
    direct = math.prod(sizes.values())
    if direct < LEAST:
        return None
    polynomial = _expanded(body, kind, int(p), semantics.eps)
    if polynomial is None:
        return None
    summation = _Summation(run, over, guard, sizes)
    cost = sum(filter(None, (summation.cost(monomial) for monomial in polynomial)))
    if summation.refused or cost >= direct * PAYS:
        return None
    return summation.aggregate(body, polynomial, kind, p, quantifier)


Part = tuple[tuple[object, ...], Axes]


class _Summation:
    """Sums monomials over axes, equal partial products once."""

    def __init__(self, run: Run, over: Axes, guard: Guard, sizes: dict[str, int]) -> None:
        self.run, self.over, self.guard, self.sizes = run, over, guard, dict(sizes)
        self.dtype = torch.promote_types(run.grounding.dtype, torch.float32)
        self.refused = False
        self.made: dict[object, Values] = {}
        self.planned: dict[object, float] = {}

    def _parts(self, monomial: Monomial) -> list[Part]:
        parts: list[Part] = [
            (((factor, exponent),), self.run.axes(factor.step)) for factor, exponent in monomial
        ]
        return parts + ([(("guard",), self.guard.axes)] if self.guard is not None else [])

    def cost(self, monomial: Monomial) -> float:
        """Elements touched to sum ``monomial``, beside what is already planned."""
        total = 0.0
        for having, axis, _ in self._order(monomial):
            key = (tuple(key for key, _ in having), axis)
            if key in self.planned:
                continue
            whole = math.prod(self.sizes[a] for a in union([*(axes for _, axes in having), (axis,)]))
            self.planned[key] = whole / PRODUCT_SPEED if len(having) == 2 else 2.0 * whole
            total += self.planned[key]
        return total

    def _order(self, monomial: Monomial) -> list[tuple[list[Part], str, Part]]:
        """Which parts meet at which axis, in order, and what they become."""
        left = _merged(self._parts(monomial))
        order: list[tuple[list[Part], str, Part]] = []
        axes = [axis for axis in self.over if any(axis in part[1] for part in left)]
        while axes:
            axis = min(axes, key=lambda a: len(union(part[1] for part in left if a in part[1])))
            axes.remove(axis)
            having = [part for part in left if axis in part[1]]
            if len(having) > 2:
                self.refused = True  # a product over more axes than any operand has
            kept = tuple(a for a in union(part[1] for part in having) if a != axis)
            out: Part = (((tuple(key for key, _ in having), axis),), kept)
            order.append((having, axis, out))
            left = _merged([part for part in left if axis not in part[1]] + [out])
        return order

    def aggregate(self, body: Step, polynomial: Polynomial, kind: str, p: float, quantifier: str) -> Values:
        """The mean of the polynomial, its p-th root, and what that says of the quantifier."""
        means = [self._sum(monomial, factor) for monomial, factor in polynomial.items()]
        counts = self._sum((), 1.0)
        axes = union([*(mean.axes for mean in means), counts.axes])
        axes = tuple(axis for axis in union([self.run.axes(body), axes]) if axis in axes)
        total = sum((aligned(*mean, axes) for mean in means[1:]), aligned(*means[0], axes))
        count = aligned(*counts, axes)
        mean = total / count.clamp(min=1)
        root = reference.root(mean, p)
        made = 1 - root if kind == "pmean_error" else root
        made = torch.where(count > 0, made, float(quantifier == "forall")).to(self.run.grounding.dtype)
        inputs = [value.tensor for value in self.made.values()]
        rule = f"R4: {len(polynomial)} terms, {len(self.planned)} partial sums"
        self.run.kernels.note(body, rule, self.sizes, inputs, made, sum(t.nbytes for t in inputs))
        return Values(made, axes)

    def _sum(self, monomial: Monomial, factor: float) -> Values:
        """``factor`` times the sum of ``monomial`` over all bound axes."""
        left = _merged(self._parts(monomial))
        for having, axis, out in self._order(monomial):
            key = out[0][0]
            if key not in self.made:
                self.made[key] = _summed([self._tensor(part) for part in having], axis)
            left = _merged([part for part in left if axis not in part[1]] + [out])
        there = union(axes for _, axes in self._parts(monomial))
        missing = math.prod(self.sizes[axis] for axis in self.over if axis not in there)
        start = torch.tensor(factor * missing, dtype=self.dtype, device=self.run.grounding.device)
        made = Values(start, ())
        for part in left:
            value = self._tensor(part)
            axes = union([made.axes, value.axes])
            made = Values(aligned(*made, axes) * aligned(*value, axes), axes)
        return made

    def _tensor(self, part: Part) -> Values:
        """The product of all that a part names."""
        made: Values | None = None
        for key in part[0]:
            value = self._single(key)
            if made is None:
                made = value
            else:
                axes = union([made.axes, value.axes])
                made = Values(aligned(*made, axes) * aligned(*value, axes), axes)
        assert made is not None
        return made

    def _single(self, key: object) -> Values:
        if key not in self.made:
            if key == "guard":
                assert self.guard is not None
                self.made[key] = Values(self.guard.tensor.to(self.dtype), self.guard.axes)
            else:
                assert isinstance(key, tuple)
                factor, exponent = key
                degrees = self.run.value(factor.step)
                affine = degrees.tensor.to(self.dtype) * factor.scale + factor.shift
                self.made[key] = Values(affine**exponent if exponent > 1 else affine, degrees.axes)
        return self.made[key]


def _merged(parts: Sequence[Part]) -> list[Part]:
    """Parts whose axes another has as well, multiplied into that one."""
    merged: list[Part] = []
    for keys, axes in sorted(parts, key=lambda part: -len(part[1])):
        for number, (others, bigger) in enumerate(merged):
            if set(axes) <= set(bigger):
                merged[number] = (others + keys, bigger)
                break
        else:
            merged.append((keys, axes))
    return merged


def _summed(parts: list[Values], axis: str) -> Values:
    """The product of one part or two, summed over ``axis``."""
    if len(parts) == 1:
        (one,) = parts
        return Values(one.tensor.sum(one.axes.index(axis)), tuple(a for a in one.axes if a != axis))
    axes = union(part.axes for part in parts)
    letters = {name: chr(ord("a") + number) for number, name in enumerate(axes)}
    kept = tuple(name for name in axes if name != axis)
    terms = ",".join("".join(letters[name] for name in part.axes) for part in parts)
    made: Tensor = torch.einsum(
        f"{terms}->{''.join(letters[name] for name in kept)}", *(p.tensor for p in parts)
    )
    return Values(made, kept)
