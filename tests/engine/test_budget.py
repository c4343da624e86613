"""Durations as people write them, and steps from measured time."""

import pytest

from tenfold.engine.budget import calibrate, parse_duration, steps_within
from tenfold.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h", 3600),
        ("600", 600),
        ("1h30m", 5400),
        ("0.5h", 1800),
        (" 2D ", 172800),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "m", "10 minutes", "10x", "-5m", "0", "0s", "1e3", "nan", "inf", "1h30", "1.m", "10m!", "٣m!"],
)
def test_bad_durations(text):
    with pytest.raises(UserError, match="write it like"):
        parse_duration(text)


def test_calibration_is_the_median_after_warmup():
    times = iter([0, 5, 5, 5.5, 10, 12, 12, 13])  # four measured steps: 5, 0.5, 2 and 1 seconds
    calls = []
    result = calibrate(lambda: calls.append(1), warmup=3, measure=4, clock=lambda: next(times))
    assert result == 1.5
    assert len(calls) == 7
    with pytest.raises(ValueError, match="measure >= 1"):
        calibrate(lambda: None, measure=0)


def test_steps_within():
    assert steps_within(600, 0.25) == 2400
    assert steps_within(0.1, 1.0) == 1
