"""Files are whole or absent: after errors, on a full disk, and after kill -9 inside a write."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tenfold.engine import atomic
from tenfold.engine.atomic import atomic_directory, atomic_write, discard_directory, remove_leftovers
from tenfold.errors import UserError


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 256 KiB."""
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_the_file(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("one\n", "größer\n"):
        with atomic_write(path) as stream:
            stream.write(text)
            assert not path.exists() or path.read_text(encoding="utf-8") != text
    assert path.read_bytes() == "größer\n".encode()
    with atomic_write(path, "wb") as stream:
        stream.write(b"\r\n\0")
    assert path.read_bytes() == b"\r\n\0"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), OSError(errno.EPIPE, "mine")])
def test_error_in_the_block_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_write(path) as stream:
        stream.write("new")
        raise error
    assert caught.value is error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_error_about_another_file_is_not_blamed_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        (tmp_path / "absent").read_text()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_at_the_last_moment(tmp_path, monkeypatch, call):
    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.txt"
    path.write_text("old")
    owner = {"fsync": os, "replace": Path}[call]
    monkeypatch.setattr(owner, call, fail)
    expected = pytest.raises(UserError, match=r"a\.txt: No space left on device; free some space")
    with expected, atomic_write(path) as stream:
        stream.write("new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_full_disk(full_disk):
    path = full_disk / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match=r"a\.bin: No space left"), atomic_write(path, "wb") as stream:
        stream.write(b"x" * 300_000)
    assert path.read_bytes() == b"old"
    expected = pytest.raises(UserError, match="built: No space left")
    with expected, atomic_directory(full_disk / "built") as folder:
        (folder / "b.bin").write_bytes(b"x" * 300_000)
    assert names(full_disk) == ["a.bin"]


def test_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="absent/a: No such file"), atomic_write(tmp_path / "absent" / "a"):
        pass
    with (
        pytest.raises(UserError, match="absent/a: No such file"),
        atomic_directory(tmp_path / "absent" / "a"),
    ):
        pass


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_kill_inside_a_write(tmp_path, moment):
    path = tmp_path / "a.txt"
    path.write_text("old")
    script = f"""
import os, signal
from pathlib import Path
from tenfold.engine.atomic import atomic_write
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if {moment!r} == "fsync": os.fsync = die
if {moment!r} == "replace": Path.replace = die
with atomic_write(Path({str(path)!r})) as stream:
    stream.write("half of the new text")
    stream.flush()
    if {moment!r} == "write": die()
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    assert len(remove_leftovers(tmp_path)) == 1
    assert names(tmp_path) == ["a.txt"]


def test_directory_appears_whole_and_replaces(tmp_path):
    path = tmp_path / "built"
    for content in ("one", "two"):
        with atomic_directory(path) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / content).write_text(content)
            assert folder.parent == tmp_path
            assert not (path / "deep" / content).exists()
        assert names(path / "deep") == [content]
    with pytest.raises(ValueError, match="mine"), atomic_directory(path) as folder:
        (folder / "three").touch()
        raise ValueError("mine")
    assert names(tmp_path) == ["built"]
    assert names(path / "deep") == ["two"]


def test_a_failed_swap_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "built"
    path.mkdir()
    (path / "old").touch()
    replace, calls = Path.replace, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(UserError, match="built: Input/output error"), atomic_directory(path):
        pass
    assert names(tmp_path) == ["built"]
    assert names(path) == ["old"]


def test_discarded_directory_loses_its_name_first(tmp_path, monkeypatch):
    path = tmp_path / "old"
    path.mkdir()
    monkeypatch.setattr(atomic, "_remove", lambda _path: None)
    discard_directory(path)
    assert not path.exists()
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []
