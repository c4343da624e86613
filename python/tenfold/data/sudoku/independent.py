"""Check puzzles with a SAT solver that knows nothing of the generator: python-sat, of the extra ``train``."""

import itertools
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from tenfold.data.sudoku.board import box_side, size_of
from tenfold.errors import UserError

_SOLVER = "minisat22"


def solver_name() -> str:
    """What ``check_unique`` asks, with its version. Errors: UserError when python-sat is not installed."""
    try:
        import pysat.solvers  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"checking puzzles needs python-sat, which is not installed ({error}): "
            "pip install 'tenfold[train]'"
        ) from error
    return f"python-sat {version('python-sat')}, {_SOLVER}"


def check_unique(puzzles: NDArray[np.integer], solutions: NDArray[np.integer]) -> None:
    """Confirm that each puzzle (N, size**2) has its solution and no other: under half a millisecond each.

    Errors: UserError naming the first puzzle of which that is not so; as ``solver_name``.
    """
    solver_name()
    from pysat.solvers import Solver

    size = size_of(puzzles, "puzzles")
    with Solver(_SOLVER, bootstrap_with=list(_clauses(size))) as solver:
        for row, (puzzle, solution) in enumerate(zip(puzzles.tolist(), solutions.tolist(), strict=True)):
            given = [_variable(size, cell, number) for cell, number in enumerate(puzzle) if number]
            wanted = [_variable(size, cell, number) for cell, number in enumerate(solution)]
            if not solver.solve(assumptions=given):
                raise UserError(f"puzzle {row} has no solution, says {_SOLVER}")
            if [literal for literal in solver.get_model()[: size**3] if literal > 0] != wanted:
                raise UserError(f"puzzle {row} has another solution than the one beside it, says {_SOLVER}")
            # Forbid the solution while this switch is assumed; later puzzles leave it off.
            switch = size**3 + 1 + row
            solver.add_clause([-switch, *(-literal for literal in wanted)])
            if solver.solve(assumptions=[*given, switch]):
                raise UserError(f"puzzle {row} has several solutions, says {_SOLVER}")


def _variable(size: int, cell: int, number: int) -> int:
    """From 1, in the order of cells, so that a model lists a board's numbers in order."""
    return cell * size + number


def _clauses(size: int) -> Iterator[list[int]]:
    """Each cell holds exactly one number; each row, column and box each number exactly once."""
    side, span = box_side(size), range(size)
    groups = [[(row, column, number) for number in span] for row in span for column in span]
    groups += [[(row, column, number) for column in span] for row in span for number in span]
    groups += [[(row, column, number) for row in span] for column in span for number in span]
    groups += [
        [(top + i, left + j, number) for i in range(side) for j in range(side)]
        for top in range(0, size, side)
        for left in range(0, size, side)
        for number in span
    ]
    for group in groups:
        literals = [_variable(size, row * size + column, number + 1) for row, column, number in group]
        yield literals
        yield from ([-one, -other] for one, other in itertools.combinations(literals, 2))
