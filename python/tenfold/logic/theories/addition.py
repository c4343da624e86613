"""Addition of pictured digits: the sum is known, the digits are not (LTN, section 4.4)."""

from __future__ import annotations

from tenfold.logic.knowledge import KnowledgeBase
from tenfold.logic.syntax import Pred

DIGITS = 10

AXIOM = "forall x@pair, y@pair, n@pair: exists d, e where d + e = n: digit(x, d) & digit(y, e)"


def knowledge() -> KnowledgeBase:
    """The theory about pairs of pictures x and y and their sums n, with the logits of digit(x, d)."""
    return KnowledgeBase(AXIOM, symbols=[Pred("digit", 2, gives="softmax")])
