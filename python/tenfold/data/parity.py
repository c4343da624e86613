"""The parity task: bit strings and their running XOR, made from a seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError


@dataclass(frozen=True)
class Parity:
    """Bit strings (N, length) of 0 and 1, and labels: ``labels[:, t]`` is the XOR of the bits 0 to t."""

    train_bits: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_bits: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


def parity(length: int, train: int = 9000, test: int = 1000, seed: int = 0) -> Parity:
    """Uniform random bit strings, all different: no test string was trained on.

    Errors: UserError when there are not so many strings of this length.
    """
    if length < 1 or train < 1 or test < 0:
        raise UserError(
            f"parity: length, train and test are {length}, {train} and {test}, wanted 1, 1 and 0 or more"
        )
    if train + test > 2**length:
        raise UserError(
            f"parity: {train + test} strings wanted of length {length}, of which there are {2**length}"
        )
    bits = _different(length, train + test, np.random.default_rng(seed))
    labels = np.bitwise_xor.accumulate(bits, axis=1)
    return Parity(bits[:train], labels[:train], bits[train:], labels[train:])


def _different(length: int, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """``count`` different strings in random order."""
    if 2**length <= 4 * count:  # repeats would be many: choose from all of them
        numbers = rng.permutation(2**length)[:count]
        return (numbers[:, None] >> np.arange(length) & 1).astype(np.uint8)
    found = np.empty((0, length), np.uint8)
    while len(found) < count:
        more = rng.integers(0, 2, (count - len(found), length), dtype=np.uint8)
        found = np.concatenate([found, more])
        _, first = np.unique(found, axis=0, return_index=True)
        found = found[np.sort(first)]
    return found
