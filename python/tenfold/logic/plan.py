"""Formulas lowered to what is computed: negation where the semantics has it, equal parts once.

In log space: negation normal form, literals of either sign, flat conjunctions (sums are associative) and flat
disjunctions with weights (a nested LogMeanExp is a flat one with the products of weights, not with equal
ones). With degrees: not, and, or and implies as they are written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tenfold.logic.groundings import Axes, union
from tenfold.logic.semantics import Fuzzy, LogProduct
from tenfold.logic.syntax import And, Atom, Compare, Formula, Iff, Implies, Kind, Not, Or, Quantified


@dataclass(eq=False)
class Step:
    """Something to compute; one object for each distinct formula, so that a cache by step shares parts."""

    axes: Axes = field(init=False)
    plans: dict[Any, Any] = field(init=False, default_factory=dict, repr=False)
    """Of the last shapes of groundings, what a quantifier over this does: polynomial.py."""


@dataclass(eq=False)
class Literal(Step):
    """An atom, or in log space its negation."""

    atom: Atom | Compare
    positive: bool = True

    def __post_init__(self) -> None:
        self.axes = tuple(dict.fromkeys(var.axis for var in self.atom.free))

    def __str__(self) -> str:
        return f"{'' if self.positive else '~'}{self.atom}"


@dataclass(eq=False)
class Connect(Step):
    """``sign`` of parts: "and" and "or" of any number, "not", "implies"; "or" in log space with weights."""

    sign: str
    parts: tuple[Step, ...]
    log_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self.axes = union(part.axes for part in self.parts)

    def __str__(self) -> str:
        return f"{self.sign}({', '.join(map(str, self.parts))})"


@dataclass(eq=False)
class Quantify(Step):
    """``kind`` over the axes ``over``, of ``body`` where ``guard`` holds."""

    kind: Kind
    over: Axes
    body: Step
    guard: Formula | None
    p: float | None

    def __post_init__(self) -> None:
        guarded = tuple(dict.fromkeys(var.axis for var in self.guard.free)) if self.guard is not None else ()
        everything = union((self.body.axes, guarded))
        self.axes = tuple(axis for axis in everything if axis not in self.over)

    def __str__(self) -> str:
        where = f" where {self.guard}" if self.guard is not None else ""
        return f"{self.kind} {', '.join(self.over)}{where}: {self.body}"


class Lowering:
    """Lowers formulas of one semantics, and gives the same step for the same formula."""

    def __init__(self, semantics: Fuzzy | LogProduct) -> None:
        self.semantics = semantics
        self.weighted = isinstance(semantics, LogProduct) and semantics.exists.kind == "lme"
        self._steps: dict[Any, Step] = {}

    def lower(self, formula: Formula) -> Step:
        """The step that computes ``formula``."""
        if isinstance(self.semantics, LogProduct):
            return self._log(formula, True)
        return self._fuzzy(formula)

    def _same(self, key: Any, make: Any, *arguments: Any) -> Any:
        if key not in self._steps:
            self._steps[key] = make(*arguments)
        return self._steps[key]

    def _connect(self, sign: str, parts: tuple[Step, ...], weights: tuple[float, ...] | None = None) -> Step:
        key = (sign, tuple(map(id, parts)), weights)
        step: Step = self._same(key, Connect, sign, parts, weights)
        return step

    def _quantify(self, node: Quantified, kind: Kind, body: Step) -> Step:
        key = (kind, node.axes, id(body), node.guard, node.p)
        step: Step = self._same(key, Quantify, kind, node.axes, body, node.guard, node.p)
        return step

    def _fuzzy(self, formula: Formula) -> Step:
        match formula:
            case Atom() | Compare():
                step: Step = self._same(formula, Literal, formula)
                return step
            case Quantified():
                return self._quantify(formula, formula.kind, self._fuzzy(formula.body))
        parts = tuple(self._fuzzy(part) for part in formula.parts if isinstance(part, Formula))
        match formula:
            case Not():
                return self._connect("not", parts)
            case Implies():
                return self._connect("implies", parts)
            case Iff():
                back = self._connect("implies", parts[::-1])
                return self._connect("and", (self._connect("implies", parts), back))
        return self._connect("and" if isinstance(formula, And) else "or", parts)

    def _log(self, formula: Formula, positive: bool) -> Step:
        """The step of ``formula``, or of its negation."""
        key = (formula, positive)
        if key not in self._steps:
            self._steps[key] = self._log_new(formula, positive)
        return self._steps[key]

    def _log_new(self, formula: Formula, positive: bool) -> Step:
        match formula:
            case Atom() | Compare():
                return Literal(formula, positive)
            case Not():
                return self._log(formula.parts[0], not positive)
            case Quantified():
                kind: Kind = "forall" if (formula.kind == "forall") == positive else "exists"
                return self._quantify(formula, kind, self._log(formula.body, positive))
            case And() | Or():
                parts = tuple(self._log(part, positive) for part in formula.parts)
                return self._flat("and" if isinstance(formula, And) == positive else "or", parts)
        left, right = formula.parts
        assert isinstance(left, Formula) and isinstance(right, Formula)
        if isinstance(formula, Implies):
            return self._implies(left, right, positive)
        both = (self._implies(left, right, positive), self._implies(right, left, positive))
        return self._flat("and" if positive else "or", both)

    def _implies(self, left: Formula, right: Formula, positive: bool) -> Step:
        parts = (self._log(left, not positive), self._log(right, positive))
        return self._flat("or" if positive else "and", parts)

    def _flat(self, sign: str, parts: tuple[Step, ...]) -> Step:
        """One connective for nested ones, where that keeps the value."""
        if len(parts) == 1:
            return parts[0]
        if sign == "and" or not self.weighted:
            inner = [
                part.parts if isinstance(part, Connect) and part.sign == sign else (part,) for part in parts
            ]
            return self._connect(sign, tuple(step for steps in inner for step in steps))
        steps: list[Step] = []
        weights: list[float] = []
        own = -math.log(len(parts))
        for part in parts:
            if isinstance(part, Connect) and part.sign == "or":
                steps += part.parts
                weights += [own + weight for weight in part.log_weights or ()]
            else:
                steps.append(part)
                weights.append(own)
        return self._connect("or", tuple(steps), tuple(weights))
