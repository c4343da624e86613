"""Every CUDA kernel on the host emulator, in order and under shuffled schedules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isolated import build, run_tests, sanitizer_library
from tenfold import _core

HERE = Path(__file__).parent
TESTS = [
    HERE / f"emulated_{family}.py"
    for family in ("activation", "adaln", "attention", "fuzzy", "mixing", "moe", "pairwise", "patches")
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return build(tmp_path_factory.mktemp("simt"), TENFOLD_SIMT="ON")


@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(s, marks=pytest.mark.slow) for s in range(5, 20))]
)
def test_kernels_on_the_emulator(emulated, seed):
    run_tests(emulated, TESTS, TENFOLD_SIMT_SEED=str(seed), PYTHONPATH=str(HERE))


@pytest.mark.slow
def test_kernels_under_address_sanitizer(tmp_path):
    site = build(tmp_path, TENFOLD_SIMT="ON", TENFOLD_SANITIZE="address,undefined")
    libraries = ":".join(sanitizer_library(name) for name in ("libasan.so", "libubsan.so"))
    # Uncaptured (-s): a sanitizer ends the process with its report still in the capture.
    run_tests(
        site, TESTS, "-s", LD_PRELOAD=libraries, ASAN_OPTIONS="detect_leaks=0", TENFOLD_SIMT_SEED="3",
        PYTHONPATH=str(HERE),
    )  # fmt: skip


@pytest.mark.slow
def test_kernels_under_thread_sanitizer(tmp_path):
    # Creating a fiber takes ThreadSanitizer long, so only the smallest cases.
    site = build(tmp_path, TENFOLD_SIMT="ON", TENFOLD_SANITIZE="thread")
    few = (
        "out_of_range or doubled or ids_from_ranks or ids_of_few or test_out or streams"
        " or nan_stays or outputs_between or in_place"
    )
    run_tests(
        site, TESTS, "-s", "-k", few, LD_PRELOAD=sanitizer_library("libtsan.so"), TENFOLD_SIMT_SEED="3",
        PYTHONPATH=str(HERE), OMP_NUM_THREADS="1",
    )  # fmt: skip


def test_an_array_on_a_gpu_is_refused_where_there_is_none():
    if _core.cuda_device_count():
        pytest.skip("there is a GPU: it would be given memory of the host")
    code = (
        "import numpy as np, fake_cupy; from tenfold.ops import patches, synchronize; fake_cupy.install()\n"
        "x, ids = np.zeros((1, 2, 3), np.float32), np.zeros((1, 1), np.int64)\n"
        "synchronize()\n"
        "try:\n    patches.gather_patches(fake_cupy.ndarray(x), fake_cupy.ndarray(ids))\n"
        "except (RuntimeError, TypeError) as error:\n    print(type(error).__name__, error)\n"
        "assert (patches.gather_patches(x, ids) == 0).all()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    wanted = (
        "RuntimeError CUDA: cuda" if _core.built_with_cuda() else "TypeError x is a cupy.ndarray on cuda:0"
    )
    assert done.stdout.startswith(wanted), done.stdout
