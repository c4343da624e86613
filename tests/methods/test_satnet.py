"""The command from end to end on 4x4 boards, and its mistakes."""

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from tenfold.cli import main
from tenfold.data.sudoku import all_boards, is_input, one_hot
from tenfold.engine import checkpoint
from tenfold.engine.metrics import read_metrics
from tenfold.methods.satnet import data, decode
from tenfold.methods.satnet.config import TASKS, DataConfig, LayerConfig, SATNetConfig, laptop, paper, presets
from tenfold.methods.satnet.data import prepare
from tenfold.methods.satnet.model import Model, loss_of
from tenfold.methods.satnet.problems import Batch, Problems
from tenfold.methods.satnet.scores import Scores, evaluate_split, score
from tenfold.methods.satnet.step import TrainingState, TrainingStep
from tenfold.methods.satnet.train import stop_reason

SMALL = ["--train", "200", "--test", "50", "--m", "40", "--aux", "8", "--epochs", "4", "--batch", "20"]
PUZZLE = "1...  ..3.  .4..  ...2".replace(" ", "")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Puzzles are made once for all tests, and not in the user's cache."""
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "satnet-cache"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on 4x4 boards with the laptop preset, shortened."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "satnet-cache"))
        path = tmp_path_factory.mktemp("satnet") / "run"
        assert main(["train", "satnet", "--epochs", "2", "--out", str(path)]) == 0
    return path


def trained(config, problems, steps):
    step, state = TrainingStep(config, problems), TrainingState.fresh(config)
    for _ in range(steps):
        step(state)
    return state


def test_the_layer_learns_4x4_boards_and_not_from_labels_of_other_boards():
    config = laptop("sudoku4")
    problems = prepare(config)
    right = trained(config, problems, 80)
    assert evaluate_split(right.model, config, problems, problems.test)["valid_boards"] > 0.95
    label = problems.train.label.roll(1, dims=0)
    wrong = Problems(replace(problems.train, label=label), problems.test)
    control = trained(config, wrong, 80)
    assert evaluate_split(control.model, config, problems, problems.test)["valid_boards"] < 0.2


def test_scores_by_hand():
    boards = np.array(all_boards(4), np.uint8)
    solutions, given = boards[:4], np.zeros((4, 16), np.uint8)
    given[:, :6] = solutions[:, :6]
    answers = solutions.copy()
    answers[1] = boards[100]  # valid, but not the solution
    answers[2, 0] = answers[2, 0] % 4 + 1  # a given cell wrong
    answers[3, 7:10] = answers[3, 7:10] % 4 + 1  # three unknown cells wrong
    z, label, output = (torch.from_numpy(one_hot(part)) for part in (given, solutions, answers))
    batch = Batch(z, torch.from_numpy(is_input(given)), label, torch.empty(0))
    same = boards[100] == solutions[1]
    for order in (None, torch.randperm(64, generator=torch.Generator().manual_seed(0))):
        if order is not None:
            batch = Batch(z[:, order], batch.is_input[:, order], label[:, order], batch.images)
            output = output[:, order]
        scores = Scores()
        score(scores, output, batch, laptop("sudoku4"), order)
        found = scores.shares()
        assert found["valid_boards"] == 0.5 and found["exact_boards"] == 0.25
        assert found["given_accuracy"] == pytest.approx((18 + same[:6].sum() - 1) / 24)
        assert found["unknown_accuracy"] == pytest.approx((30 + same[6:].sum() - 3) / 40)


def test_permuted_bits_are_learnt_and_scored_like_others():
    config = replace(laptop("sudoku4"), task="permuted")
    problems = prepare(config)
    plain = prepare(laptop("sudoku4"))
    assert problems.order is not None
    assert torch.equal(problems.test.label, plain.test.label[:, problems.order])
    assert not torch.equal(problems.test.label, plain.test.label)
    state = trained(config, problems, 80)
    scores = evaluate_split(state.model, config, problems, problems.test)
    assert scores["valid_boards"] > 0.95 and scores["given_accuracy"] == 1.0


