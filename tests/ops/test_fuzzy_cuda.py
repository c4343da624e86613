"""The fuzzy family on a real GPU: `pytest -m gpu`. tests/simt runs the same kernels on the emulator."""

import itertools

import pytest
import torch

from tenfold import _core, ops
from tenfold.ops import fuzzy
from tenfold.ops.reference import fuzzy as reference

if not (_core.cuda_device_count() and torch.cuda.is_available()):
    found = "found one" if torch.cuda.is_available() else "found none"
    why = f"no GPU for tenfold ({_core.cuda_reason() or 'found one'}) and torch ({found})"
    pytest.skip(why, allow_module_level=True)
pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2**-7, torch.float64: 1e-11}
AXES = ["x", "y", "xy"]
types = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def logs(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (-3 * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)


def check(mine, twin, operands):
    """Result and gradients on the GPU against the reference in float64."""
    leaves = [x.cuda().requires_grad_() for x in operands]
    exact = [x.double().requires_grad_() for x in operands]
    got, want = mine(*leaves), twin(*exact)
    upstream = torch.randn(want.shape, dtype=torch.float64).to(got.dtype)
    gots = [got, *torch.autograd.grad(got, leaves, upstream.cuda())]
    wants = [want, *torch.autograd.grad(want, exact, upstream.double())]
    tolerance = TOLERANCE[operands[0].dtype]
    for a, b in zip(gots, wants, strict=True):
        most = max(float(b.detach().abs().max()), 1e-6)
        torch.testing.assert_close(a.detach().cpu().double(), b.detach(), rtol=0, atol=tolerance * most)
    ops.synchronize()


@types
@pytest.mark.parametrize("reduce", ["y", "x", "xy", ""])
@pytest.mark.parametrize("sizes", [(7, 70), (3000, 2), (300, 2000)])
def test_quantifiers(sizes, reduce, dtype):
    x, y = sizes
    operands = [logs(x, dtype=dtype), logs(y, dtype=dtype, seed=1), logs(x, y, dtype=dtype, seed=2)]
    mask = torch.rand(x, y) < 0.5
    for conn, quant in itertools.product(("and", "or"), ("lme", "mean", "lse")):
        options = {"conn": conn, "quant": quant, "alpha": 2.0}
        check(
            lambda *xs, o=options: fuzzy.log_quantify(xs, AXES, reduce, guard=(mask.cuda(), "xy"), **o),
            lambda *xs, o=options: reference.log_quantify(xs, AXES, reduce, guard=(mask, "xy"), **o),
            operands,
        )
    truths = [x.double().exp().to(dtype) for x in operands]
    for agg, p in itertools.product(("pmean_error", "pmean", "mean"), (2.0, 6.5)):
        options = {"formula": "0 1 and 2 implies", "agg": agg, "p": p}
        check(
            lambda *xs, o=options: fuzzy.fuzzy_quantify(xs, AXES, reduce, **o),
            lambda *xs, o=options: reference.fuzzy_quantify(xs, AXES, reduce, **o),
            truths,
        )


@types
def test_products_atoms_and_segments(dtype):
    a, b = logs(2, 70, 40, dtype=dtype), logs(2, 40, 50, dtype=dtype, seed=1)
    check(lambda a, b: fuzzy.logmatmul(a, b, 2.0), lambda a, b: reference.logmatmul(a, b, 2.0), [a, b])
    z = (logs(300, 17, dtype=torch.float64) * 4 + 6).to(dtype)
    for kind, part in itertools.product(("sigmoid", "softmax"), range(2)):
        check(
            lambda z, k=kind, p=part: fuzzy.atom_logits(z, k)[p],
            lambda z, k=kind, p=part: reference.atom_logits(z, k)[p],
            [z],
        )
    ends = torch.tensor([0, 0, 300, 5000, 5100])
    check(
        lambda x: fuzzy.segment_logmeanexp(x, ends.cuda(), 2.0),
        lambda x: reference.segment_logmeanexp(x, ends, 2.0),
        [logs(5100, dtype=dtype)],
    )


def test_gradient_buffers_and_the_same_bits_again():
    x = logs(300, 2000).cuda().requires_grad_()
    results = []
    for _ in range(2):
        buffer = torch.zeros_like(x)
        fuzzy.log_quantify([x], ["xy"], "xy", grad_buffers=[buffer]).backward()
        results.append(buffer)
    assert x.grad is None and torch.equal(*results) and results[0].sum().item() == pytest.approx(1, abs=1e-4)


def test_wrong_indices_are_raised_later():
    z = torch.randn(5, 3, device="cuda")
    with pytest.raises(ValueError, match=r"index\[0, 2\] of atom_logits on a GPU"):
        fuzzy.atom_logits(z, "softmax", torch.tensor([0, 1, 3, 0, 0], device="cuda"))
        ops.synchronize()
