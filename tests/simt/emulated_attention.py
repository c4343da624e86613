"""The CUDA kernels of attention against the CPU's and float64. Run by test_kernels.py on the emulator.

Sums are added up in another order than on the CPU, and probabilities are never rounded to bfloat16: errors
are stated relative to the largest value of each result, or to 1.
"""

import os

import fake_cupy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import _core, ops
from tenfold.ops._arrays import register_torch

fake_cupy.install()
register_torch()  # bfloat16 on the CPU is torch's

FEW = settings(max_examples=30, deadline=None, derandomize=True)
TYPES = ["float32", "bfloat16"]

# float32: some ten roundings of 2^-24 in exponents and sums. bfloat16: the result is rounded to 8 bits, half
# of 2^-8; the CPU rounds probabilities and their gradients as well.
BOUNDS = {"float32": 4e-6, "bfloat16": 2.0**-8}
BOUNDS_TO_CPU = {"float32": 6e-6, "bfloat16": 2.0**-6}


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


class Values:
    """An array on the CPU and the same memory on the GPU; `cut` takes a view of it."""

    def __init__(self, values, dtype, cut=lambda array: array, device=0):
        if dtype == "bfloat16":
            bits = torch.from_numpy(values).bfloat16().view(torch.int16).numpy()
            self.bits = cut(bits)
            self.cpu = torch.from_numpy(self.bits).view(torch.bfloat16)
            self.gpu = fake_cupy.ndarray(self.bits.view(fake_cupy.BFLOAT16), device)
        else:
            self.cpu = cut(values)
            self.gpu = fake_cupy.ndarray(self.cpu, device)

    def numbers(self):
        return self.cpu.float().numpy() if isinstance(self.cpu, torch.Tensor) else self.cpu


def filled(like, device=0):
    """Memory of NaN with the shape and type of another, to be written."""
    dtype = "bfloat16" if isinstance(like.cpu, torch.Tensor) else "float32"
    return Values(np.full(like.numbers().shape, np.nan, np.float32), dtype, device=device)


class Problem:
    def __init__(self, q, k, v, out_grad, *, q_offsets=None, k_offsets=None, mask=None, scale=0.3):
        self.q, self.k, self.v, self.out_grad = q, k, v, out_grad
        self.offsets = [None if o is None else np.array(o, np.int32) for o in (q_offsets, k_offsets)]
        self.mask, self.scale = mask, scale
        rows = q.numbers().shape
        self.statistics_shape = (2, rows[-2], int(np.prod(rows[:-2])))

    def arguments(self, on_gpu, device=0):
        extra = [*self.offsets, self.mask]
        if on_gpu:
            extra = [None if array is None else fake_cupy.ndarray(array, device) for array in extra]
        elif isinstance(self.q.cpu, torch.Tensor):
            extra = [None if array is None else torch.from_numpy(array.copy()) for array in extra]
        return [*((x.gpu if on_gpu else x.cpu) for x in (self.q, self.k, self.v)), *extra, self.scale]

    def results(self, on_gpu, device=0):
        """The output, statistics and gradients, written into NaN."""
        out, *grads = (filled(x, device) for x in (self.q, self.q, self.k, self.v))
        statistics = np.full(self.statistics_shape, np.nan, np.float32)
        kept = fake_cupy.ndarray(statistics, device) if on_gpu else statistics
        of = (lambda x: x.gpu) if on_gpu else (lambda x: x.cpu)
        arguments = self.arguments(on_gpu, device)
        _core.attention_forward(*arguments, of(out), kept)
        _core.attention_backward(*arguments, kept, of(self.out_grad), tuple(map(of, grads)))
        return [out.numbers(), statistics, *(grad.numbers() for grad in grads)]

    def reference(self):
        """The same in float64: the formula, a sample and a head at a time."""
        q, k, v, out_grad = (x.numbers().astype(np.float64) for x in (self.q, self.k, self.v, self.out_grad))
        out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
        q_offsets, k_offsets = self.offsets
        for n in range(len(q_offsets) - 1 if q_offsets is not None else len(q)):
            of_q = slice(*q_offsets[n : n + 2]) if q_offsets is not None else n
            of_k = slice(*k_offsets[n : n + 2]) if k_offsets is not None else n
            kept = slice(None) if self.mask is None else self.mask[n]
            for head in range(q.shape[-2]):
                queries, grads = q[of_q][:, head], out_grad[of_q][:, head]
                keys, values = k[of_k][:, head][kept], v[of_k][:, head][kept]
                if not len(keys):
                    continue
                scores = self.scale * queries @ keys.T
                p = np.exp(scores - scores.max(-1, keepdims=True))
                p /= p.sum(-1, keepdims=True)
                out[of_q][:, head] = p @ values
                dp = grads @ values.T
                ds = self.scale * p * (dp - (p * dp).sum(-1, keepdims=True))
                dq[of_q][:, head] = ds @ keys
                dk[of_k][:, head][kept] = ds.T @ queries
                dv[of_k][:, head][kept] = p.T @ grads
        return out, dq, dk, dv


