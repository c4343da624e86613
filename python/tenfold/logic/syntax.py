"""The language: typed terms and formulas as a tree, built by operators, checked as they are built.

    x, y = Var("x"), Var("y")
    P, R = Pred("P", 1), Pred("R", 2)
    Forall[x, y]((P(x) & P(y)) >> R(x, y), where=x < y)

``&``, ``|``, ``~``, ``>>`` and ``.iff`` connect formulas; Python binds ``>>`` more tightly than ``&``
and ``|``, so an antecedent of several parts needs its parentheses. Nodes are immutable and equal when they
are written alike; nothing here knows a number of an individual, or computes.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from tenfold.logic.errors import FormulaError

Gives = Literal["truth", "logits", "softmax", "mask"]
Kind = Literal["forall", "exists"]
_GIVES = ("truth", "logits", "softmax", "mask")
RESERVED = ("forall", "exists", "where", "in", "And", "Or")
# Levels of nesting. Every pass over a tree is recursive, and Python's own limit is 1000 calls.
DEEPEST = 100
TOO_DEEP = f"nested more than {DEEPEST} deep; And(...) and Or(...) take any number of formulas"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RESERVED or keyword.iskeyword(name):
        raise ValueError(
            f"name: wanted letters, digits and _, no word of Python or of the language, got {name!r}"
        )
    return name


class _Equal:
    """Equality and hash by ``_key``, which subclasses set once."""

    _key: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._key == self._key

    def __hash__(self) -> int:
        return self._hash

    def _freeze(self, *key: Any) -> None:
        self._key = key
        self._hash = hash((type(self).__name__, *key))


class Domain(_Equal):
    """A type of individuals; ``kb(people=features)`` grounds all variables of ``Domain("people")``."""

    def __init__(self, name: str) -> None:
        self.name = _checked_name(name)
        self._freeze(name)

    def __repr__(self) -> str:
        return f"Domain({self.name!r})"


class Node(_Equal):
    """A term or a formula: its parts, its free variables in order of appearance, and its depth."""

    parts: tuple[Node, ...]
    free: tuple[Var, ...]
    depth: int

    def _build(self, parts: tuple[Node, ...], *key: Any) -> None:
        """Set what every node has; the attributes that printing needs are there before."""
        self.parts = parts
        self.depth = 1 + max((part.depth for part in parts), default=0)
        if self.depth > DEEPEST:
            raise FormulaError(TOO_DEEP, "...", 0, 3)
        self._freeze(*key, *parts)
        self.free = self._merged(parts)

    def _merged(self, parts: tuple[Node, ...]) -> tuple[Var, ...]:
        merged: dict[str, Var] = {}
        for part in parts:
            for var in part.free:
                if merged.setdefault(var.name, var) != var:
                    other = merged[var.name]
                    raise self.fault(
                        f"{var.name} is two variables here: {other.binder()} and {var.binder()}", var
                    )
        return tuple(merged.values())

    def fault(self, reason: str, place: Node | None = None) -> FormulaError:
        """The error that shows this node with a caret under its part ``place``."""
        from tenfold.logic.printer import located

        error = FormulaError(reason, *located(self, self if place is None else place))
        error.place = self if place is None else place
        return error

    def walk(self) -> Iterator[Node]:
        """This node and all below it, from the left."""
        yield self
        for part in self.parts:
            yield from part.walk()

    def __str__(self) -> str:
        from tenfold.logic.printer import located

        return located(self, self)[0]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


# Terms


class Term(Node):
    """Stands for individuals. ``+ - *`` make terms, ``< <= > >=``, ``.eq`` and ``.ne`` comparisons."""

    domain: Domain | None = None

    def __add__(self, other: Term | float) -> Arithmetic:
        return Arithmetic("+", self, as_term(other))

    def __radd__(self, other: float) -> Arithmetic:
        return Arithmetic("+", as_term(other), self)

    def __sub__(self, other: Term | float) -> Arithmetic:
        return Arithmetic("-", self, as_term(other))

    def __rsub__(self, other: float) -> Arithmetic:
        return Arithmetic("-", as_term(other), self)

    def __mul__(self, other: Term | float) -> Arithmetic:
        return Arithmetic("*", self, as_term(other))

    def __rmul__(self, other: float) -> Arithmetic:
        return Arithmetic("*", as_term(other), self)

    def __lt__(self, other: Term | float) -> Compare:
        return Compare("<", self, as_term(other))

    def __le__(self, other: Term | float) -> Compare:
        return Compare("<=", self, as_term(other))

    def __gt__(self, other: Term | float) -> Compare:
        return Compare(">", self, as_term(other))

    def __ge__(self, other: Term | float) -> Compare:
        return Compare(">=", self, as_term(other))

    def eq(self, other: Term | float) -> Compare:
        """The comparison ``self = other``; ``==`` compares the trees."""
        return Compare("=", self, as_term(other))

    def ne(self, other: Term | float) -> Compare:
        """The comparison ``self != other``."""
        return Compare("!=", self, as_term(other))


class Var(Term):
    """A variable. Variables of one ``axis`` go together, the i-th of one with the i-th of the other.

    Without ``axis`` a variable has one of its own, of its own name, and is crossed with all others.
    """

    def __init__(self, name: str, domain: Domain | None = None, axis: str | None = None) -> None:
        self.name = _checked_name(name)
        self.axis = _checked_name(name if axis is None else axis)
        self.domain = domain
        self._build((), name, self.axis, domain)
        self.free = (self,)

    def binder(self) -> str:
        """As a quantifier lists it: ``x``, ``x@pair``, ``x in people``."""
        shared = f"@{self.axis}" if self.axis != self.name else ""
        return f"{self.name}{shared}" + (f" in {self.domain.name}" if self.domain else "")


class Const(Term):
    """A named individual: fixed, ``trainable`` (its value becomes a parameter), or grounded at the call."""

    def __init__(
        self,
        name: str,
        value: Tensor | float | None = None,
        domain: Domain | None = None,
        trainable: bool = False,
    ) -> None:
        self.name, self.domain = _checked_name(name), domain
        if trainable and value is None:
            raise ValueError(f"trainable: {name} has no value to start from")
        tensor = None if value is None else torch.as_tensor(value)
        if trainable and not isinstance(tensor, nn.Parameter):
            assert tensor is not None
            tensor = nn.Parameter(tensor.detach().clone())
        self.value = tensor
        self._build((), name, domain, None if value is None else id(value), trainable)


class Number(Term):
    """A number in the text of a formula."""

    def __init__(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"value: wanted a finite number, got {value!r}")
        self.value = value
        self._build((), type(value).__name__, value)


class Apply(Term):
    """A function of terms; written by calling a ``Func``."""

    def __init__(self, symbol: Func, terms: tuple[Term, ...]) -> None:
        self.symbol, self.domain = symbol, symbol.result
        self._build(terms, symbol)
        _check_arguments(self, symbol)


class Arithmetic(Term):
    """``left op right`` with ``+``, ``-`` or ``*``."""

    def __init__(self, op: str, left: Term, right: Term) -> None:
        self.op = op
        self._build((left, right), op)


def as_term(value: Term | float) -> Term:
    """``value``, with a number made a term."""
    if isinstance(value, Term):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Number(value)
    raise TypeError(f"wanted a term or a number, got {_told(value)}")


# Symbols


class _Symbol(_Equal):
    """A named function or predicate: what it takes, and perhaps what grounds it."""

    def __init__(self, name: str, signature: tuple[int | Domain | None, ...], grounding: Any) -> None:
        self.name = _checked_name(name)
        if len(signature) == 1 and isinstance(signature[0], int):
            if signature[0] < 0:
                raise ValueError(f"{name}: wanted 0 or more arguments, got {signature[0]}")
            signature = (None,) * signature[0]
        if not all(part is None or isinstance(part, Domain) for part in signature):
            raise TypeError(f"{name}: wanted a number of arguments or their domains, got {signature!r}")
        self.domains: tuple[Domain | None, ...] = signature  # type: ignore[assignment]
        self.grounding = grounding

    @property
    def arity(self) -> int:
        """How many arguments it takes."""
        return len(self.domains)


class Func(_Symbol):
    """A function. ``Func("father", 1)`` or, typed, ``Func("age", people, result=number)``.

    Its grounding, given here or at the call, is a callable of one tensor (rows, ...) per argument that
    returns (rows, ...), or a tensor that the arguments index.
    """

    def __init__(
        self, name: str, *signature: int | Domain | None, result: Domain | None = None, grounding: Any = None
    ) -> None:
        super().__init__(name, signature, grounding)
        if self.arity == 0:
            raise ValueError(f"{name}: a function of nothing is a Const")
        self.result = result
        self._freeze(name, self.domains, result, None if grounding is None else id(grounding))

    def __call__(self, *terms: Term | float) -> Apply:
        """The term that applies it."""
        return Apply(self, tuple(map(as_term, terms)))

    def __repr__(self) -> str:
        return f"<Func {self.name}/{self.arity}>"


class Pred(_Symbol):
    """A predicate: ``Pred("P", 2)``, or typed, ``Pred("F", people, people)``; 0 arguments: a proposition.

    Its grounding, given here or at the call, is a tensor that the arguments index, or a callable of one
    tensor (rows, ...) per argument that returns (rows,) or (rows, 1). A module of two arguments that has a
    method ``pairs``, as `tenfold.nn.pairwise.PairMLP` has, is asked for all pairs of two variables by
    ``pairs(x, y)``, (n, ...) and (m, ...) -> (n, m), and then no row for each pair is made; it has to give
    what its forward pass gives. ``gives`` says what the numbers are:

    - "truth": degrees in [0, 1].
    - "logits": numbers whose sigmoid is the degree.
    - "softmax": logits of classes. The last argument is the class: the tensor's last axis, or the second
      axis of what the callable makes (rows, classes) of the other arguments.
    - "mask": true or false, what guards are made of: a bool tensor, or an index list, int64 (pairs,
      arguments), of different rows.
    """

    def __init__(
        self, name: str, *signature: int | Domain | None, gives: Gives = "truth", grounding: Any = None
    ) -> None:
        super().__init__(name, signature, grounding)
        if gives not in _GIVES:
            raise ValueError(f"gives: wanted one of {', '.join(_GIVES)}, got {gives!r}")
        if gives == "softmax" and self.arity == 0:
            raise ValueError(f"{name}: softmax logits need an argument, the class")
        self.gives = gives
        self._freeze(name, self.domains, gives, None if grounding is None else id(grounding))

    def __call__(self, *terms: Term | float) -> Atom:
        """The formula that applies it."""
        return Atom(self, tuple(map(as_term, terms)))

    def __repr__(self) -> str:
        return f"<Pred {self.name}/{self.arity}>"


def _check_arguments(node: Apply | Atom, symbol: Func | Pred) -> None:
    if len(node.parts) != symbol.arity:
        raise node.fault(f"{symbol.name} takes {_count(symbol.arity)}, got {len(node.parts)}")
    for part, wanted in zip(node.parts, symbol.domains, strict=True):
        assert isinstance(part, Term)
        if wanted is not None and part.domain is not None and part.domain != wanted:
            raise node.fault(
                f"{symbol.name} takes one of {wanted.name} here, not of {part.domain.name}", part
            )


# Formulas


class Formula(Node):
    """Has a degree of truth. Connect with ``&``, ``|``, ``~``, ``>>`` and ``.iff``."""

    def __and__(self, other: Formula) -> And:
        return And(self, other)

    def __or__(self, other: Formula) -> Or:
        return Or(self, other)

    def __rshift__(self, other: Formula) -> Implies:
        return Implies(self, other)

    def __invert__(self) -> Not:
        return Not(self)

    def iff(self, other: Formula) -> Iff:
        """``self`` is as true as ``other``."""
        return Iff(self, other)

    def __bool__(self) -> NoReturn:
        raise self.fault("a formula is neither true nor false in Python; connect with & | ~ >> and .iff()")


class Atom(Formula):
    """A predicate of terms; written by calling a ``Pred``."""

    def __init__(self, symbol: Pred, terms: tuple[Term, ...]) -> None:
        self.symbol = symbol
        self._build(terms, symbol)
        _check_arguments(self, symbol)


class Compare(Formula):
    """``left op right``, true or false: a guard, or a crisp atom."""

    def __init__(self, op: str, left: Term, right: Term) -> None:
        self.op = op
        self._build((left, right), op)


class _Connective(Formula):
    parts: tuple[Formula, ...]

    def __init__(self, *parts: Formula) -> None:
        if not parts:
            raise ValueError(f"{type(self).__name__} wants at least one formula")
        for part in parts:
            if not isinstance(part, Formula):
                raise TypeError(f"{type(self).__name__} connects formulas, got {_told(part)}")
        self._build(parts)


class Not(_Connective):
    """``~part``."""

    def __init__(self, part: Formula) -> None:
        super().__init__(part)


class And(_Connective):
    """``a & b``, or And(a, b, ...): one conjunction of them all."""


class Or(_Connective):
    """``a | b``, or Or(a, b, ...): one disjunction of them all, which nested ones need not equal."""


class Implies(_Connective):
    """``left >> right``."""

    def __init__(self, left: Formula, right: Formula) -> None:
        super().__init__(left, right)


class Iff(_Connective):
    """``left.iff(right)``."""

    def __init__(self, left: Formula, right: Formula) -> None:
        super().__init__(left, right)


class Quantified(Formula):
    """``Forall[x, y](body, where=guard, p=5)``; ``p`` overrides the semantics' own power."""

    def __init__(
        self, kind: Kind, variables: tuple[Var, ...], body: Formula, guard: Formula | None, p: float | None
    ) -> None:
        for part in (body, guard):
            if not isinstance(part, Formula) and part is not None:
                hint = "; terms are compared by .eq() and .ne()" if isinstance(part, bool) else ""
                raise TypeError(f"{kind} wants a formula, got {_told(part)}{hint}")
        if p is not None and not (isinstance(p, int | float) and 1 <= p < math.inf):
            raise ValueError(f"p: wanted a number of at least 1, got {p!r}")
        self.kind, self.variables, self.body, self.guard = kind, variables, body, guard
        self.p = None if p is None else float(p)
        parts = (body,) if guard is None else (guard, body)
        self._build(parts, kind, variables, self.p)
        self._check_variables()
        if guard is not None:
            self._check_guard(guard)
        bound = set(variables)
        self.free = tuple(var for var in self.free if var not in bound)

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the variables, each once."""
        return tuple(dict.fromkeys(var.axis for var in self.variables))

    def _check_variables(self) -> None:
        free = {var.name: var for var in self.free}
        seen: set[str] = set()
        for var in self.variables:
            if var.name in seen:
                raise self.fault(f"{var.name} is listed twice", var)
            seen.add(var.name)
            if var.name not in free:
                raise self.fault(f"{var.name} does not occur free in what {self.kind} binds", var)
            if free[var.name] != var:
                raise self.fault(
                    f"{var.name} is two variables here: {var.binder()} and {free[var.name].binder()}", var
                )
        for other in self.free:
            if other.axis in self.axes and other.name not in seen:
                raise self.fault(f"{other.name} shares the axis {other.axis}; bind it here too", other)
        for node in self.body.walk():
            twice = set(node.axes) & set(self.axes) if isinstance(node, Quantified) else ()
            if twice:
                raise self.fault(f"{min(twice)} is bound again inside", node)

    def _check_guard(self, guard: Formula) -> None:
        for node in guard.walk():
            if isinstance(node, Quantified):
                raise self.fault("a guard has no quantifiers", node)
            if isinstance(node, Atom) and node.symbol.gives != "mask":
                raise self.fault(
                    f"a guard is true or false: declare Pred({node.symbol.name!r}, ..., gives='mask')", node
                )


class _Quantifier:
    """``Forall`` or ``Exists``: index it with variables, call the result with a formula."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def __getitem__(self, variables: Var | tuple[Var, ...]) -> Callable[..., Quantified]:
        bound = variables if isinstance(variables, tuple) else (variables,)
        for var in bound:
            if not isinstance(var, Var):
                raise TypeError(f"{self._kind} binds variables, got {_told(var)}")
        if not bound:
            raise TypeError(f"{self._kind} wants at least one variable")

        def quantify(body: Formula, where: Formula | None = None, p: float | None = None) -> Quantified:
            return Quantified(self._kind, bound, body, where, p)

        return quantify


