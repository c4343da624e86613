"""The moe ops against their plain-torch twins, on random shapes, strides and types."""

import re
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tenfold.ops import moe  # noqa: E402
from tenfold.ops.reference import moe as reference  # noqa: E402

SETTINGS = settings(max_examples=100, deadline=None)
TYPES = [torch.float32, torch.bfloat16, torch.float64]


def random_logits(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype) * 3


@st.composite
def topk_problems(draw):
    """logits (T, E), k; coarse ones have many ties."""
    tokens, experts = draw(st.integers(0, 300)), draw(st.integers(1, 70))
    k = draw(st.integers(1, min(experts, 9)))
    logits = random_logits(tokens, experts, seed=draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        logits = logits.round()
    if draw(st.booleans()):
        logits = logits.bfloat16()
    return (logits.t().contiguous().t() if draw(st.booleans()) else logits), k


@st.composite
def choice_problems(draw):
    """logits (B, N, E), capacity."""
    batch, tokens, experts = draw(st.integers(0, 4)), draw(st.integers(0, 90)), draw(st.integers(1, 40))
    logits = random_logits(batch, tokens, experts, seed=draw(st.integers(0, 2**32)))
    logits = logits.bfloat16() if draw(st.booleans()) else logits
    return (logits.transpose(0, 1).contiguous().transpose(0, 1) if draw(st.booleans()) else logits), draw(
        st.integers(0, tokens)
    )


def assert_same_routing(got, want):
    for name in ("token_ids", "offsets", "starts", "rows"):
        a, b = getattr(got, name), getattr(want, name)
        assert a.dtype == b.dtype and torch.equal(a, b), name
    torch.testing.assert_close(got.gates, want.gates, rtol=2e-6, atol=1e-7)


def assert_consistent(routing, tokens, experts):
    """What the five arrays say of each other."""
    ids, _, offsets, starts, rows = (array.numpy() for array in routing)
    assert np.all(np.diff(offsets) >= 0) and offsets[-1] == len(ids) and len(offsets) == experts
    assert starts[0] == 0 and starts[-1] == len(ids) and len(starts) == tokens + 1
    for token in range(tokens):
        mine = rows[starts[token] : starts[token + 1]]
        assert np.all(np.diff(mine) > 0) and np.all(ids[mine] == token)


@SETTINGS
@given(topk_problems(), st.booleans())
def test_topk(problem, renormalize):
    logits, k = problem
    routing = moe.route_topk(logits, k, renormalize=renormalize)
    assert_same_routing(routing, reference.route_topk(logits, k, renormalize))
    assert_consistent(routing, *logits.shape)


@SETTINGS
@given(choice_problems())
def test_expert_choice(problem):
    logits, capacity = problem
    batch, tokens, experts = logits.shape
    routing = moe.route_expert_choice(logits, capacity)
    assert_consistent(routing, batch * tokens, experts)
    assert routing.offsets.tolist() == [(e + 1) * batch * capacity for e in range(experts)]
    # Two softmaxes may differ in the last bit and so break a tie in another way: sets are compared by weight.
    weights = logits.float().softmax(dim=-1)
    chosen = routing.token_ids.view(experts, batch, capacity).long()
    assert torch.equal(chosen, chosen.sort(dim=-1).values)
    torch.testing.assert_close(
        routing.gates, weights.flatten(0, 1).t().gather(1, chosen.flatten(1)).flatten(), rtol=2e-6, atol=1e-7
    )
    if 0 < capacity < tokens:
        best = weights.permute(2, 0, 1).topk(capacity, dim=-1).values
        mine = routing.gates.view(experts, batch, capacity).sort(dim=-1, descending=True).values
        torch.testing.assert_close(mine, best, rtol=2e-6, atol=1e-7)


@SETTINGS
@given(st.integers(0, 200), st.integers(1, 40), st.integers(0, 5), st.integers(0, 2**32), st.booleans())
def test_a_choice_made_elsewhere(tokens, experts, k, seed, wide):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(experts, (tokens, k), generator=draw, dtype=torch.int64 if wide else torch.int32)
    weights = torch.rand(tokens, k, generator=draw)
    routing = moe.routing_from_ids(ids, weights, experts)
    assert_consistent(routing, tokens, experts)
    want = reference.routing_from_ids(ids, weights, experts)
    for mine, other in zip(routing, want, strict=True):
        assert mine.dtype == other.dtype and torch.equal(mine, other)
    across = ids.t().contiguous().t()
    arrays = moe.routing_from_ids(across.numpy(), weights.numpy(), experts)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(arrays, want, strict=True))


