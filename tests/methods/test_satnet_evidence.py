"""The plan's cells, the statistics of its findings, and the documents made from result files."""

import itertools
import json

import numpy as np
import pytest
import torch

from tenfold.cli import main
from tenfold.engine import cells as engine_cells
from tenfold.methods.satnet import cells, cluster, findings, gradient, reproduce
from tenfold.methods.satnet.plan import MAPPING_SEEDS, laptop_cells, mapping_settings, plan_cells
from tenfold.methods.satnet.tables import table_text, write_tables

MARK = "<!-- Everything below is written by tenfold reproduce satnet; text above is kept. -->"


def test_cells_have_names_of_their_own_and_the_plan_s_counts():
    planned = list(plan_cells())
    assert len({cell.name for cell in planned}) == len(planned)
    assert len(mapping_settings()) == 14
    mapping = [cell for cell in planned if cell.kind == "mapping"]
    assert len(mapping) == 14 * 2 * MAPPING_SEEDS + MAPPING_SEEDS
    last = [cell.arm for cell in planned[-2:]]  # left out where the hours are over
    assert last == ["sudoku", "permuted"] and sum(cell.seconds for cell in planned[:-2]) / 2 < 5 * 3600
    assert sum(cell.seconds for cell in laptop_cells()) / 2 < 20 * 60


def test_the_cells_train_as_the_plan_says():
    arms = {cell.arm: cell.config for cell in plan_cells()}
    limits = {arm: (config.minutes, config.patience) for arm, config in arms.items() if config.minutes}
    assert limits == {
        "sudoku": (45, 0),
        "permuted": (45, 0),
        "sudoku-singles": (45, 0),
        "permuted-singles": (45, 0),
        "visual-leaky": (45, 0),
        "visual-ungrounded": (22, 3),
        "visual-ungrounded-tuned": (22, 3),
        "self-supervised": (20, 0),
    }
    harder = {arm for arm in limits if arms[arm].data.deduction == "search"}
    assert harder == {"sudoku", "permuted"}
    assert arms["parity20"].optimizer == "sgd" and arms["parity20-adam"].optimizer == "adam"
    assert cells.rules_config(0).minutes == 22 and arms["parity40"].epochs == 20
    assert cells.rules_config(1).seed == 1 and cells.rules_config(0).data.from_labels == 0.8
    assert all(config.shuffle for config in (*arms.values(), cells.rules_config(0)))


def test_settings_differ_from_their_anchor_in_one_factor():
    settings = mapping_settings()
    for name, config in settings.items():
        anchor = settings[name.partition("-")[0]]
        flat = [{**vars(c), **vars(c.layer), "layer": None, "data": None} for c in (config, anchor)]
        changed = {key for key in flat[0] if flat[0][key] != flat[1][key]}
        expected = set() if config is anchor else changed
        assert changed == expected
        assert len(changed) <= 1 or changed == {"optimizer", "lr", "backbone_lr"}, name


def test_mcnemar_is_the_binomial_test_of_discordant_pairs():
    fail, win = 0.1, 0.99
    found = [(win, fail)] * 8 + [(fail, win)] + [(win, win)] * 5 + [(fail, fail)] * 5
    first, second, p = findings.mcnemar(found)
    assert (first, second) == (1, 8)
    assert p == pytest.approx(2 * (1 + 9) / 2**9)
    assert findings.mcnemar([(win, win)])[2] == 1.0


def test_sign_flips_find_a_shift_and_no_other():
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 0.05, 40)
    gain, p = findings.sign_flip([(0.5 + 0.1 + x, 0.5) for x in noise])
    assert gain == pytest.approx(0.1 + noise.mean()) and p < 0.001
    assert findings.sign_flip([(0.5 + x, 0.5) for x in noise - noise.mean()])[1] > 0.9


