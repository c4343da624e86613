import numpy as np
import pytest

from tenfold.data.sudoku import all_boards, bit_permutation, decode, is_input, one_hot
from tenfold.errors import UserError

BOARDS = np.array(all_boards(4), np.uint8)


def puzzles(seed=0):
    return np.where(np.random.default_rng(seed).random(BOARDS.shape) < 0.4, BOARDS, 0)


def test_bits_of_a_cell():
    bits = one_hot(np.array([[3, 0] + [0] * 14]))
    assert bits.shape == (1, 64) and bits.dtype == np.float32
    assert bits[0].tolist() == [0, 0, 1, 0] + [0] * 60
    assert is_input(np.array([[3, 0] + [0] * 14]))[0].tolist() == [True] * 4 + [False] * 60
    nine = one_hot(np.array([[0] * 80 + [9]]))
    assert nine.shape == (1, 729) and nine.nonzero()[1].tolist() == [728]


def test_decoding_undoes_encoding():
    assert (decode(one_hot(BOARDS)) == BOARDS).all()
    given = puzzles()
    bits = np.where(is_input(given), one_hot(given), 0.3)
    assert (decode(bits)[given > 0] == given[given > 0]).all()
    assert is_input(given).sum() == 4 * (given > 0).sum()
    assert one_hot(np.empty((0, 81), int)).shape == (0, 729)


def test_one_permutation_by_seed():
    order = bit_permutation(9, 3)
    assert sorted(order.tolist()) == list(range(729))
    assert (order == bit_permutation(9, 3)).all() and (order != bit_permutation(9, 4)).any()
    bits, order = one_hot(BOARDS), bit_permutation(4, 0)
    assert (bits[:, order] != bits).any()
    assert (decode(bits[:, order][:, np.argsort(order)]) == BOARDS).all()
    with pytest.raises(UserError, match="size is 5"):
        bit_permutation(5, 0)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_numbers_out_of_range(wrong):
    board = BOARDS[:2].astype(int)
    board[1, 3] = wrong
    with pytest.raises(ValueError, match=r"boards hold .* wanted 0 \(blank\) to 4"):
        one_hot(board)


def test_what_cannot_be_decoded():
    with pytest.raises(ValueError, match=r"bits has the shape \(1, 65\), wanted"):
        decode(np.zeros((1, 65)))
    with pytest.raises(ValueError, match="bits holds NaN"):
        decode(np.full((1, 64), np.nan))