def test_a_run_leaves_everything_it_promises(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {"config.json", "metrics.jsonl", "report.md", "evaluation.json", "figures/loss.png"} <= names
    rows = [row for row in read_metrics(finished / "metrics.jsonl") if "epoch" in row]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[0]["valid_boards"] < 0.05 and rows[-1]["valid_boards"] > 0.95
    assert rows[-1]["train_unknown_accuracy"] > rows[1]["train_unknown_accuracy"]
    test = json.loads((finished / "evaluation.json").read_text())["test"]
    assert test["given_accuracy"] == 1.0 and test["unknown_accuracy"] > 0.98
    assert test["valid_boards"] >= test["exact_boards"] > 0.95
    assert "no solution grid is in both splits" in (finished / "report.md").read_text()


def test_evaluate_repeats_the_same_figures(finished, capsys):
    before = (finished / "evaluation.json").read_text()
    assert main(["evaluate", "satnet", str(finished)]) == 0
    assert (finished / "evaluation.json").read_text() == before
    assert capsys.readouterr().out.strip() == str(finished / "report.md")


def test_sample_prints_the_board_its_validity_and_the_sweeps(finished, tmp_path, capsys):
    file = tmp_path / "puzzle.txt"
    solution = solved(PUZZLE)
    file.write_text(f"# mine\n{PUZZLE}\n{PUZZLE.replace('.', '0')}\n")
    assert main(["sample", "satnet", str(finished), str(file)]) == 0
    shown = capsys.readouterr().out
    boards = "".join(c for line in shown.splitlines() if "valid" not in line for c in line if c.isdigit())
    assert boards == solution * 2
    assert shown.count("valid, 16 of 16 cells right") == 2 and shown.count("iterations") == 2


def solved(puzzle):
    """The only completion, by trying every board."""
    found = []
    for board in itertools.product(itertools.permutations("1234"), repeat=4):
        if any(g not in (".", c) for g, c in zip(puzzle, itertools.chain(*board), strict=True)):
            continue
        columns = all(len({row[c] for row in board}) == 4 for c in range(4))
        boxes = all(
            len({board[r + i][c + j] for i in (0, 1) for j in (0, 1)}) == 4 for r in (0, 2) for c in (0, 2)
        )
        if columns and boxes:
            found.append("".join(itertools.chain(*board)))
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1234", "characters"),
        ("11" + "." * 14, "row 1"),
        ("." * 16, "several solutions"),
        ("1234341221434325", "character"),
        ("", "no puzzles"),
        ("53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79", "81 cells"),
        ("1234341221434321", "no blank cell"),
    ],
)
def test_malformed_puzzles_are_refused_in_one_line(finished, tmp_path, capsys, text, named):
    file = tmp_path / "puzzle.txt"
    file.write_text(text)
    assert main(["sample", "satnet", str(finished), str(file)]) == 2
    error = capsys.readouterr().err
    assert named in error and str(file) in error and error.count("\n") == 1


def test_a_missing_puzzle_file_is_named(finished, tmp_path, capsys):
    assert main(["sample", "satnet", str(finished), str(tmp_path / "none.txt")]) == 2
    assert "none.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--task", "chess"], "--task"),
        (["--m", "0"], "m: wanted"),
        (["--aux", "-1"], "aux: wanted"),
        (["--k", "1"], "k: wanted"),
        (["--max-iter", "0"], "max_iter"),
        (["--eps", "-1"], "eps"),
        (["--prox-lam", "0"], "prox_lam"),
        (["--gradient", "right"], "--gradient"),
        (["--lr", "0"], "lr"),
        (["--batch", "1000000000"], "batch"),
        (["--epochs", "0"], "epochs"),
        (["--seed", "-1"], "seed"),
        (["--size", "9"], "size"),
        (["--givens", "9", "3"], "givens"),
        (["--givens", "1", "8"], "givens"),
        (["--mean-givens", "3"], "mean_givens"),
        (["--head", "linear"], "head"),
        (["--input-margin", "0.5"], "input_margin"),
        (["--task", "visual-ungrounded", "--loss-mask", "all"], "loss_mask"),
        (["--task", "mapping", "--loss-mask", "all"], "loss_mask"),
        (["--task", "parity", "--length", "1"], "length"),
        (["--task", "parity", "--puzzles", "x.txt"], "puzzles"),
        (["--preset", "paper"], "--preset"),
        (["--puzzles", "/nowhere/at/all.txt"], "/nowhere/at/all.txt"),
        (["--initial", "/nowhere/at/all.safetensors"], "/nowhere/at/all.safetensors"),
        (["--resume", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--resume", "/nowhere/at/all", "--lr", "1"], "--resume"),
        (["--from-labels", "1"], "from_labels"),
        (["--proofreader"], "proofreader"),
        (["--learning-rate", "1"], "--learning-rate"),
    ],
)
def test_mistakes_are_one_line_that_names_them(options, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "satnet", *options]) == 2
    error = capsys.readouterr().err.splitlines()
    assert named in error[-1] and error[-1].startswith("tenfold: error:")
    assert list(tmp_path.iterdir()) == []


