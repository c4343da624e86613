"""Knowledge bases: axioms with weights and names, compiled to a module that is called with groundings."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.logic import reference
from tenfold.logic.execute import Run
from tenfold.logic.explain import Explanation
from tenfold.logic.groundings import Grounding, Values, aligned, check_degrees, is_index_list
from tenfold.logic.kernels import Done, Kernels
from tenfold.logic.parser import Parser
from tenfold.logic.plan import Lowering
from tenfold.logic.semantics import Fuzzy, LogProduct, at_step
from tenfold.logic.signs import trivial_optima
from tenfold.logic.syntax import Const, Formula, Func, Named, Node, Pred, Term, named_in

Backend = Literal["fused", "torch", "reference"]
STEP = "step"  # the one keyword of a compiled module that is no symbol


class TrivialOptimumWarning(UserWarning):
    """The knowledge base holds where everything is true, or everything false."""


@dataclass(frozen=True)
class Axiom:
    """A closed formula, its weight in the aggregate, and a name (its text, if none is given)."""

    formula: Formula
    weight: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse weights that no aggregate has."""
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight: wanted a number above 0, got {self.weight}")
        if not self.name:
            object.__setattr__(self, "name", str(self.formula))


@dataclass(frozen=True)
class Satisfaction:
    """What a compiled knowledge base says of its groundings."""

    loss: Tensor
    """To be minimised: 1 - total, or in log space minus the logarithm of the total."""
    total: Tensor
    """Degree to which all axioms hold together."""
    axioms: dict[str, Tensor]
    """Degree of each axiom."""


class KnowledgeBase:
    """Axioms: formulas, texts, or ``Axiom``; by keyword, with that name.

    ``symbols`` are what the texts may name besides: typed predicates, constants, variables. A free variable,
    or a name that is two things, is a FormulaError.
    """

    def __init__(
        self,
        *axioms: Formula | str | Axiom,
        symbols: Sequence[Named] = (),
        **named: Formula | str | Axiom,
    ) -> None:
        given = [(axiom, "") for axiom in axioms] + [(axiom, name) for name, axiom in named.items()]
        formulas = [axiom.formula if isinstance(axiom, Axiom) else axiom for axiom, _ in given]
        trees = [formula for formula in formulas if isinstance(formula, Formula)]
        self.parser = Parser(*named_in(*trees).values(), *symbols)
        self.axioms = tuple(self._axiom(axiom, name) for axiom, name in given)
        if not self.axioms:
            raise ValueError("axioms: wanted at least one")
        names = [axiom.name for axiom in self.axioms]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"axioms: {twice[0]!r} is there twice")
        self.symbols = named_in(*(axiom.formula for axiom in self.axioms))
        if STEP in self.symbols:
            raise ValueError(f"{STEP}: is the keyword of schedules; name the symbol something else")

    def _axiom(self, given: Formula | str | Axiom, name: str) -> Axiom:
        axiom = given if isinstance(given, Axiom) else Axiom(self.read(given))
        axiom = Axiom(axiom.formula, axiom.weight, name) if name else axiom
        if axiom.formula.free:
            var = axiom.formula.free[0]
            place = next(node for node in axiom.formula.walk() if node == var)
            raise axiom.formula.fault(f"{var.name} is not bound by a quantifier", place)
        return axiom

    def read(self, formula: Formula | str) -> Formula:
        """``formula``, or the one that the text says about the symbols of this knowledge base."""
        if isinstance(formula, str):
            return self.parser.formula(formula)
        if not isinstance(formula, Formula):
            raise TypeError(f"wanted a formula or its text, got {formula!r}"[:200])
        return formula

    def compile(
        self, semantics: Fuzzy | LogProduct, *, backend: Backend = "fused", validate: bool = True
    ) -> CompiledKnowledge:
        """A module for these axioms.

        ``backend``: "fused" factorises and calls tenfold.ops.fuzzy, "torch" factorises and calls the twins
        in plain torch, "reference" broadcasts every formula over all its axes.
        ``validate``: calls up to the first that gives a Satisfaction check that degrees lie in [0, 1], and
        that index lists have no row twice.
        """
        for what in trivial_optima([axiom.formula for axiom in self.axioms]):
            warnings.warn(
                f"every axiom holds where every atom is {what}, so training may end there, and queries too: "
                f"add an axiom that {what} atoms break",
                TrivialOptimumWarning,
                stacklevel=2,
            )
        return CompiledKnowledge(self, semantics, backend, validate)


