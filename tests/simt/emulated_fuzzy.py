"""The CUDA kernels of fuzzy against the CPU's. Run by test_kernels.py on the emulator.

Sums are added up in another order, so values agree to rounding. fake_cupy's arrays reach the forward pass
through the Python ops, and the backward pass through the bindings.
"""

import itertools
import math

import fake_cupy
import numpy as np
import pytest

from tenfold import _core, ops
from tenfold.ops import fuzzy
from tenfold.ops.fuzzy import (
    atom_logits,
    fuzzy_quantify,
    log_or,
    log_quantify,
    logmatmul,
    logmeanexp,
    pmean,
    segment_logmeanexp,
    segment_pmean,
)

fake_cupy.install()

QUANTS = ["lme", "lse", "max", "mean", "sum", "min"]
AGGS = ["pmean_error", "pmean", "mean", "min", "max"]
FORMULAS = [
    "0 1 and 2 implies",
    "0 1 implies 1 0 implies and",
    "0 not 1 or 2 implies_goguen",
    "0 1 and_goedel 2 or_goedel not_goedel",
    "0 1 implies_goedel 2 implies_kleene",
    "0 1 and_lukasiewicz 2 implies_lukasiewicz 0 or_lukasiewicz",
]
AXES = ["x", "y", "xy"]
REDUCE = ["y", "x", "xy", ""]
TYPES = [np.float32, np.float64]


def on_gpu(array, device=0):
    return fake_cupy.ndarray(np.asarray(array), device)


def near(got, want, tolerance=None):
    got = got.host if hasattr(got, "host") else got
    assert got.dtype == want.dtype and got.shape == want.shape
    bound = tolerance or {np.float32: 4e-6, np.float64: 1e-12}[want.dtype.type]
    with np.errstate(invalid="ignore"):
        same = (got == want) | (np.abs(got - want) <= bound * max(1.0, np.max(np.abs(want[np.isfinite(want)]),
                                                                              initial=0)))  # fmt: skip
    assert same.all()


def logs(*shape, dtype=np.float32, seed=0):
    return (-3 * np.random.default_rng(seed).random(shape)).astype(dtype)


def problem(x, y, dtype=np.float32):
    return [logs(x, dtype=dtype), logs(y, dtype=dtype, seed=1), logs(x, y, dtype=dtype, seed=2)]


def spec(reduce, formula, quantifier, numbers, guard=""):
    kept = "".join(letter for letter in "ab" if letter not in reduce.replace("x", "a").replace("y", "b"))
    axes = "a,b,ab" + (f"|{guard}" if guard else "")
    return axes, kept, formula, quantifier if reduce else "copy", "", tuple(numbers)


def both(arrays, guards, call, add=False):
    """Gradients of the kernels of the CPU and of the GPU, after their forward passes."""
    results = []
    for move in (lambda a: a, on_gpu):
        operands, where = tuple(map(move, arrays)), tuple(map(move, guards))
        sizes = {"a": arrays[0].shape[0], "b": arrays[1].shape[0]}
        shape = tuple(sizes[letter] for letter in call[1])
        dtype = arrays[0].dtype
        out, state = move(np.full(shape, np.nan, dtype)), move(np.full((2, *shape), np.nan, dtype))
        kept = None if call[3] == "copy" else state
        _core.fuzzy_quantify(operands, where, *call, out, kept)
        upstream = move(np.random.default_rng(9).standard_normal(shape).astype(dtype))
        grads = tuple(move(np.full(a.shape, 1.0 if add else np.nan, dtype)) for a in arrays)
        _core.fuzzy_quantify_backward(upstream, kept, operands, where, *call, grads, [add] * 3)
        results.append([out, *grads])
    return results


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("conn", ["and", "or"])
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("reduce", REDUCE)
def test_log_space(dtype, conn, quant, reduce):
    arrays = problem(7, 70, dtype)
    mask = np.random.default_rng(3).random((7, 70)) < 0.5
    mask[2] = False
    for guards, letters in (((), ""), ((mask,), "ab")):
        numbers = (2.0, 0.0, -7.0, 0.0, *([-math.log(3)] * 3))
        cpu, gpu = both(arrays, guards, spec(reduce, conn, quant, numbers, letters))
        for mine, want in zip(gpu, cpu, strict=True):
            near(mine, want)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("agg", AGGS)
@pytest.mark.parametrize("reduce", REDUCE)
def test_truth_values(formula, agg, reduce):
    arrays = [np.exp(a) for a in problem(5, 40)]
    for p, add in ((2.0, False), (1.0, True), (6.5, False)):
        cpu, gpu = both(arrays, (), spec(reduce, formula, agg, (p, 1e-4, 0.5, 0.0)), add)
        for mine, want in zip(gpu, cpu, strict=True):
            near(mine, want, 2e-5)


