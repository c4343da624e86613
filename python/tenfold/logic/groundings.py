"""From symbols to tensors: what the variables, terms, atoms and guards of formulas are at one call.

A variable is grounded by (n, ...) features or by n; without a grounding it runs over all rows of the tables
it indexes. A table is indexed by positions: the i-th individual of a variable is row i, unless the variable
is grounded by integers (n,), which then are the rows. Callables see rows, one tensor (rows, ...) per
argument, and are called once for the same arguments, whatever the variables are called.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tenfold.logic.syntax import And as AndFormula
from tenfold.logic.syntax import (
    Apply,
    Arithmetic,
    Atom,
    Compare,
    Const,
    Domain,
    Formula,
    Func,
    Named,
    Node,
    Not,
    Number,
    Or,
    Pred,
    Term,
    Var,
)

Axes = tuple[str, ...]
_COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge, "=": torch.eq, "!=": torch.ne
}  # fmt: skip
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"+": torch.add, "-": torch.sub, "*": torch.mul}


class Values(NamedTuple):
    """A tensor whose first dimensions are named axes; individuals may have features behind them."""

    tensor: Tensor
    axes: Axes


@dataclass
class _Individuals:
    """What a term stands for: its values, and the rows of tables that it picks (None: row by row)."""

    values: Callable[[], Tensor]
    axes: Axes
    rows: Tensor | None
    key: object  # equal for terms of equal values


class Compared:
    """A guard that compares with a number, which a kernel evaluates for itself; ``tensor`` is its mask."""

    def __init__(self, axes: Axes, arguments: tuple[Any, ...], mask: Callable[[], Tensor]) -> None:
        self.axes, self._mask = axes, mask
        self.arguments = arguments
        """Of ops.fuzzy.Guard."""

    @functools.cached_property
    def tensor(self) -> Tensor:
        """Where it holds."""
        return self._mask()


Guard = Values | Compared | None
_GROUNDS = (Tensor, bool, int, float)  # numbers ground propositions


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Distances (rows,) of two points (rows, features) each."""
    return (x - y).square().sum(-1).sqrt()


distance = Func("distance", 2, grounding=euclidean)
"""Euclidean distance of points; a guard ``distance(x, y) < 0.5`` makes no (x, y) array, unless the points are
of a wider type than the degrees."""


def union(lists: Iterable[Axes]) -> Axes:
    """All axes, in order of first appearance."""
    return tuple(dict.fromkeys(axis for axes in lists for axis in axes))


def replaced(axes: Axes, zipped: Mapping[str, str]) -> Axes:
    """``axes`` with those in ``zipped`` replaced by the one that stands for them."""
    return tuple(dict.fromkeys(zipped.get(axis, axis) for axis in axes))


def aligned(tensor: Tensor, axes: Axes, order: Axes) -> Tensor:
    """``tensor`` with a dimension for each axis of ``order``, of size 1 where it lacks it, then features."""
    if axes == order:
        return tensor
    there = [axis for axis in order if axis in axes]
    features = list(range(len(axes), tensor.dim()))
    tensor = tensor.permute([axes.index(axis) for axis in there] + features)
    sizes = dict(zip(there, tensor.shape, strict=False))
    return tensor.reshape([sizes.get(axis, 1) for axis in order] + list(tensor.shape[len(there) :]))


