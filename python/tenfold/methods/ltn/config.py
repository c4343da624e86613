"""The configuration of a run of Logic Tensor Networks and its presets, one for each task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Task = Literal["smokes", "clustering", "addition"]
TRAINING_IMAGES, TEST_IMAGES = 60_000, 10_000  # of MNIST


@dataclass(frozen=True)
class LTNConfig:
    """What a run is: with the data, it determines every weight."""

    task: Task = "smokes"
    """smokes, clustering or addition."""
    seed: int = 0
    """Seed of the weights, the data of clustering and the order of the examples."""
    epochs: int = 1000
    """Passes over the data; smokes and clustering take one step in each."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    p_forall: float = 2.0
    """Power of the quantifier forall, where the theory does not say its own."""
    p_exists: tuple[float, ...] = (1.0, 6.0)
    """Powers of exists, one after the other."""
    p_starts: tuple[int, ...] = (0, 200)
    """Epochs at which they begin."""
    eps: float = 1e-4
    """Of the stable product."""
    train: int = 30_000
    """Pairs of digits to train on (addition)."""
    test: int = 5_000
    """Pairs of digits to test on (addition)."""
    batch: int = 32
    """Pairs of one step (addition)."""
    backend: Literal["fused", "torch", "reference"] = "fused"
    """What computes the formulas: the compiler's kernels, its plan in plain torch, or broadcast torch."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for name in ("epochs", "lr", "batch", "train", "test"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: wanted a positive number, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: wanted 0 to below 2**63, got {self.seed}")
        if not 0 <= self.eps < 0.5:
            raise ValueError(f"eps: wanted 0 <= eps < 0.5, got {self.eps}")
        if min(self.p_forall, *self.p_exists, math.inf) < 1:
            raise ValueError(
                f"p_forall, p_exists: wanted at least 1, got {self.p_forall} and {self.p_exists}"
            )
        if len(self.p_starts) != len(self.p_exists) or self.p_starts[:1] != (0,):
            raise ValueError(f"p_starts: wanted one epoch for each p_exists, from 0, got {self.p_starts}")
        if list(self.p_starts) != sorted(set(self.p_starts)):
            raise ValueError(f"p_starts: wanted rising epochs, got {self.p_starts}")
        for name, most in (("train", TRAINING_IMAGES // 2), ("test", TEST_IMAGES // 2)):
            if getattr(self, name) > most:
                raise ValueError(f"{name}: MNIST has {most} pairs, got {getattr(self, name)}")


def smokes() -> LTNConfig:
    """Relational learning with incomplete knowledge; about half a minute."""
    return LTNConfig()


def clustering() -> LTNConfig:
    """Four clusters from near and far; some seconds to a minute."""
    return LTNConfig(task="clustering", p_forall=4.0, p_starts=(0, 100))


def laptop() -> LTNConfig:
    """Addition of digits with 3,000 pairs; about a minute."""
    return LTNConfig(
        task="addition", epochs=20, p_exists=(1.0, 2.0, 4.0, 6.0), p_starts=(0, 4, 8, 12), train=3_000
    )


def paper() -> LTNConfig:
    """Addition of digits with 30,000 pairs, all of MNIST's training digits."""
    return LTNConfig(
        task="addition", epochs=20, p_exists=(1.0, 2.0, 4.0, 6.0), p_starts=(0, 4, 8, 12), train=30_000
    )


PRESETS = {"smokes": smokes, "clustering": clustering, "laptop": laptop, "paper": paper}
