"""Formulas from text: ``parse("forall x, y where x < y: P(x) & P(y) -> R(x, y)")``.

    ~ & | -> <->                   tightest first; -> groups to the right, the others to the left
    And(a, b, c)  Or(a, b, c)      one conjunction or disjunction of them all
    forall x, y: ...               as far to the right as it goes; exists alike
    forall[p=5] x                  a power of its own
    forall x in people             typed
    forall x@pair, y@pair          variables that share an axis
    forall x, y where GUARD: ...   comparisons and masks
    = != < <= > >=  + - *          comparisons of terms, and arithmetic

Names that a quantifier does not bind are looked up among the symbols given; an unknown name with arguments
becomes a predicate (a mask in a guard, a function inside a term), an unknown bare name a proposition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from tenfold.logic.errors import FormulaError
from tenfold.logic.printer import AND, COMPARE, IFF, IMPLIES, NOT, OR, PRODUCT, QUANTIFIED, SUM
from tenfold.logic.syntax import (
    DEEPEST,
    RESERVED,
    TOO_DEEP,
    And,
    Apply,
    Arithmetic,
    Atom,
    Compare,
    Const,
    Domain,
    Formula,
    Func,
    Iff,
    Implies,
    Named,
    Not,
    Number,
    Or,
    Pred,
    Quantified,
    Term,
    Var,
    named_in,
)

T = TypeVar("T")
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<sign><->|->|<=|>=|!=|[<>=&|~()\[\],:@+*-])"
)
# Level of each infix sign, and the levels of what may stand bare to its right.
_INFIX = {
    "<->": (IFF, IFF + 1), "->": (IMPLIES, IMPLIES), "|": (OR, OR + 1), "&": (AND, AND + 1),
    "+": (SUM, SUM + 1), "-": (SUM, SUM + 1), "*": (PRODUCT, PRODUCT + 1),
    **dict.fromkeys(("=", "!=", "<", "<=", ">", ">="), (COMPARE, COMPARE + 1)),
}  # fmt: skip
_CONNECTIVES: dict[str, type[And | Or | Implies | Iff]] = {"&": And, "|": Or, "->": Implies, "<->": Iff}


def parse(text: str, *symbols: Named) -> Formula:
    """The formula that ``text`` says; a FormulaError points at what is wrong in it."""
    return Parser(*symbols).formula(text)


class Parser:
    """Reads several texts about the same symbols, those given and those that the texts bring."""

    def __init__(self, *symbols: Named, free: Iterable[str] = ()) -> None:
        self.symbols: dict[str, Named] = {}
        self.free = frozenset(free)
        """Names that are variables where nothing else explains them: of queries."""
        for symbol in symbols:
            if not isinstance(symbol, Named):
                raise TypeError(f"symbols: wanted Var, Const, Func, Pred or Domain, got {symbol!r}")
            if self.symbols.setdefault(symbol.name, symbol) != symbol:
                raise ValueError(f"symbols: {symbol.name} is given twice")

    def formula(self, text: str) -> Formula:
        """The formula that ``text`` says."""
        return _Resolver(text, self.symbols, self.free).whole(_Reader(text).whole())

    def term(self, text: str) -> Term:
        """The term that ``text`` says."""
        return _Resolver(text, self.symbols, self.free).term(_Reader(text).whole(), {})


@dataclass
class _Raw:
    """What the signs of a text say, before its names are looked up."""

    kind: str  # name, number, call, not, infix, quantified
    start: int
    end: int
    value: Any = None
    parts: tuple[_Raw, ...] = ()
    depth: int = 1


@dataclass(frozen=True)
class _Binder:
    name: _Raw
    axis: _Raw | None
    domain: _Raw | None


class _Reader:
    """From text to a raw tree: a precedence climber."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text: wanted a string, got {type(text).__name__}")
        self.text, self.position, self.nesting = text, 0, 0
        self.tokens = self._tokens()

    def _tokens(self) -> list[tuple[str, str, int]]:
        tokens, position = [], 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                raise FormulaError(
                    f"no sign of the language: {self.text[position]!r}", self.text, position, position + 1
                )
            if match.lastgroup != "space":
                tokens.append((str(match.lastgroup), match.group(), position))
            position = match.end()
        return [*tokens, ("end", "", len(self.text))]

    def whole(self) -> _Raw:
        raw = self.expression(QUANTIFIED)
        if self._kind != "end":
            self._fail("wanted the end of the formula or a connective")
        return raw

    @property
    def _kind(self) -> str:
        return self.tokens[self.position][0]

    @property
    def _sign(self) -> str:
        kind, text, _ = self.tokens[self.position]
        return text if kind == "sign" else ""

    def _next(self) -> tuple[str, str, int]:
        token = self.tokens[self.position]
        self.position += 1
        return token

    def _fail(self, wanted: str) -> NoReturn:
        _, text, start = self.tokens[self.position]
        found = f"got {text!r}" if text else "the text ends"
        raise FormulaError(f"{wanted}, {found}", self.text, start, start + len(text))

    def _expect(self, sign: str) -> int:
        """Step over ``sign`` and return where it ends."""
        if self._sign != sign:
            self._fail(f"wanted {sign!r}")
        return self._next()[2] + len(sign)

    def _node(self, kind: str, start: int, end: int, value: Any = None, *parts: _Raw) -> _Raw:
        depth = 1 + max((part.depth for part in parts), default=0)
        if depth > DEEPEST:
            raise FormulaError(TOO_DEEP, self.text, start, start + 1)
        return _Raw(kind, start, end, value, parts, depth)

    def expression(self, level: int) -> _Raw:
        """What binds at least as tightly as ``level``."""
        self.nesting += 1
        if self.nesting > 2 * DEEPEST:  # a level of the tree has at most its own call and its parentheses
            self._fail(TOO_DEEP)
        left = self._operand()
        while self._sign in _INFIX and _INFIX[self._sign][0] >= level:
            own, right_level = _INFIX[self._sign]
            sign = self._next()[1]
            right = self.expression(right_level)
            left = self._node("infix", left.start, right.end, sign, left, right)
            if own == COMPARE and self._sign in _INFIX and _INFIX[self._sign][0] == COMPARE:
                self._fail("comparisons do not chain: wanted a connective such as &")
        self.nesting -= 1
        return left

    def _operand(self) -> _Raw:
        kind, text, start = self.tokens[self.position]
        if kind == "name" and text in ("forall", "exists"):
            return self._quantified()
        if kind == "name" and (text not in RESERVED or text in ("And", "Or")):
            return self._named()
        if kind == "number":
            return self._number("")
        if text == "-" and self.tokens[self.position + 1][0] == "number":
            self._next()
            return self._number("-")
        if text == "~":
            self._next()
            inner = self.expression(NOT)
            return self._node("not", start, inner.end, None, inner)
        if text == "(":
            self._next()
            inner = self.expression(QUANTIFIED)
            inner.start, inner.end = start, self._expect(")")
            return inner
        self._fail("wanted a formula or a term")

    def _number(self, sign: str) -> _Raw:
        _, text, start = self._next()
        try:
            value = float(text) if set(text) & set(".eE") else int(text)
            Number(value)
        except ValueError:  # too large
            raise FormulaError("wanted a finite number", self.text, start, start + len(text)) from None
        return self._node("number", start - len(sign), start + len(text), -value if sign else value)

    def _name(self, wanted: str) -> _Raw:
        kind, text, start = self.tokens[self.position]
        if kind != "name" or text in RESERVED:
            self._fail(f"wanted {wanted}")
        self._next()
        return self._node("name", start, start + len(text), text)

    def _named(self) -> _Raw:
        """A name, with arguments if there are any."""
        _, text, start = self._next()
        if self._sign != "(":
            if text in RESERVED:
                self._fail(f"wanted '(' after {text}")
            return self._node("name", start, start + len(text), text)
        self._next()
        if self._sign == ")":
            self._fail("wanted an argument; a proposition has no parentheses")
        parts = [self.expression(QUANTIFIED)]
        while self._sign == ",":
            self._next()
            parts.append(self.expression(QUANTIFIED))
        return self._node("call", start, self._expect(")"), text, *parts)

    def _quantified(self) -> _Raw:
        _, kind, start = self._next()
        power = self._power() if self._sign == "[" else None
        binders = [self._binder()]
        while self._sign == ",":
            self._next()
            binders.append(self._binder())
        parts: list[_Raw] = []
        if self.tokens[self.position][:2] == ("name", "where"):
            self._next()
            parts.append(self.expression(QUANTIFIED))
        self._expect(":")
        parts.append(self.expression(QUANTIFIED))
        return self._node("quantified", start, parts[-1].end, (kind, power, binders), *parts)

    def _power(self) -> float:
        self._next()
        name = self._name("p")
        if name.value != "p":
            raise FormulaError("wanted p", self.text, name.start, name.end)
        self._expect("=")
        if self._kind != "number":
            self._fail("wanted a number")
        number = self._number("")
        if number.value < 1:
            raise FormulaError("wanted a number of at least 1", self.text, number.start, number.end)
        self._expect("]")
        return float(number.value)

    def _binder(self) -> _Binder:
        name, axis, domain = self._name("a variable"), None, None
        if self._sign == "@":
            self._next()
            axis = self._name("the name of an axis")
        if self.tokens[self.position][:2] == ("name", "in"):
            self._next()
            domain = self._name("the name of a domain")
        return _Binder(name, axis, domain)


