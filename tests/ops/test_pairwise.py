"""The pair perceptron against its plain-torch twin in float64, on random shapes, strides and types."""

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
from tenfold.ops.pairwise import pair_mlp  # noqa: E402
from tenfold.ops.reference import pairwise as reference  # noqa: E402

SETTINGS = settings(max_examples=60, deadline=None)
SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64
TYPES = [SINGLE, HALF, DOUBLE]
VALUES = {SINGLE: 2e-6, HALF: 2**-7, DOUBLE: 1e-13}
GRADIENTS = {SINGLE: 1e-5, HALF: 2**-7, DOUBLE: 1e-12}
"""Of the largest number, or of 1 where all are smaller: the tails of an activation are small differences."""
KINDS = list(reference.ACTIVATIONS)
kinds = pytest.mark.parametrize("kind", KINDS)
types = pytest.mark.parametrize("dtype", TYPES, ids=str)
deep = pytest.mark.parametrize("K", [None, 3], ids=["flat", "deep"])


def random(*shape, dtype=SINGLE, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def relayed(x, kind):
    """The same values with other strides."""
    if kind == 0 or x.dim() == 0:
        return x
    if kind == 1:  # part of a wider array
        return torch.cat([torch.full_like(x, torch.nan), x], dim=-1)[..., x.shape[-1] :]
    if kind == 2 and x.dim() > 1:  # columns side by side
        return x.mT.contiguous().mT
    return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]  # every other element


def problem(n, m, H, K=None, b=True, bias=True, dtype=SINGLE, seed=0, layouts=(0,)):
    """The arguments of a call: numbers whose scores and gradients are of the order of 1."""
    make = partial(random, dtype=dtype)
    arrays = [make(n, H, seed=seed), make(m, H, seed=seed + 1), make(K or H, seed=seed + 2)]
    arrays.append(make(seed=seed + 3) if b else None)
    if K:
        arrays += [(make(K, H, seed=seed + 4) / math.sqrt(H)).to(dtype)]
        arrays += [make(K, seed=seed + 5) if bias else None]
    layouts = itertools.cycle(layouts)
    return [None if x is None else relayed(x, next(layouts)) for x in arrays]


def leaves_of(arrays, dtype=None):
    return [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in arrays]


def gradients(out, leaves, grad):
    return torch.autograd.grad(out, [x for x in leaves if x is not None], grad)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """New memory is full of NaN: what a kernel leaves out is seen."""
    empty, numpys = torch.empty, np.empty

    def tensor(*shape, **options):
        made = empty(*shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    def array(shape, dtype=float):
        return np.full(shape, np.nan, dtype) if np.issubdtype(dtype, np.floating) else numpys(shape, dtype)

    monkeypatch.setattr(torch, "empty", tensor)
    monkeypatch.setattr(np, "empty", array)


def assert_near(got, want, tolerance, dtype, least=1.0):
    assert got.dtype == dtype and got.shape == want.shape
    if got.numel() > 0:
        assert bool(got.isfinite().all())
        most = max(float(want.abs().max()), least)
        assert float((got.double() - want).abs().max()) <= tolerance * most


def check(arrays, kind, dtype=SINGLE, grad_layout=0, seed=9, least=1.0):
    leaves, exact = leaves_of(arrays), leaves_of(arrays, DOUBLE)
    got, want = pair_mlp(*leaves, activation=kind), reference.pair_mlp(*exact, activation=kind)
    assert got.is_contiguous()
    assert_near(got.detach(), want.detach(), VALUES[dtype], dtype, least)
    assert torch.equal(got, pair_mlp(*arrays, activation=kind))
    grad = relayed(random(*want.shape, dtype=dtype, seed=seed), grad_layout)
    wanted = gradients(want, exact, grad.double())
    for mine, theirs in zip(gradients(got, leaves, grad), wanted, strict=True):
        assert_near(mine, theirs, GRADIENTS[dtype], dtype, least)


# ---- against the reference ----


@kinds
@types
@pytest.mark.parametrize("K", [None, 1, 3, 16, 64])
@pytest.mark.parametrize("H", [1, 3, 16, 64])
def test_widths(H, K, dtype, kind):
    check(problem(5, 67, H, K, dtype=dtype), kind, dtype)


@kinds
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 1), (1, 65), (3, 64), (65, 3), (70, 130), (2, 257)])
def test_sizes(n, m, kind):
    for K, dtype in itertools.product((None, 5), TYPES):
        check(problem(n, m, 7, K, dtype=dtype), kind, dtype)


