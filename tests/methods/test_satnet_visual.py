"""Pictures before the layer: plain made-up digits in MNIST's format stand for MNIST."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tenfold.cli import main
from tenfold.engine import checkpoint
from tenfold.engine.metrics import read_metrics
from tenfold.methods.satnet import cells, grounding
from tenfold.methods.satnet.config import DataConfig, LayerConfig, SATNetConfig
from tenfold.methods.satnet.data import prepare
from tenfold.methods.satnet.model import Perception, loss_of
from tenfold.methods.satnet.plan import Cell
from tenfold.methods.satnet.scores import evaluate_split
from tenfold.methods.satnet.step import TrainingState, TrainingStep

TRAIN, TEST = 400, 100


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "satnet-cache"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of IDX files: digit d is a bright square at one of ten places, with noise."""
    folder = tmp_path_factory.mktemp("digits")
    draw = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = draw.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[2 + 8 * row : 9 + 8 * row, 1 + 7 * column : 7 + 7 * column] += 190
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def boards(digits, task="visual", **changes):
    """Visual Sudoku on 4x4 boards, small enough for seconds."""
    data = DataConfig(train=200, test=40, size=4, givens=(5, 8), mean_givens=6.5, digits=str(digits))
    mask = "unknown" if task == "visual-ungrounded" else "all"
    config = SATNetConfig(
        task, LayerConfig(m=60, aux=16), data, loss_mask=mask, lr=1e-2, backbone_lr=1e-3, batch=20, epochs=5
    )
    return replace(config, **changes)


def options(config):
    """The command line that says the same."""
    data, layer = config.data, config.layer
    pairs = {
        "task": config.task, "size": data.size, "train": data.train, "test": data.test, "m": layer.m,
        "digits": data.digits, "mean-givens": data.mean_givens, "aux": layer.aux, "lr": config.lr,
        "batch": config.batch, "backbone-lr": config.backbone_lr, "epochs": config.epochs,
        "loss-mask": config.loss_mask,
    }  # fmt: skip
    words = [word for name, value in pairs.items() for word in (f"--{name}", str(value))]
    return [*words, "--givens", *map(str, data.givens)]


def trained(config, steps):
    problems = prepare(config)
    step, state = TrainingStep(config, problems), TrainingState.fresh(config)
    for _ in range(steps):
        step(state)
    return problems, state


def test_pictures_show_the_given_digits_of_their_own_split(digits):
    problems = prepare(boards(digits))
    for split in (problems.train, problems.test):
        batch = split.take(torch.arange(30))
        given = batch.is_input.view(30, 16, 4)[:, :, 0]
        assert batch.images.shape == (int(given.sum()), 28, 28)
        numbers = batch.label.view(30, 16, 4).argmax(dim=2)[given] + 1
        for image, number in zip(batch.images, numbers.tolist(), strict=True):
            row, column = divmod(number, 4)
            assert image[2 + 8 * row : 9 + 8 * row, 1 + 7 * column : 7 + 7 * column].min() >= 190
        assert float(batch.z.abs().max()) == 0.0  # nothing but pictures says what is given
    assert len(problems.train.digits) == TRAIN and len(problems.test.digits) == TEST


def test_leaky_training_reads_the_digits_and_ungrounded_training_sees_no_label_of_them(digits):
    problems, state = trained(boards(digits), 60)
    scores = evaluate_split(state.model, boards(digits), problems, problems.test)
    assert scores["given_accuracy"] > 0.95 and scores["given_accuracy"] == scores["input_accuracy"]
    hidden = boards(digits, "visual-ungrounded")
    problems = prepare(hidden)
    batch = problems.train.take(torch.arange(20))
    other = replace(batch, label=torch.where(batch.is_input, 1 - batch.label, batch.label))
    model = TrainingState.fresh(hidden).model
    model.draw_from(torch.Generator().manual_seed(0))
    output = model(batch)
    assert torch.equal(loss_of(output, batch, "unknown", 1.0), loss_of(output, other, "unknown", 1.0))


