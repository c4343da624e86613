"""Formulas as text that the parser reads back to the same tree, with the place of each part."""

from __future__ import annotations

from tenfold.logic.syntax import (
    And,
    Apply,
    Arithmetic,
    Atom,
    Compare,
    Const,
    Formula,
    Iff,
    Implies,
    Node,
    Not,
    Number,
    Or,
    Quantified,
    Var,
)

# How tightly each form binds; the parser uses the same numbers.
QUANTIFIED, IFF, IMPLIES, OR, AND, NOT, COMPARE, SUM, PRODUCT, ATOM = range(10)
_ARITHMETIC = {"+": SUM, "-": SUM, "*": PRODUCT}


def located(root: Node, place: Node) -> tuple[str, int, int]:
    """The text of ``root``, and the start and end in it of its part ``place`` (the whole, if it has none)."""
    writer = _Writer(place)
    writer.write(root, QUANTIFIED)
    text = "".join(writer.pieces)
    return (text, *(writer.span or (0, len(text))))


class _Writer:
    def __init__(self, place: Node) -> None:
        self.pieces: list[str] = []
        self.length = 0
        self.place, self.span = place, None  # type: tuple[Node, tuple[int, int] | None]

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)

    def write(self, node: Node, level: int) -> None:
        """Write ``node`` where only forms that bind at least as tightly as ``level`` can stand bare."""
        bare = _level(node) >= level
        if not bare:
            self.add("(")
        start = self.length
        self._write(node)
        if self.span is None and node is self.place:
            self.span = (start, self.length)
        if not bare:
            self.add(")")

    def _write(self, node: Node) -> None:
        match node:
            case Var() | Const():
                self.add(node.name)
            case Number():
                self.add(repr(node.value))
            case Atom() | Apply():
                self.add(node.symbol.name)
                if node.parts:
                    self._listed(node.parts)
            case Arithmetic() | Compare():
                level = _level(node)
                self.write(node.parts[0], level + (level == COMPARE))
                self.add(f" {node.op} ")
                self.write(node.parts[1], level + 1)
            case Not():
                self.add("~")
                self.write(node.parts[0], NOT)
            case And() | Or() if len(node.parts) == 2:
                self._infix(node, " & " if isinstance(node, And) else " | ", 0, 1)
            case And() | Or():
                self.add(type(node).__name__)
                self._listed(node.parts)
            case Implies():
                self._infix(node, " -> ", 1, 0)
            case Iff():
                self._infix(node, " <-> ", 0, 1)
            case Quantified():
                self._quantified(node)
            case _:
                raise TypeError(f"no form for {type(node).__name__}")

    def _infix(self, node: Formula, sign: str, left: int, right: int) -> None:
        """Binary: the side with 0 may hold the same connective bare."""
        level = _level(node)
        self.write(node.parts[0], level + left)
        self.add(sign)
        self.write(node.parts[1], level + right)

    def _listed(self, parts: tuple[Node, ...]) -> None:
        for number, part in enumerate(parts):
            self.add("(" if number == 0 else ", ")
            self.write(part, QUANTIFIED)
        self.add(")")

    def _quantified(self, node: Quantified) -> None:
        self.add(node.kind if node.p is None else f"{node.kind}[p={node.p!r}]")
        for number, var in enumerate(node.variables):
            self.add(" " if number == 0 else ", ")
            start = self.length
            self.add(var.binder())
            if self.span is None and var is self.place:
                self.span = (start, self.length)
        if node.guard is not None:
            self.add(" where ")
            self.write(node.guard, QUANTIFIED)
        self.add(": ")
        self.write(node.body, QUANTIFIED)


def _level(node: Node) -> int:
    match node:
        case Quantified():
            return QUANTIFIED
        case Iff():
            return IFF
        case Implies():
            return IMPLIES
        case Or() if len(node.parts) == 2:
            return OR
        case And() if len(node.parts) == 2:
            return AND
        case Not():
            return NOT
        case Compare():
            return COMPARE
        case Arithmetic():
            return _ARITHMETIC[node.op]
        case _:
            return ATOM