@SETTINGS
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 150), st.integers(1, 64)),
    st.sampled_from([None, 1, 2, 5, 17, 64]),
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from(TYPES),
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
    st.integers(0, 2**30),
)
def test_random_shapes_and_strides(sizes, K, given_biases, dtype, kind, layouts, seed):
    b, bias = given_biases
    arrays = problem(*sizes, K, b, bias, dtype, seed, layouts)
    check(arrays, kind, dtype, layouts[-1], seed)


def test_many_rows():
    """As many as are added up in one part, and pairs whose scores add up to much."""
    check(problem(5000, 70, 4, 3), "elu")
    check(problem(70, 5000, 4, 3), "tanh")
    for arrays in (problem(1500, 300, 5), problem(900, 400, 5, 6)):
        check_sums(arrays)


@pytest.mark.parametrize(("n", "m"), [(1, 300_000), (300_000, 1), (100_000, 3)])
def test_long_sums(n, m):
    """Gradients of one sign, which add up to much, of a side that meets many rows of the other."""
    for K in (None, 2):
        u, v, w, b, *more = problem(n, m, 2, K)
        more = [x.abs() for x in more]
        check_sums([u, v, w.abs() + 0.5, b, *more])


def check_sums(arrays):
    leaves, exact = leaves_of(arrays), leaves_of(arrays, DOUBLE)
    got = gradients(pair_mlp(*leaves).sum(), leaves, None)
    for mine, theirs in zip(got, gradients(reference.pair_mlp(*exact).sum(), exact, None), strict=True):
        assert_near(mine, theirs, GRADIENTS[SINGLE], SINGLE)


@kinds
def test_small_and_large_numbers(kind):
    """Relative to the largest score where all are tiny (sigmoids are not), and slopes far from 0."""
    for scale, least in ((1e-4, 1.0 if kind == "sigmoid" else 0.0), (30.0, 1.0)):
        u, v, w, _ = problem(9, 70, 3, b=False)
        check([u * scale, v * scale, w], kind, least=least)
    x = torch.linspace(-30, 30, 501)[:, None].requires_grad_()
    exact = x.detach().double().requires_grad_()
    one = torch.ones(1)
    (got,) = torch.autograd.grad(pair_mlp(x, one[None] * 0, one, activation=kind).sum(), x)
    (want,) = torch.autograd.grad(reference.ACTIVATIONS[kind](exact).sum(), exact)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=3e-7)
    if kind in ("elu", "tanh", "sigmoid"):  # what 1 minus the value would have lost
        torch.testing.assert_close(got.double(), want, rtol=3e-5, atol=1e-12)


def test_what_the_defaults_are():
    u, v, w, *_ = problem(3, 5, 4)
    torch.testing.assert_close(pair_mlp(u, v, w), reference.pair_mlp(u, v, w, None, None, None, "elu"))


def test_it_is_the_perceptron_of_concatenated_features():
    x, y = random(6, 2), random(9, 3, seed=1)
    first, second, last = torch.nn.Linear(5, 16), torch.nn.Linear(16, 8), torch.nn.Linear(8, 1)
    pairs = torch.cat([x[:, None].expand(6, 9, 2), y[None].expand(6, 9, 3)], dim=-1)
    want = last(torch.nn.functional.silu(second(torch.nn.functional.silu(first(pairs))))).squeeze(-1)
    w_x, w_y = first.weight.split([2, 3], dim=1)
    got = pair_mlp(
        x @ w_x.T, y @ w_y.T + first.bias, last.weight[0], last.bias[0], second.weight, second.bias, "silu"
    )
    torch.testing.assert_close(got, want)


# ---- NaN and infinity ----