def test_a_killed_visual_run_goes_on_to_the_same_bits(digits, tmp_path, monkeypatch):
    words = [*options(boards(digits, "visual-ungrounded", epochs=2)), "--checkpoint-every", "4"]
    assert main(["train", "satnet", *words, "--out", str(tmp_path / "whole")]) == 0
    take = TrainingStep.__call__

    def dies(self, state):
        if state.step == 10:
            raise SystemExit(9)
        return take(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", dies)
        assert main(["train", "satnet", *words, "--out", str(tmp_path / "killed")]) == 9
    assert main(["train", "satnet", "--resume", str(tmp_path / "killed")]) == 0
    ends = [checkpoint.load(checkpoint.latest(tmp_path / run / "checkpoints")) for run in ("whole", "killed")]
    assert ends[0].step == ends[1].step == 20
    for group, tensors in ends[0].tensors.items():
        for name, value in tensors.items():
            assert value.numpy().tobytes() == ends[1].tensors[group][name].numpy().tobytes(), (group, name)


def test_moved_digits_are_found_and_other_digits_are_refused(digits, tmp_path, capsys):
    path = tmp_path / "run"
    words = options(boards(digits, epochs=1))
    assert main(["train", "satnet", *words, "--out", str(path)]) == 0
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in digits.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert main(["evaluate", "satnet", str(path), "--digits", str(moved)]) == 0
    images = moved / "train-images-idx3-ubyte"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    assert main(["train", "satnet", "--resume", str(path), "--digits", str(moved)]) == 2
    assert "train problems" in capsys.readouterr().err
    assert main(["sample", "satnet", str(path), str(images)]) == 2
    assert "visual" in capsys.readouterr().err


def mapping(digits, **changes):
    data = DataConfig(train=TRAIN, test=TEST, digits=str(digits))
    config = SATNetConfig(
        "mapping", LayerConfig(m=32, aux=0), data, output="sigmoid", loss_mask="unknown", backbone_lr=1e-3,
        batch=50, epochs=1,
    )  # fmt: skip
    return replace(config, **changes)


def test_the_linear_control_learns_the_mapping_and_the_layer_is_in_the_way(digits):
    config = mapping(digits, head="linear")
    problems, state = trained(config, 100)
    assert evaluate_split(state.model, config, problems, problems.test)["accuracy"] > 0.95
    assert problems.train.label[:, :10].abs().sum() == 0  # no label of an input
    config = mapping(digits)
    _, state = trained(config, 2)
    scores = evaluate_split(state.model, config, problems, problems.test)
    assert {"accuracy", "input_purity", "iterations"} <= scores.keys() and "input_accuracy" not in scores


def test_the_margin_keeps_answers_off_the_ends_and_lets_the_gradient_through(digits):
    reader = Perception(9, "sigmoid", margin=0.1)
    images = torch.zeros(3, 28, 28, dtype=torch.uint8)
    with torch.no_grad():
        reader.body[-1].bias.fill_(50.0)
    said = reader(images)
    assert said.shape == (3, 9) and said.detach().numpy() == pytest.approx(0.9)
    with torch.no_grad():
        reader.body[-1].bias.fill_(0.0)
    reader(images).sum().backward()
    assert float(reader.body[-1].bias.grad.abs().max()) > 0


def test_a_proofreader_begins_as_the_identity(digits):
    plain, config = boards(digits), boards(digits, proofreader=True)
    batch = prepare(plain).train.take(torch.arange(10))
    models = [TrainingState.fresh(c).model.eval() for c in (plain, config)]
    models[1].load_state_dict({**models[1].state_dict(), **models[0].state_dict()})
    with torch.no_grad():
        assert torch.allclose(models[0](batch), models[1](batch), atol=1e-6)


@pytest.mark.parametrize("kind", ["run", "mapping"])
def test_a_cell_leaves_its_result_and_is_not_run_twice(digits, tmp_path, kind):
    config = mapping(digits) if kind == "mapping" else boards(digits, epochs=1)
    target = tmp_path / "results" / "cell.json"
    assert cells.run_cell(Cell("arm", config, kind), tmp_path / "runs", target) == 0
    text = target.read_text()
    assert '"arm": "arm"' in text and '"test"' in text
    if kind == "run":
        rows = read_metrics(tmp_path / "runs" / Cell("arm", config).name / "metrics.jsonl")
        assert [row["epoch"] for row in rows if "epoch" in row] == [0, 1]


@pytest.mark.parametrize("head", ["satnet", "linear"])
def test_a_mapping_cell_that_diverges_has_failed(digits, tmp_path, head):
    config = mapping(digits, head=head, backbone_lr=1e9, epochs=2)
    target = tmp_path / "cell.json"
    assert cells.run_cell(Cell("arm", config, "mapping"), tmp_path / "runs", target) == 0
    found = json.loads(target.read_text())
    assert found["test"] == {"accuracy": 0.0} and found["diverged"] < config.steps


def test_pictures_that_diverge_are_one_line(digits, tmp_path, capsys):
    words = options(boards(digits, "visual-ungrounded", epochs=1, backbone_lr=1e9))
    assert main(["train", "satnet", *words, "--out", str(tmp_path / "run")]) == 2
    assert "--backbone-lr than 1e+09" in capsys.readouterr().err.splitlines()[-1]


def test_clusters_get_the_digits_that_the_rules_say(digits):
    """With rules of 4x4 boards learnt from numbers, clusters in a foreign order are put right."""
    rules_config = boards(digits, "visual")
    rules_config = replace(rules_config, task="sudoku4", data=replace(rules_config.data, train=400))
    rules = trained(rules_config, 100)[1].model
    problems, state = trained(boards(digits), 60)
    reader = state.model.perception
    order = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7, 8, 9])
    last = reader.body[-1]
    with torch.no_grad():
        last.weight.copy_(last.weight[order])
        last.bias.copy_(last.bias[order])
    config = boards(digits, "visual-ungrounded")
    assignment = grounding.match(rules, reader, problems.train, config)
    assert assignment == order[:4].tolist()
    grounding.relabel(reader, assignment)
    scores = evaluate_split(state.model, config, problems, problems.test)
    assert scores["input_accuracy"] > 0.95


def test_the_self_supervised_route_goes_on_where_it_was_killed(digits, tmp_path, monkeypatch):
    config = boards(digits, "visual-ungrounded", epochs=2, proofreader=True)
    numbers = replace(
        config, task="sudoku4", loss_mask="all", proofreader=False, epochs=8,
        data=replace(config.data, train=400, from_labels=0.8),
    )  # fmt: skip
    monkeypatch.setattr(cells, "rules_config", lambda seed: replace(numbers, seed=seed))
    cell = Cell("self-supervised", config, "grounding")
    files = tmp_path / "whole.json", tmp_path / "killed.json"
    assert cells.run_cell(cell, tmp_path / "whole", files[0]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(cells.grounding, "match", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            cells.run_cell(cell, tmp_path / "killed", files[1])
    assert cells.run_cell(cell, tmp_path / "killed", files[1]) == 0
    whole, killed = (json.loads(file.read_text()) for file in files)
    for part in ("test", "matched", "assignment"):
        assert whole[part] == killed[part]
    assert sorted(whole["assignment"]) == [0, 1, 2, 3]
    assert whole["rules"]["test"]["valid_boards"] > 0.9 and whole["rules"]["epochs"] == 8
    assert whole["matched"]["input_accuracy"] > 0.95 and whole["epochs"] == 2
