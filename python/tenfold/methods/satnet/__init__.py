"""SATNet and the symbol-grounding problem: a differentiable MAXSAT layer learns rules from examples.

Wang, Donti, Wilder, Kolter, "SATNet: Bridging deep learning and logical reasoning using a differentiable
satisfiability solver", ICML 2019, claims that a layer that solves a relaxed MAXSAT problem learns the rules
of Sudoku from solved puzzles, even from pictures of digits. Chang, Flokas, Lipson, Spranger, "Assessing
SATNet's Ability to Solve the Symbol Grounding Problem", NeurIPS 2020, arXiv 2312.11522, finds that with the
labels of the pictured digits hidden it fails completely at visual Sudoku (0 %), and proposes an MNIST
mapping test as a sanity check, at which naive SATNet is worse than models without logic.

Here: both, on tenfold's solver, with the gradient to the inputs that finite differences confirm and, by
`--gradient official`, with that of the published code, which is wrong. Different on purpose: puzzles of our
own generator whose splits share no symmetry class; random vectors drawn from the run's seed; the loss mask
is an explicit option, and given and unknown cells are counted apart; puzzles are shuffled unless a preset
says not.
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
