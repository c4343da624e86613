"""The moe family on a real GPU: `pytest -m gpu`. The same kernels run on the emulator in tests/simt."""

import pytest
import torch

from tenfold import _core, ops
from tenfold.ops import moe
from tenfold.ops.reference import moe as reference

if not (_core.cuda_device_count() and torch.cuda.is_available()):
    found = "found one" if torch.cuda.is_available() else "found none"
    why = f"no GPU for tenfold ({_core.cuda_reason() or 'found one'}) and torch ({found})"
    pytest.skip(why, allow_module_level=True)
pytestmark = pytest.mark.gpu

TYPES = [torch.float32, torch.bfloat16, torch.float64]


def to_cpu(routing):
    return moe.Routing(*(array.cpu() for array in routing))


def same_routing(gpu, cpu):
    for name, mine, want in zip(cpu._fields, to_cpu(gpu), cpu, strict=True):
        if name == "gates":
            torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(mine, want), name


@pytest.mark.parametrize(("tokens", "experts", "k"), [(0, 3, 2), (1, 1, 1), (4096, 8, 2), (700, 256, 8)])
@pytest.mark.parametrize("renormalize", [False, True])
def test_topk(tokens, experts, k, renormalize):
    logits = torch.randn(tokens, experts)
    want = moe.route_topk(logits, k, renormalize=renormalize)
    same_routing(moe.route_topk(logits.cuda(), k, renormalize=renormalize), want)
    ops.synchronize()


@pytest.mark.parametrize("shape", [(0, 4, 2, 1), (16, 256, 8, 64), (2, 1024, 64, 32), (3, 9, 4, 0)])
def test_expert_choice(shape):
    *sizes, capacity = shape
    routing = moe.route_expert_choice(torch.randn(*sizes).cuda(), capacity)
    batch, tokens, experts = sizes
    assert routing.offsets.tolist() == [(e + 1) * batch * capacity for e in range(experts)]
    host = to_cpu(routing)
    for token in range(0, batch * tokens, 7):
        rows = host.rows[host.starts[token] : host.starts[token + 1]].long()
        assert torch.all(host.token_ids[rows] == token)
    ties = moe.route_expert_choice(torch.zeros(2, 300, 4).cuda(), 70)
    same_routing(ties, moe.route_expert_choice(torch.zeros(2, 300, 4), 70))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("width", [1, 37, 384])
def test_dispatch_combine_and_their_gradients(width, dtype):
    routing = moe.route_topk(torch.randn(500, 8).cuda(), 2)
    x = torch.randn(500, width, dtype=dtype, device="cuda")

    def run(library, x, routing):
        x = x.detach().requires_grad_()
        gates = routing.gates.detach().clone().requires_grad_()
        used = routing._replace(gates=gates)
        out = library.combine(library.dispatch(x, used) * 2, used)
        out.double().sin().sum().backward()  # in float32, two libraries' sines would be compared too
        return out.detach().cpu(), x.grad.cpu(), gates.grad.cpu()

    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float64: 1e-6}[dtype]
    wants = run(reference, x.cpu(), to_cpu(routing))
    for mine, want in zip(run(moe, x, routing), wants, strict=True):
        torch.testing.assert_close(mine, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("renormalize", [False, True])
def test_gradient_of_the_gates(renormalize):
    logits = torch.randn(300, 12)
    grads = []
    for device in ("cuda", "cpu"):
        leaf = logits.detach().to(device, copy=True).requires_grad_()
        gates = moe.route_topk(leaf, 3, renormalize=renormalize).gates
        (gates * torch.linspace(0, 1, 900, device=device)).sum().backward()
        grads.append(leaf.grad.cpu())
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_expert_ffn(dtype):
    routing = moe.route_topk(torch.randn(200, 4).cuda(), 2)
    x, w_in, w_out = (
        torch.randn(*shape, dtype=dtype, device="cuda").div(4).requires_grad_()
        for shape in ((200, 32), (4, 32, 48), (4, 48, 32))
    )
    out = moe.expert_ffn(x, routing, w_in, w_out)
    want = reference.expert_ffn(x.cpu(), to_cpu(routing), w_in.cpu(), w_out.cpu())
    tolerance = 0.05 if dtype == torch.bfloat16 else 2e-2
    torch.testing.assert_close(out.cpu(), want, rtol=tolerance, atol=tolerance)
    out.float().sum().backward()
    assert w_in.grad.isfinite().all() and w_out.grad.isfinite().all() and x.grad.isfinite().all()


def test_cuda_graph():
    logits, x = torch.randn(512, 8).cuda(), torch.randn(512, 64).cuda()

    def step():
        routing = moe.route_topk(logits, 2)
        return moe.combine(moe.dispatch(x, routing), routing)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    x.normal_()
    logits.normal_()
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(got, step())


def test_wrong_logits_are_raised_later():
    logits = torch.randn(40, 8).cuda()
    logits[7, 3] = torch.nan
    with pytest.raises(ValueError, match=r"logits\[7, 3\] of route_topk"):
        moe.route_topk(logits, 2)
        ops.synchronize()
    ops.synchronize()
