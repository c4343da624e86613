"""What a step draws and how fast it learns, as functions of the step alone, so that a run resumes exactly."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Return the factor of the learning rate at `step` of `steps`: linear warm-up, then half a cosine."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, steps))))
    return min(1.0, (step + 1) / max(1, warmup)) * (floor + (1.0 - floor) * cosine)


def generator(*keys: int) -> torch.Generator:
    """Return a generator whose stream depends on the integer keys alone, such as (seed, purpose, step).

    Nothing has to be saved to resume: the stream of a step is made anew from its number.
    """
    # As one entropy, keys that differ by zeros at the end would be the same.
    sequence = np.random.SeedSequence(keys[0], spawn_key=keys[1:])
    state = sequence.generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class Shuffle:
    """Batches without replacement: each pass over `count` rows has an order of its own.

    `batch(step)` depends on the seed and the step alone; a batch may span two passes.
    """

    def __init__(self, count: int, batch: int, *keys: int) -> None:
        if count < 1 or batch < 1:
            raise ValueError(f"count, batch: wanted at least 1 of each, got {count} and {batch}")
        self.count, self.size, self._keys = count, batch, keys
        self._orders: dict[int, Tensor] = {}

    def batch(self, step: int) -> Tensor:
        """Return the rows of `step`, (batch,) int64."""
        first = step * self.size
        passes = range(first // self.count, (first + self.size - 1) // self.count + 1)
        rows = torch.cat([self._order(number) for number in passes])
        offset = first - passes.start * self.count
        return rows[offset : offset + self.size]

    def _order(self, number: int) -> Tensor:
        if number not in self._orders:
            self._orders = {n: order for n, order in self._orders.items() if n == number - 1}
            self._orders[number] = torch.randperm(self.count, generator=generator(*self._keys, number))
        return self._orders[number]
