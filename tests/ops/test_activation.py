"""The activation ops against their plain-torch twins in float64, on random shapes, strides and types."""

import itertools
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
from tenfold.ops.activation import activate, gated_activation  # noqa: E402
from tenfold.ops.reference import activation as reference  # noqa: E402

SETTINGS = settings(max_examples=100, deadline=None)
SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64
TYPES = [SINGLE, HALF, DOUBLE]
TOLERANCE = {SINGLE: 4e-7, HALF: 2**-8, DOUBLE: 1e-14}
"""Of each element, relative to what it is computed from: in float32 (float64), rounded once."""
KINDS = ["gelu", "gelu_tanh", "silu", "relu"]
kinds = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("gated", [False, True], ids=["activate", "gated"])
types = pytest.mark.parametrize("dtype", TYPES, ids=str)


def op(gated):
    return gated_activation if gated else activate


def twin(gated):
    return reference.gated_activation if gated else reference.activate


def random(*shape, dtype=SINGLE, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype) * 3


def relayed(x, kind):
    """The same values in rows of other strides."""
    if kind == 0 or x.dim() < 2:
        return x
    if kind == 1:  # a part of wider rows
        return torch.cat([torch.full_like(x, torch.nan), x], dim=-1)[..., x.shape[-1] :]
    if kind == 2:  # rows in another order
        return (
            x.transpose(0, 1).contiguous().transpose(0, 1) if x.dim() > 2 else x.flip(0).contiguous().flip(0)
        )
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)  # rows that do not lie side by side


@st.composite
def problems(draw, gated):
    """x and a gradient of the result."""
    lead = draw(st.lists(st.integers(0, 5), min_size=0, max_size=4))
    width = draw(st.sampled_from([0, 1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 130, 257]))
    dtype, seed = draw(st.sampled_from(TYPES)), draw(st.integers(0, 2**32))
    x = random(*lead, (2 if gated else 1) * width, dtype=dtype, seed=seed)
    grad = random(*lead, width, dtype=dtype, seed=seed + 1)
    return relayed(x, draw(st.integers(0, 3))), relayed(grad, draw(st.integers(0, 3)))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """New memory is full of NaN: what a kernel leaves out is seen."""
    empty, new_empty, empty_like = torch.empty, torch.Tensor.new_empty, np.empty

    def poison(tensor):
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    def array(shape, dtype=float):
        return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else 77, dtype)

    assert empty_like is np.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: poison(new_empty(self, *a, **k)))
    monkeypatch.setattr(np, "empty", array)


def assert_near(got, want, dtype, scale):
    """`scale`: the size of what each element is computed from."""
    assert got.dtype == dtype and got.shape == want.shape
    if got.numel() > 0:
        bound = TOLERANCE[dtype] * (scale.abs() + want.abs() if dtype != HALF else want.abs())
        floor = 1e-9 if dtype != DOUBLE else 1e-15
        excess = (
            (got.double() - want).abs()
            - bound
            - TOLERANCE[SINGLE if dtype == HALF else dtype] * (scale.abs() if dtype == HALF else 0)
        )
        assert float(excess.max()) <= floor


def same(a, b):
    """The same bits; in float64 the compiler may fuse other additions where the values are not wanted."""
    return torch.allclose(a, b, rtol=1e-14, atol=1e-14) if a.dtype == DOUBLE else torch.equal(a, b)


def scales(x, grad, gated):
    """Of the result, and of the gradient."""
    if not gated:
        return x.abs() + 1, grad.abs() * (x.abs() + 1)
    value, factor = (part.abs() + 1 for part in x.chunk(2, dim=-1))
    return value * factor, torch.cat([grad.abs() * factor * value, grad.abs() * value], dim=-1)


# ---- against the reference ----


def check(problem, kind, gated):
    x, grad = problem
    leaf = x.detach().requires_grad_()
    exact = x.detach().double().requires_grad_()
    got, want = op(gated)(leaf, kind), twin(gated)(exact, kind)
    assert got.is_contiguous()
    result_scale, grad_scale = scales(x.double(), grad.double(), gated)
    assert_near(got.detach(), want.detach(), x.dtype, result_scale)
    assert torch.equal(got, op(gated)(x, kind))
    mine = torch.autograd.grad(got, leaf, grad)[0]
    assert_near(mine, torch.autograd.grad(want, exact, grad.double())[0], x.dtype, grad_scale)
    # The same kernel where nothing is recorded, with the values again.
    dense = x.contiguous(), grad.contiguous()
    x_grad, values = torch.empty_like(dense[0]), torch.empty_like(dense[1])
    _core.activate_backward(dense[1], dense[0], x_grad, values, kind, gated)
    assert same(x_grad, mine) and torch.equal(values, got)