class CompiledKnowledge(nn.Module):
    """``module(P=p, x=features, step=0)`` is the Satisfaction of the axioms by these groundings.

    Names are those of variables, constants, functions, predicates and domains. Groundings that symbols were
    declared with are there already: modules and parameters of theirs are this module's.
    """

    def __init__(
        self, knowledge: KnowledgeBase, semantics: Fuzzy | LogProduct, backend: Backend, validate: bool
    ) -> None:
        super().__init__()
        if not isinstance(semantics, Fuzzy | LogProduct):
            raise TypeError(f"semantics: wanted StableProduct(...) or another one, got {semantics!r}")
        self.knowledge, self.semantics, self.backend = knowledge, semantics, backend
        if backend not in ("fused", "torch", "reference"):
            raise ValueError(f"backend: wanted fused, torch or reference, got {backend!r}")
        self._validate = validate
        self._lowering = Lowering(semantics)
        self._steps = [self._lowering.lower(axiom.formula) for axiom in knowledge.axioms]
        self._declared = _Declared(knowledge.symbols)

    def forward(self, *, step: int | None = None, **groundings: Any) -> Satisfaction:
        """Degrees of the axioms; ``step`` is for schedules."""
        return self._satisfaction(step, groundings, None)

    def _satisfaction(
        self, step: int | None, groundings: Mapping[str, Any], record: dict[str, list[Done]] | None
    ) -> Satisfaction:
        semantics = at_step(self.semantics, step)
        axioms = self.knowledge.axioms
        formulas = tuple(axiom.formula for axiom in axioms)
        run = self._run(semantics, groundings, formulas, self.knowledge.symbols)
        values = []
        for axiom, plan in zip(axioms, self._steps, strict=True):
            if record is not None:
                run.kernels.record = record[axiom.name] = []
            if self.backend != "reference":
                values.append(run.value(plan).tensor)
            else:
                values.append(reference.evaluate(axiom.formula, run.grounding, semantics).tensor)
        self._validate = False
        values = [value.reshape(()) for value in values]
        total = reference.total(values, [axiom.weight for axiom in axioms], semantics)
        degrees = {axiom.name: value for axiom, value in zip(axioms, values, strict=True)}
        if isinstance(semantics, Fuzzy):
            return Satisfaction(1 - total, total, degrees)
        return Satisfaction(-total, total.exp(), {name: value.exp() for name, value in degrees.items()})

    def truth(self, formula: Formula | str, step: int | None = None, **groundings: Any) -> Tensor:
        """Degrees of any formula about these symbols, one axis for each axis of its free variables.

        The axes are in the order in which the formula first names them. In a text, names of groundings that
        are nothing else are free variables: ``truth("P(x)", x=features)``. Other groundings than those of
        training ask about unseen individuals.
        """
        if isinstance(formula, str):
            formula = self._parser(groundings).formula(formula)
        formula = self.knowledge.read(formula)
        semantics = at_step(self.semantics, step)
        run = self._run(semantics, groundings, (formula,), named_in(formula))
        if self.backend != "reference":
            made = run.value(self._lowering.lower(formula))
        else:
            made = reference.evaluate(formula, run.grounding, semantics)
        ordered = _ordered(made, formula)
        return ordered if isinstance(semantics, Fuzzy) else ordered.exp()

    def value(self, term: Term | str, **groundings: Any) -> Tensor:
        """What a term stands for: one axis for each axis of its variables, then features."""
        parsed = self._parser(groundings).term(term) if isinstance(term, str) else term
        symbols = named_in(parsed)
        grounding = self._run(at_step(self.semantics, 0), groundings, (parsed,), symbols).grounding
        found = grounding.individuals(parsed)
        return _ordered(Values(found.values(), found.axes), parsed)

    def explain(self, step: int | None = None, **groundings: Any) -> Explanation:
        """How each axiom is computed with these groundings, with bytes moved and peak memory."""
        record: dict[str, list[Done]] = {}
        with torch.no_grad():
            self._satisfaction(step, groundings, record)
        return Explanation(record)

    def _parser(self, groundings: Mapping[str, Any]) -> Parser:
        """For queries: it knows the symbols of the knowledge base and of its texts."""
        return Parser(*{**self.knowledge.parser.symbols, **self.knowledge.symbols}.values(), free=groundings)

    def _run(
        self,
        semantics: Fuzzy | LogProduct,
        groundings: Mapping[str, Any],
        roots: tuple[Node, ...],
        symbols: Mapping[str, Named],
    ) -> Run:
        known = {**self.knowledge.symbols, **symbols}
        check_names(groundings, known)
        given = {**_attached(symbols), **self._declared.groundings(), **groundings}
        if self._validate:
            _check_tables(given, known)
        kernels = Kernels(self.backend == "fused")
        floor = semantics.floor if isinstance(semantics, LogProduct) else None
        return Run(Grounding(given, known, roots, floor, kernels.ops, self._validate), semantics, kernels)


