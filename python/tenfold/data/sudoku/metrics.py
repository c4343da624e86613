"""How good solved boards are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenfold.data.sudoku.board import is_valid


@dataclass(frozen=True)
class BoardMetrics:
    """Shares of N boards or of their cells; NaN where there are none to count."""

    valid: float  # boards whose rows, columns and boxes are permutations: the published figure
    exact: float  # boards equal to the solution
    given_cells: float  # given cells that are right
    unknown_cells: float  # other cells that are right


def board_metrics(
    boards: NDArray[np.integer], puzzles: NDArray[np.integer], solutions: NDArray[np.integer]
) -> BoardMetrics:
    """Compare ``boards`` with ``solutions``, all (N, size**2); ``puzzles`` says which cells are given.

    A valid board need not be exact: with misread digits it may solve another puzzle.
    Errors: ValueError for shapes that differ.
    """
    if not boards.shape == puzzles.shape == solutions.shape:
        raise ValueError(
            f"boards, puzzles and solutions have the shapes {boards.shape}, {puzzles.shape} and "
            f"{solutions.shape}, wanted one shape"
        )
    right, given = boards == solutions, puzzles != 0
    return BoardMetrics(
        valid=_share(is_valid(boards)),
        exact=_share(right.all(axis=1)),
        given_cells=_share(right[given]),
        unknown_cells=_share(right[~given]),
    )


def _share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if hits.size else float("nan")
