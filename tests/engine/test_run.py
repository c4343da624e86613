"""A run directory is made whole, refuses to overwrite, and is trained in by one process at a time."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tenfold.engine import run as run_module
from tenfold.engine.run import RunDirectory, default_path, refuse_used
from tenfold.errors import UserError


def test_create_and_open(tmp_path):
    made = RunDirectory.create(tmp_path / "deep" / "run", {"steps": 3, "name": "größe"})
    again = RunDirectory.open(tmp_path / "deep" / "run")
    assert again == made
    assert again.config_dict == {"steps": 3, "name": "größe"}
    for folder in (again.checkpoints, again.figures, again.samples):
        assert folder.is_dir()


def test_writers(tmp_path):
    run = RunDirectory.create(tmp_path, {})
    assert run.write_text("report.md", "# ü\n").read_bytes() == "# ü\n".encode()
    assert run.write_bytes("samples/00/a.png", b"\0").read_bytes() == b"\0"
    assert json.loads(run.write_json("x.json", {"a": [1]}).read_text()) == {"a": [1]}
    with pytest.raises(ValueError, match="JSON compliant"):
        run.write_json("x.json", float("nan"))
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1]}


def test_a_run_is_not_overwritten(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {"a": 1})
    with pytest.raises(UserError, match=r"already holds a run; go on with --resume .*/run"):
        RunDirectory.create(run.path, {"a": 2})
    assert RunDirectory.open(run.path).config_dict == {"a": 1}


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match=r"is not empty \(it holds holiday.jpg\)"):
        RunDirectory.create(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    with pytest.raises(UserError, match=r"holiday.jpg"):
        RunDirectory.create(tmp_path / "holiday.jpg" / "run", {})


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files")
def test_a_folder_that_takes_no_files_is_refused_at_once():
    with pytest.raises(UserError, match=r"cannot write in /proc: .*another --out"):
        refuse_used(Path("/proc/run"))


def test_a_full_disk_at_create_leaves_nothing(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def fail(path, *args, **settings):
        if path.name == "figures":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        mkdir(path, *args, **settings)

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(UserError, match=r"cannot write .*run: No space left on device; free"):
        RunDirectory.create(tmp_path / "deep" / "run", {})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_create_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_args):
        raise UserError("disk full")

    monkeypatch.setattr(run_module.RunDirectory, "write_json", fail)
    with pytest.raises(UserError, match="disk full"):
        RunDirectory.create(tmp_path / "deep" / "run", {})
    assert list(tmp_path.iterdir()) == []


def test_a_create_that_was_killed_can_be_repeated(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".tenfold-tmp-0-config.json").write_text("{")
    run = RunDirectory.create(tmp_path, {"a": 1})
    with run.lock():
        assert not list(tmp_path.glob(".tenfold-tmp-*"))


@pytest.mark.parametrize("content", ["", '{"a": ', "[1]", "\xff"])
def test_damaged_config(tmp_path, content):
    run = RunDirectory.create(tmp_path, {"a": 1})
    (run.path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json.*start a new run"):
        RunDirectory.open(run.path)


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="is no run directory"):
        RunDirectory.open(tmp_path / "absent")


def test_only_one_process_trains_in_a_run(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    script = f"""
from pathlib import Path
from tenfold.engine.run import RunDirectory
from tenfold.errors import UserError
try:
    with RunDirectory.open(Path({str(run.path)!r})).lock():
        print("locked")
except UserError as error:
    print(error)
"""
    command = [sys.executable, "-c", script]
    with run.lock():
        assert "in use by another process" in subprocess.run(command, capture_output=True, text=True).stdout
    assert subprocess.run(command, capture_output=True, text=True).stdout == "locked\n"


def test_default_paths_are_free(tmp_path):
    first = default_path("microdit", tmp_path)
    first.mkdir()
    second = default_path("microdit", tmp_path)
    assert first != second
    assert first.name.startswith("microdit-")
