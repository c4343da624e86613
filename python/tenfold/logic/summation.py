"""Sums over named axes of polynomials in tensors, planned once: where two tensors meet, a matrix product.

A `Summation` plans. Axes go one at a time, the cheapest first. Of each monomial, what lacks the axis leaves
the sum; what has it is one tensor, which is added to those of the other monomials before it is summed, or two
tensors with an axis of their own each, whose sum is a matrix product. A `Computation` is one call of a plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.logic.groundings import Axes, Values, aligned, union

Monomial = tuple[tuple[int, int], ...]
"""Tensors of a plan by number, ascending, each with its exponent."""
Polynomial = dict[Monomial, float]

# Multiplications of a matrix product take less than elements of the fused kernel; measured on two cores, the
# kernel makes about 7e9 elements a second and sgemm more than 5e10 multiplications.
PRODUCT_SPEED = 8


@dataclass(frozen=True)
class _Leaf:
    """A tensor that is given, under a name."""

    name: object


@dataclass(frozen=True)
class _Product:
    """The sum over an axis of the product of two monomials."""

    parts: tuple[Monomial, Monomial]
    axis: str


@dataclass(frozen=True)
class _Sum:
    """The sum over axes of a polynomial."""

    terms: tuple[tuple[Monomial, float], ...]
    over: Axes


@dataclass(frozen=True)
class Nested:
    """``tensor * factor + rest``: a polynomial in the order of its evaluation."""

    tensor: int
    factor: Nested | float
    rest: Nested | float


class Summation:
    """What is to be computed: tensors by number, of the leaves and of what becomes of them."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.tensors: list[_Leaf | _Product | _Sum] = []
        self.axes: list[Axes] = []
        self.cost = 0.0
        """About how many elements are touched."""
        self._paid: set[int] = set()
        self._numbers: dict[object, int] = {}
        self._orders: dict[tuple[tuple[Monomial, float], ...], Nested | float] = {}

    def leaf(self, name: object, axes: Axes) -> int:
        """The number of the tensor that is given as ``name``."""
        return self._number(_Leaf(name), axes)

    def _number(self, tensor: _Leaf | _Product | _Sum, axes: Axes) -> int:
        if tensor not in self._numbers:
            self._numbers[tensor] = len(self.tensors)
            self.tensors.append(tensor)
            self.axes.append(axes)
        return self._numbers[tensor]

    def summed(self, polynomial: Polynomial, over: Axes) -> Polynomial | None:
        """The sum over the axes ``over``; None where a product would have more axes than its operands."""
        left = list(over)
        while left:
            found = []
            for axis in left:
                without = self._without(polynomial, axis)
                if without is not None:
                    made, new = without
                    found.append((sum(self._cost(tensor) for tensor in new), axis, made, new))
            if not found:
                return None
            cost, axis, polynomial, new = min(found, key=lambda each: each[0])
            self.cost += cost
            self._paid |= new
            left.remove(axis)
        return polynomial

    def _cost(self, number: int) -> float:
        """Of a tensor that is not computed yet."""
        tensor = self.tensors[number]
        if number in self._paid or isinstance(tensor, _Leaf):
            return 0.0
        summed = tensor.axis if isinstance(tensor, _Product) else tensor.over[-1]  # the others are paid
        whole = math.prod(self.sizes[axis] for axis in (*self.axes[number], summed))
        return whole / PRODUCT_SPEED if isinstance(tensor, _Product) else 2.0 * whole * len(tensor.terms)

    def _without(self, polynomial: Polynomial, axis: str) -> tuple[Polynomial, set[int]] | None:
        """The sum over one axis, and the new tensors in it."""
        made: Polynomial = {}
        new: set[int] = set()
        alone: dict[Monomial, Polynomial] = {}  # monomials of one tensor, by what stands before the sum
        for monomial, factor in polynomial.items():
            having = tuple(power for power in monomial if axis in self.axes[power[0]])
            rest = tuple(power for power in monomial if axis not in self.axes[power[0]])
            if not having:
                _add(made, rest, factor * self.sizes[axis])
                continue
            parts = self._merged(having)
            if len(parts) > 2:
                return None
            if len(parts) == 1:
                _add(alone.setdefault(rest, {}), having, factor)
                continue
            kept = tuple(a for a in union(axes for _, axes in parts) if a != axis)
            number = self._number(_Product((parts[0][0], parts[1][0]), axis), kept)
            new.add(number)
            _add(made, _product(rest, ((number, 1),)), factor)
        for rest, terms in alone.items():
            for number, factor in self._sums(terms, axis):
                new.add(number)
                _add(made, _product(rest, ((number, 1),)), factor)
        return made, new

    def _merged(self, monomial: Monomial) -> list[tuple[Monomial, Axes]]:
        """Parts of a monomial such that no part's axes are among those of another."""
        merged: list[tuple[Monomial, Axes]] = []
        for power in sorted(monomial, key=lambda power: -len(self.axes[power[0]])):
            axes = self.axes[power[0]]
            for number, (others, bigger) in enumerate(merged):
                if set(axes) <= set(bigger):
                    merged[number] = (_product(others, (power,)), bigger)
                    break
            else:
                merged.append(((power,), axes))
        return merged

    def _sums(self, terms: Polynomial, axis: str) -> list[tuple[int, float]]:
        """Tensors whose sum, each with its factor, is the sum of ``terms`` over an axis."""
        groups: list[tuple[Axes, Polynomial]] = []  # of the same axes, or fewer
        for monomial in sorted(terms, key=lambda m: -len(self._axes_of(m))):
            axes = self._axes_of(monomial)
            group = next((group for bigger, group in groups if set(axes) <= set(bigger)), None)
            if group is None:
                groups.append((axes, {monomial: terms[monomial]}))
            else:
                group[monomial] = terms[monomial]
        found = []
        for axes, group in groups:
            tensor, factor = _Sum(tuple(group.items()), (axis,)), 1.0
            if len(group) == 1:
                ((monomial, factor),) = group.items()
                tensor = self._sum_of(monomial, axis)
            kept = tuple(a for a in axes if a != axis)
            found.append((self._number(tensor, kept), factor))
        return found

    def _sum_of(self, monomial: Monomial, axis: str) -> _Sum:
        """One sum over both axes where the monomial is a sum itself."""
        inner = self.tensors[monomial[0][0]]
        if len(monomial) == 1 and monomial[0][1] == 1 and isinstance(inner, _Sum):
            return _Sum(inner.terms, (*inner.over, axis))
        return _Sum(((monomial, 1.0),), (axis,))

    def _axes_of(self, monomial: Monomial) -> Axes:
        return union(self.axes[number] for number, _ in monomial)

    def order(self, terms: tuple[tuple[Monomial, float], ...]) -> Nested | float:
        """The order in which a polynomial is evaluated."""
        if terms not in self._orders:
            self._orders[terms] = _nested(dict(terms))
        return self._orders[terms]