@SETTINGS
@given(problems(gated=False), st.sampled_from(KINDS))
def test_activate(problem, kind):
    check(problem, kind, False)


@SETTINGS
@given(problems(gated=True), st.sampled_from(KINDS))
def test_gated_activation(problem, kind):
    check(problem, kind, True)


@kinds
@both
@types
def test_rows_of_many_pieces(kind, gated, dtype):
    for shape in ((3, 20000), (1, 70000), (5000, 6), (2, 300, 3, 34)):
        check(
            (random(*shape, dtype=dtype), random(*shape[:-1], shape[-1] // (1 + gated), dtype=dtype)),
            kind,
            gated,
        )


def test_a_single_number_and_a_single_row():
    for dtype in TYPES:
        x = random(1, dtype=dtype)[0]
        assert activate(x).shape == () and torch.equal(activate(x), activate(x[None])[0])
        leaf = x.clone().requires_grad_()
        activate(leaf, "silu").backward()
        assert leaf.grad.shape == () and not leaf.grad.isnan()
    assert activate(np.array(0.5, np.float32)).shape == ()
    assert gated_activation(random(10)).shape == (5,)


def test_what_the_defaults_are():
    x = random(3, 8)
    assert torch.equal(activate(x), activate(x, "gelu"))
    assert torch.equal(gated_activation(x), gated_activation(x, "silu"))


SPECIAL = [math.inf, -math.inf, math.nan, 0.0, -0.0, 1e9, -1e9, 3e-39, -3e-39, 1.0, -1.0]


@kinds
@both
@types
def test_nan_and_infinity_are_torchs(kind, gated, dtype):
    pairs = list(itertools.product(SPECIAL, repeat=2))
    columns = torch.tensor(pairs, dtype=DOUBLE).to(dtype)
    x = columns.t().reshape(1, -1) if gated else columns[:, :1].t()
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    got, want = op(gated)(leaf, kind), twin(gated)(exact, kind)
    grad = columns[:, 1].flip(0)[None]
    mine = torch.autograd.grad(got, leaf, grad)[0]
    wanted = torch.autograd.grad(want, exact, grad.double())[0]
    close = partial(torch.testing.assert_close, equal_nan=True, rtol=0.01, atol=1e-6)
    close(got.detach(), want.detach().to(dtype))
    close(mine, wanted.to(dtype))


@kinds
def test_nan_of_bfloat16_stays_one(kind):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(HALF)
    got = activate(x, kind)
    assert torch.equal(got.isnan() & ~x.isinf(), x.isnan())
    grads = torch.empty_like(x)
    _core.activate_backward(torch.ones_like(x), x, grads, None, kind, False)
    assert bool(grads[x.isnan()].isnan().all()) or kind == "relu"


# ---- memory ----


@kinds
@types
def test_out(kind, dtype):
    x = random(4, 9, 40, dtype=dtype)
    want, gated = activate(x, kind), gated_activation(x, kind)
    wide = torch.full((4, 9, 80), torch.nan, dtype=dtype)
    for rows, out in ((x, torch.empty_like(x)), (x, wide[..., 40:]), ((same := x.clone()), same)):
        version = out._version
        assert activate(rows, kind, out=out) is out
        assert torch.equal(out, want) and out._version > version
    assert wide[..., :40].isnan().all()
    for memory in (x.clone(), relayed(x, 1)):
        factors = memory[..., 20:].clone()
        gated_activation(memory, kind, out=memory[..., :20])
        assert torch.equal(memory[..., :20], gated) and torch.equal(memory[..., 20:], factors)


def test_out_of_numpy():
    x = random(4, 9, 40).numpy()
    want = activate(x)
    out = np.zeros_like(x)
    assert activate(x, out=out) is out and np.array_equal(out, want)
    assert activate(out := x.copy(), out=out) is out and np.array_equal(out, want)
    assert np.array_equal(gated_activation(x, out=out[..., 20:]), gated_activation(x))
    fixed = np.zeros_like(x)
    fixed.flags.writeable = False
    refused(ValueError, "out is read-only", activate, x, out=fixed)


def test_out_that_does_not_fit():
    x = random(4, 9, 40)
    leaf = x.clone().requires_grad_()
    refused(ValueError, "out is given and a gradient is wanted", activate, leaf, out=torch.empty_like(x))
    refused(ValueError, "out is given and a gradient is wanted", gated_activation, leaf, out=x[..., :20])
    refused(ValueError, "out has shape (4, 8, 40), want (4, 9, 40) as x", activate, x, out=x[:, 1:].clone())
    said = "out has shape (4, 9, 40), want (4, 9, 20), half as wide as x"
    refused(ValueError, said, gated_activation, x, out=torch.empty_like(x))
    refused(TypeError, "out has type float64, want float32", activate, x, out=x.double())
    refused(ValueError, "out shares memory with x, want its own", activate, x[:, 1:], out=x[:, :8])
    refused(ValueError, "out shares memory with x, want its own", gated_activation, x, out=x[..., 20:])
    refused(ValueError, "out has rows that are not contiguous", activate, x, out=random(4, 40, 9).mT)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@kinds
@both
def test_gradients_in_place(dtype, kind, gated):
    x, grad = random(7, 2 * 37, dtype=dtype), random(7, 37 if gated else 74, dtype=dtype, seed=1)
    want, values = torch.empty_like(x), torch.empty_like(grad)
    _core.activate_backward(grad, x, want, values, kind, gated)
    memory = x.clone()
    _core.activate_backward(grad, memory, memory, None, kind, gated)
    assert same(memory, want)
    x_grad, memory = torch.empty_like(x), grad.clone()
    _core.activate_backward(memory, x, x_grad, memory, kind, gated)
    assert torch.equal(x_grad, want) and torch.equal(memory, values)
    if not gated:
        memory = grad.clone()
        _core.activate_backward(memory, x, memory, None, kind, gated)
        assert same(memory, want)


def test_gradients_in_memory_that_does_not_fit():
    x, grad = random(7, 20), random(7, 20, seed=1)
    run = _core.activate_backward
    said = "x_grad shares memory with grad, want its own memory or exactly that of"
    refused(ValueError, said, run, grad[:6], x[:6], grad[1:], None, "gelu", False)
    refused(ValueError, said, run, x[:, :10], grad, x, None, "gelu", True)
    said = "x_grad shares memory with x, want its own memory or exactly that of x"
    refused(ValueError, said, run, grad[:6], x[:6], x[1:], None, "gelu", False)
    said = "activated shares memory with x or x_grad"
    refused(ValueError, said, run, grad, x, x.clone(), x, "gelu", False)
    refused(ValueError, said, run, grad, x, grad, grad, "gelu", False)
    said = "activated has shape (7, 20), want (7, 10), half as wide as x"
    refused(ValueError, said, run, grad[:, :10], x, x.clone(), grad.clone(), "gelu", True)
    refused(ValueError, "grad has shape (7, 20), want (7, 10)", run, grad, x, x.clone(), None, "gelu", True)
    refused(ValueError, "x_grad has shape (7, 10)", run, grad, x, x[:, :10].clone(), None, "gelu", False)
    refused(
        TypeError,
        "grad has type float64, want float32",
        run,
        grad.double(),
        x,
        x.clone(),
        None,
        "gelu",
        False,
    )


def test_numpy_gives_the_same_bits():
    for gated, kind in itertools.product([False, True], KINDS):
        for dtype in (np.float32, np.float64):
            x = random(3, 11, 50).numpy().astype(dtype)
            want = op(gated)(torch.from_numpy(x), kind).numpy()
            for array in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
                got = op(gated)(array, kind)
                assert got.dtype == dtype and np.array_equal(got, want)


def test_leading_dimensions():
    x = random(2, 3, 4, 5, 6)
    for other in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x.permute(3, 2, 1, 0, 4)):
        want = reference.gated_activation(other.double()).float()
        torch.testing.assert_close(gated_activation(other), want)
        torch.testing.assert_close(activate(other), reference.activate(other.double()).float())
        assert np.array_equal(gated_activation(other.numpy()), gated_activation(other).numpy())


def test_only_x_is_kept():
    x = random(3, 8).requires_grad_()
    for result in (activate(x), gated_activation(x)):
        (saved,) = result.grad_fn.saved_tensors
        assert saved.data_ptr() == x.data_ptr()


# ---- the same bits ----


def everything(dtype):
    results = []
    for kind, gated in itertools.product(KINDS, [False, True]):
        x = random(50, 3000, dtype=dtype).requires_grad_()
        out = op(gated)(x, kind)
        results += [out.detach(), torch.autograd.grad(out, x, random(*out.shape, dtype=dtype, seed=1))[0]]
    return results


@types
def test_any_number_of_threads_gives_the_same_bits(dtype):
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        results.append(everything(dtype))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def on_level(folder):
    """Called in a process of its own."""
    torch.save([everything(dtype) for dtype in TYPES], folder)


@pytest.mark.parametrize(
    "level", [level for level in _core.isas_compiled() if level in _core.isas_supported()]
)
def test_levels_agree(level, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "TENFOLD_ISA": level}
    code = f"import test_activation as t; t.on_level({str(tmp_path / 'results')!r})"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    for dtype, theirs in zip(TYPES, torch.load(tmp_path / "results"), strict=True):
        for a, b in zip(theirs, everything(dtype), strict=True):
            tolerance = {SINGLE: 1e-6, HALF: 2**-7, DOUBLE: 1e-14}[dtype]  # HALF: the neighbour
            most = max(1.0, float(b.abs().max()))  # what a gradient is multiplied with
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * most)


