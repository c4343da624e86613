"""The CUDA kernels of mixing against the CPU's. Run by test_kernels.py on the emulator.

The draws are the same; sums are added up in another order, so values agree to rounding.
"""

import fake_cupy
import numpy as np
import pytest

from tenfold import ops
from tenfold.ops.mixing import Solution, mixing, mixing_backward, mixing_forward

fake_cupy.install()

# (samples, n, aux, m, k): one sample, odd sizes, more samples than blocks, more variables than threads, wide
# and narrow vectors.
SIZES = [
    (1, 1, 0, 1, 2),
    (3, 5, 2, 4, 5),
    (14, 3, 4, 4, 32),
    (2, 20, 3, 33, 33),
    (1, 1030, 3, 2, 2),
    (2, 130, 0, 5, 66),
    (2, 9, 1, 70, 300),
]


def problem(B, n, aux, m, seed=0):
    rng = np.random.default_rng(seed)
    S = (rng.standard_normal((1 + n + aux, m)) * 0.4).astype(np.float32)
    z = rng.choice([0, 0.001, 0.3, 0.5, 0.98, 1], (B, n)).astype(np.float32)
    is_input = rng.random((B, n)) < (0.95 if n > 100 else 0.4)
    is_input[:, n // 2] = False
    return S, z, is_input


def on_gpu(array, device=0):
    return fake_cupy.ndarray(np.ascontiguousarray(array), device)


def near(got, want, error=1e-4):
    assert got.host.dtype == want.dtype and got.shape == want.shape
    assert np.max(np.abs(got.host - want), initial=0) <= error * max(1.0, np.max(np.abs(want), initial=0))


def same(mine, want, error=1e-4):
    assert np.array_equal(mine.order.host, want.order) and np.array_equal(mine.negative.host, want.negative)
    assert np.array_equal(mine.counts.host[:2], want.counts[:2])
    for name in ("z", "V", "norms"):
        near(getattr(mine, name), getattr(want, name), error)


@pytest.mark.parametrize("sizes", SIZES)
def test_forward(sizes):
    S, z, is_input = problem(*sizes[:4])
    options = {"k": sizes[4], "max_iter": 4, "eps": 0.0, "seed": 2**40 + 3, "offset": 5}
    want = mixing_forward(S, z, is_input, **options)
    same(mixing_forward(on_gpu(S), on_gpu(z), on_gpu(is_input), **options), want)
    out, report = mixing(on_gpu(S, 1), on_gpu(z, 1), on_gpu(is_input, 1), **options)
    near(out, want.z)
    assert report.niter.host.tolist() == [4] * sizes[0]


def test_a_start_an_order_and_one_pattern():
    S, z, is_input = problem(3, 8, 2, 6)
    rng = np.random.default_rng(1)
    V0 = rng.standard_normal((3, 11, 6)).astype(np.float32)
    V0[1, 9] = 0
    order = (rng.permutation(10) + 1).astype(np.int32)
    want = mixing_forward(S, z, is_input[0], k=6, V0=V0, order=order)
    got = mixing_forward(on_gpu(S), on_gpu(z), on_gpu(is_input[0]), k=6, V0=on_gpu(V0), order=on_gpu(order))
    assert np.max(np.abs(got.counts.host[0] - want.counts[0])) <= 1
    near(got.z, want.z, 1e-3)


def test_samples_end_for_themselves():
    S, z, is_input = problem(20, 6, 3, 5)
    want = mixing_forward(S, z, is_input, eps=1e-2)
    got = mixing_forward(on_gpu(S), on_gpu(z), on_gpu(is_input), eps=1e-2)
    assert len(set(want.counts[0])) > 1 and np.mean(got.counts.host[0] == want.counts[0]) > 0.7


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("compat", [None, "official"])
def test_backward(sizes, compat):
    S, z, is_input = problem(*sizes[:4], seed=1)
    solution = mixing_forward(S, z, is_input, k=sizes[4], max_iter=5, eps=0.0)
    grad = np.random.default_rng(2).standard_normal(z.shape).astype(np.float32)
    want = mixing_backward(S, z, is_input, solution, grad, compat=compat, prox_lam=0.1)
    there = Solution(*map(on_gpu, solution))
    got = mixing_backward(
        on_gpu(S), on_gpu(z), on_gpu(is_input), there, on_gpu(grad), compat=compat, prox_lam=0.1
    )
    for mine, other in zip(got, want, strict=True):
        near(mine, other)
    fewer = mixing_backward(on_gpu(S), on_gpu(z), on_gpu(is_input), there, on_gpu(grad), sweeps=1)
    near(fewer[1], mixing_backward(S, z, is_input, solution, grad, sweeps=1)[1])


@pytest.mark.parametrize(
    ("k", "group"),
    [(2, 32), (31, 32), (32, 32), (33, 16), (64, 16), (65, 8), (200, 4), (257, 2), (600, 1), (1024, 1)],
)
def test_groups_of_free_variables(k, group):
    # A GPU visits as many together; all but one variable given, whole groups, and one variable more or less.
    free = sorted({1, 2, max(1, group - 1), group, group + 1, 2 * group, 2 * group + 1, 3 * group})
    S, z, is_input = problem(len(free), 3 * group + 2, 0, 7)
    for count, row in zip(free, is_input, strict=True):
        row[:] = np.random.default_rng(count).permutation(row.size) >= count
    solution = mixing_forward(S, z, is_input, k=k, max_iter=3, eps=0.0)
    arrays = [on_gpu(x) for x in (S, z, is_input)]
    same(mixing_forward(*arrays, k=k, max_iter=3, eps=0.0), solution)
    grad = np.random.default_rng(3).standard_normal(z.shape).astype(np.float32)
    want = mixing_backward(S, z, is_input, solution, grad)
    got = mixing_backward(*arrays, Solution(*map(on_gpu, solution)), on_gpu(grad))
    for mine, other in zip(got, want, strict=True):
        near(mine, other)


def test_variables_that_nothing_moves():
    S, z, is_input = problem(3, 6, 2, 5)
    S[-1] = 0
    solution = mixing_forward(S, z, is_input)
    got = mixing_forward(on_gpu(S), on_gpu(z), on_gpu(is_input))
    assert got.report.zero_norms.host.tolist() == [1, 1, 1] == solution.report.zero_norms.tolist()
    there = Solution(*map(on_gpu, solution))
    for compat in (None, "official"):
        want = mixing_backward(S, z, is_input, solution, z, compat=compat)
        arrays = map(on_gpu, (S, z, is_input))
        for mine, other in zip(mixing_backward(*arrays, there, on_gpu(z), compat=compat), want, strict=True):
            near(mine, other)


def test_saturated_outputs():
    S, z, is_input = np.ones((2, 1), np.float32), np.full((2, 1), 0.5, np.float32), np.zeros((2, 1), bool)
    got = mixing_forward(on_gpu(S), on_gpu(z), on_gpu(is_input))
    assert got.report.saturated.host.tolist() == [1, 1] and got.z.host.tolist() == [[0], [0]]


def test_no_samples():
    S, z, is_input = problem(2, 5, 1, 3)
    got = mixing_forward(on_gpu(S), on_gpu(z[:0]), on_gpu(is_input[:0]))
    S_grad, z_grad = mixing_backward(on_gpu(S), on_gpu(z[:0]), on_gpu(is_input[:0]), got, on_gpu(z[:0]))
    assert z_grad.shape == (0, 5) and not S_grad.host.any()


def raised(message, function, *args, **kwargs):
    """Raised by the call, or later; the emulator has run the kernel when the call returns."""
    with pytest.raises(ValueError, match=message):
        function(*args, **kwargs)
        ops.synchronize()


def test_wrong_values_are_found():
    S, z, is_input = problem(3, 5, 2, 4)
    for value in (np.nan, -0.5, 1.5):
        wrong = z.copy()
        wrong[1, 2] = value
        raised(r"z\[1, 2\] of mixing .* probability", mixing, on_gpu(S), on_gpu(wrong), on_gpu(is_input))
    wrong = is_input.copy()
    wrong[2] = True
    raised(r"is_input\[2, 0\] of mixing", mixing, on_gpu(S), on_gpu(z), on_gpu(wrong))
    wrong = S.copy()
    wrong[6, 1] = np.inf
    raised(r"S\[6, 0\] of mixing", mixing, on_gpu(wrong), on_gpu(z), on_gpu(is_input))
    order = np.array([1, 2, 3, 4, 5, 9, 7], np.int32)
    raised(r"order\[0, 5\] of mixing", mixing, on_gpu(S), on_gpu(z), on_gpu(is_input), order=on_gpu(order))
    raised("k is 1025, want at most 1024", mixing, on_gpu(S), on_gpu(z), on_gpu(is_input), k=1025)
    ops.synchronize()
