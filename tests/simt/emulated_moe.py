"""The CUDA kernels of moe against the CPU's. Run by test_kernels.py on the emulator.

Which rows there are is the same to the bit; gates and sums are added up in another order.
"""

import fake_cupy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import _core, ops
from tenfold.ops import moe

fake_cupy.install()

FEW = settings(max_examples=25, deadline=None, derandomize=True)


def on_gpu(array, device=0):
    return fake_cupy.ndarray(array, device)


def routing_on_gpu(routing):
    return moe.Routing(*map(on_gpu, routing))


def same_routing(gpu, cpu):
    for name, mine, want in zip(cpu._fields, gpu, cpu, strict=True):
        assert mine.host.dtype == want.dtype, name
        if name == "gates":
            np.testing.assert_allclose(mine.host, want, rtol=2e-6, atol=1e-37)
        else:
            np.testing.assert_array_equal(mine.host, want, err_msg=name)


def raised(message, function, *args):
    """Raised by the call, or later; the emulator has run the kernel when the call returns."""
    with pytest.raises(ValueError, match=message):
        function(*args)
        ops.synchronize()


def logits_of(*shape, seed=0, coarse=False):
    logits = np.random.default_rng(seed).standard_normal(shape, np.float32) * 3
    return np.round(logits) if coarse else logits


@FEW
@given(st.integers(0, 70), st.integers(1, 70), st.integers(1, 6), st.booleans(), st.booleans())
def test_topk(tokens, experts, k, coarse, renormalize):
    logits = logits_of(tokens, experts, seed=tokens, coarse=coarse)
    k = min(k, experts)
    want = moe.route_topk(logits, k, renormalize=renormalize)
    same_routing(moe.route_topk(on_gpu(logits), k, renormalize=renormalize), want)
    across = np.ascontiguousarray(logits.T).T
    same_routing(moe.route_topk(on_gpu(across), k, renormalize=renormalize), want)


@pytest.mark.parametrize(("tokens", "experts", "k"), [(700, 3, 2), (40, 300, 9), (1, 1, 1), (513, 8, 8)])
def test_topk_of_many(tokens, experts, k):
    logits = logits_of(tokens, experts)
    same_routing(moe.route_topk(on_gpu(logits), k), moe.route_topk(logits, k))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("tokens", "experts", "k"), [(0, 3, 2), (1, 1, 1), (700, 40, 3), (30, 2, 5), (9, 4, 0)]
)
def test_a_choice_made_elsewhere(tokens, experts, k, dtype):
    ids = np.random.default_rng(tokens).integers(0, experts, (tokens, k)).astype(dtype)
    want = moe.routing_from_ids(ids, np.zeros((tokens, k), np.float32), experts)
    gpu = moe.Routing(*(fake_cupy.empty(array.shape, np.int32) for array in want))
    cpu = want._replace(gates=np.empty(tokens * k, np.int32))
    _core.route_ids(ids, experts, tuple(cpu))
    _core.route_ids(on_gpu(ids), experts, tuple(gpu))
    for name, mine, other in zip(cpu._fields, gpu, cpu, strict=True):
        np.testing.assert_array_equal(mine.host, other, err_msg=name)


def test_a_choice_out_of_range_is_found():
    ids = np.zeros((20, 2), np.int64)
    ids[7, 1] = 5
    gpu = [fake_cupy.empty(size, np.int32) for size in (40, 40, 5, 21, 40)]
    raised(
        r"expert_ids\[7, 1\] of routing_from_ids .* out of range", _core.route_ids, on_gpu(ids), 5, tuple(gpu)
    )


@pytest.mark.parametrize(
    ("batch", "tokens", "experts", "capacity"),
    [
        (0, 4, 2, 1),
        (2, 0, 3, 0),
        (1, 1, 1, 1),
        (3, 40, 5, 13),
        (2, 700, 3, 299),
        (1, 300, 40, 300),
        (2, 9, 4, 0),
    ],
)
def test_expert_choice(batch, tokens, experts, capacity):
    logits = logits_of(batch, tokens, experts, seed=tokens)
    want = moe.route_expert_choice(logits, capacity)
    same_routing(moe.route_expert_choice(on_gpu(logits), capacity), want)