def test_the_task_chooses_the_presets():
    for task in TASKS:
        for name, config in presets(task).items():
            assert config.task == task, name
    assert "paper" not in presets("sudoku4")
    published = paper("sudoku")
    assert (published.n, published.layer.m, published.layer.aux, published.layer.k) == (729, 600, 300, 32)
    assert (published.lr, published.batch, published.epochs, published.loss_mask) == (2e-3, 40, 100, "all")
    assert (published.data.train, published.data.test, published.shuffle) == (9000, 1000, False)
    assert paper("visual").backbone_lr == 1e-5 and paper("visual").batch == 50
    parity = paper("parity")
    assert (parity.layer.m, parity.layer.aux, parity.layer.prox_lam, parity.lr) == (4, 4, 0.1, 0.1)
    assert parity.optimizer == "sgd" and parity.batch == 100


@pytest.mark.parametrize("options", [["--lr", "1e30"], ["--optimizer", "sgd", "--loss-scale", "1e38"]])
def test_training_that_diverges_is_one_line(options, tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["train", "satnet", *SMALL, *options, "--out", str(path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tenfold: error: training has diverged in step 1") and "--lr" in error
    assert checkpoint.latest(path / "checkpoints") is None


@pytest.mark.parametrize("option", ["--puzzles", "--digits"])
def test_data_that_a_run_has_not_cannot_have_moved(finished, option, capsys):
    for command in (["train", "satnet", "--resume", str(finished)], ["evaluate", "satnet", str(finished)]):
        assert main([*command, option, "elsewhere"]) == 2
        assert f"{option} elsewhere" in capsys.readouterr().err.splitlines()[-1]


def test_a_used_folder_is_refused(finished, capsys):
    assert main(["train", "satnet", "--out", str(finished)]) == 2
    assert f"--resume {finished}" in capsys.readouterr().err


class Killed(BaseException):
    pass


@pytest.mark.parametrize("task", ["sudoku4", "permuted", "parity"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, task):
    options = ["--task", task, "--size", "4", *SMALL, "--checkpoint-every", "7"]
    if task == "permuted":
        options += ["--givens", "5", "8", "--mean-givens", "6.5"]
    if task == "parity":
        options = ["--task", task, "--length", "5", "--train", "20", "--test", "5", "--epochs", "12"]
        options += ["--batch", "5", "--checkpoint-every", "7"]
    assert main(["train", "satnet", *options, "--out", str(tmp_path / "whole")]) == 0
    take = TrainingStep.__call__

    def dies(self, state):
        if state.step == 17:
            raise Killed
        return take(self, state)

    path = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", dies)
        with pytest.raises(Killed):
            main(["train", "satnet", *options, "--out", str(path)])
    newest = checkpoint.latest(path / "checkpoints")
    assert newest is not None and newest.name == "step-00000014"
    assert main(["train", "satnet", "--resume", str(path)]) == 0
    ends = [checkpoint.load(checkpoint.latest(p / "checkpoints")) for p in (tmp_path / "whole", path)]
    assert ends[0].step == ends[1].step and ends[0].state == ends[1].state
    for group, tensors in ends[0].tensors.items():
        assert tensors.keys() == ends[1].tensors[group].keys()
        for name, value in tensors.items():
            assert value.numpy().tobytes() == ends[1].tensors[group][name].numpy().tobytes(), (group, name)
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(p / "metrics.jsonl")]
        for p in (tmp_path / "whole", path)
    ]
    assert rows[0] == rows[1]


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path, monkeypatch):
    path = tmp_path / "run"

    def dies(self, state):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", dies)
        with pytest.raises(Killed):
            main(["train", "satnet", *SMALL, "--epochs", "1", "--out", str(path)])
    assert main(["train", "satnet", "--resume", str(path)]) == 0
    rows = read_metrics(path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 10] and [row["epoch"] for row in rows] == [0, 1]


def test_training_ends_by_time_or_without_progress():
    config = SATNetConfig(minutes=2.0, patience=2)
    assert stop_reason(config, [1.0, 0.5], 60.0) == ""
    assert "2 minutes" in stop_reason(config, [1.0, 0.5], 121.0)
    assert stop_reason(config, [1.0, 0.9, 0.895], 1.0) == ""
    assert "not fallen" in stop_reason(config, [1.0, 0.9, 0.9, 0.895], 1.0)
    assert stop_reason(config, [1.0, 0.9, 0.9, 0.88], 1.0) == ""
    assert stop_reason(SATNetConfig(), [1.0] * 50, 1e9) == ""


def test_a_run_that_ended_early_is_not_trained_on(tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["train", "satnet", *SMALL, "--minutes", "1e-9", "--out", str(path)]) == 0
    assert "1e-09 minutes are over" in capsys.readouterr().err
    evaluation = (path / "evaluation.json").read_text()
    assert json.loads(evaluation)["epochs"] == 1 and "minutes" in json.loads(evaluation)["stopped"]
    assert "Ended early" in (path / "report.md").read_text()
    assert main(["train", "satnet", "--resume", str(path)]) == 0
    assert (path / "evaluation.json").read_text() == evaluation


def test_puzzles_are_made_once_for_runs_that_begin_together(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path))
    make, made = data.prepare_sudoku, []

    def slow(folder, *args):
        made.append(folder)
        time.sleep(0.3)
        make(folder, *args)

    monkeypatch.setattr(data, "prepare_sudoku", slow)
    config = replace(laptop("sudoku4"), data=replace(laptop("sudoku4").data, train=20, test=5))
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(prepare, (config, config))
    assert len(made) == 1 and one.train.fingerprint() == other.train.fingerprint()


