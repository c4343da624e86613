"""The CUDA kernels of activation against the CPU's. Run by test_kernels.py on the emulator.

Elementary functions are the C library's on the "GPU" and our own on the CPU, so results agree to rounding.
bfloat16 is two opaque bytes on the "GPU" and a torch tensor on the CPU.
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
from tenfold.ops.activation import activate, gated_activation

fake_cupy.install()
register_torch()  # which the op would do for a torch tensor

FEW = settings(max_examples=40, deadline=None, derandomize=True)
SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64
TOLERANCE = {SINGLE: 1e-6, HALF: 2**-7, DOUBLE: 1e-14}
KINDS = ["gelu", "gelu_tanh", "silu", "relu"]


def on_gpu(tensor, device=0):
    """The memory of a CPU tensor seen as an array on a GPU."""
    if tensor is None:
        return None
    if tensor.dtype == HALF:
        return fake_cupy.ndarray(tensor.view(torch.int16).numpy().view(fake_cupy.BFLOAT16), device)
    return fake_cupy.ndarray(tensor.numpy(), device)


def random(*shape, dtype=SINGLE, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype) * 3


def laid(x, kind):
    """The same values: dense, as a part of wider rows that is aligned or not, or in another order of rows."""
    if kind == 3 and x.dim() > 2:
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if kind in (0, 3):
        return x
    pad = 8 if kind == 1 else 3
    return torch.cat([torch.zeros(*x.shape[:-1], pad, dtype=x.dtype), x], dim=-1)[..., pad:]


def nans(shape, dtype, kind):
    """Memory of NaN for the CPU and for the GPU."""
    return [laid(torch.full(shape, torch.nan, dtype=dtype), kind) for _ in range(2)]


def assert_near(gpu, cpu):
    # Values and slopes are good to 3e-7; a gate or a gradient multiplies them, with numbers of up to 13.
    tolerance = TOLERANCE[cpu.dtype]
    largest = float(cpu.nan_to_num(0.0, 0.0, 0.0).abs().max()) if cpu.numel() else 0.0
    torch.testing.assert_close(gpu, cpu, rtol=tolerance, atol=tolerance * max(1.0, largest), equal_nan=True)


def compare(x, grad, kind, gated, layouts):
    out, gpu_out = nans(grad.shape, x.dtype, layouts[0])
    _core.activate(x, out, kind, gated)
    _core.activate(on_gpu(x), on_gpu(gpu_out), kind, gated)
    assert_near(gpu_out, out)
    for wanted in (False, True):
        x_grad, gpu_x_grad = nans(x.shape, x.dtype, layouts[1])
        values, gpu_values = nans(grad.shape, x.dtype, layouts[2]) if wanted else (None, None)
        _core.activate_backward(grad, x, x_grad, values, kind, gated)
        arrays = map(on_gpu, (grad, x, gpu_x_grad, gpu_values))
        _core.activate_backward(*arrays, kind, gated)
        scale = grad.abs().max().clamp(1) * x.abs().max().clamp(1) if grad.numel() else 1
        assert_near(gpu_x_grad / scale, x_grad / scale)
        if wanted:
            assert torch.equal(gpu_values, gpu_out)


@FEW
@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=3),
    st.sampled_from([1, 3, 4, 8, 40, 64, 136, 257]),
    st.sampled_from([SINGLE, HALF, DOUBLE]),
    st.sampled_from(KINDS),
    st.booleans(),
    st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_random_shapes(lead, width, dtype, kind, gated, layouts):
    x = laid(random(*lead, (2 if gated else 1) * width, dtype=dtype), layouts[3])
    grad = laid(random(*lead, width, dtype=dtype, seed=1), layouts[4])
    compare(x, grad, kind, gated, layouts)


@pytest.mark.parametrize("dtype", [SINGLE, HALF, DOUBLE], ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_more_units_than_threads(kind, gated, dtype):
    for width, layout in ((37, 0), (16, 0), (64, 1)):
        x = laid(random(300, 3, (1 + gated) * width, dtype=dtype), layout)
        compare(x, random(300, 3, width, dtype=dtype, seed=1), kind, gated, (layout, 0, layout))


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity(kind):
    special = [math.inf, -math.inf, math.nan, 0.0, -0.0, 1e9, -1e9, 1.0]
    pairs = torch.tensor(list(itertools.product(special, repeat=2)))
    for dtype in (SINGLE, HALF, DOUBLE):
        columns = pairs.to(dtype).t().contiguous()
        for gated, x in ((False, columns[:1]), (True, columns.reshape(1, -1))):
            out, gpu_out = nans(columns[1:].shape, dtype, 0)
            _core.activate(x, out, kind, gated)
            _core.activate(on_gpu(x), on_gpu(gpu_out), kind, gated)
            torch.testing.assert_close(gpu_out, out, equal_nan=True, rtol=0.01, atol=1e-6)
            grad, gpu_grad = nans(x.shape, dtype, 0)
            _core.activate_backward(columns[1:].flip(1), x, grad, None, kind, gated)
            arrays = (on_gpu(columns[1:].flip(1).contiguous()), on_gpu(x), on_gpu(gpu_grad))
            _core.activate_backward(*arrays, None, kind, gated)
            torch.testing.assert_close(gpu_grad, grad, equal_nan=True, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_out_in_place(gated):
    x, grad = random(9, 48), random(9, 24 if gated else 48, seed=1)
    want, x_grad = torch.empty_like(grad), torch.empty_like(x)
    _core.activate(x, want, "silu", gated)
    _core.activate_backward(grad, x, x_grad, None, "silu", gated)
    memory = x.clone()
    out = memory[:, :24] if gated else memory
    _core.activate(on_gpu(memory), on_gpu(out), "silu", gated)
    assert_near(out, want)
    memory, values = x.clone(), grad.clone()
    _core.activate_backward(on_gpu(values), on_gpu(memory), on_gpu(memory), on_gpu(values), "silu", gated)
    assert_near(memory, x_grad)
    assert_near(values, want)


def test_through_the_ops():
    for dtype in (np.float32, np.float64):
        x = random(5, 3, 34).numpy().astype(dtype)
        for function, kind in itertools.product((activate, gated_activation), KINDS):
            got = function(fake_cupy.ndarray(x), kind)
            np.testing.assert_allclose(got.host, function(x, kind), rtol=1e-6, atol=1e-6)
    memory = fake_cupy.ndarray(x.copy())
    assert activate(memory, out=memory) is memory
    np.testing.assert_allclose(memory.host, activate(x), rtol=1e-12, atol=1e-12)


def test_other_devices_are_refused():
    x = random(2, 4).numpy()
    with pytest.raises(TypeError, match="out is on cuda:1 and x is on cuda:0, want one device"):
        activate(fake_cupy.ndarray(x), out=fake_cupy.ndarray(x.copy(), 1))
