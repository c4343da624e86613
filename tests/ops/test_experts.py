"""expert_ffn against the loop over experts: values, gradients, layouts, transforms, errors."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tenfold.ops import moe  # noqa: E402
from tenfold.ops.reference import moe as reference  # noqa: E402

ACTIVATIONS = ["gelu", "gelu_tanh", "silu", "relu"]


def problem(tokens=70, experts=5, width=33, hidden=50, gated=False, k=2, dtype=torch.float32, seed=0):
    """x, routing and weights with biases; the last expert has no rows."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=draw, dtype=torch.float64) * scale).to(dtype)

    logits = torch.randn(tokens, experts, generator=draw)
    logits[:, -1] = -100
    routing = moe.route_topk(logits, k)
    x = normal(tokens, width)
    inner = 2 * hidden if gated else hidden
    weights = (
        normal(experts, width, inner, scale=width**-0.5),
        normal(experts, hidden, width, scale=hidden**-0.5),
    )
    return x, routing, *weights, {"b_in": normal(experts, inner), "b_out": normal(experts, width)}


def by_columns(weight):
    """The same matrices with the other dimension innermost, as Hugging Face keeps them."""
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


def apart(weight):
    """The same matrices with no dimension innermost."""
    wide = weight.new_zeros(*weight.shape[:2], weight.shape[2] * 2)
    wide[..., ::2] = weight
    return wide[..., ::2]


LAYOUTS = [lambda weight: weight, by_columns, apart]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values(activation, gated):
    x, routing, w_in, w_out, biases = problem(gated=gated)
    for chosen in ({}, biases):
        for layout in LAYOUTS:
            got = moe.expert_ffn(x, routing, layout(w_in), layout(w_out), activation, gated=gated, **chosen)
            exact = {name: bias.double() for name, bias in chosen.items()}
            want = reference.expert_ffn(
                x.double(), routing, w_in.double(), w_out.double(), activation, gated, **exact
            )
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=3e-6)
    arrays = moe.Routing(*(array.numpy() for array in routing))
    same = moe.expert_ffn(x.numpy(), arrays, w_in.numpy(), w_out.numpy(), activation, gated=gated)
    assert np.array_equal(same, moe.expert_ffn(x, routing, w_in, w_out, activation, gated=gated).numpy())


@pytest.mark.parametrize(
    ("tokens", "experts", "width", "hidden", "k"),
    [
        (1, 2, 1, 1, 1),
        (5, 3, 7, 130, 1),
        (300, 2, 400, 33, 1),
        (64, 9, 32, 96, 8),
        (1300, 3, 16, 40, 1),
        (0, 2, 4, 5, 1),
    ],
)
def test_sizes(tokens, experts, width, hidden, k):
    x, routing, w_in, w_out, biases = problem(tokens, experts, width, hidden, k=k)
    inputs = [x, w_in, w_out, *biases.values()]

    def gradients(library, dtype):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        named = dict(zip(biases, leaves[3:], strict=True))
        out = library.expert_ffn(leaves[0], routing, *leaves[1:3], **named)
        return [out, *torch.autograd.grad(out.sin().sum(), leaves)]

    for got, want in zip(gradients(moe, torch.float32), gradients(reference, torch.float64), strict=True):
        scale = want.abs().max().item() if want.numel() else 1.0
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5 * max(scale, 1.0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients(activation, gated, layout, dtype):
    x, routing, w_in, w_out, biases = problem(gated=gated, dtype=dtype)

    def gradients(library, change, dtype):
        leaves = [x, change(w_in), change(w_out), *biases.values()]
        leaves = [tensor.to(dtype).detach().requires_grad_() for tensor in leaves]
        gates = routing.gates.to(dtype).requires_grad_()
        named = dict(zip(biases, leaves[3:], strict=True))
        used = routing._replace(gates=gates)
        out = library.expert_ffn(leaves[0], used, *leaves[1:3], activation, gated=gated, **named)
        return torch.autograd.grad(out.sin().sum(), [*leaves, gates])

    want = gradients(reference, lambda weight: weight, torch.float64)
    for got, exact in zip(gradients(moe, layout, dtype), want, strict=True):
        tolerance = 2e-5 if dtype == torch.float32 else 1e-11
        torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance * 10)


