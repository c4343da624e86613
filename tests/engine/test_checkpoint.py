"""Checkpoints: exact to the bit, whole after kill -9 at every moment, loud about damage."""

import errno
import json
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from tenfold.engine import checkpoint
from tenfold.errors import UserError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert left[name].shape == right[name].shape, name
        assert torch.equal(bits(left[name]), bits(right[name])), name


def awkward_tensors():
    """Random bit patterns (NaNs, infinities and denormals among them) of every dtype and layout."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (4096,), generator=generator, dtype=torch.uint8)
    tensors = {str(dtype): raw.view(dtype) for dtype in DTYPES if dtype != torch.bool}
    tensors["bool"] = raw > 127
    base = torch.randn(6, 8, generator=generator)
    return tensors | {
        "scalar": torch.tensor(-0.0),
        "scalar_bf16": torch.tensor(3.140625, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "expanded": base[:1].expand(5, 8),
        "shared": base,
        "shared_row": base[2],
        "parameter": torch.nn.Parameter(base.clone()),
    }


def test_round_trip_is_exact(tmp_path):
    tensors = {"weights": awkward_tensors(), "none": {}}
    state = {"x": 0.1 + 0.2, "big": 2**100, "text": "ü", "list": [None, True]}
    path = checkpoint.save(tmp_path, 1200, tensors, state)
    assert path.name == "step-00001200"
    assert checkpoint.latest(tmp_path) == path
    loaded = checkpoint.load(path)
    assert (loaded.step, loaded.state) == (1200, state)
    assert loaded.tensors["none"] == {}
    assert_same_bits(loaded.tensors["weights"], tensors["weights"])


def test_only_the_wanted_groups_are_read(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"ema": {"a": torch.ones(2)}, "adamw": {"a": torch.ones(2)}}, {})
    (path / "adamw.safetensors").unlink()
    assert list(checkpoint.load(path, ["ema"]).tensors) == ["ema"]
    with pytest.raises(UserError, match=r"has no 'rng'; it holds adamw, ema"):
        checkpoint.load(path, ["rng"])


def test_old_checkpoints_go_and_the_newest_stays(tmp_path):
    for step in (5, 10, 100, 99):
        checkpoint.save(tmp_path, step, {"w": {"a": torch.tensor(float(step))}}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000099", "step-00000100"]
    checkpoint.save(tmp_path, 101, {}, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000101"]


def test_no_checkpoint(tmp_path):
    assert checkpoint.latest(tmp_path / "absent") is None
    (tmp_path / ".tenfold-tmp-0-step-00000001").mkdir()
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(UserError, match="is no checkpoint"):
        checkpoint.load(tmp_path)


def test_same_step_twice(tmp_path):
    path = checkpoint.save(tmp_path, 5, {"w": {"a": torch.zeros(9)}}, {"kept": True})
    checkpoint.save(tmp_path, 5, {"w": {"a": torch.zeros(9)}}, {"kept": False})
    assert checkpoint.load(path).state == {"kept": True}
    (path / "w.safetensors").write_bytes(b"damaged")
    checkpoint.save(tmp_path, 5, {"w": {"a": torch.zeros(9)}}, {"kept": False})
    assert checkpoint.load(path).state == {"kept": False}


def damage(file, kind):
    data = bytearray(file.read_bytes())
    if kind == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif kind == "bit flipped":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.unlink()


@pytest.mark.parametrize("name", ["w.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["truncated", "bit flipped", "missing"])
def test_damage_is_named_with_what_to_do(tmp_path, name, kind):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, {"w": {"a": torch.arange(100.0)}}, {"some": "state"})
    path = checkpoint.latest(tmp_path)
    damage(path / name, kind)
    if (name, kind) == ("manifest.json", "bit flipped"):
        # The flip may land in any of its words; whatever it says then no longer fits the files.
        with pytest.raises(UserError, match=r"step-00000020.*(damaged|format|holds)"):
            checkpoint.load(path)
        return
    advice = f"{name} is damaged .*; delete the folder .*step-00000020 to go on from step-00000010$"
    with pytest.raises(UserError, match=advice):
        checkpoint.load(path)
    older = tmp_path / "step-00000010"
    assert checkpoint.load(older).step == 10
    damage(older / name, kind)
    with pytest.raises(UserError, match="there is no older one"):
        checkpoint.load(older)


def test_full_disk(tmp_path, monkeypatch):
    """The library's own message for a full disk, and Python's, each leave the previous checkpoint whole."""
    tensors = {"w": {"a": torch.ones(1000)}}
    checkpoint.save(tmp_path, 1, tensors, {})

    def library_fails(_tensors, file):
        file.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", library_fails)
    with pytest.raises(UserError, match=r"cannot write .*step-00000002/w\.safetensors: .*No space.*; free"):
        checkpoint.save(tmp_path, 2, tensors, {})
    monkeypatch.undo()

    def sync_fails(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", sync_fails)
    with pytest.raises(UserError, match=r"cannot write .*step-00000002: No space left on device; free"):
        checkpoint.save(tmp_path, 2, tensors, {})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert_same_bits(checkpoint.load(tmp_path / "step-00000001").tensors["w"], tensors["w"])


def test_file_size_limit(tmp_path):
    """A write cut short by the system itself (RLIMIT_FSIZE), as on a full disk."""
    script = f"""
