"""The CUDA kernels of pairwise against the CPU's. Run by test_kernels.py on the emulator.

Elementary functions are the C library's on the "GPU" and our own on the CPU, and additions are in another
order, so results agree to rounding. bfloat16 is two opaque bytes on the "GPU" and a torch tensor on the CPU.
"""

import itertools
import math

import fake_cupy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import _core
from tenfold.ops._arrays import register_torch
from tenfold.ops.pairwise import pair_mlp
from tenfold.ops.reference import pairwise as reference

fake_cupy.install()
register_torch()  # which the op would do for a torch tensor

FEW = settings(max_examples=25, deadline=None, derandomize=True)
SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64
TOLERANCE = {SINGLE: 5e-6, HALF: 2**-7, DOUBLE: 1e-12}
KINDS = list(reference.ACTIVATIONS)


def on_gpu(tensor, device=0):
    """The memory of a CPU tensor seen as an array on a GPU."""
    if tensor is None:
        return None
    if tensor.dtype == HALF:
        return fake_cupy.ndarray(tensor.view(torch.int16).numpy().view(fake_cupy.BFLOAT16), device)
    return fake_cupy.ndarray(tensor.numpy(), device)


def random(*shape, dtype=SINGLE, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def laid(x, kind):
    """The same values: dense, as a part of wider rows, or with the columns side by side."""
    if kind == 0 or x.dim() == 0:
        return x
    if kind == 1 or x.dim() == 1:
        return torch.cat([torch.zeros(*x.shape[:-1], 3, dtype=x.dtype), x], dim=-1)[..., 3:]
    return x.mT.contiguous().mT


def problem(n, m, H, K, dtype, layouts=(0,), b=True, bias=True):
    """The six arguments, None among them."""
    shapes = [(n, H), (m, H), (K or H,), () if b else None]
    shapes += [(K, H), (K,) if bias else None] if K else [None, None]
    arrays = [None if s is None else random(*s, dtype=dtype, seed=i) for i, s in enumerate(shapes)]
    if K:
        arrays[4] = (arrays[4] / math.sqrt(H)).to(dtype)
    layouts = itertools.cycle(layouts)
    return [None if x is None else laid(x, next(layouts)) for x in arrays]


def nans(x, kind):
    """Memory of NaN for the CPU and for the GPU."""
    return [laid(torch.full(x.shape, torch.nan, dtype=x.dtype), kind) for _ in range(2)]


def assert_near(gpu, cpu):
    most = float(cpu.double().abs().max()) if cpu.numel() else 0.0
    torch.testing.assert_close(gpu, cpu, rtol=0, atol=TOLERANCE[cpu.dtype] * max(most, 1e-6))


def compare(arrays, kind, layouts=(0,), wanted=None):
    n, m = arrays[0].shape[0], arrays[1].shape[0]
    grad = laid(random(n, m, dtype=arrays[0].dtype, seed=9), layouts[-1])
    out, gpu_out = nans(grad, layouts[0])
    _core.pair_mlp(*arrays, kind, out)
    _core.pair_mlp(*map(on_gpu, arrays), kind, on_gpu(gpu_out))
    assert_near(gpu_out, out)
    layouts = itertools.cycle(layouts)
    pairs = [(None, None) if x is None else nans(x, next(layouts)) for x in arrays]
    if arrays[3] is None:
        pairs[3] = nans(torch.zeros((), dtype=arrays[0].dtype), 0)
    if arrays[4] is not None and arrays[5] is None:
        pairs[5] = nans(arrays[2], 0)
    if wanted is not None:
        pairs = [pair if want else (None, None) for pair, want in zip(pairs, wanted, strict=True)]
    inputs = [*arrays[:3], *arrays[4:]]
    _core.pair_mlp_backward(grad, *inputs, kind, *(cpu for cpu, _ in pairs))
    _core.pair_mlp_backward(on_gpu(grad), *map(on_gpu, inputs), kind, *(on_gpu(gpu) for _, gpu in pairs))
    for cpu, gpu in pairs:
        if cpu is not None:
            assert_near(gpu, cpu)


@FEW
@given(
    st.tuples(st.integers(1, 8), st.integers(1, 80), st.integers(1, 64)),
    st.sampled_from([None, 1, 3, 5, 16, 18, 64]),
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from([SINGLE, HALF, DOUBLE]),
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 2), min_size=5, max_size=5),
)
def test_random_shapes(sizes, K, given_biases, dtype, kind, layouts):
    compare(problem(*sizes, K, dtype, layouts, *given_biases), kind, layouts)


@pytest.mark.parametrize("dtype", [SINGLE, HALF, DOUBLE], ids=str)
@pytest.mark.parametrize("K", [None, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind, K, dtype):
    compare(problem(4, 70, 5, K, dtype), kind)


@pytest.mark.parametrize("K", [None, 2])
def test_more_rows_than_blocks(K):
    compare(problem(530, 3, 2, K, SINGLE), "elu")
    compare(problem(3, 300, 2, K, SINGLE), "tanh")


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_the_widest(dtype):
    compare(problem(2, 65, 64, 64, dtype), "silu")


@pytest.mark.parametrize("K", [None, 3])
def test_gradients_that_are_not_wanted(K):
    arrays = problem(3, 40, 4, K, SINGLE)
    for wanted in itertools.product([False, True], repeat=6):
        if K or not any(wanted[4:]):
            compare(arrays, "elu", wanted=wanted)


@pytest.mark.parametrize("K", [None, 3])
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_empty(n, m, K):
    compare(problem(n, m, 4, K, SINGLE), "elu")


@pytest.mark.parametrize("K", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays(kind, K):
    arrays = problem(3, 40, 4, K, SINGLE)
    arrays[0][1, 2] = torch.nan
    out = torch.zeros(3, 40)
    _core.pair_mlp(*map(on_gpu, arrays), kind, on_gpu(out))
    assert out[1].isnan().all() and not out[[0, 2]].isnan().any()


def test_through_the_op():
    for K, dtype in itertools.product((None, 5), (SINGLE, DOUBLE)):
        arrays = problem(5, 34, 7, K, dtype)
        got = pair_mlp(*map(on_gpu, arrays))
        np.testing.assert_allclose(got.host, pair_mlp(*arrays).numpy(), rtol=0, atol=1e-5)


def test_other_devices_are_refused():
    u, v, w, *_ = problem(3, 4, 5, None, SINGLE)
    with pytest.raises(TypeError, match="v is on cuda:1 and u is on cuda:0, want one device"):
        pair_mlp(on_gpu(u), on_gpu(v, 1), on_gpu(w))