@kinds
@deep
def test_nan_goes_through(kind, K):
    u, v, *rest = problem(4, 70, 3, K)
    for dtype in (SINGLE, DOUBLE):
        arrays = [x.to(dtype, copy=True) for x in (u, v, *rest)]
        arrays[0][1, 2] = torch.nan
        leaves = leaves_of(arrays)
        out = pair_mlp(*leaves, activation=kind)
        assert out[1].isnan().all() and out[[0, 2, 3]].isfinite().all()
        du, dv, *others = gradients(out, leaves, torch.ones_like(out))
        assert du[[0, 2, 3]].isfinite().all()
        if kind != "relu":  # whose slope is 1 there
            assert du[1].isnan().any() and dv.isnan().any()
        assert others[0].isnan().any()
        arrays[0][1, 2] = 0.0
        arrays[1][69, 0] = torch.nan
        out = pair_mlp(*arrays, activation=kind)
        assert out[:, 69].isnan().all() and out[:, :69].isfinite().all()


@pytest.mark.parametrize("m", [3, 64, 67])
def test_infinity(m):
    """Columns that are there for the width of vectors alone add nothing."""
    u, v, w, b = problem(4, m, 3)
    u[2, 1] = torch.inf
    leaves, exact = leaves_of((u, v, w, b)), leaves_of((u, v, w, b), DOUBLE)
    got, want = pair_mlp(*leaves), reference.pair_mlp(*exact)
    assert torch.equal(got.isinf(), want.isinf())
    grads = zip(gradients(got.sum(), leaves, None), gradients(want.sum(), exact, None), strict=True)
    for mine, theirs in grads:
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5, equal_nan=True)
    u[2, 1] = -torch.inf
    torch.testing.assert_close(pair_mlp(u, v, w, b), reference.pair_mlp(u, v, w, b))


@pytest.mark.parametrize(("K", "place"), [(None, 2), (3, 2), (3, 4), (3, 5)])
def test_infinite_weights(K, place):
    """Neither do they with infinite weights, of the last layer or of the hidden one."""
    arrays = problem(4, 5, 3, K)
    arrays[place].view(-1)[0] = torch.inf
    leaves, exact = leaves_of(arrays), leaves_of(arrays, DOUBLE)
    got, want = pair_mlp(*leaves, activation="sigmoid"), reference.pair_mlp(*exact, activation="sigmoid")
    grads = zip(gradients(got.sum(), leaves, None), gradients(want.sum(), exact, None), strict=True)
    for mine, theirs in grads:
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


# ---- gradients ----


@kinds
@pytest.mark.parametrize("K", [None, 1, 4])
def test_gradcheck(kind, K):
    arrays = leaves_of(problem(3, 5, 4, K, dtype=DOUBLE, seed=3))
    assert torch.autograd.gradcheck(lambda *xs: pair_mlp(*xs, activation=kind), arrays)


@deep
def test_gradients_that_are_not_wanted(K):
    arrays = problem(9, 70, 5, K)
    grad = random(9, 70, seed=7)
    leaves = leaves_of(arrays)
    all_of_them = gradients(pair_mlp(*leaves), leaves, grad)
    for wanted in itertools.product([False, True], repeat=len(arrays)):
        if not any(wanted):
            continue
        some = [x.detach().requires_grad_(want) for x, want in zip(arrays, wanted, strict=True)]
        got = torch.autograd.grad(pair_mlp(*some), [x for x in some if x.requires_grad], grad)
        want = [x for x, each in zip(all_of_them, wanted, strict=True) if each]
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@deep
def test_gradients_that_lie_in_any_order(K):
    leaves = leaves_of(problem(5, 70, 6, K))
    out = pair_mlp(*leaves)
    for grad in (torch.ones(()).expand(out.shape), random(70, 5).mT, random(5, 140)[:, ::2]):
        mine = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        again = torch.autograd.grad(out, leaves, grad.contiguous(), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(mine, again, strict=True))


def test_only_the_arguments_are_kept():
    leaves = leaves_of(problem(30, 40, 6, 5))
    saved = [x for x in pair_mlp(*leaves).grad_fn.saved_tensors if x is not None]
    mine = {x.data_ptr() for x in leaves}
    assert all(x.data_ptr() in mine for x in saved)


