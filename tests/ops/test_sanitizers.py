"""The op tests once more, on a build with AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SANITIZERS = "address,undefined"

# An editable install answers `import tenfold` through a finder that comes before sys.path.
RUN = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in type(finder).__name__
                 and "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, sys.argv[1])
from tenfold import _core
assert _core.sanitizers() == sys.argv[2], _core.sanitizers()
assert _core.__file__.startswith(sys.argv[1])
import pytest
raise SystemExit(pytest.main(sys.argv[3:]))
"""


def library(name: str) -> str:
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ for the sanitizers' libraries")
def test_ops_under_sanitizers(tmp_path):
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(tmp_path),
    ]
    install += [f"-Ccmake.define.TENFOLD_SANITIZE={SANITIZERS}", f"-Cbuild-dir={tmp_path}/build", str(ROOT)]
    subprocess.run(install, check=True, capture_output=True)
    tests = [str(path) for path in sorted((ROOT / "tests/ops").glob("test_*.py"))]
    tests = [path for path in tests if not path.endswith(("test_public_names.py", "test_sanitizers.py"))]
    # Tests that start processes or compilers run outside the sanitized process. Uncaptured (-s), for a
    # sanitizer ends the process with its report still in the capture.
    options = [
        "-q",
        "-x",
        "-s",
        "-p",
        "no:cacheprovider",
        "-k",
        "not compile and not numpy_users and not agree",
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{library('libasan.so')}:{library('libubsan.so')}",
        # Python and torch leak by design; torch's own allocator is not ours to judge.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-c", RUN, str(tmp_path), SANITIZERS, *options, *tests]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
