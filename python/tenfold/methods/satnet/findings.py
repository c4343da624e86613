"""What the results say, by the rules that docs/plans/satnet.md wrote down before the first cell ran."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tenfold.engine.results import Result
from tenfold.methods.satnet.plan import ANCHORS, LINEAR, MAPPING_SEEDS, PARITY_ARMS, mapping_settings

Arms = Mapping[str, list[Result]]

SUCCESS = 0.9
"""Test accuracy below which a run of the mapping test has failed."""
LEVEL = 0.05
"""Of the tests."""
GRADIENT_TARGET = 0.01
"""Wanted largest error of the gradient, of the largest finite difference."""
PARITY_TARGET = 0.999
BOARD_SHARES = (0.5, 0.9, 0.95)
PAIRS = len(ANCHORS) * MAPPING_SEEDS
"""Of the primary contrast."""
FLIPS = 20_000  # of the signs, in the permutation test
CHANCE_CELLS = 1 / 9


def accuracy(result: Result) -> float:
    """Test accuracy of a run of the mapping test or of parity."""
    return float(result["test"]["accuracy"])


def failures(found: Sequence[Result]) -> int:
    """Runs of the mapping test that failed."""
    return sum(accuracy(result) < SUCCESS for result in found)


def pairs(arms: Arms, setting: str) -> list[tuple[float, float]]:
    """(correct, official) accuracies of the seeds that both gradients have."""
    correct, official = (
        {result["seed"]: accuracy(result) for result in arms.get(f"{setting}-{gradient}", [])}
        for gradient in ("correct", "official")
    )
    return [(correct[seed], official[seed]) for seed in sorted(correct.keys() & official.keys())]


def mcnemar(found: Sequence[tuple[float, float]]) -> tuple[int, int, float]:
    """Pairs in which only the first failed, only the second failed, and the exact two-sided p."""
    first = sum(a < SUCCESS <= b for a, b in found)
    second = sum(b < SUCCESS <= a for a, b in found)
    total = first + second
    tail = sum(math.comb(total, k) for k in range(min(first, second) + 1)) / 2**total
    return first, second, min(1.0, 2 * tail)


def sign_flip(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean difference first - second of the pairs, and the two-sided p of flipping signs at random."""
    differences = np.array([a - b for a, b in found])
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (FLIPS, len(differences)))
    means = np.abs((signs * differences).mean(axis=1))
    observed = abs(differences.mean())
    return float(differences.mean()), float((1 + (means >= observed - 1e-12).sum()) / (1 + FLIPS))


def passes_until(result: Result, name: str, share: float) -> tuple[float, float] | None:
    """(passes, minutes) after which a score of the curve first reached `share`."""
    for row in result["curve"]:
        if row.get(name, -1.0) >= share:
            return row["epoch"], row["seconds"] / 60
    return None


def findings(arms: Arms) -> Iterator[str]:
    """Yield one sentence or two for each question of the plan that has results."""
    if "gradient" in arms:
        yield _gradient(arms["gradient"])
    for arm in ("sudoku-singles", "permuted-singles", "sudoku", "permuted"):
        for result in arms.get(arm, []):
            yield _boards(arm, result)
    for arm in PARITY_ARMS:
        if arm in arms:
            yield _parity(arm, arms[arm])
    for arm in ("visual-leaky", "visual-ungrounded", "visual-ungrounded-tuned"):
        if arm in arms:
            yield _visual(f"`{arm}`", [result["test"] for result in arms[arm]])
    for part, title in (("matched", "clusters matched"), ("test", "trained jointly")):
        if "self-supervised" in arms:
            scores = [result[part] for result in arms["self-supervised"]]
            yield _visual(f"`self-supervised`, {title}", scores)
    contrast = [pair for anchor in ANCHORS for pair in pairs(arms, anchor)]
    if contrast:
        yield _primary(contrast)
        yield _everywhere([pair for name in mapping_settings() for pair in pairs(arms, name)])
        yield _naive(arms)


def _gradient(found: list[Result]) -> str:
    ours, official = (
        max(result["largest_error"][name] for result in found) for name in ("correct", "official")
    )
    verdict = "met" if ours < GRADIENT_TARGET else "MISSED"
    return (
        f"Against finite differences our gradient to an input is off by at most {ours:.1e} of the largest "
        f"({verdict}: {GRADIENT_TARGET:g}), the published code's by {official:.2f}."
    )


def _boards(arm: str, result: Result) -> str:
    parts = []
    for share in BOARD_SHARES:
        when = passes_until(result, "valid_boards", share)
        parts.append(
            f"{100 * share:.0f} % of the test boards after {when[0]:.0f} passes and {when[1]:.0f} minutes"
            if when
            else f"{100 * share:.0f} % NOT reached"
        )
    best = 100 * float(result["test"]["valid_boards"])
    return f"`{arm}`, one core: {'; '.join(parts)}; at the end {best:.1f} %."


def _parity(arm: str, found: list[Result]) -> str:
    reached = [when for result in found if (when := passes_until(result, "accuracy", PARITY_TARGET))]
    last = [100 * accuracy(result) for result in found]
    text = f"`{arm}`: {len(reached)} of {len(found)} seeds reached {100 * PARITY_TARGET:g} %"
    if reached:
        text += f", after {', '.join(f'{passes:.0f}' for passes, _ in reached)} passes"
    return f"{text}; at the end {', '.join(f'{value:.1f}' for value in last)} %."


def _visual(title: str, scores: Sequence[Result]) -> str:
    boards, cells, read = (
        ", ".join(f"{100 * of_seed[name]:.1f}" for of_seed in scores)
        for name in ("valid_boards", "unknown_accuracy", "input_accuracy")
    )
    return (
        f"{title}: {boards} % valid boards, {cells} % of the unknown cells (chance "
        f"{100 * CHANCE_CELLS:.1f}), {read} % of the digits read as themselves, by seed."
    )


def _primary(found: Sequence[tuple[float, float]]) -> str:
    correct, official, p = mcnemar(found)
    gain, p_gain = sign_flip(found)
    verdict = "changes" if p < LEVEL else "does not change"
    if len(found) == PAIRS:
        rule = f"By the plan's rule the correct gradient {verdict} the conclusion."
    else:
        rule = f"The plan's rule is for all {PAIRS} pairs and does not judge these."
    return (
        f"Primary contrast, {len(found)} of the {PAIRS} pairs of both anchors of the mapping test: only the "
        f"run with the correct gradient failed in {correct}, only the official one in {official} (exact "
        f"McNemar p = {p:.3g}); mean accuracy differs by {100 * gain:+.1f} points (sign flips "
        f"p = {p_gain:.3g}). {rule}"
    )


def _everywhere(found: Sequence[tuple[float, float]]) -> str:
    correct, official, p = mcnemar(found)
    gain, p_gain = sign_flip(found)
    return (
        f"All settings, {len(found)} pairs (exploratory): only correct failed in {correct}, only official in "
        f"{official} (p = {p:.3g}); accuracy {100 * gain:+.1f} points (p = {p_gain:.3g})."
    )


def _naive(arms: Arms) -> str:
    parts = []
    for arm in ("naive-official", "naive-correct", "tuned-official", "tuned-correct", LINEAR):
        if arm in arms:
            mean = statistics.fmean(accuracy(result) for result in arms[arm])
            parts.append(f"`{arm}` {failures(arms[arm])} of {len(arms[arm])} failed, mean {100 * mean:.1f} %")
    return f"Mapping test, failures by seed: {'; '.join(parts)}."