@dataclass
class Grounding:
    """The groundings of one call: ``given`` by name, of ``symbols``, which occur in ``roots``."""

    given: Mapping[str, Any]
    symbols: Mapping[str, Named]
    roots: tuple[Node, ...]
    floor: float | None
    """Of LogProduct; None where degrees are computed with."""
    ops: Any
    """tenfold.ops.fuzzy, or its twin in ops.reference."""
    validate: bool = False
    """Whether what callables give as degrees is looked at."""
    sizes: dict[str, int] = field(default_factory=dict)
    calls: dict[Any, Tensor] = field(default_factory=dict)
    readings: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the type and device of the degrees, and the sizes that groundings of variables fix."""
        floats = [tensor for tensor in self._tensors() if tensor.is_floating_point()]
        self.dtype = floats[0].dtype if floats else torch.get_default_dtype()
        self.device = next((tensor.device for tensor in self._tensors()), torch.device("cpu"))
        for var in self.symbols.values():
            if isinstance(var, Var) and self._of_var(var) is not None:
                count = len(self._rows_of(var))
                if self.sizes.setdefault(var.axis, count) != count:
                    raise ValueError(
                        f"{var.name}: got {count} individuals, but its axis {var.axis} has "
                        f"{self.sizes[var.axis]}"
                    )

    def _tensors(self) -> Iterable[Tensor]:
        """Tensors of the call, those of predicates first."""
        by_rank = sorted(self.given, key=lambda name: not isinstance(self.symbols.get(name), Pred))
        for name in by_rank:
            value = self.given[name]
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, nn.Module):
                yield from value.parameters()

    def of(self, symbol: Const | Func | Pred) -> Any:
        """The grounding of ``symbol``, of a kind that it can have."""
        if symbol.name in self.given:
            found = self.given[symbol.name]
            if isinstance(symbol, Const | Domain) or isinstance(found, _GROUNDS) or callable(found):
                return found
            raise ValueError(f"{symbol.name}: wanted a tensor or a callable, got {found!r}"[:200])
        raise ValueError(f"{symbol.name}: has no grounding; give {symbol.name}=...")

    # Variables and terms

    def _of_var(self, var: Var) -> Any:
        """The grounding of a variable, or of its domain, or None."""
        names = [var.name] + ([var.domain.name] if isinstance(var.domain, Domain) else [])
        return next((self.given[name] for name in names if name in self.given), None)

    def _rows_of(self, var: Var) -> Tensor:
        value = self._of_var(var)
        if isinstance(value, int) and not isinstance(value, bool):
            return self._range(value)
        if isinstance(value, Tensor) and value.dim() > 0:
            return value
        raise ValueError(
            f"{var.name}: wanted a number of individuals or a tensor (n, ...), got {value!r}"[:200]
        )

    def _range(self, count: int) -> Tensor:
        key = ("range", count)
        if key not in self.calls:
            self.calls[key] = torch.arange(count, device=self.device)
        return self.calls[key]

    def size(self, axis: str) -> int:
        """The number of individuals of an axis."""
        if axis not in self.sizes:
            found = next(self._sizes_from_tables(axis), None)
            if found is None:
                raise ValueError(f"{axis}: how many individuals? Give {axis}=n or {axis}=features")
            self.sizes[axis] = found
        return self.sizes[axis]

    @functools.cached_property
    def _places(self) -> dict[str, list[tuple[Atom | Apply, int]]]:
        """Where variables of each axis are arguments."""
        places: dict[str, list[tuple[Atom | Apply, int]]] = {}
        for root in self.roots:
            for node in root.walk():
                if isinstance(node, Atom | Apply):
                    for position, part in enumerate(node.parts):
                        if isinstance(part, Var):
                            places.setdefault(part.axis, []).append((node, position))
        return places

    def _sizes_from_tables(self, axis: str) -> Iterator[int]:
        for node, position in self._places.get(axis, ()):
            size = self._size_from(node, position)
            if size is not None:
                yield size

    def _size_from(self, node: Atom | Apply, position: int) -> int | None:
        table = self.of(node.symbol)
        if isinstance(table, Tensor):
            indexed = not is_index_list(table, node.symbol) and position < table.dim()
            return table.shape[position] if indexed else None
        others = {var.axis for part in node.parts[:-1] for var in part.free}
        is_class = (
            isinstance(node, Atom) and node.symbol.gives == "softmax" and position == len(node.parts) - 1
        )
        if is_class and node.parts[-1].free[0].axis not in others:
            return self._called(node.symbol, self._terms(node.parts[:-1])).tensor.shape[-1]
        return None

    def _terms(self, terms: tuple[Node, ...]) -> list[_Individuals]:
        return [self.individuals(term) for term in terms if isinstance(term, Term)]

    def individuals(self, term: Term) -> _Individuals:
        """What ``term`` stands for."""
        match term:
            case Var():
                return self.variable(term)
            case Const():
                value = self._number(self.of(term))
                rows = value if _is_rows(value, 0) else None
                return _Individuals(lambda: value, (), rows, (id(value), ()))
            case Number():
                value = self._number(term.value)
                return _Individuals(lambda: value, (), value if _is_rows(value, 0) else None, term)
            case Arithmetic():
                terms = self._terms(term.parts)
                return self._computed(_arithmetic(term.op, *terms), term.op, terms)
            case Apply():
                terms = self._terms(term.parts)
                return self._computed(self._applied(term.symbol, terms), term.symbol.name, terms)
        raise TypeError(f"no grounding for {type(term).__name__}")

    def _number(self, value: Any) -> Tensor:
        """A tensor for a number, as exact as degrees are; always the same one, since keys hold its id."""
        if isinstance(value, Tensor):
            return value
        key = ("number", id(value))
        if key not in self.calls:
            exact = torch.promote_types(self.dtype, torch.get_default_dtype())
            dtype = exact if isinstance(value, float) else None
            self.calls[key] = torch.as_tensor(value, dtype=dtype, device=self.device)
        return self.calls[key]

    def _computed(self, made: Values, name: str, terms: list[_Individuals]) -> _Individuals:
        rows = made.tensor if _is_rows(made.tensor, len(made.axes)) else None
        return _Individuals(lambda: made.tensor, made.axes, rows, (_signature(name, terms), made.axes))

    def variable(self, var: Var) -> _Individuals:
        """What a variable runs over."""
        if self._of_var(var) is None:
            size = self.size(var.axis)
            return _Individuals(lambda: self._range(size), (var.axis,), None, (("range", size), (var.axis,)))
        rows = self._rows_of(var)
        picks = rows if _is_rows(rows, 1) and isinstance(self._of_var(var), Tensor) else None
        return _Individuals(lambda: rows, (var.axis,), picks, (id(rows), (var.axis,)))

    def _applied(self, symbol: Func, terms: list[_Individuals]) -> Values:
        function = self.of(symbol)
        if isinstance(function, Tensor):
            return self._picked(symbol, function, terms)
        return self._called(symbol, terms)

    # Tables and callables

    def _picked(self, symbol: Func | Pred, table: Tensor, terms: list[_Individuals]) -> Values:
        """The elements of ``table`` at the rows of ``terms``."""
        if table.dim() < len(terms):
            raise ValueError(f"{symbol.name}: wanted a table of {len(terms)} axes, got {tuple(table.shape)}")
        axes = union(term.axes for term in terms)
        for number, term in enumerate(terms):
            if term.rows is None:
                self._check_rows(symbol, table, number, term)
            elif term.rows.is_cpu and term.rows.numel() and (least := int(term.rows.min())) < 0:
                raise ValueError(f"{symbol.name}: has no row {least}; rows are counted from 0")
        if len(axes) == len(terms) and all(term.rows is None for term in terms):
            return Values(table, axes)
        rows = [self._range(self.size(term.axes[0])) if term.rows is None else term.rows for term in terms]
        index = tuple(aligned(row, term.axes, axes) for row, term in zip(rows, terms, strict=True))
        try:
            return Values(table[index], axes)
        except IndexError as error:
            raise ValueError(f"{symbol.name}: a row out of range of {tuple(table.shape)}: {error}") from error

    def _check_rows(self, symbol: Func | Pred, table: Tensor, number: int, term: _Individuals) -> None:
        if len(term.axes) != 1:
            raise ValueError(
                f"{symbol.name}: is a table, and argument {number + 1} is no row number (an int64 scalar)"
            )
        count = self.size(term.axes[0])
        if table.shape[number] != count:
            raise ValueError(
                f"{symbol.name}: has {table.shape[number]} rows on axis {number}, but {term.axes[0]} has "
                f"{count} individuals"
            )

    def _called(self, symbol: Func | Pred, terms: list[_Individuals]) -> Values:
        """The callable of ``symbol`` on all rows of ``terms``, (axes, ...); once for equal arguments."""
        function = self.of(symbol)
        if not callable(function):
            raise ValueError(f"{symbol.name}: wanted a tensor or a callable, got {function!r}"[:200])
        axes = union(term.axes for term in terms)
        key = _signature(symbol.name, terms)
        if key not in self.calls:
            self.calls[key] = self._call(symbol, function, terms, axes)
        return Values(self.calls[key], axes)

    def _call(
        self, symbol: Func | Pred, function: Callable[..., Any], terms: list[_Individuals], axes: Axes
    ) -> Tensor:
        sizes = [self.size(axis) for axis in axes]
        if _takes_pairs(symbol, function, terms):
            return _of_pairs(symbol, function, terms, sizes)
        rows = 1
        for size in sizes:
            rows *= size
        arguments = []
        for term in terms:
            tensor = aligned(term.values(), term.axes, axes)
            features = tensor.shape[len(axes) :]
            arguments.append(tensor.expand([*sizes, *features]).reshape([rows, *features]))
        made = function(*arguments)
        if not isinstance(made, Tensor) or made.dim() == 0 or len(made) != rows:
            shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"{symbol.name}: wanted ({rows}, ...) from its callable, got {shape}")
        return made.reshape([*sizes, *made.shape[1:]])

    # Atoms

    def degrees(self, atom: Atom) -> Values:
        """The degrees of truth of an atom."""
        return self._literal(atom, 0)

    def logs(self, atom: Atom, positive: bool) -> Values:
        """The logarithm of the degrees of an atom, or of its negation."""
        return self._literal(atom, 0 if positive else 1)

    def _literal(self, atom: Atom, sign: int) -> Values:
        symbol = atom.symbol
        grounding = self.of(symbol)
        if isinstance(grounding, bool | int | float):
            grounding = self._number(grounding)
        terms = self._terms(atom.parts)
        if symbol.gives == "mask":
            return self._crisp(self.mask(atom), sign)
        if isinstance(grounding, Tensor):
            table = self._read(symbol, grounding)[sign]
            if table.dim() != len(terms):
                raise ValueError(
                    f"{symbol.name}: wanted a table of {len(terms)} axes, got {tuple(table.shape)}"
                )
            return self._picked(symbol, table, terms)
        if symbol.gives == "softmax":
            made = self._called(symbol, terms[:-1])
            if made.tensor.dim() != len(made.axes) + 1:
                raise ValueError(
                    f"{symbol.name}: wanted (rows, classes) from its callable, got {tuple(made.tensor.shape)}"
                )
            return self._class(symbol, Values(self._read(symbol, made.tensor)[sign], made.axes), terms[-1])
        made = self._called(symbol, terms)
        tensor = made.tensor.squeeze(-1) if made.tensor.dim() == len(made.axes) + 1 else made.tensor
        if tensor.dim() != len(made.axes):
            raise ValueError(f"{symbol.name}: wanted (rows,) from its callable, got more axes")
        if self.validate and symbol.gives == "truth":
            check_degrees(symbol.name, tensor)
        key = (symbol.name, "one", id(made.tensor))  # one tensor for `_read` to know again
        tensor = self.calls.setdefault(key, tensor)
        return Values(self._read(symbol, tensor)[sign], made.axes)

    def _class(self, symbol: Pred, made: Values, chosen: _Individuals) -> Values:
        """Element ``chosen`` of the last axis of ``made``."""
        leading = [
            _Individuals(lambda: made.tensor, (axis,), None, axis) for axis in made.axes
        ]  # their values are not looked at
        return self._picked(symbol, made.tensor, [*leading, chosen])

    def _read(self, symbol: Pred, numbers: Tensor) -> tuple[Tensor, ...]:
        """``numbers`` as degrees, or as their logarithms and those of the negation; once for each tensor."""
        key = (symbol.name, id(numbers))
        if key not in self.readings:
            self.readings[key] = _reading(symbol, numbers.to(self.dtype), self.floor, self.ops)
        return self.readings[key]

    def _crisp(self, made: Values, sign: int) -> Values:
        degrees = made.tensor.to(self.dtype)
        if self.floor is None:
            return Values(degrees, made.axes)
        return Values(_clipped_logs(degrees, self.floor)[sign], made.axes)

    def compared(self, node: Compare, positive: bool = True) -> Values:
        """A comparison as an atom."""
        return self._crisp(self.mask(node), 0 if positive else 1)

    # Guards

    def mask(self, guard: Formula) -> Values:
        """Where ``guard`` holds, a bool tensor."""
        match guard:
            case Compare():
                left, right = self._terms(guard.parts)
                axes = union((left.axes, right.axes))
                pair = [aligned(side.values(), side.axes, axes) for side in (left, right)]
                made = _COMPARISONS[guard.op](*pair)
                if made.dim() != len(axes):
                    raise ValueError(
                        f"{guard}: compares features {tuple(made.shape[len(axes) :])}, not numbers"
                    )
                return Values(made, axes)
            case Atom():
                return self._mask_atom(guard)
            case Not():
                inner = self.mask(guard.parts[0])
                return Values(~inner.tensor, inner.axes)
        parts = [self.mask(part) for part in guard.parts if isinstance(part, Formula)]
        if not isinstance(guard, AndFormula | Or):  # -> and <->
            return self._mask_implication(guard, *parts)
        axes = union(part.axes for part in parts)
        joined = aligned(*parts[0], axes)
        for part in parts[1:]:
            other = aligned(*part, axes)
            joined = joined & other if isinstance(guard, AndFormula) else joined | other
        return Values(joined, axes)

    def comparison(self, guard: Formula) -> Compared | None:
        """``guard`` as a comparison of floats with a number, or None.

        A kernel compares in the type of the degrees: None where that would round what is compared.
        """
        if not isinstance(guard, Compare) or guard.op not in _MIRRORED:
            return None
        (left, right), op = guard.parts, guard.op
        if isinstance(left, Number):
            left, right, op = right, left, _MIRRORED[op]
        if not isinstance(right, Number) or not isinstance(left, Term):
            return None

        def mask() -> Tensor:
            return self.mask(guard).tensor

        if isinstance(left, Apply) and self.of(left.symbol) is euclidean:
            points = self._terms(left.parts)
            axes = union(point.axes for point in points)
            if len(axes) == 2 and all(len(point.axes) == 1 for point in points):
                first, second = (point.values().detach() for point in points)
                if not (self._is_exact(first) and self._is_exact(second)):
                    return None
                first, second = first.to(self.dtype), second.to(self.dtype)
                return Compared(axes, (first, axes, op, float(right.value), second), mask)
        found = self.individuals(left)
        values = found.values()
        if not found.axes or not values.is_floating_point() or values.dim() != len(found.axes):
            return None
        if not self._is_exact(values):
            return None
        return Compared(
            found.axes, (values.detach().to(self.dtype), found.axes, op, float(right.value)), mask
        )

    def _is_exact(self, values: Tensor) -> bool:
        """Whether the type of the degrees has all numbers of the values' type."""
        return torch.promote_types(values.dtype, self.dtype) == self.dtype

    def _mask_implication(self, guard: Formula, left: Values, right: Values) -> Values:
        axes = union((left.axes, right.axes))
        a, b = aligned(*left, axes), aligned(*right, axes)
        return Values(~a | b if type(guard).__name__ == "Implies" else a == b, axes)

    def _mask_atom(self, atom: Atom) -> Values:
        table = self.of(atom.symbol)
        if not isinstance(table, Tensor):
            made = self._called(atom.symbol, self._terms(atom.parts))
            flat = made.tensor.squeeze(-1) if made.tensor.dim() > len(made.axes) else made.tensor
            return Values(flat.bool(), made.axes)
        terms = self._terms(atom.parts)
        if is_index_list(table, atom.symbol):
            pairs = _index_list(table, atom.symbol)
            sizes = [self._row_count(term, pairs, number) for number, term in enumerate(terms)]
            key = (atom.symbol.name, "dense", tuple(sizes))
            if key not in self.calls:
                dense = torch.zeros(sizes, dtype=torch.bool, device=table.device)
                dense[tuple(pairs.unbind(1))] = True
                self.calls[key] = dense
            table = self.calls[key]
        if table.dtype != torch.bool:
            raise ValueError(f"{atom.symbol.name}: wanted a bool tensor or an index list, got {table.dtype}")
        return self._picked(atom.symbol, table, terms)

    def _row_count(self, term: _Individuals, pairs: Tensor, number: int) -> int:
        column = pairs[:, number]
        top = int(column.max()) + 1 if len(column) else 0
        if len(column) and column.min() < 0:
            raise ValueError(f"an index list has row {int(column.min())}; rows are counted from 0")
        if term.rows is None:
            count = self.size(term.axes[0])
            if top > count:
                raise ValueError(
                    f"an index list has row {top - 1}, but {term.axes[0]} has {count} individuals"
                )
            return count
        return max(top, int(term.rows.max()) + 1 if term.rows.numel() else 0)

    def index_list(self, guard: Formula | None) -> Tensor | None:
        """The index list (pairs, arguments) that ``guard`` is, of variables with an axis each, or None."""
        if not isinstance(guard, Atom) or not all(isinstance(part, Var) for part in guard.parts):
            return None
        table = self.of(guard.symbol)
        variables = [part for part in guard.parts if isinstance(part, Var)]
        if not isinstance(table, Tensor) or not is_index_list(table, guard.symbol):
            return None
        if len({var.axis for var in variables}) != len(variables):
            return None
        if any(self.variable(var).rows is not None for var in variables):
            return None
        pairs = _index_list(table, guard.symbol)
        for number, var in enumerate(variables):
            self._row_count(self.variable(var), pairs, number)
        return pairs

    def gathered(self, picks: Mapping[str, Tensor], axis: str) -> Grounding:
        """The same, with the axes in ``picks`` replaced by one, ``axis``, of these rows of each."""
        return _Gathered(self, picks, axis)