def test_gradients_have_the_layout_of_the_weights():
    x, routing, w_in, w_out, _ = problem()
    w_in, w_out = by_columns(w_in).requires_grad_(), w_out.requires_grad_()
    moe.expert_ffn(x, routing, w_in, w_out).sum().backward()
    assert w_in.grad.stride() == w_in.stride() and w_out.grad.stride() == w_out.stride()
    assert torch.equal(w_in.grad[-1], torch.zeros_like(w_in.grad[-1]))  # an expert without rows


def test_bfloat16_and_autocast():
    x, routing, w_in, w_out, biases = problem()
    want = reference.expert_ffn(x, routing, w_in, w_out, **biases)
    half = {name: bias.bfloat16() for name, bias in biases.items()}
    got = moe.expert_ffn(x.bfloat16(), routing, w_in.bfloat16(), w_out.bfloat16(), **half)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, w_in, w_out)]
    with torch.autocast("cpu", torch.bfloat16):
        out = moe.expert_ffn(leaves[0], routing, *leaves[1:], **biases)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)


def test_any_number_of_threads_gives_the_same_bits():
    x, routing, w_in, w_out, biases = problem(2500, 3, 40, 100)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        leaves = [tensor.clone().requires_grad_() for tensor in (x, w_in, w_out, *biases.values())]
        out = moe.expert_ffn(leaves[0], routing, *leaves[1:3], b_in=leaves[3], b_out=leaves[4])
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def layer(x, logits, w_in, w_out):
    return moe.expert_ffn(x, moe.route_topk(logits, 2), w_in, w_out, "silu")


def test_under_compile_and_vmap():
    x, _, w_in, w_out, _ = problem(20)
    logits = torch.randn(20, 5)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, logits, w_in, w_out)]
    want = layer(*leaves)
    wanted = torch.autograd.grad(want.square().sum(), leaves)
    got = torch.compile(layer, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got.square().sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(a, b)
    xs = torch.stack([x, -x])
    mapped = torch.func.vmap(lambda x: layer(x, logits, w_in, w_out))(xs)
    torch.testing.assert_close(mapped[1], layer(-x, logits, w_in, w_out))
    grad = torch.func.grad(lambda w: layer(x, logits, w, w_out).square().sum())(w_in)
    torch.testing.assert_close(grad, wanted[2])


def test_opcheck():
    x, routing, w_in, w_out, biases = problem(20)
    args = (x, routing.token_ids, routing.offsets, w_in, w_out, biases["b_in"], None, "gelu", False)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.tenfold.experts.default, (*args, True), test_utils=checks)
    hidden = torch.ops.tenfold.experts(*args, True)[1]
    grads = (torch.randn(40, 33), hidden, *args)
    torch.library.opcheck(torch.ops.tenfold.experts_backward.default, grads, test_utils=checks)


def test_a_second_gradient_raises():
    x, routing, w_in, w_out, _ = problem()
    x.requires_grad_()
    (grad,) = torch.autograd.grad(moe.expert_ffn(x, routing, w_in, w_out).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="first gradient only"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_refused(dtype):
    x, routing, w_in, w_out, biases = problem(dtype=dtype)

    def refused(error, message, *args, **kwargs):
        with pytest.raises(error, match=re.escape(message)):
            moe.expert_ffn(*args, **kwargs)

    refused(ValueError, "activation is 'tanh', want gelu", x, routing, w_in, w_out, "tanh")
    refused(
        ValueError, "w_in has shape (5, 33, 50), want (5, 32, 50)", x[:, 1:], routing, w_in, w_out[..., 1:]
    )
    refused(ValueError, "w_out has shape (5, 49, 33), want (5, 50, 33)", x, routing, w_in, w_out[:, 1:])
    refused(ValueError, "w_out has shape (50, 33), want three dimensions", x, routing, w_in, w_out[0])
    refused(
        ValueError, "w_in has shape (5, 33, 49), want an even", x, routing, w_in[..., 1:], w_out, gated=True
    )
    refused(ValueError, "offsets", x, routing._replace(offsets=routing.offsets - 1), w_in, w_out)
    refused(ValueError, "token_ids[", x[:9], routing, w_in, w_out)
    other = torch.float16
    refused(TypeError, "w_out has type", x, routing, w_in, w_out.to(other))
    if dtype == torch.float32:
        refused(
            ValueError, "b_in has shape (5, 33), want (5, 50)", x, routing, w_in, w_out, b_in=biases["b_out"]
        )
