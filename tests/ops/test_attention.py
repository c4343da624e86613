"""The attention ops against their plain-torch twins, on random shapes, strides and types."""

import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tenfold import _core  # noqa: E402
from tenfold.ops.attention import attention, attention_kvpacked, attention_qkvpacked  # noqa: E402
from tenfold.ops.reference import attention as reference  # noqa: E402

SETTINGS = settings(max_examples=60, deadline=None)
# Of the largest value of the result; bfloat16's step is 2^-8, and probabilities are rounded in between.
ERROR = {torch.float32: 3e-6, torch.bfloat16: 2e-2}
LEVELS = [level for level in _core.isas_compiled() if level in _core.isas_supported()]


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(got, want, dtype):
    got, want = got.detach(), want.detach()
    assert got.dtype == dtype and got.shape == want.shape
    if want.numel():
        assert (got.double() - want).abs().max() <= ERROR[dtype] * max(1.0, float(want.abs().max()))


@st.composite
def problems(draw):
    """q, k, v, key_mask or None, gradient of the result; some of them slices of larger arrays."""
    samples, heads = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    length = st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 130, 300]))
    queries, keys = draw(length), draw(st.one_of(length, st.just(520)))
    width = draw(st.one_of(st.integers(1, 70), st.sampled_from([32, 64, 128])))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    seed = draw(st.integers(0, 2**32))
    most = max(queries, keys)
    if draw(st.booleans()):  # slices of one projection
        packed = numbers(samples, most, 3, heads, width, seed=seed, dtype=dtype)
        q, k, v = packed[:, :queries, 0], packed[:, :keys, 1], packed[:, :keys, 2]
    else:  # torch's layout
        q = numbers(samples, heads, queries, width, seed=seed, dtype=dtype).transpose(1, 2)
        k, v = (
            numbers(samples, heads, keys, width, seed=seed + i, dtype=dtype).transpose(1, 2) for i in (1, 2)
        )
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(samples, keys, generator=torch.Generator().manual_seed(seed)) < draw(
            st.floats(0, 1)
        )
    return q, k, v, mask, numbers(samples, queries, heads, width, seed=seed + 3, dtype=dtype)


def gradients(function, q, k, v, mask, grad, dtype):
    inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    out = function(*inputs, key_mask=mask)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(dtype), allow_unused=True)]


@SETTINGS
@given(problems())
def test_result_and_gradients(problem):
    q, *_ = problem
    got = gradients(attention, *problem, q.dtype)
    want = gradients(reference.attention, *problem, torch.float64)
    for mine, other in zip(got, want, strict=True):
        assert_near(mine, torch.zeros_like(mine).double() if other is None else other, q.dtype)


@SETTINGS
@given(problems())
def test_every_output_is_written(problem):
    q, k, v, mask, grad = problem
    width, heads = q.shape[-1], q.shape[-2]
    out, statistics = torch.full_like(grad, math.nan), torch.full((2, heads, q[..., 0, 0].numel()), math.nan)
    _core.attention_forward(q, k, v, None, None, mask, width**-0.5, out, statistics)
    grads = [torch.full(x.shape, math.nan, dtype=x.dtype) for x in (q, k, v)]
    _core.attention_backward(q, k, v, None, None, mask, width**-0.5, statistics, grad, tuple(grads))
    assert not any(x.isnan().any() for x in (out, statistics, *grads))


