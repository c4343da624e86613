"""Entailment: does a formula hold wherever the knowledge base does?

(K, G, Theta) |=_q phi when every grounding that satisfies K to at least q satisfies phi to at least q (arXiv
2012.13635, section 3.4). Two searches by gradient descent over groundings:

- ``brave`` satisfies K from several starts, and looks at phi where it ends.
- ``refute`` looks for a counterexample: K at least q, phi below q.

A search that finds no counterexample is no proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold.logic.knowledge import CompiledKnowledge, KnowledgeBase, check_names
from tenfold.logic.semantics import Fuzzy, LogProduct
from tenfold.logic.syntax import Formula, Pred, named_in

# The paper's settings for its example.
STEPS, RATE, ALPHA, BETA, LEVEL = 4000, 1e-3, 0.05, 10.0, 0.95


@dataclass(frozen=True)
class Entailment:
    """What a search found."""

    entailed: bool
    satisfaction: float
    """Of the knowledge base, where the search ended."""
    truth: float
    """Of the formula, there."""
    counterexample: dict[str, Tensor] | None
    """The groundings there, if they refute the formula."""


def refute(
    knowledge: KnowledgeBase,
    formula: Formula | str,
    semantics: Fuzzy | LogProduct,
    start: Mapping[str, Tensor | float],
    *,
    fixed: Mapping[str, Any] | None = None,
    level: float = LEVEL,
    steps: int = STEPS,
    rate: float = RATE,
    alpha: float = ALPHA,
    beta: float = BETA,
) -> Entailment:
    """Look for groundings with the knowledge base at least at ``level`` and the formula below.

    Args:
        start: where the search begins, by name: degrees (kept in [0, 1]), logits, features, constants.
            Schedules of the semantics follow the search's steps.
        fixed: groundings that stay as they are.
        level: q, above 1/2.
        alpha, beta: of the penalty for missing q by d: beta d above 0, else alpha (e^d - 1).

    Returns:
        With a counterexample if one was found. Otherwise entailed: the formula reached q where the knowledge
        base did, or the knowledge base never did.
    """

    def loss(satisfied: Tensor, truth: Tensor) -> Tensor:
        missing = level - satisfied
        return truth + torch.where(missing > 0, beta * missing, alpha * (missing.clamp(max=0).exp() - 1))

    return _searched(knowledge, formula, semantics, start, fixed or {}, level, steps, rate, loss)


def brave(
    knowledge: KnowledgeBase,
    formula: Formula | str,
    semantics: Fuzzy | LogProduct,
    starts: Iterable[Mapping[str, Tensor | float]],
    *,
    fixed: Mapping[str, Any] | None = None,
    level: float = LEVEL,
    steps: int = STEPS,
    rate: float = RATE,
) -> Entailment:
    """Satisfy the knowledge base from each start: the first end that refutes the formula, or the last."""
    found = None
    for start in starts:
        found = _searched(
            knowledge, formula, semantics, start, fixed or {}, level, steps, rate, lambda kb, _: -kb
        )
        if found.counterexample is not None:
            return found
    if found is None:
        raise ValueError("starts: wanted at least one")
    return found


def _searched(
    knowledge: KnowledgeBase,
    formula: Formula | str,
    semantics: Fuzzy | LogProduct,
    start: Mapping[str, Tensor | float],
    fixed: Mapping[str, Any],
    level: float,
    steps: int,
    rate: float,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Entailment:
    """Minimise ``loss`` of the satisfaction and the truth; what holds at the end."""
    if not 0.5 < level < 1:
        raise ValueError(f"level: wanted 0.5 < level < 1, got {level}")
    query = knowledge.read(formula)
    symbols = {**knowledge.symbols, **named_in(query)}
    check_names({**fixed, **start}, symbols)
    if query.free:
        raise query.fault(f"{query.free[0].name} is not bound by a quantifier", query.free[0])
    module = CompiledKnowledge(knowledge, semantics, "fused", validate=False)
    leaves = {name: _leaf(name, value) for name, value in start.items()}
    degrees = [
        leaf
        for name, leaf in leaves.items()
        if isinstance(symbol := symbols.get(name), Pred) and symbol.gives == "truth"
    ]

    def both(step: int) -> tuple[Tensor, Tensor]:
        given = {**fixed, **leaves}
        kept = {name: value for name, value in given.items() if name in knowledge.symbols}
        asked = {name: value for name, value in given.items() if name in named_in(query)}
        return module(step=step, **kept).total, module.truth(query, step=step, **asked)

    optimizer = torch.optim.Adam(leaves.values(), lr=rate)
    for step in range(steps):
        optimizer.zero_grad()
        loss(*both(step)).backward()
        optimizer.step()
        with torch.no_grad():
            for leaf in degrees:
                leaf.clamp_(0, 1)
    with torch.no_grad():
        satisfied, truth = (float(value) for value in both(steps))
    refuted = satisfied >= level and truth < level
    ends = {name: leaf.detach() for name, leaf in leaves.items()} if refuted else None
    return Entailment(not refuted, satisfied, truth, ends)


def _leaf(name: str, value: Tensor | float) -> Tensor:
    """What the search changes, a copy."""
    leaf = torch.as_tensor(value).detach().clone()
    if not leaf.is_floating_point():
        raise TypeError(f"{name}: the search changes it, so wanted floats to start from, got {leaf.dtype}")
    return leaf.requires_grad_()
