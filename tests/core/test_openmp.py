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
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("order", ["import torch, tenfold._core", "import tenfold._core, torch"])
def test_one_runtime(order):
    use_both = "torch.ones(1000, 1000).sum(); tenfold._core.threads()\n"
    assert run(f"{order}\n{use_both}{READ_MAPS}") == "1"


def test_threads_follow_the_environment():
    assert run("from tenfold import _core; print(_core.threads())", OMP_NUM_THREADS="3") == "3"


def test_a_forked_process_does_not_wait_for_threads_it_lacks():
    code = """
import os, numpy as np
from tenfold.ops import patches
x, ids = np.ones((64, 64, 4096), np.float32), np.tile(np.arange(32), (64, 1))
patches.gather_patches(x, ids)
child = os.fork()
if child == 0:
    assert patches.gather_patches(x, ids).sum() == ids.size * 4096
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code, OMP_NUM_THREADS="2") == "7"


def test_threads_follow_torch():
    code = "import torch; from tenfold import _core; torch.set_num_threads(5); print(_core.threads())"
    assert run(code) == "5"