@SETTINGS
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 90)), max_size=5),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_sequences_behind_one_another(lengths, dtype, same):
    q_offsets = torch.tensor([0, *np.cumsum([q for q, _ in lengths])], dtype=torch.int32)
    k_offsets = torch.tensor([0, *np.cumsum([k for _, k in lengths])], dtype=torch.int32)
    if same:
        k_offsets = q_offsets
    q = numbers(int(q_offsets[-1]), 2, 24, dtype=dtype).requires_grad_()
    kv = numbers(int(k_offsets[-1]), 2, 2, 24, seed=1, dtype=dtype).requires_grad_()
    grad = numbers(*q.shape, seed=2, dtype=dtype)
    out = attention_kvpacked(q, kv, q_offsets=q_offsets, k_offsets=k_offsets)
    got = [out.detach(), *torch.autograd.grad(out, (q, kv), grad)]
    wide = [x.detach().double().requires_grad_() for x in (q, kv)]
    want = reference.packed(wide[0], *wide[1].unbind(1), q_offsets, k_offsets)
    wanted = [
        want,
        *torch.autograd.grad(want, wide, grad.double(), materialize_grads=True, allow_unused=True),
    ]
    for mine, other in zip(got, wanted, strict=True):
        assert_near(mine, other, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", [None, 1e-6, 0.5])
def test_one_projection(dtype, eps):
    qkv = numbers(3, 33, 3, 4, 16, dtype=dtype).requires_grad_()
    mask = torch.rand(3, 33, generator=torch.Generator().manual_seed(0)) < 0.7
    grad = numbers(3, 33, 4, 16, seed=1, dtype=dtype)
    out = attention_qkvpacked(qkv, key_mask=mask, qk_norm_eps=eps, scale=0.3)
    wide = qkv.detach().double().requires_grad_()
    want = reference.attention(*wide.unbind(2), mask, 0.3, eps)
    assert_near(out, want, dtype)
    assert_near(
        torch.autograd.grad(out, qkv, grad)[0], torch.autograd.grad(want, wide, grad.double())[0], dtype
    )


def test_numpy():
    q, k, v = (numbers(2, 20, 3, 8, seed=i).numpy() for i in range(3))
    mask = np.arange(40).reshape(2, 20) % 3 > 0
    want = attention(*map(torch.from_numpy, (q, k, v)), key_mask=torch.from_numpy(mask), qk_norm_eps=1e-3)
    got = attention(q, np.asfortranarray(k), v, key_mask=mask, qk_norm_eps=1e-3)
    assert isinstance(got, np.ndarray) and np.array_equal(got, want.numpy())
    qkv = np.stack([q, k, v], axis=2)
    assert np.array_equal(
        attention_qkvpacked(qkv), attention(torch.from_numpy(q), *map(torch.from_numpy, (k, v)))
    )


def test_a_query_without_keys():
    q, k = numbers(2, 5, 1, 8), numbers(2, 6, 1, 8)
    mask = torch.tensor([[False] * 6, [True] * 6])
    out = attention(q, k, k, key_mask=mask)
    assert torch.equal(out[0], torch.zeros(5, 1, 8)) and out[1].abs().min() > 0
    assert torch.equal(attention(q, k[:, :0], k[:, :0]), torch.zeros(2, 5, 1, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_large_scores(dtype):
    q, k, v = (numbers(1, 8, 1, 16, seed=i, dtype=dtype) for i in range(3))
    clean = attention(q, k, v)
    q[0, 3, 0, 2] = math.nan
    out = attention(q, k, v)
    assert out[0, 3].isnan().all()
    rest = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(out[0, rest], clean[0, rest])
    large = attention(1e3 * q[:, :3], 1e3 * k, v)  # a softmax of one key
    best = (q[0, :3, 0].double() @ k[0, :, 0].double().t()).argmax(1)
    torch.testing.assert_close(large[0, :, 0], v[0, best, 0], rtol=1e-2, atol=1e-2)


# ---- the same bits ----


def everything(dtype):
    qkv = numbers(3, 150, 3, 4, 40, dtype=dtype).requires_grad_()
    mask = torch.rand(3, 150, generator=torch.Generator().manual_seed(0)) < 0.8
    out = attention_qkvpacked(qkv, key_mask=mask, qk_norm_eps=1e-6)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), qkv)]


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