def _add(polynomial: Polynomial, monomial: Monomial, factor: float) -> None:
    polynomial[monomial] = polynomial.get(monomial, 0.0) + factor


def _product(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for tensor, exponent in right:
        powers[tensor] = powers.get(tensor, 0) + exponent
    return tuple(sorted(powers.items()))


def times(left: Polynomial, right: Polynomial) -> Polynomial:
    """The product of two polynomials."""
    product: Polynomial = {}
    for one, first in left.items():
        for other, second in right.items():
            _add(product, _product(one, other), first * second)
    return product


def _nested(polynomial: Polynomial) -> Nested | float:
    """With the tensor that most monomials have drawn out first."""
    counts: dict[int, int] = {}
    for monomial in polynomial:
        for tensor, _ in monomial:
            counts[tensor] = counts.get(tensor, 0) + 1
    if not counts:
        return sum(polynomial.values())
    drawn = max(counts, key=lambda tensor: (counts[tensor], -tensor))
    factor: Polynomial = {}
    rest: Polynomial = {}
    for monomial, number in polynomial.items():
        powers = dict(monomial)
        exponent = powers.pop(drawn, 0)
        if exponent > 1:
            powers[drawn] = exponent - 1
        (factor if exponent else rest)[tuple(sorted(powers.items()))] = number
    return Nested(drawn, _nested(factor), _nested(rest))


class Computation:
    """One call of a plan: ``leaf(name)`` is the tensor of that name."""

    def __init__(self, plan: Summation, leaf: Callable[[object], Values]) -> None:
        self.plan, self.leaf = plan, leaf
        self.made: dict[object, Values] = {}

    @property
    def sums(self) -> int:
        """How many sums were computed."""
        numbers = (number for number in self.made if isinstance(number, int))
        return sum(not isinstance(self.plan.tensors[number], _Leaf) for number in numbers)

    def polynomial(self, polynomial: Polynomial) -> Values:
        """The value of a polynomial in tensors of the plan."""
        order = self.plan.order(tuple(polynomial.items()))
        assert isinstance(order, Nested), "a number"
        axes = self._longest(polynomial)
        return Values(self._evaluated(order, axes), axes)

    def _longest(self, monomials: Polynomial | tuple[Monomial, ...]) -> Axes:
        """The axes of all tensors, in the order in which the one of most axes has them."""
        each = [self._tensor(number).axes for monomial in monomials for number, _ in monomial]
        return union(sorted(each, key=len, reverse=True))

    def _tensor(self, number: int) -> Values:
        if number not in self.made:
            self.made[number] = self._compute(self.plan.tensors[number])
        return self.made[number]

    def _compute(self, tensor: _Leaf | _Product | _Sum) -> Values:
        if isinstance(tensor, _Leaf):
            return self.leaf(tensor.name)
        if isinstance(tensor, _Product):
            return contracted([self._monomial(part) for part in tensor.parts], (tensor.axis,))
        axes = self._longest(tuple(monomial for monomial, _ in tensor.terms))
        order = self.plan.order(tensor.terms)
        assert isinstance(order, Nested)
        whole = self._evaluated(order, axes)
        kept = tuple(axis for axis in axes if axis not in tensor.over)
        return Values(whole.sum([axes.index(axis) for axis in tensor.over]), kept)

    def _monomial(self, monomial: Monomial) -> Values:
        axes = self._longest((monomial,))
        made = self._power(*monomial[0], axes)
        for number, exponent in monomial[1:]:
            made = made * self._power(number, exponent, axes)
        return Values(made, axes)

    def _power(self, number: int, exponent: int, axes: Axes) -> Tensor:
        base = self._tensor(number)
        key = (id(base.tensor), exponent)  # tables that several leaves are have one power
        if key not in self.made:
            self.made[key] = Values(base.tensor if exponent == 1 else base.tensor**exponent, base.axes)
        return aligned(self.made[key].tensor, base.axes, axes)

    def _evaluated(self, order: Nested, axes: Axes) -> Tensor:
        """``tensor * factor + rest``, in as few calls of torch as that takes."""
        tensor = self._power(order.tensor, 1, axes)
        factor, rest = (
            self._evaluated(part, axes) if isinstance(part, Nested) else part
            for part in (order.factor, order.rest)
        )
        made: Tensor
        if isinstance(factor, Tensor):
            if isinstance(rest, Tensor):
                return torch.addcmul(rest, tensor, factor)
            made = tensor * factor
            return made + rest if rest else made
        if isinstance(rest, Tensor):
            return torch.add(rest, tensor, alpha=factor)
        if rest:
            return affine(tensor, factor, rest)
        return tensor if factor == 1 else tensor * factor


def affine(tensor: Tensor, scale: float, shift: float) -> Tensor:
    """``scale * tensor + shift``."""
    if shift == 0:
        return tensor if scale == 1 else tensor * scale
    return torch.add(torch.scalar_tensor(shift, dtype=tensor.dtype), tensor, alpha=scale)


def contracted(parts: Sequence[Values], over: Axes) -> Values:
    """The sum over the axes ``over`` of the product of the parts."""
    axes = union(part.axes for part in parts)
    kept = tuple(axis for axis in axes if axis not in over)
    if len(parts) == 2 and len(axes) == 3 and all(len(part.axes) == 2 for part in parts) and len(over) == 1:
        left, right = parts
        if over[0] in left.axes and over[0] in right.axes:  # without what einsum adds to a matrix product
            return Values(aligned(*left, (kept[0], *over)) @ aligned(*right, (*over, kept[1])), kept)
    letters = {axis: chr(ord("a") + number) for number, axis in enumerate(axes)}
    terms = ",".join("".join(letters[axis] for axis in part.axes) for part in parts)
    out = "".join(letters[axis] for axis in kept)
    made: Tensor = torch.einsum(f"{terms}->{out}", *(part.tensor for part in parts))
    return Values(made, kept)
