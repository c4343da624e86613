"""PairMLP: all pairs at once against pairs one by one, and against torch's own layers."""

import re

import pytest
import torch
from torch import nn

from tenfold.nn.pairwise import PairMLP
from tenfold.ops.reference import pairwise as reference

KINDS = list(reference.ACTIVATIONS)


def everything(x, y):
    """All pairs as rows."""
    n, m = len(x), len(y)
    return x[:, None].expand(n, m, -1).flatten(0, 1), y[None].expand(n, m, -1).flatten(0, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [(5,), (16, 16), (64, 3)])
def test_pairs_are_the_forward_pass_of_each_pair(hidden, bias, kind):
    torch.manual_seed(0)
    module = PairMLP(3, 2, hidden, kind, bias)
    x, y = torch.randn(11, 3, requires_grad=True), torch.randn(7, 2, requires_grad=True)
    leaves = [x, y, *module.parameters()]
    got, want = module.pairs(x, y), module(*everything(x, y)).reshape(11, 7)
    torch.testing.assert_close(got, want)
    weights = torch.randn(11, 7)
    torch.testing.assert_close(
        torch.autograd.grad((got * weights).sum(), leaves),
        torch.autograd.grad((want * weights).sum(), leaves),
    )


def test_it_is_a_perceptron_of_torch():
    torch.manual_seed(1)
    module = PairMLP(3, 2)
    torch.manual_seed(1)
    twin = nn.Sequential(nn.Linear(5, 16), nn.ELU(), nn.Linear(16, 16), nn.ELU(), nn.Linear(16, 1))
    for mine, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    x, y = torch.randn(4, 6, 3), torch.randn(4, 6, 2)
    assert torch.equal(module(x, y), twin(torch.cat([x, y], -1)).squeeze(-1))
    assert len(list(PairMLP(3, 2, (8,)).parameters())) == 4
    assert len(list(PairMLP(3, 2, bias=False).parameters())) == 3


def test_types_and_autocast():
    x, y = torch.randn(4, 3), torch.randn(5, 2)
    module = PairMLP(3, 2)
    want = module.pairs(x, y)
    torch.testing.assert_close(module.double().pairs(x.double(), y.double()).float(), want)
    module.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module.pairs(x, y)
        assert got.dtype == module(*everything(x, y)).dtype == torch.bfloat16
        got.float().sum().backward()
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
    half = PairMLP(3, 2).bfloat16()
    assert half.pairs(x.bfloat16(), y.bfloat16()).dtype == torch.bfloat16


def test_float16_is_computed_in_float32():
    x, y = torch.randn(4, 3), torch.randn(5, 2)
    module = PairMLP(3, 2)
    want = module.pairs(x, y)
    with torch.autocast("cpu", dtype=torch.float16):
        got = module.pairs(x, y)
        assert got.dtype == module(*everything(x, y)).dtype == torch.float16
        got.float().sum().backward()
    torch.testing.assert_close(got.float(), want, rtol=5e-3, atol=5e-3)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
    half = module.half()
    torch.testing.assert_close(half.pairs(x.half(), y.half()), got, rtol=5e-3, atol=5e-3)


def test_under_compile():
    module = PairMLP(3, 2)
    x, y = torch.randn(4, 3), torch.randn(5, 2)
    compiled = torch.compile(module.pairs, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), module.pairs(x, y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 2, ()), "hidden is (), want one or two widths from 1 to 64"),
        ((3, 2, (4, 4, 4)), "hidden is (4, 4, 4), want one or two widths"),
        ((3, 2, (65,)), "hidden is (65,), want one or two widths from 1 to 64"),
        ((3, 2, (0,)), "hidden is (0,), want one or two widths"),
        ((3, 2, (4,), "swish"), "activation is 'swish', want one of elu, relu"),
        ((0, 2), "in_x is 0, want at least 1"),
        ((2, 0), "in_y is 0, want at least 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PairMLP(*arguments)
