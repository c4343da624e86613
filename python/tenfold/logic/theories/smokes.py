"""Smokes, friends, cancer: what fourteen people do, half of it known (LTN, arXiv 2012.13635, section 4.7).

Two groups of people. Friendship is known within a group for pairs in alphabetical order, smoking of all,
cancer in the first group alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tenfold.logic.knowledge import Axiom, KnowledgeBase
from tenfold.logic.parser import parse
from tenfold.logic.syntax import Pred

GROUPS = ("abcdefgh", "ijklmn")
PEOPLE = "".join(GROUPS)
FRIENDS = ("ab", "ae", "af", "ag", "bc", "cd", "ef", "gh", "ij", "jm", "kl", "mn")
SMOKERS = "aefgjn"
SICK = "ae"

AXIOMS = {
    "friends": "forall x in people, y in people where friends(x, y): F(x, y)",
    "strangers": "forall x in people, y in people where strangers(x, y): ~F(x, y)",
    "smokers": "forall x in people where smokers(x): S(x)",
    "others do not smoke": "forall x in people where ~smokers(x): ~S(x)",
    "sick": "forall x in people where sick(x): C(x)",
    "healthy": "forall x in people where healthy(x): ~C(x)",
    "no one is a friend of their own": "forall[p=5] x in people: ~F(x, x)",
    "friends of friends": "forall[p=5] x in people, y in people: F(x, y) -> F(y, x)",
    "everyone has a friend": "forall x in people: exists y in people: F(x, y)",
    "friends smoke": "forall x in people, y in people: F(x, y) & S(x) -> S(y)",
    "smoking causes cancer": "forall x in people: S(x) -> C(x)",
    "nothing else does": "forall x in people: ~S(x) -> ~C(x)",
}

# Not in the theory: the first follows from it in a way, the second does not.
QUERIES = {
    "cancer means smoking": "forall[p=5] x in people: C(x) -> S(x)",
    "the sick are befriended": "forall[p=5] x in people, y in people: C(x) | C(y) -> F(x, y)",
}


def knowledge() -> KnowledgeBase:
    """The theory about S, F and C of ``people``, whose logits networks give."""
    symbols = [Pred("S", 1, gives="logits"), Pred("F", 2, gives="logits"), Pred("C", 1, gives="logits")]
    return KnowledgeBase(*[Axiom(parse(text, *symbols), name=name) for name, text in AXIOMS.items()])


def facts() -> dict[str, Tensor]:
    """What is known: index lists of pairs, masks of people."""
    pairs = [one + other for group in GROUPS for one in group for other in group if one < other]
    return {
        "friends": _rows(FRIENDS),
        "strangers": _rows(tuple(pair for pair in pairs if pair not in FRIENDS)),
        "smokers": _mask(SMOKERS),
        "sick": _mask(SICK),
        "healthy": _mask("".join(person for person in GROUPS[0] if person not in SICK)),
    }


def _rows(pairs: tuple[str, ...]) -> Tensor:
    return torch.tensor([[PEOPLE.index(person) for person in pair] for pair in pairs])


def _mask(people: str) -> Tensor:
    return torch.tensor([person in people for person in PEOPLE])
