"""A run directory: everything that one training run leaves behind, each file written whole or not at all.

    config.json  metrics.jsonl  checkpoints/  figures/  samples/  report.md

`config.json` is written last when a run is made, so a folder with it is a run.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.engine.atomic import (
    LEFTOVER_PREFIX,
    atomic_write,
    refuse_unwritable,
    remove_leftovers,
    write_error,
)
from tenfold.errors import UserError

CONFIG = "config.json"
_FOLDERS = ("checkpoints", "figures", "samples")
_LOCK = ".lock"


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk; `create` makes it, `open` reads it, `lock` guards whoever trains in it."""

    path: Path
    config_dict: dict[str, Any]

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> "RunDirectory":
        """Make a run at `path`, which must be absent or empty; `config` is plain JSON (`config.to_dict`).

        Raises `UserError` when `path` is in use or cannot be written; then nothing is left behind.
        """
        path = Path(path)
        refuse_used(path)
        made: list[Path] = []
        try:
            _make_folders(path, made)
            run = cls(path, json.loads(_dumps(config)))
            run.write_json(CONFIG, config)
        except BaseException:
            for folder in reversed(made):
                with suppress(OSError):
                    folder.rmdir()
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Read the run at `path`; `UserError` if there is none or its config.json is damaged."""
        path = Path(path)
        file = path / CONFIG
        if not file.is_file():
            raise UserError(
                f"{path} is no run directory: it has no {CONFIG}; give the folder that training made"
            )
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file}: {error}; restore the file, or start a new run") from error
        if not isinstance(config, dict):
            raise UserError(f"{file} must hold an object; restore the file, or start a new run")
        return cls(path, config)

    @property
    def checkpoints(self) -> Path:
        """The folder of `engine.checkpoint`."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """Plots as PNG."""
        return self.path / "figures"

    @property
    def samples(self) -> Path:
        """Generated pictures."""
        return self.path / "samples"

    @property
    def metrics(self) -> Path:
        """The file of `engine.metrics`."""
        return self.path / "metrics.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that trains in this run, and clear what a killed one left half-written.

        Raises `UserError` if another process holds it. The system lets go of the lock of a killed process.
        """
        try:
            descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise write_error(self.path / _LOCK, error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path} is in use by another process; wait for it, or stop it first"
                ) from None
            for folder in (self.path, self.checkpoints, self.figures, self.samples):
                remove_leftovers(folder)
            yield
        finally:
            os.close(descriptor)

    def write_text(self, name: str, text: str) -> Path:
        """Write `name` (relative to the run) as UTF-8, atomically, and return its path."""
        return self._write(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write `name` (relative to the run), atomically, and return its path."""
        return self._write(name, data)

    def write_json(self, name: str, value: Any) -> Path:
        """Write `value` as indented JSON, atomically; NaN and infinity are a ValueError."""
        return self._write(name, _dumps(value).encode())

    def _write(self, name: str, data: bytes) -> Path:
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(path, error) from error
        with atomic_write(path, "wb") as stream:
            stream.write(data)
        return path


def refuse_used(path: Path) -> None:
    """Raise `UserError` if no run can be made at `path`; a trainer asks before it computes anything."""
    if (path / CONFIG).exists():
        raise UserError(f"{path} already holds a run; go on with --resume {path}, or give another --out")
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise UserError(f"{above} is a file, not a folder; give another --out")
    refuse_unwritable(above, "--out")
    if above == path:
        _refuse_filled(path)


def _refuse_filled(path: Path) -> None:
    """Refuse a folder that holds anything but what a killed run left of itself."""
    for entry in path.iterdir():
        half_made = entry.name in _FOLDERS and entry.is_dir() and not any(entry.iterdir())
        if not half_made and entry.name != _LOCK and not entry.name.startswith(LEFTOVER_PREFIX):
            raise UserError(f"{path} is not empty (it holds {entry.name}); give a new folder as --out")


def default_path(method: str, root: Path = Path("runs")) -> Path:
    """Where a run goes when the user names no folder: runs/<method>-<date>-<time>, not yet in use."""
    stem = f"{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, count = root / stem, 2
    while path.exists():
        path, count = root / f"{stem}-{count}", count + 1
    return path


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _make_folders(path: Path, made: list[Path]) -> None:
    """Make the run's folders, adding the new ones to `made`; refuse a folder with anything else in it."""
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            made.append(folder)
        _refuse_filled(path)
        for name in _FOLDERS:
            if not (path / name).exists():
                (path / name).mkdir()
                made.append(path / name)
    except OSError as error:
        raise write_error(path, error) from error
