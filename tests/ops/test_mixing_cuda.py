"""The mixing method on a real GPU: `pytest -m gpu`. The same kernels run on the emulator in tests/simt."""

import pytest
import torch

from tenfold import _core, ops
from tenfold.ops.mixing import mixing, mixing_backward, mixing_forward

if not (_core.cuda_device_count() and torch.cuda.is_available()):
    found = "found one" if torch.cuda.is_available() else "found none"
    why = f"no GPU for tenfold ({_core.cuda_reason() or 'found one'}) and torch ({found})"
    pytest.skip(why, allow_module_level=True)
pytestmark = pytest.mark.gpu

SIZES = [(3, 5, 2, 4), (100, 3, 4, 4), (40, 64, 32, 80), (5, 729, 300, 600), (300, 20, 0, 3)]


def problem(B, n, aux, m, seed=0):
    generator = torch.Generator().manual_seed(seed)
    S = torch.randn(1 + n + aux, m, generator=generator) * (1 / (n + aux + m)) ** 0.5
    z = torch.randint(0, 5, (B, n), generator=generator) / 4
    is_input = torch.rand(B, n, generator=generator) < 0.4
    is_input[:, n // 2] = False
    return S, z, is_input


@pytest.mark.parametrize("sizes", SIZES)
def test_solution_and_gradients(sizes):
    arrays = problem(*sizes)
    there = [x.cuda() for x in arrays]
    options = {"max_iter": 6, "eps": 0.0, "seed": 7, "offset": 2}
    want, got = mixing_forward(*arrays, **options), mixing_forward(*there, **options)
    assert torch.equal(got.order.cpu(), want.order) and torch.equal(got.negative.cpu(), want.negative)
    for name in ("z", "V", "norms"):
        torch.testing.assert_close(getattr(got, name).cpu(), getattr(want, name), rtol=1e-3, atol=1e-3)
    grad = torch.randn(sizes[0], sizes[1], generator=torch.Generator().manual_seed(1))
    exact = type(want)(*(x.cuda() for x in want))
    wants = mixing_backward(*arrays, want, grad)
    for mine, other in zip(mixing_backward(*there, exact, grad.cuda()), wants, strict=True):
        torch.testing.assert_close(mine.cpu(), other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
    ops.synchronize()


def test_autograd_and_the_same_bits_again():
    S, z, is_input = (x.cuda() for x in problem(40, 64, 32, 80))
    S.requires_grad_()
    results = []
    for _ in range(2):
        out, report = mixing(S, z, is_input, seed=3)
        results.append((out.detach(), report.niter, *torch.autograd.grad(out.square().sum(), S)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert len(set(results[0][1].tolist())) > 1
    ops.synchronize()


def test_cuda_graph():
    S, z, is_input = (x.cuda() for x in problem(8, 30, 4, 20))
    mixing(S, z, is_input)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = mixing(S, z, is_input)[0]
    z.copy_(1 - z)
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(got, mixing(S, z, is_input)[0], rtol=0, atol=0)


def test_wrong_values_are_raised_later():
    S, z, is_input = (x.cuda() for x in problem(3, 5, 2, 4))
    z[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"z\[1, 2\] of mixing"):
        mixing(S, z, is_input)
        ops.synchronize()
    ops.synchronize()
