"""The pair perceptron on a real GPU: `pytest -m gpu`. tests/simt runs the same kernels on the emulator."""

import math

import pytest
import torch

from tenfold import _core, ops
from tenfold.ops.pairwise import pair_mlp
from tenfold.ops.reference import pairwise as reference

if not (_core.cuda_device_count() and torch.cuda.is_available()):
    found = "found one" if torch.cuda.is_available() else "found none"
    why = f"no GPU for tenfold ({_core.cuda_reason() or 'found one'}) and torch ({found})"
    pytest.skip(why, allow_module_level=True)
pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float64: 1e-12}
types = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def problem(n, m, H, K, dtype):
    shapes = [(n, H), (m, H), (K or H,), (), *([(K, H), (K,)] if K else [])]
    arrays = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    if K:
        arrays[4] /= math.sqrt(H)
    return [x.to(dtype) for x in arrays]


@types
@pytest.mark.parametrize("kind", list(reference.ACTIVATIONS))
@pytest.mark.parametrize("K", [None, 5, 16, 64])
@pytest.mark.parametrize(("n", "m", "H"), [(1, 1, 1), (3, 65, 16), (700, 1000, 16), (300, 70, 64), (0, 4, 3)])
def test_values_and_gradients(n, m, H, K, kind, dtype):
    arrays = problem(n, m, H, K, dtype)
    leaves = [x.cuda().requires_grad_() for x in arrays]
    exact = [x.double().requires_grad_() for x in arrays]
    got, want = pair_mlp(*leaves, activation=kind), reference.pair_mlp(*exact, activation=kind)
    grad = torch.randn(n, m, dtype=torch.float64).to(dtype)
    gots = [got, *torch.autograd.grad(got, leaves, grad.cuda())]
    wants = [want, *torch.autograd.grad(want, exact, grad.double())]
    for a, b in zip(gots, wants, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        if a.numel():
            most = max(float(b.detach().abs().max()), 1.0)
            bound = TOLERANCE[dtype] * most
            torch.testing.assert_close(a.detach().cpu().double(), b.detach(), rtol=0, atol=bound)
    ops.synchronize()


@types
def test_the_same_bits_again(dtype):
    leaves = [x.cuda().requires_grad_() for x in problem(600, 500, 16, 16, dtype)]
    grad = torch.randn(600, 500, device="cuda").to(dtype)
    runs = [torch.autograd.grad(pair_mlp(*leaves), leaves, grad) for _ in range(3)]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_in_a_graph_and_on_a_stream():
    arrays = [x.cuda() for x in problem(64, 256, 16, 16, torch.float32)]
    want = pair_mlp(*arrays)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        got = pair_mlp(*arrays)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, want)


def test_other_devices_are_refused():
    u, v, w, b = problem(3, 4, 5, None, torch.float32)
    with pytest.raises(TypeError, match="want one device"):
        pair_mlp(u.cuda(), v, w.cuda(), b.cuda())
