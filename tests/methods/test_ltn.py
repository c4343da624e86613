"""The method ltn: runs end to end, resumes to the bit, refuses what it cannot do."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tenfold.cli import main
from tenfold.data.mnist import Digits
from tenfold.engine import checkpoint
from tenfold.errors import UserError
from tenfold.methods.ltn import reproduce, sample, tasks, train
from tenfold.methods.ltn.config import LTNConfig, clustering, laptop, paper, smokes
from tenfold.methods.ltn.tasks import adjusted_rand_index, make_task


@pytest.fixture
def digits(monkeypatch):
    """Eight rows of pixels each, brighter for larger digits: a set that can be learnt in a few steps."""
    draw = np.random.default_rng(0)

    def made(count):
        labels = draw.integers(0, 10, count).astype(np.uint8)
        images = np.zeros((count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 8, 4:24] = 255
        return images, labels

    found = Digits(*made(2000), *made(400))
    monkeypatch.setattr(tasks.mnist, "load", lambda: found)
    return found


@pytest.mark.parametrize("task", ["smokes", "clustering"])
def test_a_run_leaves_a_report_and_improves(task, tmp_path):
    config = replace({"smokes": smokes, "clustering": clustering}[task](), epochs=30)
    assert train.start(train.TrainOptions(config, out=tmp_path / "run")) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    report = (tmp_path / "run/report.md").read_text()
    assert "| sat |" in report
    assert "How they are computed" in report
    assert main(["evaluate", "ltn", str(tmp_path / "run")]) == 0


def test_addition_is_learnt_without_labels_of_digits(digits):
    config = replace(laptop(), train=900, test=200, epochs=6)
    task = make_task(config)
    before = task.measure(0)["accuracy"]
    optimizer = torch.optim.Adam(task.network.parameters(), lr=3e-3)
    for step in range(task.steps):
        optimizer.zero_grad()
        task.loss(step).backward()
        optimizer.step()
    assert task.measure(task.steps)["accuracy"] > before + 0.3


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    config = replace(smokes(), epochs=12)
    assert train.start(train.TrainOptions(config, out=tmp_path / "whole")) == 0

    steps = 0
    loss = tasks.SmokesTask.loss

    def interrupted(self, step):
        nonlocal steps
        steps += 1
        if steps > 7:
            raise KeyboardInterrupt
        return loss(self, step)

    monkeypatch.setattr(tasks.SmokesTask, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.start(train.TrainOptions(config, out=tmp_path / "cut"))
    monkeypatch.undo()
    assert train.resume(tmp_path / "cut") == 0
    ends = [checkpoint.load(checkpoint.latest(tmp_path / name / "checkpoints")) for name in ("whole", "cut")]
    for group in ("weights", "optimizer"):
        assert ends[0].tensors[group].keys() == ends[1].tensors[group].keys()
        for name, value in ends[0].tensors[group].items():
            assert torch.equal(value, ends[1].tensors[group][name]), name


def test_a_seed_determines_the_run_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (make_task(replace(clustering(), seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.points, again.points)
    assert torch.equal(first.loss(0), again.loss(0))
    assert not torch.equal(first.points, other.points)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: wanted a positive number"),
        ({"p_exists": (0.5, 1.0)}, "p_exists: wanted at least 1"),
        ({"p_starts": (0, 100, 200)}, "one epoch for each p_exists"),
        ({"p_starts": (0, 0)}, "rising epochs"),
        ({"train": 40_000}, "train: MNIST has 30000 pairs"),
    ],
)
def test_settings_that_cannot_train_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(LTNConfig(), **settings)


def test_bad_options_are_one_line(capsys, tmp_path):
    assert main(["train", "ltn", "--task", "sudoku"]) == 2
    assert "must be smokes or clustering or addition" in capsys.readouterr().err
    assert main(["train", "ltn", "--resume", str(tmp_path), "--lr", "1"]) == 2
    assert "leave the other options out" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such arm"):
        reproduce.main(["--only", "sudoku"])


def test_a_task_chooses_its_presets(monkeypatch):
    chosen = []
    monkeypatch.setattr(train, "start", lambda options: chosen.append(options.config) or 0)
    for argv in (
        ["--task", "clustering"],
        ["--task", "addition"],
        ["--task=addition", "--preset", "paper"],
        [],
    ):
        assert train.main(argv) == 0
    assert chosen == [clustering(), laptop(), paper(), smokes()]
    with pytest.raises(UserError, match="--preset must be laptop or paper, got 'smokes'"):
        train.main(["--task", "addition", "--preset", "smokes"])


def test_a_trained_theory_is_asked(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert train.start(train.TrainOptions(replace(smokes(), epochs=2), out=tmp_path / "run")) == 0
    capsys.readouterr()
    query = "forall[p=5] x in people: C(x) -> S(x)"
    assert main(["sample", "ltn", run, query]) == 0
    found = json.loads((tmp_path / "run/evaluation.json").read_text())["cancer means smoking"]
    assert float(capsys.readouterr().out) == pytest.approx(found, abs=1e-3)
    assert main(["sample", "ltn", run, "S(x)"]) == 0
    assert len(capsys.readouterr().out.strip("[]\n ").split()) == 14
    for formula, message in (
        ("S(x, x)", "S takes 1 argument, got 2 at 'S(x, x)', character 1 in"),
        ("forall x: S(x) &", "the text ends"),
        ("D(x)", "D: has no grounding"),
    ):
        assert main(["sample", "ltn", run, formula]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_pairs_of_the_test_are_asked_about(digits):
    task = make_task(replace(laptop(), train=40, test=20, epochs=1))
    assert sample.ask(task, 0, "exists d, e where d + e = n: digit(x, d) & digit(y, e)").shape == (20,)


def test_the_table_is_made_from_the_files_alone(tmp_path):
    cell = next(reproduce.plan_cells())
    result = {
        "arm": cell.arm, "seed": 0, "machine": "a machine", "config": {"task": "smokes"},
        "evaluation": {"sat": 0.8},
    }  # fmt: skip
    (tmp_path / f"{cell.name}.json").write_text(json.dumps(result))
    lines = reproduce.table_lines(tmp_path, list(reproduce.plan_cells()))
    assert "| smokes | 1 | sat | 0.800 | 0.800 | 0.846 | not reached |" in lines
    assert any("not run yet: smokes seed 1" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "values", "wanted", "verdict"),
    [
        ("sat", [0.82, 0.84], 0.846, "reached"),
        ("sat", [0.82, 0.83], 0.846, "not reached"),
        ("accuracy", [0.94, 0.21, 0.93], None, "1 of 3 failed"),
        ("adjusted_rand_index", [1.0], None, ""),
    ],
)
def test_the_rules_of_the_plan(name, values, wanted, verdict):
    assert reproduce._verdict(name, values, wanted) == verdict


def test_the_adjusted_rand_index():
    first = torch.tensor([0, 0, 1, 1, 2, 2])
    assert adjusted_rand_index(first, (first + 1) % 3) == 1.0
    assert adjusted_rand_index(first, torch.zeros(6, dtype=torch.long)) == 0.0
    # Worked by hand: 1 pair in common, 3 and 4 pairs, 15 in all.
    second = torch.tensor([0, 0, 0, 1, 1, 2])
    assert adjusted_rand_index(first, second) == pytest.approx((1 - 12 / 15) / (3.5 - 12 / 15))