def close(mine, want, bound, name):
    assert mine.shape == want.shape
    largest = max(1.0, np.abs(want).max(initial=0))  # inputs are of size 1, and sums may cancel
    error = np.abs(mine - want).max(initial=0)
    assert error <= bound * largest, f"{name}: error {error:.3g}, largest {largest:.3g}"


def agree(problem, device=0):
    dtype = "bfloat16" if isinstance(problem.q.cpu, torch.Tensor) else "float32"
    mine, cpu = problem.results(True, device), problem.results(False)
    # Sums of scores that cancel are small beside what was added up.
    np.testing.assert_allclose(mine[1], cpu[1], rtol=2e-5, atol=1e-5)
    names = ("out", "q_grad", "k_grad", "v_grad")
    for name, gpu, host, want in zip(
        names, mine[:1] + mine[2:], cpu[:1] + cpu[2:], problem.reference(), strict=True
    ):
        close(gpu, want, BOUNDS[dtype], name + dtype)
        close(gpu, host, BOUNDS_TO_CPU[dtype], name + dtype + " cpu")
    return mine


def dense(samples, queries, keys, heads, width, dtype="float32", mask=None, **options):
    q, k, v, grad = (
        Values(random(samples, length, heads, width, seed=seed), dtype, device=options.get("device", 0))
        for seed, length in enumerate((queries, keys, keys, queries))
    )
    return Problem(q, k, v, grad, mask=mask, scale=width**-0.5)


lengths = st.sampled_from([0, 1, 5, 16, 33, 130])


@FEW
@given(
    st.integers(0, 3), lengths, lengths, st.integers(1, 3), st.sampled_from([1, 3, 16, 40, 64]),
    st.sampled_from(TYPES), st.booleans(),
)  # fmt: skip
def test_sizes(samples, queries, keys, heads, width, dtype, masked):
    mask = np.random.default_rng(keys).random((samples, keys)) < 0.6 if masked else None
    agree(dense(samples, queries, keys, heads, width, dtype, mask))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [65, 96, 128, 160, 257])
def test_wide_heads(width, dtype):
    agree(dense(1, 70, 131, 1, width, dtype))
    agree(dense(2, 3, 5, 2, width, dtype))


def test_more_tiles_than_blocks():
    agree(dense(5, 66, 3, 7, 4))
    agree(dense(5, 3, 66, 7, 4))


