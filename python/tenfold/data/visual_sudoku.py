"""Sudoku whose given cells are pictures of digits: for each cell the row of its picture, no copies."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenfold.data.mnist import Digits, refuse_shared
from tenfold.data.sudoku.generator import Sudoku
from tenfold.errors import UserError

BLANK = -1


@dataclass(frozen=True)
class VisualSudoku:
    """Which picture each given cell shows: (N, size**2) rows of the digits' images, or BLANK.

    Training puzzles show training pictures only, test puzzles test pictures.
    """

    train_rows: NDArray[np.int32]
    test_rows: NDArray[np.int32]


def visual_sudoku(sudoku: Sudoku, digits: Digits, seed: int = 0) -> VisualSudoku:
    """Draw a picture for every given cell.

    Of the pictures of a number each is used equally often, give or take one, in random order by ``seed``.
    Errors: UserError when a number has no picture, or a test picture is also a training picture.
    """
    refuse_shared(digits)
    train_seed, test_seed = np.random.SeedSequence(seed).spawn(2)
    return VisualSudoku(
        _assign(sudoku.train.puzzles, digits.train_labels, np.random.default_rng(train_seed), "training"),
        _assign(sudoku.test.puzzles, digits.test_labels, np.random.default_rng(test_seed), "test"),
    )


def _assign(
    puzzles: NDArray[np.uint8], labels: NDArray[np.uint8], rng: np.random.Generator, what: str
) -> NDArray[np.int32]:
    rows = np.full(puzzles.shape, BLANK, np.int32)
    for number in np.unique(puzzles[puzzles > 0]).tolist():
        cells, pictures = puzzles == number, np.flatnonzero(labels == number)
        if not len(pictures):
            raise UserError(f"the puzzles have the number {number}, of which there is no {what} image")
        rounds = -(-int(cells.sum()) // len(pictures))
        drawn = np.concatenate([rng.permutation(pictures) for _ in range(rounds)])
        rows[cells] = drawn[: cells.sum()]
    return rows