# ---- gradients ----


@kinds
@both
def test_gradcheck(kind, gated):
    x = random(3, 5, 6, dtype=DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: op(gated)(x, kind), (x,))
    assert torch.autograd.gradcheck(lambda x: op(gated)(x.transpose(0, 1), kind), (x,))


@both
def test_gradients_that_lie_in_any_order(gated):
    x = random(2, 3, 6).requires_grad_()
    out = op(gated)(x)
    for upstream in (torch.ones(()).expand(out.shape), random(*out.mT.shape).mT):
        got = torch.autograd.grad(out, x, upstream, retain_graph=True)[0]
        assert torch.equal(got, torch.autograd.grad(out, x, upstream.contiguous(), retain_graph=True)[0])


@both
def test_there_is_a_first_gradient_only(gated):
    x = random(2, 6).requires_grad_()
    (grad,) = torch.autograd.grad(op(gated)(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="first gradient only"):
        grad.sum().backward()
    out = op(gated)(x)
    upstream = torch.ones_like(out).requires_grad_()
    (grad,) = torch.autograd.grad(out, x, upstream, create_graph=True)
    with pytest.raises(NotImplementedError, match="first gradient only"):
        grad.sum().backward()


# ---- torch.compile, opcheck, autocast, vmap, torch.func ----


def layer(x):
    return gated_activation(activate(x.sin(), "gelu_tanh").cos() * 2, "gelu")


def test_under_compile():
    x = random(3, 8).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    want = layer(x)
    got = compiled(x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), x), torch.autograd.grad(want.sum(), x))
    torch.testing.assert_close(compiled(x.detach()), want.detach())
    dynamic = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for width in (8, 12):
        torch.testing.assert_close(dynamic(random(5, width)), layer(random(5, width)))