@deep
def test_there_is_a_first_gradient_only(K):
    leaves = leaves_of(problem(3, 4, 5, K))
    out = pair_mlp(*leaves)
    (grad,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="first gradient only"):
        grad.sum().backward()


# ---- memory ----


SMALL = """
import resource, torch
from tenfold.ops.pairwise import pair_mlp
torch.set_num_threads(1)
def call(n, m):
    u, v, w, b = torch.randn(n, 32), torch.randn(m, 32), torch.randn(32), torch.randn(())
    arrays = [x.requires_grad_() for x in (u, v, w, b, torch.randn(32, 32), torch.randn(32))]
    pair_mlp(*arrays).backward(torch.ones(()).expand(n, m))
call(40, 40)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
call(2000, 2000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(bool(_core.sanitizers()), reason="sanitizers take memory of their own")
def test_no_array_of_all_pairs_and_units():
    """The scores are 16 MB, an array of the first layer's units of all pairs would be 512 MB."""
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80 * 1024


# ---- the same bits ----


def everything(dtype):
    results = []
    for kind, K in itertools.product(("elu", "gelu", "sigmoid"), (None, 9)):
        leaves = leaves_of(problem(400, 300, 17, K, dtype=dtype))
        out = pair_mlp(*leaves, activation=kind)
        results += [out.detach(), *gradients(out, leaves, random(400, 300, dtype=dtype, seed=8))]
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


def on_level(path):
    """Called in a process of its own."""
    torch.save([everything(dtype) for dtype in TYPES], path)


@pytest.mark.parametrize(
    "level", [level for level in _core.isas_compiled() if level in _core.isas_supported()]
)
def test_levels_agree(level, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "TENFOLD_ISA": level}
    code = f"import test_pairwise as t; t.on_level({str(tmp_path / 'results')!r})"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    for dtype, theirs in zip(TYPES, torch.load(tmp_path / "results"), strict=True):
        for a, b in zip(theirs, everything(dtype), strict=True):
            tolerance = {SINGLE: 1e-5, HALF: 2**-7, DOUBLE: 1e-12}[dtype]
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


def test_numpy_gives_the_same_bits():
    for K, dtype, layouts in itertools.product((None, 5), (SINGLE, DOUBLE), ((0,), (1,), (2,), (3,))):
        arrays = problem(7, 70, 6, K, dtype=dtype, layouts=layouts)
        want = pair_mlp(*arrays, activation="tanh").numpy()
        got = pair_mlp(*(x.numpy() for x in arrays), activation="tanh")
        assert got.dtype == want.dtype and np.array_equal(got, want)


# ---- torch.compile, opcheck, vmap, torch.func, autocast ----


def scores(u, v, w, b, hidden=None, hidden_bias=None):
    return pair_mlp(u.sin(), v, w, b, hidden, hidden_bias, "silu").cos() * 2


@deep
def test_under_compile(K):
    leaves = leaves_of(problem(5, 9, 4, K))
    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")
    want, got = scores(*leaves), compiled(*leaves)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got.sum(), leaves, None), gradients(want.sum(), leaves, None))
    plain = [x.detach() for x in leaves]
    torch.testing.assert_close(compiled(*plain), want.detach())
    some = [x.detach().requires_grad_(i % 2 == 0) for i, x in enumerate(leaves)]
    chosen = [x for x in some if x.requires_grad]
    torch.testing.assert_close(
        gradients(compiled(*some).sum(), chosen, None), gradients(scores(*some).sum(), chosen, None)
    )
    dynamic = torch.compile(scores, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 7):
        arrays = problem(n, n + 3, 4, K)
        torch.testing.assert_close(dynamic(*arrays), scores(*arrays))


def test_opcheck():
    ops = torch.ops.tenfold
    checks = partial(torch.library.opcheck, test_utils=("test_schema", "test_faketensor"))
    for K in (None, 3):
        u, v, w, b, *hidden = problem(5, 9, 4, K)
        hidden = hidden or [None, None]
        checks(ops.pair_mlp.default, (u, v, w, b, *hidden, "elu"))
        wanted = [True, False, True, True, bool(K), False]
        checks(ops.pair_mlp_backward.default, (random(5, 9), u, v, w, *hidden, "elu", wanted))