def test_long_reductions_in_pieces():
    arrays = problem(90, 130)
    for reduce, quant in (("xy", "lme"), ("xy", "mean"), ("xy", "max"), ("x", "lse")):
        numbers = (2.0, 0.0, 0.0, 0.0, *([-math.log(3)] * 3))
        cpu, gpu = both(arrays, (), spec(reduce, "or", quant, numbers))
        for mine, want in zip(gpu, cpu, strict=True):
            near(mine, want)


@pytest.mark.parametrize("quant", ["max", "min"])
def test_equals_share_the_gradient(quant):
    draw = np.random.default_rng(7)
    arrays = [(draw.integers(-3, 1, shape) / 4).astype(np.float32) for shape in ((90,), (130,), (90, 130))]
    mask = draw.random((90, 130)) < 0.5
    for reduce, guards in itertools.product(("y", "x", "xy"), ((), (mask,))):
        call = spec(reduce, "and", quant, (1.0, 0.0, 0.0, 0.0), "ab" if guards else "")
        cpu, gpu = both(arrays, guards, call)
        for mine, want in zip(gpu, cpu, strict=True):
            near(mine, want)


def test_ops_on_arrays_of_a_gpu():
    a, b, c = problem(6, 30)
    mask = np.random.default_rng(5).random((6, 30)) < 0.3
    for reduce, conn in itertools.product(REDUCE, ("and", "or")):
        want = log_quantify([a, b, c], AXES, reduce, conn=conn, alpha=3.0, guard=(mask, "xy"))
        got = log_quantify([on_gpu(a, 1), on_gpu(b, 1), on_gpu(c, 1)], AXES, reduce, conn=conn, alpha=3.0,
                           guard=(on_gpu(mask, 1), "xy"))  # fmt: skip
        near(got, want)
    truths = [np.exp(x) for x in (a, b, c)]
    want = fuzzy_quantify(truths, AXES, "xy", formula="0 1 and 2 implies")
    near(fuzzy_quantify(list(map(on_gpu, truths)), AXES, "xy", formula="0 1 and 2 implies"), want)
    near(log_or(on_gpu(a[:, None]), on_gpu(c), alpha=2.0), log_or(a[:, None], c, alpha=2.0))
    near(logmeanexp(on_gpu(c.T), 0, 2.0), logmeanexp(c.T, 0, 2.0))
    near(pmean(on_gpu(truths[2]), 1, 5.0, on_gpu(mask)), pmean(truths[2], 1, 5.0, mask))


def test_comparisons():
    _, b, c = problem(6, 30)
    x, y = logs(6, 4, seed=5), logs(30, 4, seed=6)
    for relation, bound in (("<", 2.0), (">=", 2.0), ("<=", -1.0), (">", -1.0)):
        want = log_quantify([c], ["xy"], "y", guard=(x, "xy", relation, bound, y))
        near(
            log_quantify([on_gpu(c)], ["xy"], "y", guard=(on_gpu(x), "xy", relation, bound, on_gpu(y))), want
        )
        want = log_quantify([c], ["xy"], "x", guard=(b, "y", relation, -bound))
        near(log_quantify([on_gpu(c)], ["xy"], "x", guard=(on_gpu(b), "y", relation, -bound)), want)


def test_minus_infinity_and_wide_ranges():
    a, b, c = problem(6, 30)
    a[1] = c[1] = -np.inf
    c[2, :20] = -200
    c[3] = -np.inf
    for conn, quant, reduce in itertools.product(("and", "or"), ("lme", "max"), ("y", "x", "xy")):
        numbers = (5.0, 0.0, 0.0, 0.0, *([-math.log(3)] * 3))
        cpu, gpu = both([a, b, c], (), spec(reduce, conn, quant, numbers))
        for mine, want in zip(gpu, cpu, strict=True):
            near(mine, want, 1e-5)


