import random

import numpy as np
import pytest

from sudoku_symmetries import every_symmetry_of_size_4, random_symmetry, renamed
from tenfold.data.sudoku import canonical, count_classes, is_valid
from tenfold.data.sudoku.search import all_boards, random_board


def test_size_4_against_every_symmetry():
    boards = all_boards(4)
    least = [min(renamed(one) for one in every_symmetry_of_size_4(board)) for board in boards]
    assert canonical(np.array(boards)).tolist() == least
    assert len(set(map(tuple, least))) == count_classes(np.array(boards)) == 2


@pytest.fixture(scope="module")
def boards():
    rng = random.Random("boards")
    return np.array([random_board(9, rng) for _ in range(40)])


def test_size_9_is_the_same_for_all_of_a_class(boards):
    rng = np.random.default_rng(0)
    least = canonical(boards)
    assert is_valid(least).all() and (least[:, :9] == np.arange(1, 10)).all()
    for _ in range(5):
        assert (canonical(np.array([random_symmetry(board, rng) for board in boards])) == least).all()
    assert (canonical(least) == least).all()
    assert count_classes(boards) == 40


def test_size_9_is_the_least(boards):
    """No random symmetry, renamed, comes before it."""
    rng = np.random.default_rng(1)
    for board, least in zip(boards[:10], canonical(boards[:10]).tolist(), strict=True):
        assert all(renamed(random_symmetry(board, rng)) >= least for _ in range(300))


def test_a_board_with_symmetries_of_its_own():
    """Rows that are shifts of one another: thousands of symmetries leave this board as it is."""
    shifts = (0, 3, 6, 1, 4, 7, 2, 5, 8)
    board = np.array([(column + shift) % 9 + 1 for shift in shifts for column in range(9)])
    rng = np.random.default_rng(2)
    assert count_classes(np.array([board] + [random_symmetry(board, rng) for _ in range(20)])) == 1


def test_none_and_wrong_boards(boards):
    assert canonical(np.empty((0, 81), np.uint8)).shape == (0, 81)
    broken = boards.copy()
    broken[3, 0] = broken[3, 1]
    with pytest.raises(ValueError, match=r"boards\[3\] is not a complete and valid board"):
        canonical(broken)
    with pytest.raises(ValueError, match=r"boards has the shape \(2, 80\), wanted \(N, 81\) or \(N, 16\)"):
        canonical(np.ones((2, 80), np.uint8))
