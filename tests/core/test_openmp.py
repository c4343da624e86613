"""One OpenMP runtime in the process, whichever is imported first, and its thread settings are honoured."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

READ_MAPS = """
import re
with open("/proc/self/maps") as maps:
    print(len({line.split()[-1] for line in maps if re.search(r"lib(gomp|omp|iomp5)[.-]", line)}))
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("order", ["import torch, tenfold._core", "import tenfold._core, torch"])
def test_one_runtime(order):
    use_both = "torch.ones(1000, 1000).sum(); tenfold._core.threads()\n"
    assert run(f"{order}\n{use_both}{READ_MAPS}") == "1"


def test_threads_follow_the_environment():
    assert run("from tenfold import _core; print(_core.threads())", OMP_NUM_THREADS="3") == "3"


def test_threads_follow_torch():
    code = "import torch; from tenfold import _core; torch.set_num_threads(5); print(_core.threads())"
    assert run(code) == "5"
