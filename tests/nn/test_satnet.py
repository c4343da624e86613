"""The layer that learns rules."""

import itertools
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from tenfold.nn.satnet import SATNet  # noqa: E402
from tenfold.ops.mixing import bound, mixing  # noqa: E402


def exclusive_or():
    """All cases of a xor b = c, and which are given."""
    cases = torch.tensor([(a, b, a ^ b) for a, b in itertools.product((0, 1), repeat=2)], dtype=torch.float32)
    return cases, torch.tensor([True, True, False]).expand(4, 3).contiguous()


def test_it_learns_exclusive_or():
    cases, is_input = exclusive_or()
    learnt = 0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        layer = SATNet(3, 8, aux=2, prox_lam=1e-1, generator=generator)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        for _ in range(150):
            out = layer(cases.repeat(8, 1), is_input.repeat(8, 1))[:, 2].clamp(1e-6, 1 - 1e-6)
            loss = torch.nn.functional.binary_cross_entropy(out, cases[:, 2].repeat(8))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        layer.eval()
        learnt += int(((layer(cases, is_input)[:, 2] > 0.5) == cases[:, 2].bool()).all())
    assert learnt >= 2  # it gets stuck from some starts


def test_seeds():
    cases, is_input = exclusive_or()
    z = cases * 0.8 + 0.1
    layer = SATNet(3, 6, aux=2, max_iter=2, generator=torch.Generator().manual_seed(0))
    first, second = layer(z, is_input), layer(z, is_input)
    assert not torch.equal(first, second)  # drawn anew
    layer.generator.manual_seed(0)
    torch.randn(layer.S.shape, generator=layer.generator)  # its parameter
    assert torch.equal(layer(z, is_input), first) and torch.equal(layer(z, is_input), second)
    layer.eval()
    assert torch.equal(layer(z, is_input), layer(z, is_input))
    want, report = mixing(layer.S.detach(), z, is_input, max_iter=2, seed=0, k=bound(6))
    assert torch.equal(layer(z, is_input).detach(), want)
    assert torch.equal(layer.report.niter, report.niter)
    layer.eval_seed = None
    assert not torch.equal(layer(z, is_input), layer(z, is_input))
    torch.manual_seed(3)
    plain = SATNet(3, 6, aux=2)
    torch.manual_seed(3)
    assert torch.equal(SATNet(3, 6, aux=2).S, plain.S)
    assert torch.equal(z[is_input], layer(z, is_input)[is_input])


def test_sizes_and_the_public_code():
    layer = SATNet(5, 4, aux=2, compat="official")
    assert layer.S.shape == (8, 4) and layer.k == 32 and layer.extra_repr() == "n=5, m=4, aux=2, k=32"
    assert SATNet(5, 4, 2).k == bound(8) == 5
    z = torch.full((2, 5), 0.3, requires_grad=True)
    is_input = torch.tensor([True, True, False, True, False])
    gradients = []
    for compat in ("official", None):
        layer.compat = compat
        layer.eval()
        gradients.append(torch.autograd.grad(layer(z, is_input).square().sum(), z)[0])
    assert not torch.allclose(*gradients)
    torch.manual_seed(0)
    scaled = SATNet(5, 4, 2).S
    torch.manual_seed(0)
    assert torch.allclose(SATNet(5, 4, 2, weight_normalize=False).S * (0.5 / 12) ** 0.5, scaled)


def test_state_dict_and_compile():
    cases, is_input = exclusive_or()
    layer, other = SATNet(3, 6, aux=2).eval(), SATNet(3, 6, aux=2).eval()
    other.load_state_dict(layer.state_dict())
    want = layer(cases, is_input)
    assert torch.equal(other(cases, is_input), want)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(cases, is_input), want)
    other.train()
    assert compiled(cases, is_input).shape == (4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0, want 1 or more"),
        ({"m": 0}, "m is 0, want 1 or more"),
        ({"aux": -1}, "aux is -1, want 0 or more"),
        ({"max_iter": 0}, "max_iter is 0, want 1 or more"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"prox_lam": 0.0}, "prox_lam is 0.0, want a positive number"),
        ({"k": 1}, "k is 1, want 2 or more, or None"),
        ({"compat": "public"}, "compat is 'public'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SATNet(**({"n": 3, "m": 4} | arguments))


def test_wrong_input():
    layer = SATNet(3, 4)
    with pytest.raises(ValueError, match=r"z has shape \(2, 4\), want \(samples, 3\)"):
        layer(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="is_input has type int64, want bool"):
        layer(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64))


def test_the_ops_alone_load_no_torch():
    code = "import sys, tenfold.ops, tenfold.ops.mixing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seeds_are_drawn_in_cpu_memory_whatever_the_default_device():
    layer = SATNet(3, 6, aux=2)
    z, is_input = torch.rand(4, 3), torch.tensor([True, True, False]).expand(4, 3)
    with torch.device("meta"):
        assert layer(z, is_input).device.type == "cpu"
        assert layer.requires_grad_(False).eval()(z, is_input).device.type == "cpu"
