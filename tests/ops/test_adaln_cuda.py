"""The adaln family on a real GPU: `pytest -m gpu`. The same kernels run on the emulator in tests/simt."""

import itertools

import pytest
import torch

from tenfold import _core
from tenfold.ops import adaln
from tenfold.ops.reference import adaln as reference

if not (_core.cuda_device_count() and torch.cuda.is_available()):
    found = "found one" if torch.cuda.is_available() else "found none"
    why = f"no GPU for tenfold ({_core.cuda_reason() or 'found one'}) and torch ({found})"
    pytest.skip(why, allow_module_level=True)
pytestmark = pytest.mark.gpu

SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64
TYPES = [*itertools.product([SINGLE, HALF], repeat=2), (DOUBLE, DOUBLE)]
TOLERANCE = {SINGLE: 1e-4, HALF: 0.05, DOUBLE: 1e-12}
SIZES = [(16, 256, 384), (64, 16, 384), (2, 9, 1030), (3, 33, 1), (4, 100, 1152), (0, 3, 8), (3, 0, 8)]


def leaves_of(sizes, x_type, other):
    samples, _, width = sizes
    leaves = [torch.randn(sizes).to(x_type), torch.randn(sizes).to(other)]
    leaves += [torch.randn(samples, 6 * width).to(other), *torch.randn(2, width).to(other)]
    return leaves


def block(library, x, branch, mod, weight, bias, dtype):
    gate, shift, scale = mod.chunk(6, dim=1)[:3]
    vectors = {"weight": weight, "bias": bias, "eps": 1e-2, "dtype": dtype}
    residual, h = library.gated_residual_adaln(x, branch, gate, shift, scale, **vectors)
    q, k = library.qk_norm(residual, branch, 1e-2)
    last = library.gated_residual(x, branch, gate), library.adaln(x, shift, scale, eps=1e-2)
    return residual, h, q, k, *last


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("types", TYPES, ids=str)
def test_results_and_gradients(types, sizes):
    x_type, other = types
    dtype = None if x_type == DOUBLE else other
    leaves = [leaf.cuda().requires_grad_() for leaf in leaves_of(sizes, x_type, other)]
    exact = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    gots, wants = block(adaln, *leaves, dtype), block(reference, *exact, None)
    upstream = [torch.randn(sizes, dtype=DOUBLE) for _ in wants]
    loss = sum((a.double() * b.cuda()).sum() for a, b in zip(gots, upstream, strict=True))
    wanted_loss = sum((a * b).sum() for a, b in zip(wants, upstream, strict=True))
    grads = torch.autograd.grad(loss, leaves)
    wanted_grads = torch.autograd.grad(wanted_loss, exact)
    tolerance = TOLERANCE[HALF if HALF in types else x_type]
    for got, want in zip((*gots, *grads), (*wants, *wanted_grads), strict=True):
        scale = float(want.abs().max()) if want.numel() else 0.0
        torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=tolerance * max(scale, 1.0))


def test_autocast_and_compile():
    x, mod = torch.randn(4, 16, 64).cuda(), torch.randn(4, 128).cuda()
    shift, scale = mod.chunk(2, dim=1)
    with torch.autocast("cuda", dtype=HALF):
        h = adaln.adaln(x, shift, scale)
    assert h.dtype == HALF and torch.equal(h, adaln.adaln(x, shift, scale, dtype=HALF))
    compiled = torch.compile(lambda x: adaln.adaln(x, shift, scale), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), adaln.adaln(x, shift, scale))


def test_cuda_graph():
    x, branch, gate = torch.randn(4, 16, 64).cuda(), torch.randn(4, 16, 64).cuda(), torch.randn(4, 64).cuda()

    def step():
        return adaln.gated_residual_adaln(x, branch, gate, gate, gate)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    x.normal_()
    branch.normal_()
    graph.replay()
    torch.cuda.synchronize()
    for mine, want in zip(got, step(), strict=True):
        assert torch.equal(mine, want)


def test_mixed_devices():
    with pytest.raises(TypeError, match="shift is on cpu and x is on cuda:0, want one device"):
        adaln.adaln(torch.zeros(1, 2, 3).cuda(), torch.zeros(1, 3))
