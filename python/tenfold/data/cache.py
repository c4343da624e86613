"""Where tenfold keeps what it fetched or prepared."""

import os
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