def test_gradient_of_given_weights():
    ids, weights = torch.tensor([[2, 0], [1, 2]]), torch.rand(2, 2, requires_grad=True)
    gates = moe.routing_from_ids(ids, weights, 3).gates
    assert torch.equal(gates, weights.flatten()[[1, 2, 0, 3]])
    (gates * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert torch.equal(weights.grad, torch.tensor([[3.0, 1.0], [2.0, 4.0]]))


def test_equal_weights_go_to_the_lower_token():
    routing = moe.route_expert_choice(torch.zeros(2, 5, 2), 2)
    assert routing.token_ids.tolist() == [0, 1, 5, 6, 0, 1, 5, 6]
    logits = torch.zeros(1, 6, 2)
    logits[0, [2, 4], 0] = 1
    assert moe.route_expert_choice(logits, 3).token_ids.tolist() == [0, 2, 4, 0, 1, 3]


@pytest.mark.parametrize("tokens", [1, 3, 257])
def test_thresholds_among_keys_that_are_close(tokens):
    # Weights that differ in their last bits only, and in all of them.
    generator = torch.Generator().manual_seed(tokens)
    close = torch.randn(3, tokens, 4, generator=generator) * 1e-6
    wide = torch.randn(3, tokens, 4, generator=generator) * 30
    for logits in (close, wide, torch.cat([close[:1], wide[1:]])):
        weights = logits.softmax(dim=-1)
        for capacity in {1, tokens // 2, tokens - 1, tokens} - {0}:
            routing = moe.route_expert_choice(logits, capacity)
            mine = routing.gates.view(4, 3, capacity).min(dim=-1).values
            best = weights.permute(2, 0, 1).sort(dim=-1, descending=True).values[..., capacity - 1]
            torch.testing.assert_close(mine, best, rtol=3e-6, atol=1e-37)  # below, exp is zero


@SETTINGS
@given(topk_problems(), st.integers(0, 140), st.sampled_from(TYPES), st.integers(0, 2), st.booleans())
def test_dispatch_and_combine(problem, width, dtype, kind, weighted):
    logits, k = problem
    routing = reference.route_topk(logits, k)
    x = random_logits(len(logits), width, dtype=dtype)
    y = random_logits(len(routing.rows), width, seed=1, dtype=dtype)
    if kind == 1:
        x, y = (torch.cat([t, t], dim=1)[:, : t.shape[1]] for t in (x, y))
    elif kind == 2:
        x, y = (t.t().contiguous().t() for t in (x, y))
    assert torch.equal(moe.dispatch(x, routing), reference.dispatch(x, routing))
    out = moe.combine(y, routing, weighted=weighted)
    assert out.dtype == dtype
    want = reference.combine(y, routing, weighted)
    rtol = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float64: 1e-14}[dtype]
    torch.testing.assert_close(out, want, rtol=rtol, atol=20 * rtol)


def test_a_token_without_rows_is_zero():
    routing = moe.route_expert_choice(torch.zeros(1, 5, 2), 2)
    out = moe.combine(torch.ones(4, 37), routing)
    assert torch.equal(out[2:], torch.zeros(3, 37)) and torch.equal(out[:2], torch.ones(2, 37))
    assert moe.statistics(routing).dropped == 3


def test_every_byte_is_written(monkeypatch):
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, 77, dtype))
    routing = moe.route_topk(random_logits(50, 7).numpy(), 3)
    want = moe.route_topk(random_logits(50, 7), 3)
    assert_same_routing(moe.Routing(*map(torch.from_numpy, routing)), want)
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, np.nan, dtype))
    x = np.random.default_rng(0).standard_normal((50, 45), np.float32)
    rows = moe.dispatch(x, routing)
    assert np.array_equal(rows, x[routing.token_ids])
    assert np.isfinite(moe.combine(rows, routing)).all()