def test_own_puzzles_are_split_by_solution(tmp_path, capsys):
    problems = prepare(laptop("sudoku4"))
    rows = (problems.train.z.view(-1, 16, 4) * torch.arange(1, 5)).sum(dim=2).int().tolist()[:60]
    lines = ["".join(map(str, row)) for row in rows]
    file = tmp_path / "puzzles.txt"
    file.write_text("\n".join(lines))
    config = replace(laptop("sudoku4"), data=replace(laptop("sudoku4").data, puzzles=str(file)))
    own = prepare(config)
    assert len(own.train) + len(own.test) == 60 and 1 <= len(own.test) <= 6
    train, test = ({bytes(row.numpy()) for row in split.label} for split in (own.train, own.test))
    assert not train & test
    file.write_text(lines[0])
    assert main(["train", "satnet", "--puzzles", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "no puzzle is left to test on" in capsys.readouterr().err
    assert main(["train", "satnet", "--task", "sudoku", "--puzzles", str(file)]) == 2
    assert "16 cells" in capsys.readouterr().err


def test_problems_of_labels_show_nothing_of_the_given_cells():
    plain, config = prepare(laptop("sudoku4")), laptop("sudoku4")
    split = prepare(replace(config, data=replace(config.data, from_labels=0.5))).train
    given = plain.train.is_input
    assert not (split.is_input & given).any()
    assert torch.equal(split.shown, ~given)
    share = split.is_input.sum() / (~given).sum()
    assert 0.4 < share < 0.6
    assert torch.equal(split.z, split.label * split.is_input)


@pytest.fixture(scope="module")
def parity_layer():
    """Trained on 8 bits by the published settings, with the seed that learns soonest of a few."""
    data = DataConfig(train=200, test=50, length=8)
    for seed in range(5):
        config = replace(paper("parity"), data=data, batch=20, seed=seed, shuffle=True)
        problems = prepare(config)
        step, state = TrainingStep(config, problems), TrainingState.fresh(config)
        for _ in range(8):
            for _ in range(50):
                step(state)
            if evaluate_split(state.model, config, problems, problems.test)["accuracy"] == 1.0:
                return state.model.layer
    pytest.fail("no seed of 5 learnt parity")


def test_trained_parity_decodes_to_the_truth_table_of_xor(parity_layer):
    assert decode.truth_table(parity_layer.S, 3) == {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 0}
    weights = {clause.literals: clause.weight for clause in decode.clauses(parity_layer.S, 3)}
    # XOR's four clauses, each of which forbids one wrong line, outweigh those that forbid the right lines.
    for a, b, out in ((1, 1, -1), (1, -1, 1), (-1, 1, 1), (-1, -1, -1)):
        assert weights[a, b, out] > weights.get((a, b, -out), 0.0)


def test_prices_are_those_of_every_assignment():
    draw = torch.Generator().manual_seed(0)
    S = torch.randn(1 + 3 + 1, 5, generator=draw)  # one auxiliary variable is +1 or -1 at its best
    found = decode.prices(S, 3)
    expected = []
    for bits in itertools.product((-1, 1), repeat=3):
        totals = [
            np.square(S.double().numpy().T @ np.array([1, *bits, *aux])).sum()
            for aux in itertools.product((-1, 1), repeat=1)
        ]
        expected.append(min(totals))
    assert found.numpy() == pytest.approx(np.array(expected) - min(expected))
    # The weights of the clauses that an assignment breaks add up to its price.
    for index, bits in enumerate(itertools.product((-1, 1), repeat=3)):
        broken = [
            c.weight
            for c in decode.clauses(S, 3)
            if all(b != s for b, s in zip(bits, c.literals, strict=True))
        ]
        assert sum(broken) == pytest.approx(float(found[index]))


def test_large_layers_are_not_decoded():
    with pytest.raises(ValueError, match="wanted at most 8"):
        decode.prices(torch.zeros(65, 4), 64)


def test_the_official_gradient_changes_what_reaches_the_inputs_alone():
    problems = prepare(laptop("sudoku4"))
    batch = problems.train.take(torch.arange(20))
    grads = {}
    for gradient in ("correct", "official"):
        config = replace(laptop("sudoku4"), layer=LayerConfig(m=40, aux=8, gradient=gradient))
        state = TrainingState.fresh(config)
        state.model.draw_from(torch.Generator().manual_seed(1))
        z = (0.8 * batch.z + 0.1).requires_grad_()
        loss = loss_of(state.model(replace(batch, z=z)), batch, "unknown", 1.0)
        loss.backward()
        grads[gradient] = state.model.layer.S.grad, z.grad
    assert torch.allclose(grads["correct"][0], grads["official"][0])
    assert not torch.allclose(grads["correct"][1], grads["official"][1], rtol=0.1)


def test_labels_of_given_cells_count_with_the_mask_all_only():
    problems = prepare(laptop("sudoku4"))
    batch = problems.train.take(torch.arange(20))
    output = torch.rand(20, 64, generator=torch.Generator().manual_seed(0))
    other = replace(batch, label=torch.where(batch.is_input, 1 - batch.label, batch.label))
    assert torch.equal(loss_of(output, batch, "unknown", 1.0), loss_of(output, other, "unknown", 1.0))
    assert not torch.equal(loss_of(output, batch, "all", 1.0), loss_of(output, other, "all", 1.0))
    assert float(loss_of(output, batch, "all", 3.0)) == pytest.approx(
        3 * float(loss_of(output, batch, "all", 1.0))
    )
    exact = loss_of(batch.label, batch, "all", 1.0)
    assert 0 < float(exact) < 2e-6  # outputs of 0 and 1 are clamped


def test_parity_learns_from_the_last_link_alone():
    config = replace(paper("parity"), data=DataConfig(train=10, test=5, length=4))
    model = Model(config)
    calls = []
    model.layer.register_forward_hook(lambda _m, _i, out: calls.append(out.requires_grad))
    model(prepare(config).train.take(torch.arange(10)))
    assert calls == [False, False, True]
