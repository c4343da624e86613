import itertools
import random

import numpy as np
import pytest

from tenfold.data.sudoku import is_valid, search, units
from tenfold.data.sudoku.search import all_boards, is_forced, is_possible, random_board, rules, solve
from tenfold.errors import UserError


def boards_by_permutations():
    """All 4x4 boards, from four permutations as rows."""
    rows = list(itertools.permutations(range(1, 5)))
    for board in itertools.product(rows, repeat=4):
        columns = all(len(set(column)) == 4 for column in zip(*board, strict=True))
        if columns and all(
            len({board[i][j], board[i][j + 1], board[i + 1][j], board[i + 1][j + 1]}) == 4
            for i in (0, 2)
            for j in (0, 2)
        ):
            yield [number for row in board for number in row]


def test_all_boards_of_size_4():
    found = all_boards(4)
    assert len(found) == 288 and found == sorted(boards_by_permutations())


def test_units_are_rows_columns_and_boxes():
    assert units(9).shape == (27, 9)
    assert units(9)[1].tolist() == list(range(9, 18)) and units(9)[9].tolist() == list(range(0, 81, 9))
    assert units(9)[22].tolist() == [30, 31, 32, 39, 40, 41, 48, 49, 50]  # the box in the middle
    assert units(4)[11].tolist() == [10, 11, 14, 15]


@pytest.mark.parametrize("size", [4, 9])
def test_random_boards_are_valid_reproducible_and_different(size):
    boards = [random_board(size, random.Random(seed)) for seed in range(8)]
    assert is_valid(np.array(boards)).all()
    assert boards == [random_board(size, random.Random(seed)) for seed in range(8)]
    assert len({tuple(board) for board in boards}) > 5


def test_valid_sees_each_kind_of_fault():
    board = np.array(random_board(9, random.Random(0)))
    swapped_in_row, swapped_in_column, swapped_in_box = board.copy(), board.copy(), board.copy()
    swapped_in_row[[0, 8]] = board[[8, 0]]  # the row stays whole; columns and boxes do not
    swapped_in_column[[0, 72]] = board[[72, 0]]
    swapped_in_box[[0, 10]] = board[[10, 0]]
    blank = board.copy()
    blank[5] = 0
    assert is_valid(np.stack([board, swapped_in_row, swapped_in_column, swapped_in_box, blank])).tolist() == [
        True, False, False, False, False,
    ]  # fmt: skip


def test_solve_finds_as_many_solutions_as_enumeration():
    """Random 4x4 puzzles, with none, one and several solutions, against the 288 boards."""
    boards, rng = np.array(all_boards(4)), np.random.default_rng(0)
    kinds = set()
    for _ in range(300):
        puzzle = np.where(rng.random(16) < rng.uniform(0.2, 0.6), boards[rng.integers(288)], 0)
        if rng.random() < 0.3:
            puzzle[rng.integers(16)] = rng.integers(1, 5)  # often a contradiction
        wanted = [board.tolist() for board in boards if ((puzzle == 0) | (puzzle == board)).all()]
        assert sorted(solve(4, puzzle.tolist(), limit=1000)) == wanted
        assert len(solve(4, puzzle.tolist())) == min(len(wanted), 2)
        kinds.add(min(len(wanted), 2))
    assert kinds == {0, 1, 2}


def test_a_published_hard_puzzle():
    """Arto Inkala's of 2012: needs trial and error, and has one solution."""
    puzzle = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."
    (solution,) = solve(9, [int(c) if c != "." else 0 for c in puzzle])
    assert is_valid(np.array([solution])).all()
    assert all(c in (".", str(number)) for c, number in zip(puzzle, solution, strict=True))


def test_an_empty_board_has_several_solutions_and_a_contradiction_none():
    assert len(solve(9, [0] * 81)) == 2
    assert solve(9, [5, 5] + [0] * 79) == []


def test_forced_is_never_wrong():
    """What one constraint forces, search confirms; and it is seen at all."""
    game, rng, seen = rules(9), random.Random(3), 0
    board = random_board(9, rng)
    for cell in range(81):
        puzzle = [number if rng.random() < 0.5 and place != cell else 0 for place, number in enumerate(board)]
        possible = game.start(puzzle)
        if is_forced(game, possible, cell, board[cell]):
            seen += 1
            assert not is_possible(game, possible & ~game.literal(cell, board[cell]))
    assert seen > 20


def test_sizes():
    with pytest.raises(UserError, match=r"size is 6, wanted 4 or 9"):
        solve(6, [0] * 36)
    with pytest.raises(ValueError, match=r"size is 9, and only the boards of size 4"):
        search.all_boards(9)