def test_the_operators_record_no_gradient():
    u, v, w, b = leaves_of(problem(2, 3, 4))
    with pytest.raises(NotImplementedError, match="records no gradient"):
        torch.ops.tenfold.pair_mlp(u, v, w, b, None, None, "elu")


@deep
def test_vmap_and_func(K):
    arrays = problem(4, 6, 5, K)
    us, hs = random(3, 4, 5, seed=20), random(3, *arrays[2].shape, seed=21)
    rest = arrays[3:]
    each = [scores(u, arrays[1], w, *rest) for u, w in zip(us, hs, strict=True)]
    got = torch.func.vmap(lambda u, w: scores(u, arrays[1], w, *rest))(us, hs)
    torch.testing.assert_close(got, torch.stack(each))
    moved = torch.func.vmap(lambda u: scores(u, *arrays[1:]), in_dims=1)(us.movedim(0, 1))
    torch.testing.assert_close(moved, torch.stack([scores(u, *arrays[1:]) for u in us]))
    grad = torch.func.grad(lambda u, w: scores(u, arrays[1], w, *rest).square().sum(), argnums=(0, 1))
    for mine, theirs in zip(
        torch.func.vmap(grad)(us, hs),
        zip(*(grad(u, w) for u, w in zip(us, hs, strict=True)), strict=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, torch.stack(theirs))
    leaves = leaves_of(arrays)
    out = scores(*leaves)
    want = gradients(out.sum(), leaves, None)
    mine = torch.func.grad(lambda *xs: scores(*xs).sum(), argnums=tuple(range(len(arrays))))(*arrays)
    torch.testing.assert_close(mine, want)
    # The gradient alone is vmapped.
    out = scores(*leaves)
    upstreams = random(3, *out.shape, seed=30)
    many = torch.func.vmap(lambda g: torch.autograd.grad(out, leaves, g, retain_graph=True))(upstreams)
    for i, g in enumerate(upstreams):
        single = torch.autograd.grad(out, leaves, g, retain_graph=True)
        torch.testing.assert_close([x[i] for x in many], list(single))


def test_what_torch_func_cannot_do_raises():
    u, v, w, b = problem(3, 4, 5)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda u: pair_mlp(u, v, w, b), (u,), (u,))
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.grad(lambda u: torch.func.grad(lambda x: pair_mlp(x, v, w, b).sin().sum())(u).sum())(u)


@types
def test_under_autocast(dtype):
    leaves = leaves_of(problem(3, 4, 5, 6, dtype=dtype))
    with torch.autocast("cpu", dtype=HALF):
        out = pair_mlp(*leaves)
        assert out.dtype == dtype
        out.sum().backward()
    assert all(x.grad.dtype == dtype for x in leaves)


class Named(torch.Tensor):
    """A subclass: torch has more to do than to run the kernel."""


def test_subclasses_and_inference_mode():
    arrays = problem(3, 4, 5, 6)
    want = pair_mlp(*arrays)
    assert torch.equal(pair_mlp(arrays[0].as_subclass(Named), *arrays[1:]), want)
    with torch.inference_mode():
        assert torch.equal(pair_mlp(*(x.clone() for x in arrays)), want)


# ---- what is refused, and what is empty ----


def refused(error, message, *args, **kwargs):
    with pytest.raises(error, match=re.escape(message)):
        pair_mlp(*args, **kwargs)


