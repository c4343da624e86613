"""Killed at any moment, a run goes on to the same weights, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from pictures import TINY, shape_folder
from tenfold.engine import checkpoint
from tenfold.engine.metrics import read_metrics

STEPS = 60
KILLS = 5
# Trains with a kill inside the writing of the first checkpoint after the start.
KILLED_WRITING = """
import os, signal, sys
from tenfold.engine import checkpoint
saved = checkpoint.save_file
calls = 0
def save_file(tensors, path, *args, **kwargs):
    global calls
    calls += 1
    saved(tensors, path, *args, **kwargs)
    if calls == 2:  # after the weights, in the middle of the checkpoint
        with open(path, "r+b") as stream:
            stream.truncate(os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = save_file
from tenfold.cli import main
sys.exit(main(sys.argv[1:]))
"""


def command(*arguments, script=None):
    start = ["-c", script] if script else ["-m", "tenfold"]
    return [sys.executable, *start, "train", "microdit", *map(str, arguments)]


def run(*arguments, script=None):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command(*arguments, script=script), capture_output=True, text=True, env=environment)


def fresh(folder, out):
    return ["--data", folder, "--steps", STEPS, "--checkpoint-every", 10, "--out", out, *TINY]


def kill_at(step, path, *arguments):
    """Start training and kill it as soon as the metrics reach `step`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    metrics = path / "metrics.jsonl"
    try:
        while process.poll() is None:
            if metrics.exists() and any(row["step"] >= step for row in read_metrics(metrics)):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()


def weights(path):
    newest = checkpoint.latest(path / "checkpoints")
    assert newest is not None and newest.name == f"step-{STEPS:08d}"
    return {group: load_file(newest / f"{group}.safetensors") for group in ("weights", "ema", "optimizer")}


def test_five_kills_and_resumes_end_in_the_same_bits(tmp_path, text_encoder):
    data = shape_folder(tmp_path / "pictures")
    whole = run(*fresh(data, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    path = tmp_path / "killed"
    died = run(*fresh(data, path), script=KILLED_WRITING)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert checkpoint.latest(path / "checkpoints") is None  # the torn one does not count
    draw = random.Random(0)
    moments = sorted(draw.sample(range(10, STEPS - 5), KILLS - 2))
    for step in moments:
        kill_at(step, path, "--resume", path)
    again = run("--resume", path, script=KILLED_WRITING)
    assert again.returncode == -signal.SIGKILL or again.returncode == 0, again.stderr
    last = run("--resume", path)
    assert last.returncode == 0, last.stderr
    expected, found = weights(tmp_path / "whole"), weights(path)
    for group, tensors in expected.items():
        assert tensors.keys() == found[group].keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == found[group][name].dtype
            assert tensor.numpy().tobytes() == found[group][name].numpy().tobytes(), (group, name)
    # The metrics are those of the uninterrupted run, but for what a clock measured.
    losses = [
        [(row["step"], row.get("loss"), row.get("heldout_loss")) for row in read_metrics(p / "metrics.jsonl")]
        for p in (tmp_path / "whole", path)
    ]
    assert losses[0] == losses[1]
    assert (path / "report.md").exists()


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path, text_encoder):
    data = shape_folder(tmp_path / "pictures")
    path = tmp_path / "run"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command("--data", data, "--steps", 100_000, "--out", path, *TINY),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    metrics = path / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and read_metrics(metrics)):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"tenfold train microdit --resume {path}" in errors
    assert "Traceback" not in errors
    newest = checkpoint.latest(path / "checkpoints")
    assert newest is not None and checkpoint.load(newest).step >= 10


def test_ctrl_c_between_two_lines_of_the_metrics_changes_none(tmp_path, text_encoder):
    data = shape_folder(tmp_path / "pictures")
    interrupt = """
import os, signal, sys
from tenfold.methods.microdit import train
whole = train.TrainingStep.__call__
def step(self, state):
    result = whole(self, state)
    if state.step == 17 and os.environ.get("INTERRUPT"):
        os.kill(os.getpid(), signal.SIGINT)
    return result
train.TrainingStep.__call__ = step
from tenfold.cli import main
sys.exit(main(sys.argv[1:]))
"""
    rows = []
    for name, extra in (("whole", {}), ("stopped", {"INTERRUPT": "1"})):
        path = tmp_path / name
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | extra
        arguments = ["--data", data, "--steps", 30, "--out", path, *TINY]
        done = subprocess.run(
            command(*arguments, script=interrupt), capture_output=True, text=True, env=environment
        )
        assert done.returncode == (130 if extra else 0), done.stderr
        if extra:
            assert checkpoint.latest(path / "checkpoints").name == "step-00000017"
            evaluate = [sys.executable, "-m", "tenfold", "evaluate", "microdit", str(path)]
            assert subprocess.run(evaluate, env=environment).returncode == 0
            report = (path / "report.md").read_text()
            assert "17 steps of" in report and "UNFINISHED: 30 steps were planned" in report
            assert (path / "figures" / "loss.png").exists()
            assert run("--resume", path).returncode == 0
        rows.append([(row["step"], row.get("loss")) for row in read_metrics(path / "metrics.jsonl")])
    assert rows[0] == rows[1]


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_checkpoint_is_named_and_not_used(tmp_path, text_encoder, damage):
    data = shape_folder(tmp_path / "pictures")
    path = tmp_path / "run"
    assert run("--data", data, "--steps", 5, "--out", path, *TINY).returncode == 0
    file = path / "checkpoints" / "step-00000005" / "ema.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        content = content[:-100]
    else:
        content[-5] ^= 1
    file.write_bytes(content)
    for arguments in (("train", "microdit", "--resume", path), ("sample", "microdit", path, "red disc")):
        shown = subprocess.run(
            [sys.executable, "-m", "tenfold", *map(str, arguments)], capture_output=True, text=True
        )
        assert shown.returncode == 2
        assert str(file) in shown.stderr and "Traceback" not in shown.stderr
