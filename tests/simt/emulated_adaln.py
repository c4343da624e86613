"""The CUDA kernels of adaln against the CPU's. Run by test_kernels.py on the emulator.

Sums are added up in another order, so results agree to rounding. bfloat16 is two opaque bytes on the "GPU"
and a torch tensor on the CPU.
"""

import itertools

import fake_cupy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import _core
from tenfold.ops import adaln

fake_cupy.install()

FEW = settings(max_examples=40, deadline=None, derandomize=True)
SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64
TOLERANCE = {SINGLE: 2e-6, HALF: 2**-7, DOUBLE: 1e-13}
"""Of the largest number of a result."""
VECTORS = ("gate", "shift", "scale", "weight", "bias")


def on_gpu(tensor, device=0):
    """The memory of a CPU tensor seen as an array on a GPU."""
    if tensor is None:
        return None
    if tensor.dtype == HALF:
        return fake_cupy.ndarray(tensor.view(torch.int16).numpy().view(fake_cupy.BFLOAT16), device)
    return fake_cupy.ndarray(tensor.numpy(), device)


def new(*shape, dtype):
    """Memory of NaN for the CPU and for the GPU."""
    return [torch.full(shape, torch.nan, dtype=dtype) for _ in range(2)]


def random(*shape, dtype=SINGLE, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def chunk_of(x, kind):
    """The same values: dense, as a part of wider rows that is aligned, or one that is not."""
    if kind == 0:
        return x
    pad = 8 if kind == 1 else 3
    return torch.cat([torch.zeros(*x.shape[:-1], pad, dtype=x.dtype), x], dim=-1)[..., pad:]


def assert_near(gpu, cpu, factor=1.0):
    if cpu.numel() == 0:
        return
    scale = max(float(cpu.double().abs().max()), 1e-3)
    error = float((gpu.double() - cpu.double()).abs().max())
    assert error <= factor * TOLERANCE[cpu.dtype] * scale  # false for NaN


@st.composite
def problems(draw):
    """Sizes, the types of x, branch and h, which vectors there are and of which type, and how rows lie."""
    sizes = (
        draw(st.integers(0, 3)),
        draw(st.integers(0, 40)),
        draw(st.sampled_from([1, 3, 8, 40, 64, 136, 264, 1032])),
    )
    types = draw(st.sampled_from([*itertools.product([SINGLE, HALF], repeat=3), (DOUBLE,) * 3]))
    there = [draw(st.booleans()) for _ in VECTORS]
    vector_type = DOUBLE if types[0] == DOUBLE else draw(st.sampled_from([SINGLE, HALF]))
    return sizes, types, there, vector_type, draw(st.integers(0, 2))


def vectors_of(sizes, there, dtype, kind):
    samples, _, width = sizes
    vectors = []
    for index, name in enumerate(VECTORS):
        shape = (width,) if name in ("weight", "bias") else (samples, width)
        vector = chunk_of(random(*shape, dtype=dtype, seed=10 + index), kind)
        vectors.append(vector if there[index] else None)
    return vectors


@FEW
@given(problems(), st.sampled_from(["adaln", "gated", "both"]))
def test_forward(problem, op):
    sizes, (x_type, branch_type, h_type), there, vector_type, kind = problem
    x = chunk_of(random(*sizes, dtype=x_type), kind)
    branch = chunk_of(random(*sizes, dtype=branch_type, seed=1), kind) if op != "adaln" else None
    vectors = vectors_of(sizes, there, vector_type, kind)
    rows = sizes[0] * sizes[1]
    statistics_type = DOUBLE if x_type == DOUBLE else SINGLE
    residuals = new(*sizes, dtype=x_type) if op != "adaln" else [None, None]
    hs = new(*sizes, dtype=h_type) if op != "gated" else [None, None]
    statistics = new(2, rows, dtype=statistics_type) if op != "gated" else [None, None]
    _core.adaln_forward(x, branch, *vectors, 1e-6, residuals[0], hs[0], statistics[0])
    _core.adaln_forward(
        *map(on_gpu, (x, branch, *vectors)), 1e-6, *map(on_gpu, (residuals[1], hs[1], statistics[1]))
    )
    # Where a row's elements nearly cancel, what is left of their rounding is divided by their deviation.
    narrow = 400.0 if sizes[2] <= 8 else 4.0
    for results, factor in ((residuals, 1.0), (hs, narrow), (statistics, narrow)):
        if results[0] is not None:
            assert_near(results[1], results[0], factor if results[0].dtype != HALF else 2.0)


@FEW
@given(problems(), st.sampled_from(["adaln", "gated", "both", "no residual's"]))
def test_backward(problem, op):
    sizes, (x_type, branch_type, h_type), there, vector_type, kind = problem
    x = chunk_of(random(*sizes, dtype=x_type), kind)
    branch = random(*sizes, dtype=branch_type, seed=1) if op != "adaln" else None
    gate, shift, scale, weight, bias = vectors_of(sizes, there, vector_type, kind)
    statistics = None
    if op != "gated":
        h, statistics = new(*sizes, dtype=h_type)[0], new(2, sizes[0] * sizes[1], dtype=DOUBLE)[0]
        statistics = statistics if x_type == DOUBLE else statistics.float()
        _core.adaln_forward(x, None, None, shift, scale, weight, bias, 1e-2, None, h, statistics)
    h_grad = chunk_of(random(*sizes, dtype=h_type, seed=3), kind) if op != "gated" else None
    residual_grad = random(*sizes, dtype=x_type, seed=4) if op in ("gated", "both") else None
    per_sample, shared = (sizes[0], sizes[2]), (sizes[2],)
    shapes = [
        (sizes, x_type, op != "gated"),
        (sizes, branch_type, op != "adaln"),
        (per_sample, vector_type, gate is not None and op != "adaln"),
        (per_sample, vector_type, shift is not None and op != "gated"),
        (per_sample, vector_type, scale is not None and op != "gated"),
        (shared, vector_type, weight is not None and op != "gated"),
        (shared, vector_type, bias is not None and op != "gated"),
    ]
    pairs = [new(*shape, dtype=dtype) if want else [None, None] for shape, dtype, want in shapes]
    inputs = (x, statistics, branch, gate, scale, weight, bias, residual_grad, h_grad)
    _core.adaln_backward(*inputs, tuple(pair[0] for pair in pairs))
    _core.adaln_backward(*map(on_gpu, inputs), tuple(on_gpu(pair[1]) for pair in pairs))
    for index, (cpu, gpu) in enumerate(pairs):
        if cpu is not None:
            # The gate's gradient: the residual's is rounded before it is used.
            rounded = index == 2 and x_type == HALF
            assert_near(
                gpu, cpu, 2**13 if rounded and cpu.dtype == SINGLE else 2.0 if cpu.dtype == HALF else 20.0
            )


@pytest.mark.parametrize("width", [1, 5, 8, 24, 64, 96, 264])
@pytest.mark.parametrize("types", [*itertools.product([SINGLE, HALF], repeat=3), (DOUBLE,) * 3], ids=str)
def test_norm_rows(types, width):
    x_type, out_type, grad_type = types
    # Heads of a projection: three dimensions of rows that cannot be merged.
    x = random(2, 5, 3, 2 * width, dtype=x_type)[..., width:].transpose(1, 2)
    outs = [torch.stack([t, t], dim=1)[:, 0] for t in new(2, 3, 5, width, dtype=out_type)]
    rstds = new(30, dtype=DOUBLE if x_type == DOUBLE else SINGLE)
    _core.norm_rows(x, outs[0], rstds[0], 1e-6)
    _core.norm_rows(on_gpu(x), on_gpu(outs[1]), on_gpu(rstds[1]), 1e-6)
    factor = 400.0 if width < 8 else 4.0
    assert_near(outs[1], outs[0], 2.0 if out_type == HALF else factor)
    assert_near(rstds[1], rstds[0], factor)
    grad = random(2, 3, 5, width, dtype=grad_type, seed=1)
    grads = new(2, 3, 5, width, dtype=x_type)
    _core.norm_rows_backward(grad, outs[0], rstds[0], grads[0])
    _core.norm_rows_backward(*map(on_gpu, (grad, outs[0], rstds[0], grads[1])))
    assert_near(grads[1], grads[0], 2.0 if x_type == HALF else 20.0)
    if grad_type == x_type:  # in place
        _core.norm_rows_backward(*map(on_gpu, (grad, outs[0], rstds[0], grad)))
        assert torch.equal(grad, grads[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("device", [0, 1])
def test_through_the_ops(dtype, device):
    x, branch = (np.random.default_rng(i).standard_normal((3, 20, 72)).astype(dtype) for i in range(2))
    mod = np.random.default_rng(2).standard_normal((3, 6 * 72)).astype(dtype)
    gate, shift, scale = mod[:, :72], mod[:, 72:144], mod[:, 144:216]
    arrays = (x, branch, gate, shift, scale)
    gpus = [fake_cupy.ndarray(array, device) for array in arrays]
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for mine, want in zip(
        [
            *adaln.gated_residual_adaln(*gpus),
            adaln.gated_residual(*gpus[:3]),
            adaln.adaln(gpus[0], *gpus[3:]),
        ],
        [
            *adaln.gated_residual_adaln(*arrays),
            adaln.gated_residual(*arrays[:3]),
            adaln.adaln(x, *arrays[3:]),
        ],
        strict=True,
    ):
        assert mine.device_id == device and mine.host.dtype == want.dtype
        np.testing.assert_allclose(mine.host, want, rtol=tolerance, atol=tolerance)
    for mine, want in zip(adaln.qk_norm(*gpus[:2]), adaln.qk_norm(*arrays[:2]), strict=True):
        np.testing.assert_allclose(mine.host, want, rtol=tolerance, atol=tolerance)
    out = fake_cupy.ndarray(x.copy(), device)
    assert adaln.gated_residual(out, *gpus[1:3], out=out) is out
    np.testing.assert_allclose(out.host, adaln.gated_residual(*arrays[:3]), rtol=tolerance, atol=tolerance)


def test_a_nan_stays_in_its_row():
    x = random(2, 6, 40)
    x[1, 2, 3] = torch.nan
    h = adaln.adaln(on_gpu(x)).host
    bad = np.isnan(h).any(axis=-1)
    assert bad.sum() == 1 and np.isnan(h[1, 2]).all()


def test_mixed_devices():
    x = random(2, 3, 8)
    with pytest.raises(TypeError, match="shift is on cuda:1 and x is on cuda:0, want one device"):
        adaln.adaln(on_gpu(x), on_gpu(x[:, 0], 1))
    with pytest.raises(TypeError, match="want arrays of one library"):
        adaln.adaln(on_gpu(x), x[:, 0].numpy())