def test_opcheck():
    ops, x = torch.ops.tenfold, random(3, 8)
    for gated in (False, True):
        checks = partial(torch.library.opcheck, test_utils=("test_schema", "test_faketensor"))
        checks(ops.activate.default, (x, "gelu", gated))
        checks(ops.activate.default, (x.t().contiguous().t(), "silu", gated))
        checks(ops.activate_backward.default, (activate(x)[:, : 4 if gated else 8], x, "relu", gated))


def test_the_operators_record_no_gradient():
    with pytest.raises(NotImplementedError, match="records no gradient"):
        torch.ops.tenfold.activate(random(2, 4).requires_grad_(), "gelu", False)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap_and_func(dim):
    xs = random(4, 4, 4)
    parts = xs.unbind(dim)
    torch.testing.assert_close(
        torch.func.vmap(layer, in_dims=dim)(xs), torch.stack([layer(x) for x in parts])
    )
    grad = torch.func.grad(lambda x: layer(x).square().sum())
    leaf = parts[0].clone().requires_grad_()
    torch.testing.assert_close(grad(parts[0]), torch.autograd.grad(layer(leaf).square().sum(), leaf)[0])
    got = torch.func.vmap(grad, in_dims=dim)(xs)
    torch.testing.assert_close(got, torch.stack([grad(x) for x in parts]))
    # The gradient alone is vmapped.
    out = layer(leaf)
    upstreams = random(3, *out.shape)
    many = torch.func.vmap(lambda v: torch.autograd.grad(out, leaf, v, retain_graph=True)[0])(upstreams)
    each = [torch.autograd.grad(out, leaf, v, retain_graph=True)[0] for v in upstreams]
    torch.testing.assert_close(many, torch.stack(each))