@pytest.mark.parametrize("dtype", TYPES)
def test_masks(dtype):
    keys = np.arange(130)
    mask = np.stack([keys % 3 == 0, keys < 0, keys >= 64, keys == 129, keys == 0, keys < 64])
    problem = dense(6, 20, 130, 1, 16, dtype, mask)
    mine = agree(problem)
    assert (mine[0][1] == 0).all() and (mine[1][:, :, 20:40] == 0).all()
    # What the mask leaves out is not read, and has no gradient.
    for x in (problem.k, problem.v):
        (x.bits if dtype == "bfloat16" else x.cpu)[~mask] = -1 if dtype == "bfloat16" else np.nan
    again = problem.results(True)
    for one, other in zip(again, mine, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (again[3][~mask] == 0).all() and (again[4][~mask] == 0).all()


def test_strides_of_masks():
    wide = np.random.default_rng(0).random((70, 3, 2)) < 0.5
    for mask in (wide[:, :, 0].T, wide[::-1, ::-1, 1].T, np.broadcast_to(wide[:, 0, 0], (3, 70))):
        agree(dense(3, 9, 70, 2, 8, mask=mask))


# Rows of whole vectors, rows that are not, and heads before rows.
CUTS = {
    "packed": ((3, 40, 3, 2, 16), lambda i: lambda x: x[:, :, i]),
    "columns": ((3, 40, 2, 60), lambda i: lambda x: x[..., 1 + 16 * i : 17 + 16 * i]),
    "heads": ((3, 2, 120, 16), lambda i: lambda x: x[:, :, i::3].transpose(0, 2, 1, 3)),
    "shared": (
        (1, 40, 1, 16),
        lambda i: (
            lambda x: np.lib.stride_tricks.as_strided(x, (3, 40, 2, 16), (0, x.strides[1], 0, x.itemsize))
        ),
    ),
    "reversed": ((3, 40, 2, 16), lambda i: lambda x: x[::-1, ::-1, ::-1]),
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", CUTS)
def test_strides(name, dtype):
    if (name, dtype) == ("reversed", "bfloat16"):
        pytest.skip("torch, which has bfloat16 on the CPU, has no negative strides")
    shape, cut = CUTS[name]
    q, k, v, grad = (Values(random(*shape, seed=i), dtype, cut(i % 3)) for i in range(4))
    agree(Problem(q, k, v, grad))


@pytest.mark.parametrize("dtype", TYPES)
def test_outputs_between_other_values(dtype):
    problem = dense(2, 40, 40, 2, 16, dtype)
    want = problem.results(True)
    for margin in (0, 3):  # aligned and not
        whole = Values(np.full((4, 2, 40, 3, 2, 16 + 2 * margin), 7, np.float32), dtype).gpu.host
        parts = [part[:, :, 1, :, margin : margin + 16] for part in whole]
        before = whole.copy()
        statistics = fake_cupy.empty(problem.statistics_shape, np.float32)
        out, *grads = map(fake_cupy.ndarray, parts)
        arguments = problem.arguments(True)
        _core.attention_forward(*arguments, out, statistics)
        _core.attention_backward(*arguments, statistics, problem.out_grad.gpu, tuple(grads))
        for part, numbers in zip(parts, [want[0], *want[2:]], strict=True):
            values = part
            if dtype == "bfloat16":
                values = torch.from_numpy(part.view(np.int16)).view(torch.bfloat16).float().numpy()
            np.testing.assert_array_equal(values, numbers)
            part[:] = before.ravel()[0]
        assert whole.tobytes() == before.tobytes()


OFFSETS = [
    ([0, 0, 5, 70, 70, 203, 204], [0, 3, 3, 69, 134, 135, 200]),
    ([0, 64, 128], [0, 128, 192]),
    ([0, 1], [0, 1]),
    ([0, 0, 0], [0, 0, 7]),
    ([0, 9], [0, 0]),
    ([0], [0]),
    (list(range(0, 160, 4)), list(range(0, 120, 3))),
]


def packed(q_offsets, k_offsets, dtype="float32", heads=2, width=16):
    q, k, v, grad = (
        Values(random(rows, heads, width, seed=seed), dtype)
        for seed, rows in enumerate((q_offsets[-1], k_offsets[-1], k_offsets[-1], q_offsets[-1]))
    )
    return Problem(q, k, v, grad, q_offsets=q_offsets, k_offsets=k_offsets)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
def test_sequences_of_different_lengths(offsets, dtype):
    agree(packed(*offsets, dtype))


def test_packed_queries_of_padded_keys():
    q, grad = (Values(random(90, 2, 24, seed=seed), "float32") for seed in (0, 3))
    k, v = (Values(random(3, 70, 2, 24, seed=seed), "float32") for seed in (1, 2))
    mask = np.random.default_rng(0).random((3, 70)) < 0.5
    agree(Problem(q, k, v, grad, q_offsets=[0, 70, 70, 90], mask=mask))
    agree(Problem(k, q, grad, v, k_offsets=[0, 70, 70, 90]))


WRONG = [
    ("q_offsets", 0, [1, 5, 70, 204]),
    ("q_offsets", 2, [0, 90, 70, 204]),
    ("q_offsets", 3, [0, 5, 70, 205]),
    ("q_offsets", 3, [0, 5, 70, 203]),
    ("k_offsets", 1, [0, -4, 70, 200]),
    ("k_offsets", 3, [0, 5, 2**31 - 1, 200]),
    ("k_offsets", 0, [-(2**31), 5, 70, 200]),
]


@pytest.mark.parametrize(("argument", "place", "wrong"), WRONG, ids=str)
def test_wrong_offsets_are_found_and_touch_nothing(argument, place, wrong):
    problem = packed([0, 5, 70, 204], [0, 5, 70, 200])
    problem.offsets[argument == "k_offsets"] = np.array(wrong, np.int32)
    arguments = problem.arguments(True)
    arrays = [fake_cupy.empty(x.cpu.shape, np.float32) for x in (problem.q, problem.q, problem.k, problem.v)]
    statistics = fake_cupy.empty(problem.statistics_shape, np.float32)
    said = rf"{argument}\[0, {place}\] of attention on a GPU was out of order, want ascending numbers from 0"
    with pytest.raises(ValueError, match=said):
        _core.attention_forward(*arguments, arrays[0], statistics)
    with pytest.raises(ValueError, match=said.replace("of attention", "of the gradient of attention")):
        _core.attention_backward(*arguments, statistics, problem.out_grad.gpu, tuple(arrays[1:]))
    for array in (*arrays, statistics):
        assert (array.host == 0).all()
    ops.synchronize()


def test_offsets_without_rows_are_checked():
    problem = packed([0, 0], [0, 0])
    problem.offsets[0][1] = 5
    with pytest.raises(ValueError, match=r"q_offsets\[0, 1\] of attention"):
        problem.results(True)


def test_large_scores():
    problem = dense(1, 40, 130, 1, 16)
    for x in (problem.q, problem.k):
        x.cpu *= 40  # scores beyond 88, where exp() overflows
    mine = problem.results(True)
    close(mine[0], problem.reference()[0], 2e-4, "large scores")
    assert np.abs(mine[1][0]).max() * problem.scale > 500


def test_devices_and_streams():
    want = dense(1, 20, 20, 2, 16).results(True)
    for device, stream in ((1, 0x7000), (0, 0x9000)):
        fake_cupy.set_stream(stream)
        fake_cupy.requested.clear()
        mine = dense(1, 20, 20, 2, 16, device=device).results(True, device)
        fake_cupy.set_stream(0)
        assert set(fake_cupy.requested) == {stream}
        for one, other in zip(mine, want, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_schedule_changes_no_bit():
    problem = packed(*OFFSETS[0])
    want = problem.results(True)
    seed = os.environ.get("TENFOLD_SIMT_SEED", "0")
    try:
        for other in ("0", "11", "12"):
            os.environ["TENFOLD_SIMT_SEED"] = other
            for mine, before in zip(problem.results(True), want, strict=True):
                np.testing.assert_array_equal(mine, before)
    finally:
        os.environ["TENFOLD_SIMT_SEED"] = seed
