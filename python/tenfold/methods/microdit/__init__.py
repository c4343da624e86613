"""MicroDiT: text-to-image diffusion from scratch on a micro-budget.

Sehwag, Kong, Li, Spranger, Lyu, "Stretching Each Dollar: Diffusion Training from Scratch on a
Micro-Budget", arXiv 2407.15811, claims that a diffusion transformer can be trained from scratch very
cheaply when most patches are masked after a light patch mixer has seen all of them (deferred masking), and
that layer-wise scaling and mixture-of-experts layers help.

Here: the same transformer with dense feed-forward layers, in pixels instead of an autoencoder's latents,
with a small sentence encoder, on captioned icons or the user's own pictures, on two CPU cores. Different
on purpose: the averaged weights are really used, padding of captions is masked out, kept patches are
counted by rounding, seed 0 is a seed, and sampling touches no global generator.
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
