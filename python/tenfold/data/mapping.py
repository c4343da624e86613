"""The mapping test: which symbol does a digit stand for? A fixed secret permutation of the ten, by a seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenfold.data.mnist import Digits, refuse_shared

SYMBOLS = 10


@dataclass(frozen=True)
class Mapping:
    """Pictures of digits (N, 28, 28), and one-hot labels (N, 10) of the symbol that each digit stands for."""

    symbol_of: NDArray[np.int64]  # digit -> symbol
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.float32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.float32]


def mapping(digits: Digits, seed: int = 0) -> Mapping:
    """The digits with permuted labels; pictures are shared with ``digits``, not copied.

    Errors: UserError when a test picture is also a training picture.
    """
    refuse_shared(digits)
    symbol_of = np.random.default_rng(seed).permutation(SYMBOLS).astype(np.int64)
    one_hot = np.eye(SYMBOLS, dtype=np.float32)[symbol_of]
    return Mapping(
        symbol_of,
        digits.train_images,
        one_hot[digits.train_labels],
        digits.test_images,
        one_hot[digits.test_labels],
    )