import resource, torch
from pathlib import Path
from tenfold.engine import checkpoint
from tenfold.errors import UserError
folder = Path({str(tmp_path)!r})
checkpoint.save(folder, 1, {{"w": {{"a": torch.ones(1000)}}}}, {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(folder, 2, {{"w": {{"a": torch.ones(1_000_000)}}}}, {{}})
except UserError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "step-00000002/w.safetensors" in result.stdout
    assert "File too large" in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load(tmp_path / "step-00000001").step == 1


# Kills a child at its n-th file operation inside `save` (seen by an audit hook; a write of the library is cut
# in half), for every n until a save gets through, and looks at what is left each time.
KILLS = """
import os, signal, sys
from pathlib import Path
import torch
from tenfold.engine import checkpoint

folder = Path(sys.argv[1])
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir"}
tensors = lambda step: {"w": {"a": torch.full((500,), float(step))}, "ema": {"a": torch.tensor(step)}}
save_file = checkpoint.save_file

def child(step, moment):
    seen = 0
    def count():
        nonlocal seen
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
    def half_written(named, file):
        save_file(named, file)
        size = os.stat(file).st_size
        os.truncate(file, size // 2)
        count()
        save_file(named, file)
        count()
    checkpoint.save_file = half_written
    sys.addaudithook(lambda event, arguments: count() if event in EVENTS else None)
    checkpoint.save(folder, step, tensors(step), {"step": step})
    os._exit(0)

step = 1
checkpoint.save(folder, step, tensors(step), {"step": step})
checkpoint.save(folder, step := step + 1, tensors(step), {"step": step})
kills, moment, finished = 0, 1, False
while not finished:
    pid = os.fork()
    if pid == 0:
        child(step + 1, moment)
    status = os.waitpid(pid, 0)[1]
    finished = status == 0
    assert finished or os.WTERMSIG(status) == signal.SIGKILL, status
    kills += not finished
    path = checkpoint.latest(folder)
    found = checkpoint.load(path)
    assert found.step in (step, step + 1) and found.state["step"] == found.step
    assert bool((found.tensors["w"]["a"] == found.step).all())
    assert int(found.tensors["ema"]["a"]) == found.step
    for other in folder.glob("step-*"):
        checkpoint.load(other)
    step, moment = found.step, moment + 1
names = sorted(path.name for path in folder.iterdir())
assert len(names) == 2 and all(name.startswith("step-") for name in names), names
print(kills)
"""


def test_kill_at_every_moment_of_a_save(tmp_path):
    script = textwrap.dedent(KILLS)
    result = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 15


def make_model(width=4):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Linear(width, 1))


def train(model, optimizer, steps):
    for _ in range(steps):
        x = torch.randn(8, 3) + random.random() + np.random.rand() + random.gauss(0, 1) + np.random.randn()
        loss = model(x.float()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("settings", [{}, {"amsgrad": True}, {"foreach": True}, {"fused": True}])
def test_resumed_training_is_exact(tmp_path, settings):
    random.seed(1)
    np.random.seed(2)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **settings)
    train(model, optimizer, 3)
    tensors = {
        "weights": model.state_dict(),
        "adamw": checkpoint.optimizer_to_tensors(optimizer),
        "rng": checkpoint.rng_state(),
    }
    path = checkpoint.save(tmp_path, 3, tensors, {})
    train(model, optimizer, 4)

    again = make_model()
    other = torch.optim.AdamW(again.parameters(), lr=0.1, **settings)
    loaded = checkpoint.load(path)
    checkpoint.load_module(again, loaded.tensors["weights"], path)
    checkpoint.optimizer_from_tensors(other, loaded.tensors["adamw"], path)
    checkpoint.set_rng_state(loaded.tensors["rng"])
    train(again, other, 4)
    assert_same_bits(dict(again.state_dict()), dict(model.state_dict()))
    assert_same_bits(checkpoint.optimizer_to_tensors(other), checkpoint.optimizer_to_tensors(optimizer))
    assert_same_bits(checkpoint.rng_state(), checkpoint.rng_state())


def test_optimizer_before_its_first_step():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    assert checkpoint.optimizer_to_tensors(optimizer) == {}
    checkpoint.optimizer_from_tensors(optimizer, {}, "x")


def test_rng_state_covers_the_gaussian_caches():
    random.gauss(0, 1)
    np.random.randn()
    state = checkpoint.rng_state()

    def draw():
        return (
            random.gauss(0, 1),
            random.random(),
            np.random.randn(),
            np.random.rand(),
            torch.rand(3).tolist(),
        )

    expected = draw()
    assert draw() != expected
    checkpoint.set_rng_state(state)
    assert draw() == expected


def test_another_shape_is_named(tmp_path):
    model, wide = make_model(4), make_model(5)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 1)
    tensors = dict(model.state_dict())
    with pytest.raises(
        UserError, match=r"run/x has '0.weight' of shape \(4, 3\) where the model wants \(5, 3\)"
    ):
        checkpoint.load_module(wide, tensors, "run/x")
    with pytest.raises(UserError, match=r"has no tensor '1.bias'"):
        checkpoint.load_module(model, {k: v for k, v in tensors.items() if k != "1.bias"}, "x")
    with pytest.raises(UserError, match=r"has a tensor 'more' that the model does not know"):
        checkpoint.load_module(model, tensors | {"more": torch.ones(1)}, "x")
    moments = checkpoint.optimizer_to_tensors(optimizer)
    with pytest.raises(UserError, match=r"'exp_avg' of parameter 0 of shape \(4, 3\)"):
        checkpoint.optimizer_from_tensors(torch.optim.AdamW(wide.parameters()), moments, "x")
    with pytest.raises(UserError, match="more than the model's 1 parameters"):
        checkpoint.optimizer_from_tensors(torch.optim.AdamW([torch.zeros(4, 3)]), moments, "x")


def test_nothing_is_pickled(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"w": awkward_tensors(), "rng": checkpoint.rng_state()}, {"a": 1})
    assert sorted(file.suffix for file in path.iterdir()) == [
        ".json",
        ".json",
        ".safetensors",
        ".safetensors",
    ]
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["rng.safetensors", "state.json", "w.safetensors"]


@pytest.mark.parametrize(("step", "keep", "group"), [(-1, 2, "w"), (1, 0, "w"), (1, 2, "../w"), (1, 2, "")])
def test_wrong_calls(tmp_path, step, keep, group):
    with pytest.raises(ValueError, match=r"wants|named"):
        checkpoint.save(tmp_path, step, {group: {}}, {}, keep)
    assert list(tmp_path.iterdir()) == []