def test_the_gradient_follows_finite_differences_and_the_official_one_does_not():
    found = gradient.measure(seed=0, points=7)
    assert len(found["z"]) == 7 and found["z"][0] == 0.0 and found["z"][-1] == 1.0
    assert gradient.largest_error(found, "correct") < findings.GRADIENT_TARGET
    assert gradient.largest_error(found, "official") > 0.5


def test_the_best_assignment_is_the_best_of_all():
    draw = torch.Generator().manual_seed(0)
    for size in (1, 3, 5):
        matrix = torch.rand(size, size, generator=draw)
        found = cluster.best_assignment(matrix)
        total = float(sum(matrix[row, column] for row, column in enumerate(found)))
        best = max(
            float(sum(matrix[row, column] for row, column in enumerate(order)))
            for order in itertools.permutations(range(size))
        )
        assert sorted(found) == list(range(size)) and total == pytest.approx(best)


def test_clusters_of_plain_shapes_are_told_apart_without_labels():
    draw = torch.Generator().manual_seed(0)
    kinds = torch.arange(3).repeat(50)
    images = torch.zeros(150, 28, 28, dtype=torch.uint8)
    for row, kind in enumerate(kinds.tolist()):
        images[row, 10:18, 4:24] = 255 if kind == 0 else 0
        if kind == 1:
            images[row, 4:24, 10:18] = 255
        if kind == 2:
            images[row, 6:22, 6:22] = 255
    images ^= (torch.rand(images.shape, generator=draw) < 0.02).to(torch.uint8) * 255
    network = cluster.cluster(images, clusters=3, seed=0)
    said = network.logits(images)[:, :3].argmax(dim=1)
    counts = torch.zeros(3, 3).index_put_((kinds, said), torch.ones(150), accumulate=True)
    assert counts.max(dim=0).values.sum() / 150 > 0.95


def fake(cell):
    """A result as a cell would write it; failures depend on the arm and the seed."""
    seed = cell.config.seed
    common = {"arm": cell.arm, "seed": seed, "machine": "m", "seconds": 60.0, "threads": 1}
    config = {"task": cell.config.task}
    if cell.kind == "gradient":
        curve = {
            "z": [0.0, 1.0],
            "finite_difference": [1.0, 2.0],
            "correct": [1.0, 2.0],
            "official": [3.0, 2.0],
        }
        return common | {
            "config": config,
            "curves": curve,
            "largest_error": {"correct": 1e-4, "official": 1.0},
        }
    if cell.kind == "mapping":
        fails = cell.arm.endswith("official") and seed < 7
        return common | {"config": config, "test": {"accuracy": 0.2 if fails else 0.97}}
    scores = {"accuracy": 1.0, "valid_boards": 0.96, "exact_boards": 0.95, "unknown_accuracy": 0.99,
              "given_accuracy": 1.0, "input_accuracy": 0.9, "input_purity": 0.9,
              "iterations": 30.0}  # fmt: skip
    curve = [{"epoch": 0, "seconds": 0.0, "valid_boards": 0.0, "accuracy": 0.5},
             {"epoch": 1, "seconds": 120.0, "valid_boards": 0.96, "accuracy": 1.0}]  # fmt: skip
    trained = {"test": scores, "epochs": 1, "training_seconds": 120.0}
    route = {"matched": scores | {"valid_boards": 0.12}, "rules": trained} if cell.kind == "grounding" else {}
    return common | {"config": config, "curve": curve} | trained | route