@pytest.mark.parametrize("experts", [1, 4])
def test_expert_choice_with_ties(experts):
    logits = np.zeros((2, 300, experts), np.float32)
    want = moe.route_expert_choice(logits, 70)
    same_routing(moe.route_expert_choice(on_gpu(logits), 70), want)
    assert want.token_ids[:70].tolist() == list(range(70))


@pytest.mark.parametrize("renormalize", [False, True])
def test_gradient_of_the_gates(renormalize):
    logits = logits_of(90, 37)
    routing = moe.route_topk(logits, 3, renormalize=renormalize)
    grads = logits_of(270, seed=1)
    cpu, gpu = np.empty((90, 37), np.float32), fake_cupy.empty((90, 37), np.float32)
    _core.route_backward(logits, grads, renormalize, tuple(routing), cpu)
    _core.route_backward(on_gpu(logits), on_gpu(grads), renormalize, tuple(routing_on_gpu(routing)), gpu)
    np.testing.assert_allclose(gpu.host, cpu, rtol=1e-5, atol=1e-6)


@FEW
@given(st.integers(0, 50), st.sampled_from([0, 1, 4, 7, 64, 300]), st.sampled_from([np.float32, np.float64]))
def test_dispatch_and_combine(tokens, width, dtype):
    routing = moe.route_topk(logits_of(tokens, 6, seed=tokens), 2)
    x = np.random.default_rng(1).standard_normal((tokens, width + 3)).astype(dtype)[:, :width]
    rows = moe.dispatch(x, routing)
    gpu = moe.dispatch(on_gpu(x), routing_on_gpu(routing))
    np.testing.assert_array_equal(gpu.host, rows)
    for weighted in (True, False):
        want = moe.combine(rows, routing, weighted=weighted)
        mine = moe.combine(on_gpu(rows), routing_on_gpu(routing), weighted=weighted)
        np.testing.assert_allclose(mine.host, want, rtol=1e-6, atol=1e-6)
    gates = routing.gates.astype(dtype)
    cpu = np.empty_like(rows), np.empty_like(gates)
    gpus = fake_cupy.empty(rows.shape, dtype), fake_cupy.empty(gates.shape, dtype)
    _core.moe_combine_backward(x, rows, gates, routing.token_ids, *cpu)
    _core.moe_combine_backward(on_gpu(x), on_gpu(rows), on_gpu(gates), on_gpu(routing.token_ids), *gpus)
    for mine, want in zip(gpus, cpu, strict=True):
        np.testing.assert_allclose(mine.host, want, rtol=1e-5, atol=1e-5)


def test_a_token_without_rows_is_zero():
    routing = moe.route_expert_choice(np.zeros((1, 5, 2), np.float32), 2)
    out = moe.combine(on_gpu(np.ones((4, 33), np.float32)), routing_on_gpu(routing))
    np.testing.assert_array_equal(out.host, [[1.0] * 33] * 2 + [[0.0] * 33] * 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_found(bad):
    logits = logits_of(2, 40, 6)
    logits[1, 7, 3] = bad
    said = r"logits\[47, 3\] of route_expert_choice .* NaN or infinite"
    raised(said, moe.route_expert_choice, on_gpu(logits), 5)
    raised(r"logits\[7, 3\] of route_topk .* NaN or infinite", moe.route_topk, on_gpu(logits[1]), 2)


def test_ids_out_of_range_are_found_and_touch_nothing():
    routing = moe.route_topk(logits_of(20, 4), 2)
    x = np.ones((20, 8), np.float32)
    ids, rows = routing.token_ids.copy(), routing.rows.copy()
    ids[3], rows[5] = 20, -1
    out = fake_cupy.empty((40, 8), np.float32)
    said = r"token_ids\[0, 3\] of dispatch .* out of range"
    raised(said, _core.moe_dispatch, on_gpu(x), on_gpu(ids), out)
    assert np.isnan(out.host[3]).all() and np.array_equal(np.delete(out.host, 3, 0), np.ones((39, 8)))
    y = np.ones((40, 8), np.float32)
    out = fake_cupy.empty((20, 8), np.float32)
    said = r"rows\[2, 0\] of combine .* out of range"
    raised(said, _core.moe_combine, on_gpu(y), None, on_gpu(routing.starts), on_gpu(rows), out)
    assert np.isnan(out.host[2]).all() and not np.isnan(np.delete(out.host, 2, 0)).any()
