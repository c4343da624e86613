"""Where tenfold keeps what it fetched or prepared."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenfold.errors import UserError


def cache_folder() -> Path:
    """The folder named by ``TENFOLD_CACHE``, else ``~/.cache/tenfold``. It need not exist yet."""
    named = os.environ.get("TENFOLD_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "tenfold"


def make_folder(folder: Path) -> Path:
    """Create ``folder`` and its parents. Errors: UserError naming it when the system refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the cache folder {folder}: {error.strerror or error}; "
            "set TENFOLD_CACHE to a folder you may write to"
        ) from error
    return folder


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let other processes that make something in ``folder`` wait; the lock of a killed one is freed."""
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