def test_vmap_over_single_numbers():
    x = random(6)
    assert torch.equal(torch.func.vmap(activate)(x), activate(x))
    refused(ValueError, "x has shape (), want an even last", torch.func.vmap(gated_activation), x)


@both
def test_what_torch_func_cannot_do_raises(gated):
    x = random(3, 4)
    run = op(gated)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(run, (x,), (x,))
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.grad(lambda x: torch.func.grad(lambda y: run(y).sin().sum())(x).sum())(x)


@types
def test_under_autocast(dtype):
    x = random(3, 8, dtype=dtype)
    for target in (HALF, torch.float16):
        with torch.autocast("cpu", dtype=target):
            assert activate(x).dtype == gated_activation(x).dtype == dtype
            leaf = x.clone().requires_grad_()
            gated_activation(leaf).sum().backward()
            assert leaf.grad.dtype == dtype


def test_in_inference_mode():
    with torch.inference_mode():
        x = random(3, 8)
        want = activate(x)
        assert activate(x, out=x) is x and torch.equal(x, want)


class Named(torch.Tensor):
    """A subclass: torch has more to do than to run the kernel."""


def test_subclasses_and_out_in_other_ways():
    x = random(3, 8)
    named = x.as_subclass(Named)
    assert torch.equal(activate(named), activate(x))
    out = torch.empty(3, 4)
    assert gated_activation(named, out=out) is out and torch.equal(out, gated_activation(x))


# ---- what is refused, and what is empty ----


def refused(error, message, function, *args, **kwargs):
    with pytest.raises(error, match=re.escape(message)):
        function(*args, **kwargs)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, lambda x: x], ids=["numpy", "torch"])
def test_wrong_arguments(convert):
    x = convert(random(2, 5))
    for function in (activate, gated_activation):
        refused(
            ValueError, "activation is 'tanh', want gelu, gelu_tanh, silu or relu", function, x[:, 1:], "tanh"
        )
        whole = convert(torch.ones(2, 4).long())
        refused(TypeError, "x has type int64, want float32, bfloat16 or float64", function, whole)
    half = convert(torch.ones(2, 4).half())
    refused(TypeError, "x has type float16, want float32, bfloat16 or float64", activate, half)
    refused(ValueError, "x has shape (2, 5), want an even last dimension", gated_activation, x)
    refused(
        ValueError, "x has shape (), want an even last dimension", gated_activation, convert(torch.ones(()))
    )
    out = convert(torch.empty(2, 4))
    refused(ValueError, "x has shape (2, 5), want an even last dimension", gated_activation, x, out=out)


def test_mixed_libraries():
    x = random(2, 4)
    refused(TypeError, "x is a torch.Tensor and out is a numpy.ndarray", activate, x, out=x.numpy())
    refused(TypeError, "want arrays of one library", activate, x.numpy(), out=x)
    refused(TypeError, "x is a list, want a numpy array", activate, [[1.0]])


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (2, 0, 4), (0, 0)])
@both
@kinds
def test_empty(shape, gated, kind):
    x = torch.zeros(shape, requires_grad=True)
    out = op(gated)(x, kind)
    assert out.shape == ((*shape[:-1], shape[-1] // 2) if gated else shape)
    out.sum().backward()
    assert x.grad.shape == shape
    assert op(gated)(x.detach().numpy(), kind).shape == out.shape