Forall = _Quantifier("forall")
Exists = _Quantifier("exists")


def Prop(name: str, gives: Gives = "truth", grounding: Any = None) -> Atom:  # noqa: N802
    """A proposition: the atom of a predicate without arguments."""
    return Pred(name, 0, gives=gives, grounding=grounding)()


def diagonal(*names: str, domain: Domain | None = None) -> tuple[Var, ...]:
    """Variables that share one axis: the i-th of each go together."""
    axis = "_".join(names)
    return tuple(Var(name, domain, axis) for name in names)


def _told(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:60]


Named = Var | Const | Func | Pred | Domain


def named_in(*nodes: Node) -> dict[str, Named]:
    """Everything with a name in ``nodes``, by name; a FormulaError where one name is two things."""
    found: dict[str, Named] = {}
    for root in nodes:
        for node in root.walk():
            for named in _names_of(node):
                if found.setdefault(named.name, named) != named:
                    raise root.fault(
                        f"{named.name} is two things: {_shown(found[named.name])} and {_shown(named)}", node
                    )
    return found


def _shown(named: Named) -> str:
    return f"the variable {named.binder()}" if isinstance(named, Var) else repr(named)


def _names_of(node: Node) -> Iterator[Named]:
    if isinstance(node, Atom | Apply):
        yield node.symbol
        yield from (domain for domain in node.symbol.domains if domain)
    if isinstance(node, Var | Const):
        yield node
        if node.domain:
            yield node.domain


def _count(arguments: int) -> str:
    return f"{arguments} argument{'s' * (arguments != 1)}"
