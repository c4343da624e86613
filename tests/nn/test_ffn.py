"""Feed-forward layers against their plain forms, in the types of the ops and in others."""

import pytest
import torch
from torch.nn import functional as F

from tenfold.nn.ffn import MLP, SwiGLU

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 3e-3}
types = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def plain_swiglu(layer, x):
    gate, up = layer.gate_up(x).chunk(2, dim=-1)
    return layer.down(F.silu(gate) * up)


def plain_mlp(layer, x):
    return layer.down(layer.norm(F.gelu(layer.up(x), approximate="tanh")))


def check(layer, plain, dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    exact = layer.double()
    want = plain(exact, x)
    wants = torch.autograd.grad(want.sum(), tuple(exact.parameters()))
    layer = layer.to(dtype)
    got = layer(x.to(dtype))
    gots = torch.autograd.grad(got.sum(), tuple(layer.parameters()))
    for a, b in zip((got, *gots), (want, *wants), strict=True):
        assert a.dtype == dtype
        tolerance = TOLERANCE[dtype] * max(1.0, float(b.detach().abs().max()))
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance)


@types
def test_swiglu(dtype):
    check(SwiGLU(12, 20), plain_swiglu, dtype)


@types
@pytest.mark.parametrize("norm", [False, True])
def test_mlp(dtype, norm):
    check(MLP(12, 20, 7, norm=norm), plain_mlp, dtype)


@pytest.mark.parametrize("layer", [SwiGLU(12, 20), MLP(12, 20, 12)], ids=["swiglu", "mlp"])
def test_autocast_computes_in_bfloat16(layer):
    x = torch.randn(3, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
