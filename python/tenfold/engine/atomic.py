"""Files and folders that appear whole or not at all.

A write goes to a temporary neighbour, is flushed to the disk, and is renamed onto its name. A process
killed at any moment leaves the old file (or none) and perhaps a leftover, which `remove_leftovers` finds
by its prefix.
"""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from tenfold.errors import UserError

LEFTOVER_PREFIX = ".tenfold-tmp-"

# What an OSError from inside a `with atomic_write(...)` block must be for the target file to be at fault.
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def write_error(path: Path, error: OSError) -> UserError:
    """The one-line message for a file that could not be written."""
    reason = error.strerror or str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        advice = "free some space, or choose another folder, and run the command again"
    else:
        advice = "check the folder and its permissions"
    return UserError(f"cannot write {path}: {reason}; {advice}")


def temporary_name(path: Path) -> Path:
    """A fresh name beside `path` that `remove_leftovers` recognises."""
    return path.with_name(f"{LEFTOVER_PREFIX}{uuid.uuid4().hex[:12]}-{path.name}")


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete what killed writes left in `folder`; call it only where no other process is writing."""
    leftovers = sorted(folder.glob(f"{LEFTOVER_PREFIX}*"))
    for leftover in leftovers:
        _remove(leftover)
    return leftovers


def refuse_unwritable(folder: Path, option: str) -> None:
    """Raise `UserError` that names `option` if nothing can be made in `folder`, by making something."""
    try:
        Path(tempfile.mkdtemp(prefix=LEFTOVER_PREFIX, dir=folder)).rmdir()
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror}; check its permissions, or give another {option}"
        ) from error


@contextmanager
def atomic_write(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path` for writing and rename it onto `path` when the block ends well.

    Text is UTF-8 with newlines as given. If the block raises, `path` is untouched and the temporary file
    is gone. A full disk, a missing folder or missing rights raise `UserError` naming `path`.
    """
    path = Path(path)
    text = {} if mode == "wb" else {"encoding": "utf-8", "newline": ""}
    with _temporary(path) as temporary:
        with temporary.open(mode, **text) as stream:  # type: ignore[call-overload]
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary neighbouring folder, and rename it onto `path` when the block ends well.

    Every file in it is flushed to the disk first. A folder already at `path` is replaced: it is set aside,
    the new one takes its name, the old one is deleted; between the two renames `path` does not exist.
    Errors are as for `atomic_write`.
    """
    path = Path(path)
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        if path.exists():
            _swap(temporary, path)
        else:
            temporary.replace(path)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a free name beside `path`; if the block raises, clear it away and say if the disk is at fault."""
    temporary = temporary_name(path)
    try:
        yield temporary
        sync_folder(path.parent)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError) and _at_fault(error, path, temporary):
            raise write_error(path, error) from error
        raise


def _swap(new: Path, path: Path) -> None:
    aside = temporary_name(path)
    path.replace(aside)
    try:
        new.replace(path)
    except BaseException:
        aside.replace(path)
        raise
    _remove(aside)


def discard_directory(path: Path) -> None:
    """Delete a folder so that no half-deleted one is ever seen under its name."""
    aside = temporary_name(path)
    path.replace(aside)
    _remove(aside)


def sync_folder(folder: Path) -> None:
    """Make the renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems refuse fsync on a folder; the rename itself has happened all the same.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(parent))


def _at_fault(error: OSError, path: Path, temporary: Path) -> bool:
    """Whether the error is about the file being written, and not about one that the block read."""
    if error.filename is None:
        return error.errno in _STORAGE_ERRNOS
    culprit = Path(os.fsdecode(error.filename))
    return culprit == path or culprit.is_relative_to(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
