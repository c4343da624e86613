"""Tests on another build of tenfold, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# An editable install answers `import tenfold` through a finder that comes before sys.path.
_RUN = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in type(finder).__name__
                 and "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, sys.argv[1])
from tenfold import _core
assert _core.__file__.startswith(sys.argv[1]), _core.__file__
import pytest
raise SystemExit(pytest.main(sys.argv[2:]))
"""


def build(folder: Path, **defines: str) -> Path:
    """Install tenfold with the CMake variables `defines` into folder/site; returns that."""
    site = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    command += [f"-Ccmake.define.{name}={value}" for name, value in defines.items()]
    command += [f"-Cbuild-dir={folder}/build", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return site


def run_tests(site: Path, tests: list[Path], *options: str, **environment: str) -> None:
    """Run pytest on `tests` with the build in `site`; fails with what it printed."""
    arguments = ["-q", "-x", "-p", "no:cacheprovider", *options, *map(str, tests)]
    command = [sys.executable, "-c", _RUN, str(site), *arguments]
    done = subprocess.run(
        command,
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]


def sanitizer_library(name: str) -> str:
    """Path of a sanitizer's run-time library, to be loaded before Python."""
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
