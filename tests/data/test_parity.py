import numpy as np
import pytest

from tenfold.data.parity import parity
from tenfold.errors import UserError


@pytest.mark.parametrize("length", [20, 40])
def test_labels_are_the_running_parity(length):
    data = parity(length)
    assert data.train_bits.shape == data.train_labels.shape == (9000, length)
    assert data.test_bits.shape == data.test_labels.shape == (1000, length)
    for bits, labels in ((data.train_bits, data.train_labels), (data.test_bits, data.test_labels)):
        assert bits.dtype == labels.dtype == np.uint8
        assert (bits.astype(int).cumsum(axis=1) % 2 == labels).all()
    assert abs(data.train_bits.mean(axis=0) - 0.5).max() < 0.03  # 5 standard deviations
    assert len(np.unique(np.concatenate([data.train_bits, data.test_bits]), axis=0)) == 10000


def test_seeds():
    one, same, other = parity(20), parity(20), parity(20, seed=1)
    assert (one.train_bits == same.train_bits).all() and (one.test_bits == same.test_bits).all()
    assert (one.train_bits != other.train_bits).any()


@pytest.mark.parametrize(("length", "train", "test"), [(3, 6, 2), (4, 3, 1), (5, 5, 0), (1, 1, 1)])
def test_short_strings_do_not_repeat(length, train, test):
    data = parity(length, train, test)
    both = np.concatenate([data.train_bits, data.test_bits])
    assert len(np.unique(both, axis=0)) == train + test and both.max() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 8, 1), "9 strings wanted of length 3, of which there are 8"),
        ((0, 1, 0), "length, train and test are 0, 1 and 0, wanted 1, 1 and 0 or more"),
        ((8, 0, 1), "are 8, 0 and 1"),
    ],
)
def test_what_cannot_be(arguments, message):
    with pytest.raises(UserError, match=message):
        parity(*arguments)