@pytest.mark.parametrize("level", LEVELS)
def test_levels_agree(level):
    code = (
        "import test_attention as t, torch\n"
        "from tenfold import _core\n"
        f"assert _core.isa() == '{level}'\n"
        "t.test_one_projection(torch.float32, None); t.test_one_projection(torch.bfloat16, 1e-6)\n"
        "t.test_sequences_behind_one_another(); t.test_result_and_gradients()\n"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": here, "TENFOLD_ISA": level},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_tile_registers_of_others_are_left_alone():
    # oneDNN keeps the shapes of its tiles between calls.
    x = numbers(64, 256, dtype=torch.bfloat16)
    want = x @ x.t()
    q = numbers(2, 40, 2, 64, dtype=torch.bfloat16)
    for _ in range(3):
        attention(q, q, q)
        assert torch.equal(x @ x.t(), want)


# ---- gradients and transforms ----


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_gradcheck(eps):
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    sources = [numbers(2, n, 2, 3, seed=n).double().requires_grad_() for n in (5, 4, 4)]
    check = torch.autograd.gradcheck
    assert check(partial(attention, key_mask=mask, qk_norm_eps=eps), sources)
    offsets = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    packed = numbers(5, 3, 2, 4).double().requires_grad_()
    assert check(partial(attention_qkvpacked, offsets=offsets, qk_norm_eps=eps), packed)
    kv = numbers(2, 4, 2, 2, 3).double().requires_grad_()
    assert check(partial(attention_kvpacked, qk_norm_eps=eps, scale=0.7), (sources[0], kv))


def test_a_first_gradient_only():
    q = numbers(1, 4, 1, 8).requires_grad_()
    (grad,) = torch.autograd.grad(attention(q, q, q).square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="first gradient only"):
        grad.sum().backward()


def test_autocast():
    q = numbers(1, 9, 2, 16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q, q, q)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attention(*[q.bfloat16()] * 3))
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_under_compile():
    def layer(x, mask):
        return attention_qkvpacked(x, key_mask=mask, qk_norm_eps=1e-6).sin()

    x, mask = numbers(2, 9, 3, 2, 8).requires_grad_(), torch.arange(18).view(2, 9) % 4 > 0
    want = layer(x, mask)
    got = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, mask)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (got, want)))


def test_opcheck():
    ops, qkv, mask = torch.ops.tenfold, numbers(2, 5, 3, 2, 8), torch.ones(2, 5, dtype=torch.bool)
    check = partial(torch.library.opcheck, test_utils=("test_schema", "test_faketensor"))
    for eps in (None, 1e-6):
        for sources in ([qkv], [qkv[:, :, 0], qkv[:, :, 1:]], list(qkv.unbind(2))):
            check(ops.attention.default, (sources, None, None, mask, 0.4, eps))
            out, *kept = ops.attention(sources, None, None, mask, 0.4, eps)
            check(ops.attention_backward.default, (out, sources, *kept, None, None, mask, 0.4, eps))


def test_vmap_and_func():
    xs = numbers(3, 2, 7, 3, 2, 8)
    run = partial(attention_qkvpacked, qk_norm_eps=1e-6)
    torch.testing.assert_close(torch.func.vmap(run)(xs), torch.stack([run(x) for x in xs]))
    grad = torch.func.grad(lambda x: run(x).square().sum())
    torch.testing.assert_close(torch.func.vmap(grad)(xs), torch.stack([grad(x) for x in xs]))
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(run, (xs[0],), (xs[0],))


# ---- what is refused ----


def refused(error, message, function, *args, **kwargs):
    with pytest.raises(error, match=re.escape(message)):
        function(*args, **kwargs)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, lambda x: x])
