"""The expert-choice layer against a loop over samples, experts and tokens."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from tenfold.ops.reference.moe import ExpertChoiceFFN, expert_capacity, route_expert_choice  # noqa: E402


def looped(layer, x):
    """The definition, one token of one expert at a time."""
    out = torch.zeros_like(x)
    taken = expert_capacity(x.shape[1], layer.experts, layer.capacity)
    for b, sample in enumerate(x):
        scores = layer.router(sample).softmax(dim=-1)
        for e in range(layer.experts):
            for t in scores[:, e].topk(taken).indices:
                out[b, t] += scores[t, e] * (F.gelu(sample[t] @ layer.up[e]) @ layer.down[e])
    return out


@pytest.mark.parametrize(
    ("tokens", "experts", "capacity"), [(16, 4, 2.0), (7, 3, 1.0), (5, 8, 1.0), (6, 2, 4.0)]
)
def test_equals_the_loop(tokens, experts, capacity):
    torch.manual_seed(0)
    layer, x = (
        ExpertChoiceFFN(6, 10, experts, capacity).double(),
        torch.randn(3, tokens, 6, dtype=torch.float64),
    )
    layer.router.weight.data.mul_(50)  # spread the scores
    torch.testing.assert_close(layer(x), looped(layer, x), rtol=1e-5, atol=1e-6)  # routing is float32


def test_ties_go_to_the_lower_token():
    routing = route_expert_choice(torch.zeros(1, 5, 2), 2)
    assert routing.token_ids.tolist() == [0, 1, 0, 1]
    assert torch.equal(routing.gates, torch.full((4,), 0.5))
    assert routing.offsets.tolist() == [2, 4] and routing.starts.tolist() == [0, 2, 4, 4, 4, 4]
    assert routing.rows.tolist() == [0, 2, 1, 3]


def test_capacity():
    assert expert_capacity(256, 8, 2.0) == 64
    assert expert_capacity(4, 8, 1.0) == 1
    assert expert_capacity(4, 2, 9.0) == 4


def test_all_parameters_get_gradients():
    layer = ExpertChoiceFFN(6, 10, 3)
    layer(torch.randn(2, 9, 6)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