def test_numpy_gives_the_same_bits():
    logits = random_logits(3, 40, 6)
    for routed, same in (
        (moe.route_topk(logits[0], 2), moe.route_topk(logits[0].numpy(), 2)),
        (moe.route_expert_choice(logits, 9), moe.route_expert_choice(logits.numpy(), 9)),
    ):
        for a, b in zip(routed, same, strict=True):
            assert np.array_equal(a.numpy(), b) and b.dtype == a.numpy().dtype
        x = random_logits(len(routed.starts) - 1, 20)
        rows, same_rows = moe.dispatch(x, routed), moe.dispatch(x.numpy(), same)
        assert np.array_equal(rows.numpy(), same_rows)
        assert np.array_equal(moe.combine(rows, routed).numpy(), moe.combine(same_rows, same))


def everything(dtype=torch.float32):
    logits = random_logits(700, 20, seed=4)
    routing = moe.route_topk(logits, 3)
    choice = moe.route_expert_choice(logits.view(7, 100, 20), 31)
    x = random_logits(700, 333, seed=5, dtype=dtype).requires_grad_()
    gates = routing.gates.clone().requires_grad_()
    out = moe.combine(moe.dispatch(x, routing), routing._replace(gates=gates))
    out.float().square().sum().backward()
    return [*routing, *choice, out.detach(), x.grad, gates.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(dtype):
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        results.append(everything(dtype))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- gradients ----


def routing_of(tokens=12, experts=4, k=2):
    return moe.route_topk(random_logits(tokens, experts), k)


def test_gradcheck_of_rows():
    routing = routing_of()
    x = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(24, 5, dtype=torch.float64, requires_grad=True)
    gates = routing.gates.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moe.dispatch(x, routing), x)
    assert torch.autograd.gradgradcheck(lambda x: moe.dispatch(x, routing), x)
    assert torch.autograd.gradcheck(lambda y: moe.combine(y, routing, weighted=False), y)
    assert torch.autograd.gradgradcheck(lambda y: moe.combine(y, routing, weighted=False), y)
    weighted = lambda y, g: moe.combine(y, routing._replace(gates=g))  # noqa: E731
    assert torch.autograd.gradcheck(weighted, (y, gates))
    assert torch.autograd.gradgradcheck(weighted, (y, gates))


def test_gates_have_a_first_gradient_only():
    logits = random_logits(12, 4).requires_grad_()
    gates = moe.route_topk(logits, 2).gates
    (grad,) = torch.autograd.grad(gates.square().sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="first gradient only"):
        grad.sum().backward()