def test_wrong_arguments(convert):
    q, k, v = (convert(numbers(2, n, 3, 8)) for n in (5, 4, 4))
    mask = convert(torch.ones(2, 4, dtype=torch.bool))
    refused(ValueError, "q has shape (5, 3, 8), want (samples, tokens, heads, width)", attention, q[0], k, v)
    refused(ValueError, "k has 2 heads, want 3 as q", attention, q, k[:, :, :2], v[:, :, :2])
    refused(ValueError, "k has 7 values in a head, want 8 as q", attention, q, k[..., :7], v[..., :7])
    refused(ValueError, "k has 1 samples, want 2 as q", attention, q, k[:1], v[:1])
    refused(ValueError, "v has shape (2, 3, 3, 8), want (2, 4, 3, 8) as k", attention, q, k, v[:, :3])
    refused(ValueError, "want a last dimension of 1 or more", attention, q[..., :0], k[..., :0], v[..., :0])
    refused(ValueError, "key_mask has shape (2, 3), want (2, 4)", attention, q, k, v, key_mask=mask[:, :3])
    refused(TypeError, "key_mask has type float32", attention, q, k, v, key_mask=k[..., 0, 0])
    refused(TypeError, "q has type int64", attention, convert(torch.ones(2, 5, 3, 8).long()), k, v)
    for scale in (0.0, -1.0, math.inf, math.nan):
        refused(ValueError, "want a positive number", attention, q, k, v, scale=scale)
    for eps in (0.0, -1.0, math.nan):
        refused(ValueError, "qk_norm_eps is", attention, q, k, v, qk_norm_eps=eps)
    refused(ValueError, "qkv has shape (2, 5, 3, 8)", attention_qkvpacked, q)
    refused(ValueError, "kv has shape (2, 5, 3, 8)", attention_kvpacked, q, q)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, lambda x: x])
def test_wrong_offsets(convert):
    q, k = convert(numbers(6, 2, 8)), convert(numbers(9, 2, 8))

    def attend(q_ends, k_ends, **rest):
        ends = (convert(torch.tensor(x, dtype=torch.int32)) for x in (q_ends, k_ends))
        return attention(q, k, k, **dict(zip(("q_offsets", "k_offsets"), ends, strict=True)), **rest)

    assert attend([0, 2, 6], [0, 0, 9]).shape == (6, 2, 8)
    refused(
        ValueError,
        "q_offsets goes from 1 to 6, want ascending numbers from 0 to 6",
        attend,
        [1, 2, 6],
        [0, 0, 9],
    )
    refused(
        ValueError,
        "k_offsets goes from 0 to 8, want ascending numbers from 0 to 9",
        attend,
        [0, 2, 6],
        [0, 0, 8],
    )
    refused(ValueError, "k_offsets goes from 0 to 9, want ascending", attend, [0, 2, 4, 6], [0, 5, 3, 9])
    refused(ValueError, "k has 1 samples, want 2 as q", attend, [0, 2, 6], [0, 9])
    refused(ValueError, "q_offsets has shape (1, 3)", attend, [[0, 2, 6]], [0, 0, 9])
    mask = convert(torch.ones(2, 9, dtype=torch.bool))
    refused(ValueError, "key_mask is given beside k_offsets", attend, [0, 2, 6], [0, 0, 9], key_mask=mask)
    wide = convert(torch.tensor([0, 6]))
    refused(
        TypeError, "q_offsets has type int64, want int32", attention, q, k, k, q_offsets=wide, k_offsets=wide
    )


def test_mixed_libraries():
    q = numbers(1, 2, 1, 4)
    refused(TypeError, "k is ndarray, want a torch.Tensor", attention, q, q.numpy(), q)
    refused(TypeError, "want arrays of one library", attention, q.numpy(), q, q)
    mask = torch.ones(1, 2, dtype=torch.bool)
    refused(TypeError, "want arrays of one library", attention, *[q.numpy()] * 3, key_mask=mask)
    refused(TypeError, "key_mask is ndarray, want a torch.Tensor", attention, q, q, q, key_mask=mask.numpy())
    refused(TypeError, "k has type bfloat16, want float32", attention, q, q.bfloat16(), q.bfloat16())