class _Declared(nn.Module):
    """Groundings that symbols were declared with; tensors are buffers, so that they move with the module."""

    def __init__(self, symbols: Mapping[str, Named]) -> None:
        super().__init__()
        self._plain: dict[str, Any] = {}
        self._names = list(_attached(symbols))
        for name, grounding in _attached(symbols).items():
            if isinstance(grounding, nn.Parameter):
                self.register_parameter(f"of_{name}", grounding)
            elif isinstance(grounding, nn.Module):
                self.add_module(f"of_{name}", grounding)
            elif isinstance(grounding, Tensor):
                self.register_buffer(f"of_{name}", grounding, persistent=False)
            else:
                self._plain[name] = grounding

    def groundings(self) -> dict[str, Any]:
        """By name."""
        return {n: self._plain[n] if n in self._plain else getattr(self, f"of_{n}") for n in self._names}


def _attached(symbols: Mapping[str, Named]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, symbol in symbols.items():
        grounding: Any = None
        if isinstance(symbol, Const):
            grounding = symbol.value
        elif isinstance(symbol, Func | Pred):
            grounding = symbol.grounding
        if grounding is not None:
            found[name] = grounding
    return found


def check_names(names: Iterable[str], known: Mapping[str, Named]) -> None:
    """Refuse names that are no symbol."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise TypeError(f"{name}: no symbol of the knowledge base{hint}; it has {', '.join(known)}")


def _check_tables(given: Mapping[str, Any], symbols: Mapping[str, Named]) -> None:
    """Refuse degrees outside of [0, 1], and index lists with a row twice."""
    for name, value in given.items():
        symbol = symbols.get(name)
        if not isinstance(symbol, Pred) or not isinstance(value, Tensor) or not value.numel():
            continue
        if is_index_list(value, symbol) and len(value.unique(dim=0)) < len(value):
            raise ValueError(f"{name}: an index list names each row once, got one twice")
        if symbol.gives == "truth":
            check_degrees(name, value)


def _ordered(made: Values, root: Node) -> Tensor:
    """``made`` over the axes of ``root``'s free variables, in order."""
    order = tuple(dict.fromkeys(var.axis for var in root.free))
    return aligned(made.tensor, made.axes, order)
