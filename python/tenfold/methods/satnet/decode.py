"""The rules of a small layer in words: weighted clauses, exact for whole assignments.

With every variable of the user true or false, v_i = +1 or -1, and the auxiliary ones relaxed as in the
layer, the objective F(x) = |sum_i v_i s_i^T|^2, with the true variable's row among them, has one least value.
So each assignment x has a price F(x) - min F, and the clause that forbids x alone, with that price as its
weight, says all there is to say: the weights of the clauses that an assignment breaks add up to its price.
The layer relaxes the variables that are asked for too, and may answer otherwise where prices are close.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tenfold.ops.reference.mixing import mixing_forward

LARGEST = 8  # variables: 256 assignments, each solved
LEAST_SHARE = 0.05  # of the largest weight; lighter clauses are left out of the text
SWEEPS, EPS = 2000, 1e-12  # of the solver, in float64


@dataclass(frozen=True)
class Clause:
    """One of the variables must be as its sign says, or the weight is paid."""

    weight: float
    literals: tuple[int, ...]
    """+1 or -1 for each of the user's variables."""

    def text(self, names: Sequence[str]) -> str:
        """Like "3.21  a or not b or out"."""
        words = [
            f"{'' if sign > 0 else 'not '}{name}" for sign, name in zip(self.literals, names, strict=True)
        ]
        return f"{self.weight:.3g}  " + " or ".join(words)


def prices(S: Tensor, n: int) -> Tensor:
    """(2^n) F(x) - min F of each assignment, float64; bit i of the index, from the highest, is variable i."""
    if n > LARGEST:
        raise ValueError(f"S: {n} variables, wanted at most {LARGEST}")
    rows = S.detach().double().numpy()
    assignments = np.array(list(itertools.product((0.0, 1.0), repeat=n)))
    # Given variables stay on the axis of the true one, so only auxiliary ones move.
    found = mixing_forward(rows, assignments, np.ones(assignments.shape, bool), max_iter=SWEEPS, eps=EPS)
    least = np.square(np.einsum("bik,im->bkm", found.V, rows)).sum(axis=(1, 2))
    return torch.from_numpy(least - least.min())


def clauses(S: Tensor, n: int, least_share: float = 0.0) -> list[Clause]:
    """The clauses of a layer's matrix S (1 + n + aux, m), heaviest first, above a share of the heaviest."""
    weights = prices(S, n).tolist()
    assignments = itertools.product((-1, 1), repeat=n)
    found = [
        Clause(weight, tuple(-sign for sign in signs))
        for weight, signs in zip(weights, assignments, strict=True)
        if weight > least_share * max(weights) and weight > 0
    ]
    return sorted(found, key=lambda clause: -clause.weight)


def truth_table(S: Tensor, n: int) -> dict[tuple[int, ...], int]:
    """The cheapest last variable for each assignment of the others: what the rules say follows from them."""
    pairs = prices(S, n).view(-1, 2)
    inputs = itertools.product((0, 1), repeat=n - 1)
    return {bits: int(pair.argmin()) for bits, pair in zip(inputs, pairs, strict=True)}


def rules_text(S: Tensor, names: Sequence[str]) -> str:
    """Clauses and truth table as Markdown."""
    n = len(names)
    lines = ["Weight and clause:", ""]
    lines += [f"    {clause.text(names)}" for clause in clauses(S, n, LEAST_SHARE)]
    lines += ["", f"| {' | '.join(names[:-1])} | cheapest {names[-1]} |", "|" + " --- |" * n]
    for bits, answer in truth_table(S, n).items():
        lines.append("| " + " | ".join(map(str, (*bits, answer))) + " |")
    return "\n".join(lines)
