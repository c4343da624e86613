"""The layers of several experts against loops over samples, experts and tokens."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from tenfold.nn.moe import ExpertChoiceFFN, TopKFFN  # noqa: E402
from tenfold.ops.moe import expert_capacity  # noqa: E402


def looped_choice(layer, x):
    """The definition, one token of one expert at a time."""
    out = torch.zeros_like(x)
    experts = layer.w_in.shape[0]
    taken = expert_capacity(x.shape[1], experts, layer.capacity)
    for b, sample in enumerate(x):
        scores = layer.router(sample).softmax(dim=-1)
        for e in range(experts):
            for t in scores[:, e].topk(taken).indices:
                out[b, t] += scores[t, e] * (F.gelu(sample[t] @ layer.w_in[e]) @ layer.w_out[e])
    return out


def looped_topk(layer, x):
    out = torch.zeros_like(x)
    for t, token in enumerate(x):
        best = layer.router(token).topk(layer.k)
        for gate, e in zip(best.values.softmax(dim=0), best.indices, strict=True):
            value, factor = (token @ layer.w_in[e]).chunk(2)
            out[t] += gate * ((F.silu(value) * factor) @ layer.w_out[e])
    return out


@pytest.mark.parametrize(
    ("tokens", "experts", "capacity"), [(16, 4, 2.0), (7, 3, 1.0), (5, 8, 1.0), (6, 2, 4.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_expert_choice_equals_the_loop(tokens, experts, capacity, dtype):
    torch.manual_seed(0)
    layer = ExpertChoiceFFN(6, 10, experts, capacity).to(dtype)
    layer.router.weight.data.mul_(50)  # spread the scores
    x = torch.randn(3, tokens, 6, dtype=dtype)
    torch.testing.assert_close(layer(x), looped_choice(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_topk_equals_the_loop(dtype):
    torch.manual_seed(1)
    layer = TopKFFN(6, 10, 5).to(dtype)
    layer.router.weight.data.mul_(50)
    x = torch.randn(4, 9, 6, dtype=dtype)
    want = looped_topk(layer, x.view(-1, 6)).view(x.shape)
    torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [ExpertChoiceFFN(6, 10, 3), TopKFFN(6, 10, 3)])
def test_all_parameters_get_gradients(layer):
    torch.manual_seed(2)
    out = layer(torch.randn(2, 9, 6)).square().sum()
    if isinstance(layer, TopKFFN):
        out = out + layer.balance_loss + layer.z_loss
    out.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_the_balance_loss_is_smaller_for_even_use():
    torch.manual_seed(3)
    layer = TopKFFN(6, 10, 4, k=1)
    x = torch.randn(400, 6)
    layer(x)
    even = layer.balance_loss
    layer.router.weight.data[0] = 5 * x.mean(dim=0)
    layer.router.weight.data[0, 0] += 10
    layer(x.abs())
    assert layer.balance_loss > even
    layer.eval()
    layer.balance_loss = None
    layer(x)
    assert layer.balance_loss is None


def test_under_autocast_the_router_stays_in_float32():
    layer = ExpertChoiceFFN(6, 10, 3)
    x = torch.randn(2, 9, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.logits(x).dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16