class _Gathered(Grounding):
    """A grounding in which some axes are zipped rows of the original ones."""

    def __init__(self, base: Grounding, picks: Mapping[str, Tensor], axis: str) -> None:
        self.__dict__.update(base.__dict__)
        count = len(next(iter(picks.values())))
        self.base, self.picks, self.axis = base, picks, axis
        for pick in picks.values():
            self.calls["kept", id(pick)] = pick  # keys hold its id, which must not be given to another
        self.sizes = {**base.sizes, axis: count}
        self.rows: dict[Any, Tensor] = {}

    def variable(self, var: Var) -> _Individuals:
        original = self.base.variable(var)
        if var.axis not in self.picks:
            return original
        pick = self.picks[var.axis]

        def values() -> Tensor:
            if original.key not in self.rows:
                self.rows[original.key] = original.values()[pick]
            return self.rows[original.key]

        rows = pick if original.rows is None else original.rows[pick]
        key = ((_without_axes(original.key), id(pick)), (self.axis,))
        return _Individuals(values, (self.axis,), rows, key)

    def _literal(self, atom: Atom, sign: int) -> Values:
        """On the original rows and then picked, where there are not more of them."""
        axes = tuple(dict.fromkeys(var.axis for var in atom.free))
        zipped = [axis for axis in axes if axis in self.picks]
        if math.prod(self.base.size(axis) for axis in zipped) > self.sizes[self.axis]:
            return super()._literal(atom, sign)
        made = self.base._literal(atom, sign)
        order = union([tuple(self.axis if axis in self.picks else axis for axis in made.axes)])
        rows = []
        for axis in made.axes:
            pick = self.picks.get(axis)
            own = self.axis if pick is not None else axis
            rows.append(aligned(self._range(self.base.size(axis)) if pick is None else pick, (own,), order))
        return Values(made.tensor[tuple(rows)], order)