def test_the_document_is_made_from_files_and_keeps_the_text_above(tmp_path):
    results, target = tmp_path / "results", tmp_path / "docs" / "satnet.md"
    results.mkdir()
    write_tables(results, target, list(plan_cells()))
    left_out = ("linear", "naive-aux0-correct")
    run = [cell for cell in plan_cells() if not (cell.config.seed == 9 and cell.arm in left_out)]
    for cell in run:
        (results / f"{cell.name}.json").write_text(json.dumps(fake(cell)))
    target.write_text(f"# Mine\n\nA word before.\n\n{MARK}\nstale text\n")
    write_tables(results, target, list(plan_cells()))
    text = target.read_text()
    assert text.startswith("# Mine\n\nA word before.\n") and "stale" not in text
    assert "7 of 10" in text and "Primary contrast" in text and "changes the conclusion" in text
    assert (
        "0 / 7" in text and "`sudoku`, one core: 50 % of the test boards after 1 passes and 2 minutes" in text
    )
    assert "Planned and not run, or not for every seed: linear, naive-aux0-correct." in text
    assert "20 of the 20 pairs" in text and "by seed" in text
    # Every seed under its own number, an absent one empty.
    assert f"| naive-aux0-correct |{' 97.0 |' * 9}  |\n| naive-aux0-official |{' 20.0 |' * 7}" in text
    # The self-supervised route before and after the joint training.
    for row in (", rules | 0 | 1 | 2.0 | 96.0 |", ", matched | 1 |  |  | 12.0 |", " | 1 | 1 | 2.0 | 96.0 |"):
        assert f"| self-supervised{row}" in text
    assert "`self-supervised`, clusters matched: 12.0, 12.0 % valid boards" in text
    assert {path.name for path in target.parent.glob("*.png")} == {"satnet_gradient.png", "satnet_boards.png"}


def test_the_primary_contrast_is_judged_by_all_its_pairs_alone(tmp_path):
    for cell in laptop_cells():
        (tmp_path / f"{cell.name}.json").write_text(json.dumps(fake(cell)))
    text = table_text(tmp_path, list(laptop_cells()))
    assert "3 of the 20 pairs" in text and "does not judge these" in text and "the conclusion" not in text


def test_no_cell_begins_after_the_plan_s_hours(tmp_path, capsys, monkeypatch):
    begun = []
    monkeypatch.setattr(engine_cells, "_run_in_process", lambda *job: begun.append(job) or 0)
    options = ["--results", str(tmp_path), "--table", str(tmp_path / "t.md"), "--only", "permuted"]
    for seconds, expected in ((reproduce.CORE_SECONDS - 1, 1), (reproduce.CORE_SECONDS, 0)):
        first = next(iter(plan_cells()))
        (tmp_path / f"{first.name}.json").write_text(json.dumps(fake(first) | {"seconds": seconds}))
        begun.clear()
        assert main(["reproduce", "satnet", *options]) == 0
        assert len(begun) == expected
    assert "left out" in capsys.readouterr().out
    assert "permuted" in (tmp_path / "t.md").read_text().partition("Planned and not run")[2]


def test_a_cell_that_fails_does_not_stop_those_beside_it(tmp_path, capsys, monkeypatch):
    names = [cell.name for cell in plan_cells() if cell.arm == "linear"][:3]

    def run_cell(cell, runs, target):
        if cell.name == names[1]:
            raise MemoryError("no memory")
        target.write_text(json.dumps(fake(cell)))
        return 0

    monkeypatch.setattr(cells, "run_cell", run_cell)
    options = ["--results", str(tmp_path), "--cells", *names]
    assert main(["reproduce", "satnet", *options]) == 1
    assert "no memory" in capsys.readouterr().err
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted([names[0], names[2]])


def test_unknown_arms_and_cells_are_named(capsys, tmp_path):
    assert main(["reproduce", "satnet", "--only", "sudoko"]) == 2
    assert "--only sudoko" in capsys.readouterr().err
    assert main(["reproduce", "satnet", "--cells", "none", "--results", str(tmp_path)]) == 2
    assert "--cells none" in capsys.readouterr().err


def test_a_damaged_result_is_named(tmp_path, capsys):
    cell = next(iter(plan_cells()))
    (tmp_path / f"{cell.name}.json").write_text("{")
    options = ["--results", str(tmp_path), "--table", str(tmp_path / "t.md"), "--table-only"]
    assert main(["reproduce", "satnet", *options]) == 2
    assert cell.name in capsys.readouterr().err
