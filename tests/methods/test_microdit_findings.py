"""The document of a plan: its rules applied to made-up results, and its table."""

import json
from dataclasses import dataclass

import pytest

from tenfold.errors import UserError
from tenfold.methods.microdit.findings import findings, winner
from tenfold.methods.microdit.tables import write_tables

MARK = "<!-- Everything below is written by tenfold reproduce microdit; text above is kept. -->"


@dataclass(frozen=True)
class Planned:
    arm: str
    name: str


def result(arm="p8", seed=0, pixels=0.5, features=0.5, heldout=0.3, parameters=100):
    def group(samples, copied):
        return {
            space: {"top10": {"samples": value, "nearest_caption": copied, "chance": 0.005}}
            for space, value in samples.items()
        }

    return {
        "arm": arm,
        "seed": seed,
        "budget_seconds": 600.0,
        "machine": "some processor",
        "config": {"steps": 100, "batch": 64, "model": {"image_size": 32}},
        "facts": {"parameters": parameters, "seconds_per_step": 0.25, "threads": 2},
        "evaluation": {
            "seen": group({"pixels": pixels, "features": features}, 0.25),
            "heldout": group({"pixels": heldout, "features": heldout}, 0.30),
        },
        "curve": [[10, 1.0], [20, 0.5]],
    }


def one(arm, **settings):
    return {arm: [result(arm, **settings)]}


def test_the_winner_is_judged_in_pixels_then_in_features_then_by_size():
    assert winner(one("a", pixels=0.9, features=0.1) | one("b", pixels=0.8, features=0.9)) == "a"
    assert winner(one("a", pixels=0.9, features=0.1) | one("b", pixels=0.86, features=0.9)) == "b"
    assert winner(one("a", pixels=0.9, parameters=7) | one("b", pixels=0.86, parameters=5)) == "b"


@pytest.mark.parametrize(
    ("plain", "masked", "wins"),
    [
        ((0.50, 0.52), (0.60, 0.62), True),
        ((0.50, 0.52), (0.54, 0.56), False),  # less than five points
        ((0.40, 0.60), (0.60, 0.62), False),  # less than the spread of one arm
        ((0.60, 0.62), (0.50, 0.52), False),
    ],
)
def test_masking_must_win_by_more_than_noise(plain, masked, wins):
    arms = {
        arm: [result(arm, seed, pixels=value) for seed, value in enumerate(values)]
        for arm, values in (("p4", plain), ("p4-mask75", masked))
    }
    (verdict,) = [text for text in findings(arms, []) if "masking" in text]
    assert verdict.startswith("Deferred masking wins") == wins


def test_targets_are_named_as_met_or_missed():
    arms = {"laptop": [result("laptop", pixels=0.96, features=0.6, heldout=0.36)]}
    seen, heldout = findings(arms, ["p8-seed0"])
    assert "96.0 % in pixels (met: 95 %) and 60.0 % in features (MISSED: 65 %)" in seen
    assert "+6.0 points from copying in pixels (met)" in heldout


@pytest.mark.parametrize("content", ["{", "[]", '{"arm": "p8"}'])
def test_a_damaged_result_is_named(tmp_path, content):
    file = tmp_path / "p8-seed0-x.json"
    file.write_text(content)
    with pytest.raises(UserError, match=str(file)):
        write_tables(tmp_path, tmp_path / "table.md", [Planned("p8", "p8-seed0-x")])


def test_nothing_is_said_of_an_unfinished_comparison():
    assert list(findings(one("p4") | one("p4-mask75"), ["p8-seed0"])) == []


def test_the_table_has_controls_and_keeps_the_text_above_it(tmp_path):
    target = tmp_path / "table.md"
    target.write_text(f"# Title\n\nBy hand.\n\n{MARK}\nstale row\n")
    for seed, pixels in enumerate((0.90, 0.94)):
        (tmp_path / f"laptop-seed{seed}-x.json").write_text(json.dumps(result("laptop", seed, pixels=pixels)))
    (tmp_path / "laptop-seed0-another.json").write_text(json.dumps(result("laptop", pixels=0.0)))
    write_tables(tmp_path, target, [Planned("laptop", f"laptop-seed{seed}-x") for seed in range(3)])
    text = target.read_text()
    assert text.startswith("# Title\n\nBy hand.\n")
    assert "stale row" not in text
    assert "| laptop | 20 | 2 |" in text
    assert "| 92.0 ± 2.8 | 50.0 ± 0.0 | 30.0 ± 0.0 | 30.0 ± 0.0 |" in text
    assert "| copying, 32x32 | 0 |  |  |  |  | 25.0 | 25.0 | 30.0 | 30.0 |" in text
    assert "| chance, 32x32 | 0 |  |  |  |  | 0.50 |" in text
    assert "not run yet: laptop-seed2." in text
    assert "some processor (laptop)" in text
