"""The vector functions of csrc/core/vecmath.h against double precision, on every level this machine runs."""

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tenfold import _core

ROOT = Path(__file__).parents[2]
FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}
LEVELS = [level for level in FLAGS if level in _core.isas_supported()]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module", params=LEVELS)
def evaluate(request, tmp_path_factory):
    target = tmp_path_factory.mktemp("vecmath") / request.param
    flags = [*FLAGS[request.param], f"-DTENFOLD_LEVEL={request.param}"]
    source = str(Path(__file__).with_name("vecmath.cpp"))
    command = ["g++", "-std=c++20", "-O2", *flags, f"-I{ROOT / 'csrc'}", source, "-o", str(target)]
    subprocess.run(command, check=True)

    def run(name: str, x: np.ndarray) -> np.ndarray:
        done = subprocess.run([target, name], input=x.tobytes(), capture_output=True, check=True)
        return np.frombuffer(done.stdout, np.float32).astype(np.float64)

    return run


def grid(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 1 << 20).astype(np.float32)


def test_exp(evaluate):
    x = grid(-87, 88.7)
    want = np.exp(x.astype(np.float64))
    unit = np.spacing(want.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(evaluate("exp", x) - want) / unit) < 1.1
    ends = np.array([-np.inf, -200, -87.5, 89, 200, np.inf, 0, -0.0] * 2, np.float32)
    assert evaluate("exp", ends).tolist() == [0, 0, 0, math.inf, math.inf, math.inf, 1, 1] * 2


def test_normal_cdf(evaluate):
    x = grid(-6, 6)
    want = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x[::16].tolist()])
    got = evaluate("normal_cdf", x)[::16]
    assert np.max(np.abs(got - want)) < 3e-7
    assert np.max(np.abs(got - want)[x[::16] < 0] / want[x[::16] < 0]) < 5e-6  # of its own value in the tail
    far = np.array([-40, 40] * 8, np.float32)
    assert evaluate("normal_cdf", far).tolist() == [0, 1] * 8


def test_sigmoid_and_tanh(evaluate):
    x = grid(-20, 20)
    wide = x.astype(np.float64)
    assert np.max(np.abs(evaluate("sigmoid", x) - 1 / (1 + np.exp(-wide)))) < 2e-7
    assert np.max(np.abs(evaluate("tanh", x) - np.tanh(wide))) < 3e-7
    far = np.array([-1000, 1000] * 8, np.float32)
    assert evaluate("sigmoid", far).tolist() == [0, 1] * 8
    assert evaluate("tanh", far).tolist() == [-1, 1] * 8
