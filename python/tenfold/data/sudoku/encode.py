"""Boards as the bits that a SATNet layer sees: bit cell * size + (v - 1) says that a cell holds number v."""

import numpy as np
from numpy.typing import NDArray

from tenfold.data.sudoku.board import box_side, size_of


def one_hot(boards: NDArray[np.integer]) -> NDArray[np.float32]:
    """(N, size**3) of 0 and 1 from boards (N, size**2); a blank cell has only zeros.

    Of solutions these are the labels; of puzzles, the inputs: the bits of blank cells are not inputs, so
    their zeros are not read. Errors: ValueError for a number outside 0..size.
    """
    size = size_of(boards)
    if boards.size and (boards.min() < 0 or boards.max() > size):
        raise ValueError(f"boards hold {boards.min()} to {boards.max()}, wanted 0 (blank) to {size}")
    bits: NDArray[np.bool_] = boards[:, :, None] == np.arange(1, size + 1)
    return bits.reshape(len(boards), size**3).astype(np.float32)


def is_input(puzzles: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(N, size**3): true for all bits of the cells that are given."""
    return np.repeat(puzzles != 0, size_of(puzzles, "puzzles"), axis=1)


def decode(bits: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Boards (N, size**2) of the largest bit of each cell, the first of equal ones, from bits (N, size**3).

    Errors: ValueError for another shape, or where a NaN would decide.
    """
    if bits.ndim != 2 or bits.shape[1] not in (64, 729):
        raise ValueError(f"bits has the shape {bits.shape}, wanted (N, 729) or (N, 64)")
    if np.isnan(bits).any():
        raise ValueError("bits holds NaN, wanted numbers")
    size = 9 if bits.shape[1] == 729 else 4
    largest: NDArray[np.int64] = bits.reshape(len(bits), size * size, size).argmax(axis=2)
    return (largest + 1).astype(np.uint8)


def bit_permutation(size: int, seed: int) -> NDArray[np.int64]:
    """(size**3,) the order of bits in permuted Sudoku: ``bits[:, permutation]`` for inputs, mask and labels.

    One permutation for a whole experiment hides which bits are neighbours. ``np.argsort(permutation)`` undoes
    it, before ``decode``.
    """
    box_side(size)
    return np.random.default_rng(seed).permutation(size**3).astype(np.int64)
