"""Whether a knowledge base holds where every atom is true, or every atom false."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.logic.syntax import And, Atom, Compare, Formula, Iff, Implies, Not, Or, Quantified


def trivial_optima(axioms: Sequence[Formula]) -> list[str]:
    """ "true" and "false", whichever every atom may be without breaking an axiom."""
    return [what for what in ("true", "false") if all(holds(axiom, what == "true") for axiom in axioms)]


def holds(formula: Formula, atoms: bool) -> bool | None:
    """Whether ``formula`` holds where every atom is ``atoms``; None: it depends on comparisons.

    Classes exclude each other, so a softmax predicate is neither everywhere; masks are given.
    """
    match formula:
        case Compare():
            return None
        case Atom():
            return atoms if formula.symbol.gives in ("truth", "logits") else None
        case Quantified():
            return holds(formula.body, atoms)
    parts = [holds(part, atoms) for part in formula.parts if isinstance(part, Formula)]
    match formula:
        case Not():
            return _not(parts[0])
        case And():
            return _all(parts)
        case Or():
            return _not(_all([_not(part) for part in parts]))
        case Implies():
            return _not(_all([parts[0], _not(parts[1])]))
        case Iff():
            return None if None in parts else parts[0] == parts[1]
    raise TypeError(f"no sign for {type(formula).__name__}")


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _all(values: Sequence[bool | None]) -> bool | None:
    return False if False in values else None if None in values else True