@pytest.mark.parametrize("renormalize", [False, True, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_the_gates(renormalize, dtype):
    logits = random_logits(3, 30, 6, dtype=dtype)
    weights = torch.randn(3 * 6 * 10 if renormalize is None else 90 * 2)

    def gradient(library):
        x = logits.clone().requires_grad_()
        if renormalize is None:
            routing = library.route_expert_choice(x, 10)
        else:
            routing = library.route_topk(x.flatten(0, 1), 2, renormalize=renormalize)
        (routing.gates * weights).sum().backward()
        return x.grad

    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(gradient(moe), gradient(reference), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_against_the_reference(dtype):
    routing = routing_of(50, 8, 3)

    def gradients(library):
        x = (random_logits(50, 70, dtype=dtype) / 10).requires_grad_()
        gates = routing.gates.clone().requires_grad_()
        used = routing._replace(gates=gates)
        library.combine(library.dispatch(x, used).square(), used).float().sin().sum().backward()
        return x.grad, gates.grad

    for got, want in zip(gradients(moe), gradients(reference), strict=True):
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


# ---- torch.compile, opcheck, vmap, torch.func ----


def layer(x, logits):
    routing = moe.route_topk(logits, 2, renormalize=True)
    choice = moe.route_expert_choice(logits[None], 5)
    return moe.combine(moe.dispatch(x, routing).sin(), routing) + moe.combine(moe.dispatch(x, choice), choice)


def test_under_compile():
    x, logits = torch.randn(20, 8, requires_grad=True), torch.randn(20, 4, requires_grad=True)
    want = layer(x, logits)
    wanted = torch.autograd.grad(want.sum(), (x, logits))
    got = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, logits)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got.sum(), (x, logits)), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_opcheck():
    ops, routing = torch.ops.tenfold, routing_of()
    x, y = torch.randn(12, 5), torch.randn(24, 5)
    check = partial(torch.library.opcheck, test_utils=("test_schema", "test_faketensor"))
    check(ops.route_topk.default, (random_logits(12, 4), 2, True))
    check(ops.route_ids.default, (torch.randint(4, (12, 2)), 4))
    check(ops.route_expert_choice.default, (random_logits(2, 6, 4), 3))
    check(ops.route_backward.default, (random_logits(12, 4), torch.randn(24), False, *routing))
    check(ops.moe_dispatch.default, (x, routing.token_ids))
    check(ops.moe_combine.default, (y, routing.gates, routing.starts, routing.rows))
    check(ops.moe_combine.default, (y, None, routing.starts, routing.rows))
    check(ops.moe_combine_backward.default, (x, y, routing.gates, routing.token_ids))


def test_vmap_and_func():
    xs, logits = torch.randn(3, 20, 8), torch.randn(3, 20, 4)
    want = torch.stack([layer(x, one) for x, one in zip(xs, logits, strict=True)])
    torch.testing.assert_close(torch.func.vmap(layer)(xs, logits), want)
    grad = torch.func.grad(lambda x, one: layer(x, one).sum(), argnums=(0, 1))
    wanted = [grad(x, one) for x, one in zip(xs, logits, strict=True)]
    got = torch.func.vmap(grad)(xs, logits)
    for i in range(2):
        torch.testing.assert_close(got[i], torch.stack([pair[i] for pair in wanted]))
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda x: layer(x, logits[0]), (xs[0],), (xs[0],))


# ---- losses and counts ----


def test_statistics_and_losses():
    logits = random_logits(40, 5, seed=2)
    routing = moe.route_topk(logits, 2)
    load = moe.statistics(routing).load
    wanted = torch.bincount(logits.topk(2).indices.flatten(), minlength=5)
    assert load.dtype == torch.int64 and torch.equal(load, wanted)
    balance = 5 * (wanted / 80 * logits.softmax(-1).mean(0)).sum()
    torch.testing.assert_close(moe.balance_loss(logits, routing), balance)
    torch.testing.assert_close(moe.z_loss(logits), logits.logsumexp(-1).square().mean())
    arrays = moe.route_topk(logits.numpy(), 2)
    assert np.array_equal(moe.statistics(arrays).load, load.numpy())
    assert moe.balance_loss(logits.numpy(), arrays) == pytest.approx(float(balance), rel=1e-5)
    assert moe.z_loss(logits.numpy()) == pytest.approx(float(moe.z_loss(logits)), rel=1e-5)
    even = torch.zeros(4, 2)
    chosen = moe.route_expert_choice(even[None], 2)
    assert moe.balance_loss(even, chosen) == pytest.approx(1.0)


def test_capacity():
    assert moe.expert_capacity(256, 8, 2.0) == 64
    assert moe.expert_capacity(4, 8, 1.0) == 1
    assert moe.expert_capacity(4, 2, 9.0) == 4
    with pytest.raises(ValueError, match="experts >= 1"):
        moe.expert_capacity(4, 0, 1.0)


