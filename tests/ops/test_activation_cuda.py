"""The activation family on a real GPU: `pytest -m gpu`. tests/simt runs the same kernels on the emulator."""

import pytest
import torch

from tenfold import _core, ops
from tenfold.ops import moe
from tenfold.ops.activation import activate, gated_activation
from tenfold.ops.reference import activation as reference

if not (_core.cuda_device_count() and torch.cuda.is_available()):
    found = "found one" if torch.cuda.is_available() else "found none"
    why = f"no GPU for tenfold ({_core.cuda_reason() or 'found one'}) and torch ({found})"
    pytest.skip(why, allow_module_level=True)
pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2**-7, torch.float64: 1e-13}
KINDS = ["gelu", "gelu_tanh", "silu", "relu"]
kinds = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("gated", [False, True], ids=["activate", "gated"])
types = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def functions(gated):
    return (gated_activation, reference.gated_activation) if gated else (activate, reference.activate)


@kinds
@both
@types
@pytest.mark.parametrize("shape", [(1, 2), (0, 4), (3, 74), (4096, 3072), (2, 300, 3, 34), (70000, 6)])
def test_values_and_gradients(shape, dtype, gated, kind):
    mine, twin = functions(gated)
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    leaf, exact = x.cuda().requires_grad_(), x.double().requires_grad_()
    got, want = mine(leaf, kind), twin(exact, kind)
    grad = torch.randn(want.shape, dtype=torch.float64).to(dtype)
    mine_grad = torch.autograd.grad(got, leaf, grad.cuda())[0]
    wanted = torch.autograd.grad(want, exact, grad.double())[0]
    tolerance = TOLERANCE[dtype]
    for a, b in ((got, want), (mine_grad, wanted)):
        torch.testing.assert_close(a.cpu().double(), b, rtol=tolerance, atol=8 * tolerance)
    ops.synchronize()


@both
@types
def test_strides_and_out(dtype, gated):
    mine, _ = functions(gated)
    x = torch.randn(7, 5, 96, dtype=torch.float64).to(dtype).cuda()
    for other in (x[..., :64], x[..., 3:67], x.transpose(0, 1), x.mT):
        if gated and other.shape[-1] % 2:
            continue
        assert torch.equal(mine(other), mine(other.contiguous()))
    want = mine(x)
    out = x[..., :48] if gated else x
    assert mine(x, out=out) is out and torch.equal(out, want)


def test_in_a_graph_and_on_a_stream():
    x = torch.randn(64, 256, device="cuda")
    want = gated_activation(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        got = gated_activation(x)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, want)


@kinds
@both
@types
def test_experts(dtype, gated, kind):
    """Whose way through torch ends in these kernels."""
    routing = moe.route_topk(torch.randn(200, 4).cuda(), 2)
    leaves = [torch.randn(200, 16), torch.randn(4, 16, 64), torch.randn(4, 32 if gated else 64, 16)]
    results = []
    for device in ("cuda", "cpu"):
        mine = [leaf.to(dtype).to(device).requires_grad_() for leaf in leaves]
        moved = moe.Routing(*(array.to(device) for array in routing))
        out = moe.expert_ffn(mine[0], moved, *mine[1:], kind, gated=gated)
        results.append([out.detach(), *torch.autograd.grad(out.double().sin().sum(), mine)])
    for a, b in zip(*results, strict=True):
        tolerance = (0.1 if dtype == torch.bfloat16 else 1e-4) * float(b.double().abs().max())
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=tolerance)


def test_other_devices_are_refused():
    x = torch.randn(2, 4)
    with pytest.raises(TypeError, match="want one device"):
        activate(x.cuda(), out=x)