def test_segments():
    values, ends = np.exp(logs(900)), np.array([0, 0, 3, 500, 500, 900])
    for got, want in (
        (
            segment_pmean(on_gpu(values), on_gpu(ends), 3.0, error=True),
            segment_pmean(values, ends, 3.0, error=True),
        ),
        (segment_logmeanexp(on_gpu(values), on_gpu(ends), 2.0), segment_logmeanexp(values, ends, 2.0)),
    ):
        near(got, want)
    for quantifier, number in (("lme", 2.0), ("pmean", 1.0), ("pmean", 2.0), ("pmean_error", 6.5)):
        results = []
        for move in (lambda a: a, on_gpu):
            out, state = move(np.full(5, np.nan, np.float32)), move(np.full((2, 5), np.nan, np.float32))
            grad, numbers = move(np.full(900, np.nan, np.float32)), (number, 0.0, 0.0, 0.0)
            arrays = move(values), move(ends)
            _core.fuzzy_segments(*arrays, quantifier, numbers, out, state)
            upstream = move(np.arange(1, 6, dtype=np.float32))
            _core.fuzzy_segments_backward(upstream, state, *arrays, quantifier, numbers, grad)
            results.append(grad)
        near(results[1], results[0])
    with pytest.raises(ValueError, match=r"row_ptr\[0, 1\] of segments on a GPU"):
        segment_pmean(on_gpu(values), on_gpu(np.array([0, 5, 3, 900])))
        ops.synchronize()
    assert segment_pmean(on_gpu(values[:0]), on_gpu(np.array([0]))).shape == (0,)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("classes", [1, 2, 17])
def test_atoms(dtype, classes):
    z = (np.random.default_rng(0).standard_normal((9, classes)) * 5).astype(dtype)
    z[0] = 90
    index = np.arange(9) % classes
    for softmax, which in ((False, None), (True, None), (True, index)):
        kind = "softmax" if softmax else "sigmoid"
        mine = atom_logits(on_gpu(z), kind, None if which is None else on_gpu(which))
        for got, want in zip(mine, atom_logits(z, kind, which), strict=True):
            near(got, want)
        results = []
        for move in (lambda a: a, on_gpu):
            shape = z.shape if which is None else index.shape
            ups = [np.random.default_rng(i).standard_normal(shape).astype(dtype) for i in range(2)]
            grad = move(np.full(z.shape, np.nan, dtype))
            _core.atom_logits_backward(
                *map(move, ups), move(z), softmax, None if which is None else move(which), grad
            )
            results.append(grad)
        near(results[1], results[0])
    with pytest.raises(ValueError, match=r"index\[0, 3\] of atom_logits on a GPU"):
        wrong = index.copy()
        wrong[3] = classes
        atom_logits(on_gpu(z), "softmax", on_gpu(wrong))
        ops.synchronize()


@pytest.mark.parametrize("dtype", TYPES)
def test_products(dtype):
    for lead, (x, y, z) in itertools.product(((1,), (3,)), ((1, 1, 1), (7, 20, 9), (2, 0, 3), (40, 5, 33))):
        a, b = logs(*lead, x, y, dtype=dtype), logs(*lead, y, z, dtype=dtype, seed=1)
        if y > 1:
            a[..., 0, :] = -np.inf
            b[..., 1, :] = -200
        for mean in (False, True):
            near(logmatmul(on_gpu(a), on_gpu(b), 5.0, mean), logmatmul(a, b, 5.0, mean))
        results = []
        for move in (lambda a: a, on_gpu):
            flat = [move(np.ascontiguousarray(m.reshape(math.prod(lead), *m.shape[-2:]))) for m in (a, b)]
            shape = (flat[0].shape[0], x, z)
            upstream = move(np.random.default_rng(2).standard_normal(shape).astype(dtype))
            grads = [move(np.full(m.shape, np.nan, dtype)) for m in flat]
            _core.logmatmul_backward(upstream, *flat, 5.0, True, *grads)
            results.append(grads)
        for mine, want in zip(results[1], results[0], strict=True):
            near(mine, want, 2e-5 if dtype == np.float32 else None)


def test_nothing():
    for shape in ((0, 4), (4, 0)):
        c = np.zeros(shape, np.float32)
        got = log_quantify([on_gpu(c)], ["xy"], "y")
        near(got, log_quantify([c], ["xy"], "y"))
    assert fuzzy.log_and(on_gpu(np.zeros((0, 3), np.float32))).shape == (0, 3)
    assert logmatmul(on_gpu(np.zeros((0, 3), np.float32)), on_gpu(np.zeros((3, 2), np.float32))).shape == (
        0,
        2,
    )
    for reduce, add in itertools.product(("y", "x", "xy", ""), (False, True)):
        arrays = [logs(3), logs(0), logs(3, 0)]
        cpu, gpu = both(arrays, (), spec(reduce, "and", "lme", (2.0, 0.0, -7.0, 0.0)), add)
        for mine, want in zip(gpu, cpu, strict=True):
            near(mine, want)
        assert all((grad == add).all() for grad in cpu[1:])