# ---- what is refused ----


def refused(error, message, function, *args, **kwargs):
    with pytest.raises(error, match=re.escape(message)):
        function(*args, **kwargs)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, lambda x: x])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers(convert, bad):
    logits = random_logits(2, 70, 9)
    logits[1, 3, 8] = bad
    logits[1, 60, 2] = bad
    message = "is NaN or infinite, want a number"
    refused(ValueError, f"logits[1, 3, 8] {message}", moe.route_expert_choice, convert(logits), 2)
    refused(ValueError, f"logits[73, 8] {message}", moe.route_topk, convert(logits.flatten(0, 1)), 2)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, lambda x: x])
def test_wrong_arguments(convert):
    logits = convert(random_logits(10, 4))
    refused(ValueError, "k is 5, want 1 <= k <= 4", moe.route_topk, logits, 5)
    refused(ValueError, "k is 0, want 1 <= k <= 4", moe.route_topk, logits, 0)
    refused(ValueError, "logits has shape (10,)", moe.route_topk, logits[:, 0], 1)
    refused(ValueError, "logits has shape (10, 4), want (batch", moe.route_expert_choice, logits, 2)
    refused(ValueError, "capacity is 11, want 0 <= capacity <= 10", moe.route_expert_choice, logits[None], 11)
    refused(ValueError, "capacity is -1", moe.route_expert_choice, logits[None], -1)
    refused(ValueError, "want at least one expert", moe.route_topk, logits[:, :0], 1)
    refused(TypeError, "logits has type int64", moe.route_topk, convert(torch.ones(3, 4).long()), 1)
    ids, weights = convert(torch.tensor([[0, 1], [3, 2]])), convert(torch.ones(2, 2))
    refused(
        ValueError,
        "expert_ids[1, 0] is out of range, want 0 <= id < 3",
        moe.routing_from_ids,
        ids,
        weights,
        3,
    )
    refused(ValueError, "experts is 0, want at least 1", moe.routing_from_ids, ids, weights, 0)
    refused(ValueError, "weights has shape (2,), want (2, 2)", moe.routing_from_ids, ids, weights[0], 4)
    refused(ValueError, "expert_ids has shape (2,)", moe.routing_from_ids, ids[0], weights[0], 4)
    refused(TypeError, "expert_ids has type float32", moe.routing_from_ids, weights, weights, 4)
    routing = moe.route_topk(logits, 2)
    x = convert(torch.ones(10, 3))
    refused(ValueError, "x has shape (10,)", moe.dispatch, x[:, 0], routing)
    refused(ValueError, "token_ids[", moe.dispatch, x[:5], routing)
    refused(TypeError, "x has type int64", moe.dispatch, convert(torch.ones(10, 3).long()), routing)
    refused(ValueError, "gates has shape (20,), want (10,)", moe.combine, x, routing)
    rows = convert(torch.arange(20).int() + 1)
    y = convert(torch.ones(20, 3))
    refused(ValueError, "starts and rows of token", moe.combine, y, routing._replace(rows=rows))


def test_mixed_libraries():
    logits = random_logits(10, 4)
    routing = moe.route_topk(logits.numpy(), 2)
    refused(TypeError, "is made of numpy.ndarray, want one library", moe.dispatch, torch.ones(10, 3), routing)
    refused(
        TypeError,
        "want arrays of one library",
        moe.dispatch,
        np.ones((10, 3), np.float32),
        moe.route_topk(logits, 2),
    )


def test_no_tokens():
    assert moe.route_topk(torch.zeros(0, 3), 2).offsets.tolist() == [0, 0, 0]
    routing = moe.route_expert_choice(torch.zeros(2, 3, 2), 0)
    assert moe.combine(torch.zeros(0, 4), routing).tolist() == [[0.0] * 4] * 6
