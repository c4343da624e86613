"""C++ that only benchmarks need: alternatives written for them, and loops that find the machine's limits."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@functools.cache
def library(name: str, *flags: str) -> ctypes.CDLL:
    """benchmarks/<name>.cpp, compiled with OpenMP and these flags; skips the benchmark without a compiler."""
    target = Path(tempfile.mkdtemp()) / f"{name}.so"
    command = ["g++", "-std=c++20", "-fopenmp", "-shared", "-fPIC", *flags, str(FOLDER / f"{name}.cpp")]
    try:
        subprocess.run([*command, "-o", str(target)], check=True)
    except FileNotFoundError:
        pytest.skip(f"needs g++ for {name}.cpp")
    return ctypes.CDLL(str(target))


def multiply_adds(count: int) -> None:
    """Do `count` multiply-adds in float32 as fast as the machine can, on all threads that torch may use."""
    run = library("fma_peak", "-O3", "-march=native", "-ffp-contract=fast").multiply_adds
    run.restype, run.argtypes = ctypes.c_float, (ctypes.c_int64,)
    run(count)
