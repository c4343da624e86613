"""Logic Tensor Networks: learning and reasoning with a differentiable first-order logic.

Badreddine, d'Avila Garcez, Serafini, Spranger, "Logic Tensor Networks", arXiv 2012.13635, claims that one
many-valued, end-to-end differentiable logic (Real Logic) specifies and computes clustering, relational
learning, semi-supervised learning and more, each shown on a small example.

Here: three of the examples, with the stable product semantics, in the language of ``tenfold.logic``, whose
formulas are compiled: relational learning (smokes, friends, cancer), clustering, and the addition of two
MNIST digits. Different on purpose: facts are guarded quantifiers over index lists and masks, and a seed
determines all of a run, the data of clustering too.
"""

from collections.abc import Callable
from importlib import import_module


def _command(module: str) -> Callable[[list[str]], int]:
    """Import the module of a command when the command runs, so that --help stays fast."""

    def run(argv: list[str]) -> int:
        code: int = import_module(f"{__name__}.{module}").main(argv)
        return code

    return run


COMMANDS = {name: _command(name) for name in ("train", "evaluate", "sample", "reproduce")}
