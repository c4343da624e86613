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


def test_log(evaluate):
    x = np.concatenate([grid(2.0**-24, 3), np.exp(grid(-80, 80))])
    want = np.log(x.astype(np.float64))
    assert np.max(np.abs(evaluate("log", x) - want) / np.maximum(1, np.abs(want))) < 1e-7
    assert evaluate("log", np.ones(16, np.float32)).tolist() == [0] * 16
    assert np.isnan(evaluate("log", np.array([math.nan, math.inf] * 8, np.float32))).all()


def test_cos_and_sin_of_parts_of_a_turn(evaluate):
    x = np.concatenate([grid(0, 1), grid(-30, 30)])
    for name, function in (("cos", np.cos), ("sin", np.sin)):
        want = function(2 * np.pi * x.astype(np.float64))
        assert np.max(np.abs(evaluate(name, x) - want)) < 1.2e-7
    quarters = np.arange(16, dtype=np.float32) / 4
    assert evaluate("cos", quarters).tolist() == [1, 0, -1, 0] * 4
    assert evaluate("sin", quarters).tolist() == [0, 1, 0, -1] * 4


def test_square_root(evaluate):
    x = np.concatenate([grid(0, 9), np.exp(grid(-80, 80))])
    np.testing.assert_array_equal(evaluate("square_root", x), np.sqrt(x))


def test_normal_cdf(evaluate):
    x = grid(-6, 6)
    want = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x[::16].tolist()])
    got = evaluate("normal_cdf", x)[::16]
    assert np.max(np.abs(got - want)) < 3e-7
    assert np.max(np.abs(got - want)[x[::16] < 0] / want[x[::16] < 0]) < 6e-4  # of its own value in the tail
    far = np.array([-40, 40, -np.inf, np.inf] * 4, np.float32)
    assert evaluate("normal_cdf", far).tolist() == [0, 1, 0, 1] * 4


def test_bell(evaluate):
    x = grid(-5.2, 5.2)
    want = np.exp(-(x.astype(np.float64) ** 2) / 2)
    assert np.max(np.abs(evaluate("bell", x) / want - 1)) < 2e-6
    assert np.max(np.abs(evaluate("bell", x) - want)) < 2e-7
    far = np.array([-40, 40, -np.inf, np.inf, np.nan, 0] * 8, np.float32)
    np.testing.assert_array_equal(evaluate("bell", far), [0, 0, 0, 0, math.nan, 1] * 8)


def test_powers_below_zero(evaluate):
    x = grid(-126, 0)
    want = np.exp2(x.astype(np.float64))
    assert np.max(np.abs(evaluate("exp2_of_negative", x) / want - 1)) < 2.2e-7
    ends = np.array([-np.inf, -1e30, -200, -126.6, 0, -0.0, -1, np.nan] * 2, np.float32)
    np.testing.assert_array_equal(evaluate("exp2_of_negative", ends), [0, 0, 0, 0, 1, 1, 0.5, math.nan] * 2)


def test_reciprocal(evaluate):
    x = np.concatenate([grid(1, 4), np.logspace(0, 30, 1 << 12).astype(np.float32)])
    want = 1 / x.astype(np.float64)
    assert np.max(np.abs(evaluate("reciprocal", x) - want) / np.spacing(want.astype(np.float32))) < 1


def test_sigmoid(evaluate):
    x = grid(-20, 20)
    wide = x.astype(np.float64)
    assert np.max(np.abs(evaluate("sigmoid", x) - 1 / (1 + np.exp(-wide)))) < 2e-7
    far = np.array([-1000, 1000, -np.inf, np.inf, np.nan, 0, -0.0, 88] * 2, np.float32)
    np.testing.assert_array_equal(evaluate("sigmoid", far), [0, 1, 0, 1, math.nan, 0.5, 0.5, 1] * 2)


KINDS = ["gelu", "gelu_tanh", "silu", "relu"]


def logistic(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


def value_and_slope(kind: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In double precision."""
    if kind == "relu":
        return np.maximum(x, 0), (x > 0).astype(np.float64)
    if kind == "gelu":
        cdf = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x.tolist()])
        return x * cdf, cdf + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    inner, derivative = x, 1.0
    if kind == "gelu_tanh":  # (1 + tanh(u)) / 2 is the logistic function of 2 u
        scale = 2 * math.sqrt(2 / math.pi)
        inner, derivative = scale * (x + 0.044715 * x**3), scale * (1 + 3 * 0.044715 * x * x)
    part = logistic(inner)
    return x * part, part + x * part * logistic(-inner) * derivative


@pytest.mark.parametrize("kind", KINDS)
def test_activations(evaluate, kind):
    scales = np.logspace(-38, 15, 1 << 13)  # to all that is of interest, subnormal slopes included
    for x in (grid(-14, 14)[::8], np.concatenate([scales, -scales]).astype(np.float32)):
        wants = value_and_slope(kind, x.astype(np.float64))
        for name, want in zip((kind, f"slope of {kind}"), wants, strict=True):
            assert np.max(np.abs(evaluate(name, x) - want) / np.maximum(np.abs(want), 1)) < 3e-7, name


@pytest.mark.parametrize("kind", KINDS)
def test_activations_of_what_is_no_number(evaluate, kind):
    x = np.array([math.inf, -math.inf, math.nan, 0] * 4, np.float32)
    relu = kind == "relu"
    values = [math.inf, 0 if relu else math.nan, math.nan, 0]
    slopes = [1, 0, 1, 0] if relu else [math.nan, math.nan, math.nan, 0.5]
    np.testing.assert_array_equal(evaluate(kind, x), values * 4)
    np.testing.assert_allclose(evaluate(f"slope of {kind}", x), slopes * 4, rtol=2e-7)