class _Resolver:
    """From a raw tree to the formula: looks names up, and turns faults of parts to places in the text."""

    def __init__(self, text: str, symbols: dict[str, Named], free: frozenset[str]) -> None:
        self.text, self.symbols, self.free = text, symbols, free
        self.places: dict[int, tuple[object, _Raw]] = {}

    def _fail(self, reason: str, raw: _Raw) -> NoReturn:
        raise FormulaError(reason, self.text, raw.start, raw.end)

    def _made(self, raw: _Raw, make: Callable[..., T], *arguments: Any) -> T:
        """``make(*arguments)``, remembered to stand at ``raw``."""
        try:
            node = make(*arguments)
        except FormulaError as error:
            _, place = self.places.get(id(error.place), (None, raw))
            raise FormulaError(error.reason, self.text, place.start, place.end) from None
        except ValueError as error:
            self._fail(str(error), raw)
        self.places[id(node)] = (node, raw)
        return node

    def whole(self, raw: _Raw) -> Formula:
        """``raw`` as a formula in which every name is one thing."""
        formula = self.formula(raw, {}, guard=False)
        try:
            named_in(formula)
        except FormulaError as error:
            _, place = self.places.get(id(error.place), (None, raw))
            raise FormulaError(error.reason, self.text, place.start, place.end) from None
        return formula

    def formula(self, raw: _Raw, scope: dict[str, Var], guard: bool) -> Formula:
        """``raw`` as a formula; ``scope`` holds the bound variables."""
        if raw.kind == "not":
            return self._made(raw, Not, self.formula(raw.parts[0], scope, guard))
        if raw.kind == "call" and raw.value in ("And", "Or"):
            parts = [self.formula(part, scope, guard) for part in raw.parts]
            return self._made(raw, _CONNECTIVES["&" if raw.value == "And" else "|"], *parts)
        if raw.kind in ("call", "name"):
            symbol = self._symbol(raw, Pred, scope, guard)
            return self._made(raw, Atom, symbol, tuple(self.term(part, scope) for part in raw.parts))
        if raw.kind == "infix" and raw.value in _CONNECTIVES:
            parts = [self.formula(part, scope, guard) for part in raw.parts]
            return self._made(raw, _CONNECTIVES[raw.value], *parts)
        if raw.kind == "infix" and _INFIX[raw.value][0] == COMPARE:
            return self._made(raw, Compare, raw.value, *(self.term(part, scope) for part in raw.parts))
        if raw.kind == "quantified":
            return self._quantified(raw, scope)
        self._fail("wanted a formula, this is a term", raw)

    def term(self, raw: _Raw, scope: dict[str, Var]) -> Term:
        """``raw`` as a term."""
        if raw.kind == "number":
            return self._made(raw, Number, raw.value)
        if raw.kind == "name":
            return self._individual(raw, scope)
        if raw.kind == "call" and raw.value not in RESERVED:
            symbol = self._symbol(raw, Func, scope, False)
            return self._made(raw, Apply, symbol, tuple(self.term(part, scope) for part in raw.parts))
        if raw.kind == "infix" and _INFIX[raw.value][0] >= SUM:
            return self._made(raw, Arithmetic, raw.value, *(self.term(part, scope) for part in raw.parts))
        self._fail("wanted a term, this is a formula", raw)

    def _individual(self, raw: _Raw, scope: dict[str, Var]) -> Term:
        found = scope.get(raw.value, self.symbols.get(raw.value))
        if isinstance(found, Var):  # a new object for each place, so that faults point at the right one
            return self._made(raw, Var, found.name, found.domain, found.axis)
        if isinstance(found, Const):
            return found
        if found is None and raw.value in self.free:
            return self._made(raw, Var, raw.value)
        if found is None:
            self._fail(f"{raw.value} is neither bound by a quantifier nor a symbol that was given", raw)
        self._fail(f"wanted a variable or constant, {raw.value} is a {type(found).__name__}", raw)

    def _symbol(self, raw: _Raw, wanted: type[Pred] | type[Func], scope: dict[str, Var], guard: bool) -> Any:
        name = raw.value
        found = scope.get(name, self.symbols.get(name))
        if found is None:
            options = {"gives": "mask"} if guard and wanted is Pred else {}
            try:
                found = self.symbols[name] = wanted(name, len(raw.parts), **options)  # type: ignore[arg-type]
            except ValueError as error:
                self._fail(str(error), raw)
        if not isinstance(found, wanted):
            kinds = {Pred: "predicate", Func: "function"}
            self._fail(f"wanted a {kinds[wanted]}, {name} is a {type(found).__name__}", raw)
        return found

    def _quantified(self, raw: _Raw, scope: dict[str, Var]) -> Formula:
        kind, power, binders = raw.value
        variables = tuple(self._bound(binder) for binder in binders)
        inner = {**scope, **{var.name: var for var in variables}}
        parts = [
            self.formula(part, inner, guard=len(raw.parts) == 2 and number == 0)
            for number, part in enumerate(raw.parts)
        ]
        guard = parts[0] if len(parts) == 2 else None
        return self._made(raw, Quantified, kind, variables, parts[-1], guard, power)

    def _bound(self, binder: _Binder) -> Var:
        name = binder.name.value
        given = self.symbols.get(name)
        if isinstance(given, Var) and not (binder.axis or binder.domain):
            return self._made(binder.name, Var, name, given.domain, given.axis)
        if given is not None and not isinstance(given, Var):
            self._fail(f"wanted a variable, {name} is a {type(given).__name__}", binder.name)
        domain = None
        if binder.domain is not None:
            domain = self.symbols.get(binder.domain.value)
            if domain is None:
                made = self._made(binder.domain, Domain, binder.domain.value)
                domain = self.symbols[binder.domain.value] = made
            if not isinstance(domain, Domain):
                self._fail(f"wanted a domain, {domain.name} is a {type(domain).__name__}", binder.domain)
        axis = binder.axis.value if binder.axis else None
        var: Var = self._made(binder.name, Var, name, domain, axis)
        if given is not None and given != var:
            self._fail(f"{name} is two variables: {given.binder()} and {var.binder()}", binder.name)
        return var
