"""Streams, orders and learning rates as functions of the step."""

import itertools

import pytest
import torch

from tenfold.engine.schedule import Shuffle, generator, warmup_cosine


def test_streams_depend_on_every_key_zeros_at_the_end_too():
    keys = [(5,), (5, 0), (5, 0, 0), (0, 5), (0,), (0, 0), (5, 1), (5, 1, 0), (6,)]
    draws = [torch.randint(2**62, (2,), generator=generator(*key)).tolist() for key in keys]
    assert all(a != b for a, b in itertools.combinations(draws, 2))
    assert draws[1] == torch.randint(2**62, (2,), generator=generator(5, 0)).tolist()


def test_every_pass_takes_each_row_once_in_another_order():
    shuffle = Shuffle(7, 3, 1, 2)
    rows = torch.cat([shuffle.batch(step) for step in range(14)]).reshape(6, 7)
    assert all(sorted(one) == list(range(7)) for one in rows.tolist())
    assert len({tuple(one) for one in rows.tolist()}) == 6
    # Of the step alone: another object that never saw the earlier steps gives the same batch.
    assert torch.equal(Shuffle(7, 3, 1, 2).batch(9), rows.flatten()[27:30])


def test_a_batch_larger_than_the_set_spans_passes():
    assert Shuffle(2, 5, 0).batch(0).bincount().tolist() in ([3, 2], [2, 3])


def test_warm_up_and_cosine():
    assert [warmup_cosine(step, 1000, 4) for step in range(4)] == pytest.approx(
        [0.25, 0.5, 0.75, 1], abs=1e-4
    )
    assert warmup_cosine(500, 1000, 1) == pytest.approx(0.5)
    assert warmup_cosine(1000, 1000, 1, floor=0.33) == pytest.approx(0.33)
