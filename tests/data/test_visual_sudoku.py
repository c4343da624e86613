from dataclasses import replace

import numpy as np
import pytest

from digit_files import made_up_digits
from tenfold.data.mapping import mapping
from tenfold.data.sudoku import SIZE_4, generate
from tenfold.data.visual_sudoku import BLANK, visual_sudoku
from tenfold.errors import UserError


@pytest.fixture(scope="module")
def sudoku():
    return generate(replace(SIZE_4, train=50, test=20))


@pytest.fixture(scope="module")
def digits():
    return made_up_digits()


def test_pictures_show_the_given_numbers(sudoku, digits):
    data = visual_sudoku(sudoku, digits)
    for rows, part, labels in (
        (data.train_rows, sudoku.train, digits.train_labels),
        (data.test_rows, sudoku.test, digits.test_labels),
    ):
        given = part.puzzles > 0
        assert rows.dtype == np.int32 and ((rows == BLANK) == ~given).all()
        assert (labels[rows[given]] == part.puzzles[given]).all()


def test_a_test_picture_among_the_training_pictures_is_refused(sudoku, digits):
    leaking = digits.test_images.copy()
    leaking[[4, 9]] = digits.train_images[[11, 0]]
    with pytest.raises(UserError, match=r"test image 4 is also a training image \(and 1 others are\)"):
        visual_sudoku(sudoku, replace(digits, test_images=leaking))
    with pytest.raises(UserError, match=r"test image 4 is also a training image \(and 1 others are\)"):
        mapping(replace(digits, test_images=leaking))


def test_pictures_are_used_evenly_in_random_order(sudoku, digits):
    data = visual_sudoku(sudoku, digits)
    for number in range(1, 5):
        pictures = np.flatnonzero(digits.train_labels == number)
        used = np.bincount(data.train_rows[sudoku.train.puzzles == number], minlength=60)[pictures]
        assert used.max() - used.min() <= 1 and used.max() > 1
        first = data.train_rows[sudoku.train.puzzles == number][: len(pictures)]
        assert sorted(first) == pictures.tolist() and first.tolist() != pictures.tolist()


def test_seeds(sudoku, digits):
    one, same, other = (visual_sudoku(sudoku, digits, seed) for seed in (0, 0, 1))
    assert (one.train_rows == same.train_rows).all() and (one.test_rows == same.test_rows).all()
    assert (one.train_rows != other.train_rows).any()


def test_a_number_without_a_picture(sudoku, digits):
    labels = np.where(digits.test_labels == 3, 5, digits.test_labels).astype(np.uint8)
    with pytest.raises(UserError, match="the puzzles have the number 3, of which there is no test image"):
        visual_sudoku(sudoku, replace(digits, test_labels=labels))


def test_symbols_are_a_permutation_by_seed(digits):
    one, same, other = (mapping(digits, seed) for seed in (0, 0, 1))
    assert sorted(one.symbol_of.tolist()) == list(range(10))
    assert (one.symbol_of == same.symbol_of).all() and (one.symbol_of != other.symbol_of).any()
    for labels, numbers in ((one.train_labels, digits.train_labels), (one.test_labels, digits.test_labels)):
        assert labels.shape == (len(numbers), 10) and labels.dtype == np.float32
        assert (labels.sum(axis=1) == 1).all() and (labels.argmax(axis=1) == one.symbol_of[numbers]).all()
    assert one.train_images is digits.train_images
