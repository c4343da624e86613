"""The command from end to end on a few small pictures, and its mistakes."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import TINY, shape_folder
from tenfold.cli import main
from tenfold.diffusion.generator import SamplerConfig, load_generator
from tenfold.diffusion.pixels import PixelScaling
from tenfold.engine.config import config_hash
from tenfold.engine.metrics import read_metrics
from tenfold.methods.microdit.config import PRESETS, MicroDiTConfig, paper
from tenfold.methods.microdit.data import prepare
from tenfold.methods.microdit.reproduce import laptop_cells, plan_cells
from tenfold.methods.microdit.step import TrainingState, TrainingStep
from tenfold.methods.microdit.train import patches_of, tensor


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return shape_folder(tmp_path_factory.mktemp("microdit") / "pictures")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pictures, text_encoder):
    """A run that has been trained for 300 tiny steps."""
    path = tmp_path_factory.mktemp("microdit") / "run"
    options = ["--data", str(pictures), "--steps", "300", "--out", str(path), "--lr", "3e-3", *TINY]
    assert main(["train", "microdit", *options]) == 0
    return path


def test_a_run_leaves_everything_it_promises(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {"config.json", "metrics.jsonl", "report.md", "evaluation.json"} <= names
    assert {"samples/grid.png", "figures/loss.png", "figures/nearest.png"} <= names
    assert sum(name.startswith("samples/fixed-") for name in names) == 15  # those not held out
    report = (finished / "report.md").read_text()
    assert "chance" in report and "nearest other caption" in report and "Licence" in report
    rows = read_metrics(finished / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 30 and losses[-1] < 0.8 * losses[0]
    assert [row["step"] for row in rows if "heldout_loss" in row][-1] == 300


def test_evaluation_counts_captions_and_galleries(finished):
    results = json.loads((finished / "evaluation.json").read_text())
    assert results["seen"]["captions"] == results["seen"]["gallery"] == 15
    assert results["heldout"]["captions"] == 1 and results["heldout"]["gallery"] == 16
    assert results["seen"]["pixels"]["top10"]["chance"] == pytest.approx(10 / 15)


def test_samples_depend_on_the_seed_and_the_caption_only(finished):
    drawer = load_generator(finished)
    sampler = SamplerConfig(steps=4)
    before = torch.get_rng_state()
    one = drawer.sample(["red disc", "blue bar"], seed=0, sampler=sampler)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.shape == (2, 16, 16, 3) and one.dtype == np.uint8
    assert np.array_equal(one, drawer.sample(["red disc", "blue bar"], seed=0, sampler=sampler))
    assert not np.array_equal(one, drawer.sample(["red disc", "blue bar"], seed=1, sampler=sampler))
    assert not np.array_equal(one[0], drawer.sample(["green bar"], seed=0, sampler=sampler)[0])
    # A picture does not depend on what is drawn beside it, but for the rounding of the larger batch.
    alone = drawer.sample(["red disc"], seed=0, sampler=sampler)
    assert np.abs(alone[0].astype(int) - one[0]).max() <= 3


def test_sampling_uses_the_run_s_precision(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["precision"] == "auto"
    try:
        for precision in ("bf16", "fp32"):
            (finished / "config.json").write_text(json.dumps({**config, "precision": precision}, indent=2))
            assert load_generator(finished).bf16 == (precision == "bf16")
    finally:
        (finished / "config.json").write_text(json.dumps(config, indent=2))


def test_sample_names_say_what_was_drawn(finished, tmp_path, capsys):
    common = ["sample", "microdit", str(finished), "--out", str(tmp_path), "--steps", "2"]
    for more in (["日本"], ["東京"], ["a" * 300], ["日本", "--guidance", "1.5"], ["日本", "--seed", "2"]):
        assert main([*common, *more]) == 0
    assert len(set(capsys.readouterr().out.split())) == len(list(tmp_path.iterdir())) == 5


def test_sample_writes_a_png_and_says_where(finished, tmp_path, capsys):
    target = tmp_path / "deep" / "disc.png"
    arguments = [
        "red disc",
        "--seed",
        "3",
        "--steps",
        "4",
        "--guidance",
        "2",
        "--out",
        str(target),
        "--scale",
        "3",
    ]
    assert main(["sample", "microdit", str(finished), *arguments]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert Image.open(target).size == (48, 48)


def test_sampling_uses_the_averaged_weights(finished):
    from safetensors.torch import load_file

    newest = max((finished / "checkpoints").iterdir())
    average, live = (load_file(newest / f"{name}.safetensors") for name in ("ema", "weights"))
    used = load_generator(finished).model.state_dict()
    assert all(torch.equal(used[name], average[name]) for name in average)
    assert any(not torch.equal(used[name], live[name]) for name in live)


def test_evaluate_repeats_the_same_figures(finished):
    before = (finished / "evaluation.json").read_text()
    assert main(["evaluate", "microdit", str(finished)]) == 0
    assert (finished / "evaluation.json").read_text() == before


def step_of(config, pictures):
    config = replace(config, data=str(pictures))
    prepared = prepare(config)
    pixels = PixelScaling.fit(prepared.images.images)
    step = TrainingStep(
        config, patches_of(config, prepared, pixels), prepared.text, tensor(prepared.images.train)
    )
    return step, TrainingState.fresh(config)


def test_masking_is_on_for_its_share_of_the_steps(finished, pictures):
    config = replace(MicroDiTConfig(), batch=4, steps=8, mask_ratio=0.75)
    config = replace(
        config, model=replace(config.model, image_size=16, patch_size=4, width=64, mixer_width=64)
    )
    step, state = step_of(config, pictures)
    kept = []
    forward = state.model.forward
    state.model.forward = lambda *a: kept.append(None if a[4] is None else a[4].shape[1]) or forward(*a)
    for _ in range(8):
        step(state)
    assert kept == [4] * 6 + [None] * 2
    assert state.step == 8


def test_learning_rate_warms_up_and_falls_to_nothing(pictures, text_encoder):
    config = replace(MicroDiTConfig(), batch=2, steps=10, warmup=2, lr=1.0, clip=1e-9)
    config = replace(config, model=replace(config.model, image_size=16, width=64, mixer_width=64, depth=1))
    step, state = step_of(config, pictures)
    rates = []
    for _ in range(10):
        step(state)
        rates.append(state.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.5) and rates[1] > rates[0]
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] < 0.05


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--mask-ratio", "1.5"], "mask_ratio"),
        (["--patch-size", "7"], "patch_size"),
        (["--budget", "soon"], "--budget"),
        (["--batch", "many"], "--batch"),
        (["--learning-rate", "1"], "--learning-rate"),
        (["--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--resume", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--depth", "0"], "depth"),
        (["--patch-size", "0"], "patch_size"),
        (["--guidance", "-1"], "guidance"),
        (["--betas", "1", "0.9"], "betas"),
        (["--channels", "4"], "channels"),
        (["--text-width", "100"], "text_width"),
        (["--width", "6", "--head-dim", "6", "--mixer-width", "6"], "width"),
        (["--seed", str(2**64)], "seed"),
        (["--batch", "1000000000"], "batch"),
        (["--steps", "5", "--budget", "1m"], "--budget"),
        (["--preset", "paper", "--budget", "1m"], "--budget"),
    ],
)
def test_mistakes_are_one_line_that_names_them(options, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "microdit", *options]) == 2
    captured = capsys.readouterr()
    assert named in captured.err and captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_is_refused_before_anything_is_computed(finished, capsys):
    assert main(["train", "microdit", "--out", str(finished), "--data", "/nowhere/at/all"]) == 2
    assert f"--resume {finished}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["filled", "file", "below a file"])
def test_an_unusable_folder_is_refused_before_anything_is_computed(kind, tmp_path, capsys):
    out = tmp_path / "out"
    if kind == "filled":
        out.mkdir()
        (out / "mine.txt").write_text("keep")
    else:
        out.write_text("keep")
    named = out / "run" if kind == "below a file" else out
    # The pictures do not exist either: that the folder is named shows that it was looked at first.
    assert main(["train", "microdit", "--out", str(named), "--data", "/nowhere/at/all"]) == 2
    error = capsys.readouterr().err
    assert str(out) in error and "/nowhere" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_missing_tensorboard_is_said_before_anything_is_computed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "out"
    assert main(["train", "microdit", "--tensorboard", "--out", str(out), "--data", "/nowhere/at/all"]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not out.exists()


def test_a_run_goes_on_from_another_folder(pictures, text_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    options = ["--data", pictures.name, "--steps", "2", "--out", str(tmp_path / "run"), *TINY]
    assert main(["train", "microdit", *options]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["train", "microdit", "--resume", "run"]) == 0


def test_moved_pictures_are_found_where_they_are_now(pictures, text_encoder, tmp_path, capsys):
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "run"
    shutil.copytree(pictures, first)
    options = ["--data", str(first), "--steps", "2", "--out", str(out), *TINY]
    assert main(["train", "microdit", *options]) == 0
    first.rename(second)
    assert main(["evaluate", "microdit", str(out)]) == 2
    assert str(first) in capsys.readouterr().err
    assert main(["evaluate", "microdit", str(out), "--data", str(second)]) == 0
    assert main(["train", "microdit", "--resume", str(out), "--data", str(second)]) == 0
    assert main(["train", "microdit", "--resume", str(out), "--data", str(second), "--lr", "1"]) == 2
    (second / "red-disc.txt").write_text("something else")
    assert main(["train", "microdit", "--resume", str(out), "--data", str(second)]) == 2
    assert "captions_sha256" in capsys.readouterr().err


def test_training_that_diverges_stops_and_says_so(pictures, text_encoder, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--data", str(pictures), "--steps", "50", "--lr", "1e30", "--clip", "1e30", *TINY]
    assert main(["train", "microdit", *options, "--out", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "diverged" in error and "lower --lr than 1e+30" in error
    assert not (out / "report.md").exists()


@pytest.mark.parametrize(
    ("group", "key", "value", "sampling"),
    [
        ("model", "depth", 0, True),
        ("model", "patch_size", 0, True),
        ("model", "patch_size", 5, True),
        ("noise", "sigma_min", 100.0, True),
        ("pixels", "std", 0.0, True),
        (None, "guidance", -1.0, True),
        (None, "guidance", "x", True),
        (None, "precision", "fp8", True),
        (None, "batch", -1, False),
        (None, "betas", [1.0, 1.0], False),
        (None, "threads", 0, False),
    ],
)
def test_edited_configs_are_one_line_that_names_the_key(finished, capsys, group, key, value, sampling):
    file = finished / "config.json"
    before = file.read_text()
    config = json.loads(before)
    (config[group] if group else config)[key] = value
    try:
        file.write_text(json.dumps(config))
        for arguments in (
            ["train", "microdit", "--resume", str(finished)],
            ["sample", "microdit", str(finished), "red disc"],
        ):
            if arguments[0] == "train" or sampling:
                assert main(arguments) == 2
                error = capsys.readouterr().err
                assert key in error and "config.json" in error and error.count("\n") == 1
    finally:
        file.write_text(before)


@pytest.mark.parametrize("options", [["--lr", "1"], ["--budget", "30m"], ["--preset", "laptop64"]])
def test_resume_refuses_other_options(finished, capsys, options):
    assert main(["train", "microdit", "--resume", str(finished), *options]) == 2
    assert "--resume" in capsys.readouterr().err


def test_resume_refuses_other_pictures(finished, pictures, capsys):
    caption = pictures / "red-disc.txt"
    before = caption.read_text()
    try:
        caption.write_text("a red disc\n")
        assert main(["train", "microdit", "--resume", str(finished)]) == 2
    finally:
        caption.write_text(before)
    assert "captions_sha256" in capsys.readouterr().err


def test_a_checkpoint_of_another_shape_is_refused(finished, capsys):
    file = finished / "config.json"
    before = file.read_text()
    try:
        file.write_text(before.replace('width": 32,', 'width": 64,'))
        assert main(["sample", "microdit", str(finished), "red disc"]) == 2
    finally:
        file.write_text(before)
    assert "of shape" in capsys.readouterr().err


def test_an_unknown_key_in_the_config_is_refused(finished, capsys):
    file = finished / "config.json"
    before = file.read_text()
    try:
        file.write_text(before.replace('"lr":', '"learning":', 1))
        assert main(["train", "microdit", "--resume", str(finished)]) == 2
    finally:
        file.write_text(before)
    assert "learning" in capsys.readouterr().err


def test_a_caption_that_is_no_text_is_refused(finished, capsys):
    assert main(["sample", "microdit", str(finished), "caf\udce9"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_interrupting_the_evaluation_says_how_to_go_on(pictures, text_encoder, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tenfold.methods.microdit.train.evaluate", interrupt)
    out = tmp_path / "run"
    options = ["--data", str(pictures), "--steps", "2", "--out", str(out), *TINY]
    assert main(["train", "microdit", *options]) == 130
    assert f"tenfold evaluate microdit {out}" in capsys.readouterr().err


def test_a_gradient_that_is_no_number_is_never_saved(pictures, text_encoder, tmp_path, monkeypatch):
    whole = TrainingStep.__call__

    def step(self, state):
        loss, norm = whole(self, state)
        return loss, float("nan") if state.step == 20 else norm

    monkeypatch.setattr(TrainingStep, "__call__", step)
    out = tmp_path / "run"
    options = ["--data", str(pictures), "--steps", "30", "--checkpoint-every", "10", "--out", str(out), *TINY]
    assert main(["train", "microdit", *options]) == 2
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000010"]


def test_a_cell_that_is_not_planned_is_refused(tmp_path, capsys):
    assert main(["reproduce", "microdit", "--cells", "p9", "--results", str(tmp_path)]) == 2
    assert "--cells p9" in capsys.readouterr().err


def test_presets_and_plan_are_valid_and_cells_have_names_of_their_own():
    assert set(PRESETS) == {"laptop", "laptop64", "paper"}
    cells = [*plan_cells(), *laptop_cells()]
    assert len({cell.name for cell in cells}) == len(cells)
    assert sum(cell.seconds for cell in laptop_cells()) * 1 <= 20 * 60
    assert config_hash(cells[0]) in cells[0].name


def test_the_paper_preset_has_the_published_size():
    from tenfold.diffusion.dit import DiT

    with torch.device("meta"):
        model = DiT(paper().model)
    # Published: 1165.4 M, with caption states of width 1024 where ours have 384.
    assert 1155e6 < sum(p.numel() for p in model.parameters()) < 1166e6