@pytest.mark.parametrize("convert", [lambda x: x.numpy(), lambda x: x], ids=["numpy", "torch"])
def test_wrong_arguments(convert):
    u, v, w, b, hidden, bias = map(convert, problem(3, 4, 5, 6))
    flat = convert(random(5))
    refused(ValueError, "u has shape (5,), want two dimensions", flat, v, w)
    refused(ValueError, "v has shape (5,), want two dimensions", u, flat, w)
    refused(ValueError, "v has shape (4, 4), want (4, 5), as many columns as u", u, v[:, :4], w)
    wide = convert(random(3, 65))
    refused(ValueError, "u has shape (3, 65), want (n, H) with H from 1 to 64", wide, wide, flat)
    refused(ValueError, "u has shape (3, 0), want (n, H) with H from 1 to 64", u[:, :0], v[:, :0], w)
    refused(ValueError, "w has shape (6,), want (5,), one for each column of u", u, v, w)
    refused(ValueError, "w has shape (5,), want (6,), one for each row of hidden", u, v, flat, b, hidden)
    refused(ValueError, "b has shape (5,), want (), a single number", u, v, flat, flat)
    refused(ValueError, "hidden has shape (6, 4), want (6, 5), as many", u, v, w, b, hidden[:, :4])
    refused(ValueError, "hidden has shape (0, 5), want (K, H) with K from 1 to 64", u, v, w, b, hidden[:0])
    tall = convert(random(65, 5))
    refused(ValueError, "hidden has shape (65, 5), want (K, H) with K from", u, v, tall[:, 0], b, tall)
    refused(ValueError, "hidden_bias has shape (5,), want (6,), one for", u, v, w, b, hidden, flat)
    refused(ValueError, "hidden_bias is given and hidden is None, want both", u, v, flat, b, None, flat)
    said = "activation is 'swish', want elu, relu, silu, gelu, gelu_tanh, tanh or sigmoid"
    refused(ValueError, said, u, v, w, b, hidden, bias, "swish")
    whole = convert(torch.ones(3, 5).long())
    refused(TypeError, "u has type int64, want float32, bfloat16 or float64", whole, v, w)
    double = [convert(x) for x in problem(3, 4, 5, 6, dtype=DOUBLE)]
    for i, name in enumerate(("u", "v", "w", "b", "hidden", "hidden_bias")):
        arguments = [u, v, w, b, hidden, bias]
        arguments[i] = double[i]
        if name != "u":
            refused(TypeError, f"{name} has type float64, want float32", *arguments)


def test_mixed_libraries():
    u, v, w, b, hidden, bias = problem(3, 4, 5, 6)
    arguments = [u, v, w, b, hidden, bias]
    for i, name in enumerate(("v", "w", "b", "hidden", "hidden_bias"), 1):
        mixed = [*arguments[:i], arguments[i].numpy(), *arguments[i + 1 :]]
        refused(TypeError, f"u is a torch.Tensor and {name} is a numpy.ndarray", *mixed)
        mixed = [x.numpy() for x in arguments]
        mixed[i] = arguments[i]
        refused(TypeError, "want arrays of one library", *mixed)
    refused(TypeError, "w is a builtins.NoneType", u, v, None)
    refused(TypeError, "u is a list, want a numpy array", [[1.0]], v, w)
    refused(TypeError, "v is a list, want a numpy array", u.numpy(), [[1.0]], w.numpy())


def test_gradients_in_memory_that_does_not_fit():
    u, v, w, _ = problem(3, 4, 5)
    run = partial(_core.pair_mlp_backward, random(3, 4), u, v, w, None, None, "elu")
    nothing = [None] * 6
    for i, (name, good) in enumerate((("u", u), ("v", v), ("w", w))):
        grads = [*nothing[:i], torch.empty(7, 7), *nothing[i + 1 :]]
        with pytest.raises(ValueError, match=f"{name}_grad has shape"):
            run(*grads)
        grads[i] = torch.empty_like(good).double()
        with pytest.raises(TypeError, match=f"{name}_grad has type float64"):
            run(*grads)
    with pytest.raises(ValueError, match="hidden is None"):
        run(*nothing[:4], torch.empty(3, 5), None)
    with pytest.raises(ValueError, match="grad has shape"):
        _core.pair_mlp_backward(random(4, 3), u, v, w, None, None, "elu", *nothing)


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0)])
@deep
@types
def test_empty(n, m, K, dtype):
    leaves = leaves_of(problem(n, m, 4, K, dtype=dtype))
    out = pair_mlp(*leaves)
    assert out.shape == (n, m) and out.dtype == dtype
    for x, grad in zip(leaves, gradients(out, leaves, torch.ones_like(out)), strict=True):
        assert grad.shape == x.shape and not grad.any() and not grad.isnan().any()
    if dtype != HALF:
        assert pair_mlp(*(x.detach().numpy() for x in leaves)).shape == (n, m)
