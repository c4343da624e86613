"""What the results say, by the rules that docs/plans/microdit.md wrote down before the first cell ran."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Result = dict[str, Any]
Arms = Mapping[str, list[Result]]

TARGETS = {"pixels": 95.0, "features": 65.0}
"""Wanted shares of captions seen, in per cent."""
GAIN = 5.0
"""Points: held-out samples are wanted so far above copying, and closer arms are not told apart."""
TRAINED = ("laptop", "laptop64")
"""The arms of question 3; all others are the comparison of presets."""


def share(result: Result, captions: str, space: str, kind: str) -> float:
    """Per cent of `captions` ("seen", "heldout") whose picture is among the 10 nearest in `space`."""
    return 100.0 * float(result["evaluation"][captions][space]["top10"][kind])


def findings(arms: Arms, missing: Sequence[str]) -> Iterator[str]:
    """Yield one sentence or two for each question of the plan."""
    comparison = {arm: found for arm, found in arms.items() if arm not in TRAINED}
    unfinished = any(name.rpartition("-seed")[0] not in TRAINED for name in missing)
    if comparison and not unfinished:
        yield _winner(comparison)
        yield _masking(comparison["p4"], comparison["p4-mask75"])
    for arm in TRAINED:
        if arm in arms:
            yield _seen(arm, arms[arm])
            yield _heldout(arm, arms[arm])


def winner(comparison: Arms) -> str:
    """The arm with the most captions seen in pixels; within GAIN of it in features; else the smallest."""
    pixels = {arm: _mean(found, "seen", "pixels") for arm, found in comparison.items()}
    near = [arm for arm, value in pixels.items() if value >= max(pixels.values()) - GAIN]
    features = {arm: _mean(comparison[arm], "seen", "features") for arm in near}
    best = [arm for arm in near if features[arm] == max(features.values())]
    return min(best, key=lambda arm: int(comparison[arm][0]["facts"]["parameters"]))


def _mean(found: list[Result], captions: str, space: str) -> float:
    return statistics.fmean(share(result, captions, space, "samples") for result in found)


def _winner(comparison: Arms) -> str:
    arm = winner(comparison)
    pixels, features = (_mean(comparison[arm], "seen", space) for space in ("pixels", "features"))
    return (
        f"Of the presets compared at equal time on one core, `{arm}` wins by the plan's rule: "
        f"{pixels:.1f} % of the captions seen in pixels and {features:.1f} % in features, with one seed and "
        "a standard error of up to 5 points."
    )


def _masking(plain: list[Result], masked: list[Result]) -> str:
    without, with_mask = (
        [share(result, "seen", "pixels", "samples") for result in found] for found in (plain, masked)
    )
    gain = statistics.fmean(with_mask) - statistics.fmean(without)
    spread = max(GAIN, *(max(values) - min(values) for values in (without, with_mask)))
    figures = (
        f"{statistics.fmean(with_mask):.1f} % of the captions seen in pixels with three quarters of 64 "
        f"patches masked after the mixer, {statistics.fmean(without):.1f} % without ({gain:+.1f} points; two "
        f"seeds each, and a difference of more than {spread:.1f} was wanted)"
    )
    if gain > spread:
        return f"Deferred masking wins at equal time where there are 64 patches: {figures}."
    return f"Deferred masking does not win at equal time: {figures}. The default does not mask."


def _seen(arm: str, found: list[Result]) -> str:
    parts = []
    for space, wanted in TARGETS.items():
        value = _mean(found, "seen", space)
        parts.append(f"{value:.1f} % in {space} ({'met' if value >= wanted else 'MISSED'}: {wanted:g} %)")
    return f"`{arm}`, captions seen: {' and '.join(parts)}."


def _heldout(arm: str, found: list[Result]) -> str:
    parts = []
    for space in TARGETS:
        copied = statistics.fmean(share(result, "heldout", space, "nearest_caption") for result in found)
        gain = _mean(found, "heldout", space) - copied
        parts.append(f"{gain:+.1f} points from copying in {space} ({'met' if gain >= GAIN else 'MISSED'})")
    return f"`{arm}`, captions held out, {GAIN:+g} points wanted: {' and '.join(parts)}."
