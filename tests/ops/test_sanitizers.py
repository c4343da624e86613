"""The op tests once more, on a build with AddressSanitizer and UndefinedBehaviorSanitizer."""

import shutil
from pathlib import Path

import pytest

from isolated import build, run_tests, sanitizer_library

HERE = Path(__file__).parent
# test_memory.py is about glibc's allocator, which AddressSanitizer replaces.
FILES_LEFT_OUT = ("test_public_names.py", "test_sanitizers.py", "test_memory.py")
# Tests that start processes or compilers run outside the sanitized process.
LEFT_OUT = "not compile and not numpy_users and not agree"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ for the sanitizers' libraries")
def test_ops_under_sanitizers(tmp_path):
    site = build(tmp_path, TENFOLD_SANITIZE="address,undefined", TENFOLD_CUDA="OFF")
    tests = [path for path in sorted(HERE.glob("test_*.py")) if path.name not in FILES_LEFT_OUT]
    # Uncaptured (-s): a sanitizer ends the process with its report still in the capture. Python and torch
    # leak by design; torch's own allocator is not ours to judge.
    run_tests(
        site, tests, "-s", "-k", LEFT_OUT,
        LD_PRELOAD=":".join(sanitizer_library(name) for name in ("libasan.so", "libubsan.so")),
        ASAN_OPTIONS="detect_leaks=0:abort_on_error=0", UBSAN_OPTIONS="print_stacktrace=1",
    )  # fmt: skip
