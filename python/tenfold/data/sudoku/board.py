"""Sizes, rows, columns and boxes. A board is a row of size*size numbers, read line by line; 0 is a blank."""

import functools

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError

BOX_SIDE = {4: 2, 9: 3}  # side of the board -> side of a box


def box_side(size: int) -> int:
    """Errors: UserError for a size other than 4 and 9."""
    if size not in BOX_SIDE:
        raise UserError(f"size is {size!r}, wanted 4 or 9 (the side of the board)")
    return BOX_SIDE[size]


def size_of(boards: NDArray[np.generic], name: str = "boards") -> int:
    """The side of the boards in an array (N, size*size). Errors: ValueError naming the array."""
    if boards.ndim != 2 or boards.shape[1] not in (16, 81):
        raise ValueError(f"{name} has the shape {boards.shape}, wanted (N, 81) or (N, 16)")
    return 9 if boards.shape[1] == 81 else 4


@functools.cache
def units(size: int) -> NDArray[np.int64]:
    """(3 * size, size) cell numbers: of each row, then each column, then each box."""
    side = box_side(size)
    cells = np.arange(size * size).reshape(size, size)
    boxes = cells.reshape(side, side, side, side).swapaxes(1, 2).reshape(size, size)
    found = np.concatenate([cells, cells.T, boxes]).astype(np.int64)
    found.flags.writeable = False  # shared by all callers
    return found


def is_valid(boards: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(N,) whether each row, column and box of a board holds every number from 1 to size once."""
    size = size_of(boards)
    held = np.sort(boards[:, units(size)], axis=2)
    valid: NDArray[np.bool_] = (held == np.arange(1, size + 1)).all(axis=(1, 2))
    return valid