def _takes_pairs(symbol: Func | Pred, function: Callable[..., Any], terms: list[_Individuals]) -> bool:
    """Whether a module is to score all pairs of two lists by itself, without a row for each pair."""
    if not isinstance(symbol, Pred) or symbol.gives not in ("truth", "logits") or len(terms) != 2:
        return False
    first, second = (term.axes for term in terms)
    apart = len(first) == len(second) == 1 and first != second
    if not apart or not isinstance(function, nn.Module):
        return False
    pairs = getattr(function, "pairs", None)
    return callable(pairs) and not isinstance(pairs, nn.Module)  # a part of this name is no such method


def _of_pairs(symbol: Func | Pred, function: Any, terms: list[_Individuals], sizes: list[int]) -> Tensor:
    made = function.pairs(*(term.values() for term in terms))
    if not isinstance(made, Tensor) or list(made.shape[:2]) != sizes:
        shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(f"{symbol.name}: wanted ({sizes[0]}, {sizes[1]}) from its method pairs, got {shape}")
    return made


def _arithmetic(op: str, left: _Individuals, right: _Individuals) -> Values:
    axes = union((left.axes, right.axes))
    pair = (aligned(side.values(), side.axes, axes) for side in (left, right))
    return Values(_ARITHMETIC[op](*pair), axes)


