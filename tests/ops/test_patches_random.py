"""random_keep_ids: the numbers themselves, their distribution, and what they depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tenfold.ops import patches  # noqa: E402
from tenfold.ops.reference import patches as reference  # noqa: E402


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(0, 150),
    st.data(),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**40),
    st.booleans(),
)
def test_same_numbers_as_the_reference(batch, tokens, data, seed, offset, ordered):
    keep = data.draw(st.integers(0, tokens))
    keep_ids, restore_ids = patches.random_keep_ids(batch, tokens, keep, seed, offset, ordered)
    want_keep, want_restore = reference.philox_keep_ids(batch, tokens, keep, seed, offset)
    if ordered:
        want_keep = want_keep.sort(dim=1).values
    else:
        np.testing.assert_array_equal(restore_ids, want_restore)
    np.testing.assert_array_equal(keep_ids, want_keep)
    np.testing.assert_array_equal(np.sort(restore_ids, axis=1), np.tile(np.arange(tokens), (batch, 1)))
    np.testing.assert_array_equal(
        np.take_along_axis(restore_ids, keep_ids, 1), np.tile(np.arange(keep), (batch, 1))
    )


def test_ordered_sorts_the_dropped_too():
    keep_ids, restore_ids = patches.random_keep_ids(9, 30, 11, 5, ordered=True)
    order = restore_ids.argsort(axis=1)
    np.testing.assert_array_equal(order[:, :11], keep_ids)
    assert (np.diff(order[:, 11:], axis=1) > 0).all()


def test_a_sample_depends_on_its_number_only():
    all_ids, _ = patches.random_keep_ids(50, 64, 16, seed=3)
    np.testing.assert_array_equal(patches.random_keep_ids(7, 64, 16, seed=3, offset=40)[0], all_ids[40:47])
    assert not np.array_equal(patches.random_keep_ids(50, 64, 16, seed=4)[0], all_ids)


def test_numbers_are_pinned():
    # A change here breaks every user's saved seed.
    assert patches.random_keep_ids(2, 10, 4, seed=2026, offset=5)[0].tolist() == [[2, 0, 7, 6], [9, 7, 1, 6]]


@pytest.mark.parametrize("kind", [np.int32, np.int64, torch.int32, torch.int64])
def test_into_given_arrays(kind):
    if isinstance(kind, torch.dtype):
        out = torch.empty(5, 3, dtype=kind), torch.empty(5, 9, dtype=kind)
    else:
        out = np.full((5, 3), -1, kind), np.full((5, 9), -1, kind)
    keep_ids, restore_ids = patches.random_keep_ids(5, 9, 3, 1, out=out)
    assert keep_ids is out[0]
    assert restore_ids is out[1]
    np.testing.assert_array_equal(np.asarray(keep_ids), patches.random_keep_ids(5, 9, 3, 1)[0])


def test_kind_of_result():
    assert type(patches.random_keep_ids(1, 2, 1, 0)[0]) is np.ndarray
    assert type(patches.random_keep_ids(1, 2, 1, 0, like=np.zeros(1))[0]) is np.ndarray
    like_torch = patches.random_keep_ids(1, 2, 1, 0, like=torch.zeros(1))[0]
    assert like_torch.dtype == torch.int64


def test_uniform():
    # Every token is kept with probability K / N, and every pair with K (K - 1) / (N (N - 1)); 6 sigma.
    batch, tokens, keep = 40_000, 12, 5
    keep_ids, _ = patches.random_keep_ids(batch, tokens, keep, seed=11)
    kept = np.zeros((batch, tokens))
    np.put_along_axis(kept, keep_ids, 1, axis=1)
    pairs = kept.T @ kept / batch
    single = keep / tokens
    double = single * (keep - 1) / (tokens - 1)
    expected = np.full((tokens, tokens), double) + np.eye(tokens) * (single - double)
    assert np.abs(pairs - expected).max() < 6 * 0.5 / np.sqrt(batch)
    first = np.bincount(keep_ids[:, 0], minlength=tokens) / batch  # the order is random too
    assert np.abs(first - 1 / tokens).max() < 6 * 0.5 / np.sqrt(batch)


def test_seeds_give_unrelated_samples():
    rows = {
        tuple(patches.random_keep_ids(1, 64, 8, seed, offset)[0][0])
        for seed in range(40)
        for offset in range(40)
    }
    assert len(rows) == 1600