def _signature(name: str, terms: list[_Individuals]) -> object:
    """Equal for equal values of the arguments in the same pattern of axes, whatever these are called."""
    numbered = {axis: number for number, axis in enumerate(union(term.axes for term in terms))}
    return (
        name,
        tuple((_without_axes(term.key), tuple(numbered[axis] for axis in term.axes)) for term in terms),
    )


def _without_axes(key: object) -> object:
    """The key of individuals whatever their axes are called: the axes are the last part of a pair."""
    return key[0] if isinstance(key, tuple) and len(key) == 2 else key


def _is_rows(values: Tensor, axes: int) -> bool:
    return values.dim() == axes and values.dtype in (torch.int64, torch.int32)


def is_index_list(table: object, symbol: Func | Pred) -> bool:
    """Whether the grounding of a mask lists rows."""
    is_mask = isinstance(symbol, Pred) and symbol.gives == "mask"
    return is_mask and isinstance(table, Tensor) and table.dtype == torch.int64


def _index_list(table: Tensor, symbol: Pred) -> Tensor:
    """As (pairs, arguments); those of one argument may be (pairs,)."""
    wanted = (len(table), symbol.arity)
    if table.shape != wanted and not (symbol.arity == 1 and table.dim() == 1):
        raise ValueError(f"{symbol.name}: wanted an index list {wanted}, got {tuple(table.shape)}")
    return table.reshape(wanted)


def check_degrees(name: str, degrees: Tensor) -> None:
    """Refuse numbers outside of [0, 1]."""
    if not degrees.numel():
        return
    low, high = degrees.detach().aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{name}: degrees of truth lie in [0, 1], got {low.item():g} to {high.item():g}; declare "
            f"Pred({name!r}, ..., gives='logits') if they are logits"
        )


def _clipped_logs(degrees: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    return degrees.clamp(min=floor).log(), torch.log1p(-degrees.clamp(max=1 - floor))


def _reading(symbol: Pred, numbers: Tensor, floor: float | None, ops: Any) -> tuple[Tensor, ...]:
    """Degrees; with a floor, the logarithms of both signs."""
    if symbol.gives == "truth":
        return (numbers,) if floor is None else _clipped_logs(numbers, floor)
    if floor is None:
        return (numbers.sigmoid() if symbol.gives == "logits" else numbers.softmax(-1),)
    both: tuple[Tensor, Tensor] = ops.atom_logits(
        numbers, "sigmoid" if symbol.gives == "logits" else "softmax"
    )
    return both
