"""The adaln ops against their plain-torch twins in float64, on random shapes, strides and types."""

import itertools
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
from tenfold.ops import adaln  # noqa: E402
from tenfold.ops.reference import adaln as reference  # noqa: E402

SETTINGS = settings(max_examples=100, deadline=None)
SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64
TOLERANCE = {SINGLE: 2e-6, HALF: 2**-8, DOUBLE: 1e-13}
"""Of a result, relative to its largest number: computed in float32 (float64), rounded once."""
VECTORS = ("gate", "shift", "scale", "weight", "bias")


def random(*shape, dtype=SINGLE, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def relayed(x, kind):
    """The same values in rows of other strides."""
    if kind == 0 or x.dim() < 2:
        return x
    if kind == 1:  # a chunk of wider rows
        return torch.cat([torch.full_like(x, torch.nan), x], dim=-1)[..., x.shape[-1] :]
    if kind == 2:  # rows in another order
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)  # rows that do not lie side by side


@st.composite
def problems(draw, fewest=0):
    """x, branch, and a dictionary of some of the five vectors."""
    samples, rows = draw(st.integers(fewest, 4)), draw(st.integers(fewest, 70))
    width = draw(st.sampled_from([1, 2, 3, 7, 8, 15, 16, 33, 64, 70, 130, 257]))
    x_type = draw(st.sampled_from([SINGLE, SINGLE, HALF, DOUBLE]))
    seed = draw(st.integers(0, 2**32))

    def other_type():
        return DOUBLE if x_type == DOUBLE else draw(st.sampled_from([SINGLE, HALF]))

    def rows_of(offset):
        dtype = x_type if offset == 0 else other_type()
        values = random(samples, rows, width, dtype=dtype, seed=seed + offset)
        return relayed(values, draw(st.integers(0, 3)))

    vectors = {}
    for index, name in enumerate(VECTORS):
        if not draw(st.booleans()):
            continue
        if name in ("weight", "bias"):
            vectors[name] = random(width, dtype=other_type(), seed=seed + 10 + index)
            continue
        whole = random(samples, 6 * width, dtype=other_type(), seed=seed + 10 + index)
        vectors[name] = whole.chunk(6, dim=1)[index + 1]
        if draw(st.booleans()):
            vectors[name] = vectors[name][:, None]
    return rows_of(0), rows_of(1), vectors, None if x_type == DOUBLE else other_type()


def exact(values):
    return {name: value.double() for name, value in values.items()}


def assert_near(got, want, dtype, factor=1.0):
    assert got.dtype == dtype and got.shape == want.shape
    if got.numel() == 0:
        return
    scale = float(want.detach().abs().max())
    assert float((got.double() - want).detach().abs().max()) <= factor * TOLERANCE[dtype] * max(scale, 1e-3)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """New memory is full of NaN: what a kernel leaves out is seen."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty

    def array(shape, dtype):
        whole = np.issubdtype(dtype, np.integer)  # which happens where a wrong type is refused
        return np.full(shape, 77 if whole else np.nan, dtype)

    def poison(tensor):
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: poison(new_empty(self, *a, **k)))
    monkeypatch.setattr(np, "empty", array)


# ---- against the reference ----


@SETTINGS
@given(problems())
def test_adaln(problem):
    x, _, vectors, dtype = problem
    vectors.pop("gate", None)
    got = adaln.adaln(x, **vectors, dtype=dtype)
    want = reference.adaln(x.double(), **exact(vectors))
    assert got.is_contiguous()
    # A row whose elements nearly cancel: what is left of x's rounding is divided by its deviation.
    assert_near(got, want, dtype or x.dtype, 4.0 if x.shape[-1] > 4 else 400.0)
    plain = adaln.adaln(x.flatten(0, 1), weight=vectors.get("weight"), bias=vectors.get("bias"), dtype=dtype)
    assert plain.shape == (x.shape[0] * x.shape[1], x.shape[2])


@SETTINGS
@given(problems())
def test_gated_residual(problem):
    x, branch, vectors, _ = problem
    gate = vectors.get("gate")
    want = reference.gated_residual(x.double(), branch.double(), None if gate is None else gate.double())
    assert_near(adaln.gated_residual(x, branch, gate), want, x.dtype)


@SETTINGS
@given(problems())
def test_both_at_once_are_one_after_the_other(problem):
    x, branch, vectors, dtype = problem
    gate = vectors.pop("gate", None)
    residual, h = adaln.gated_residual_adaln(x, branch, gate, **vectors, dtype=dtype)
    one = adaln.gated_residual(x, branch, gate)
    assert torch.equal(residual, one)
    assert torch.equal(h, adaln.adaln(one, **vectors, dtype=dtype))


@SETTINGS
@given(problems(fewest=1))
def test_gradients(problem):
    x, branch, vectors, dtype = problem
    leaves = {"x": x, "branch": branch, **vectors}
    upstream = [random(*x.shape, seed=5), random(*x.shape, seed=6)]

    def gradients(library, leaves, **options):
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        results = library.gated_residual_adaln(eps=1e-2, **leaves, **options)
        loss = sum((a.double() * b).sum() for a, b in zip(results, upstream, strict=True))
        return torch.autograd.grad(loss, list(leaves.values()))

    gots = gradients(adaln, leaves, dtype=dtype)
    wants = gradients(reference, exact(leaves))
    half = HALF in {x.dtype, dtype}  # the residual that is normalised, and the gradient of h, are rounded
    for (name, leaf), got, want in zip(leaves.items(), gots, wants, strict=True):
        assert got.dtype == leaf.dtype and got.shape == leaf.shape, name
        scale = float(want.abs().max()) + 1.0
        error = float((got.double() - want).abs().max()) / scale
        # In a row of a few elements the variance itself may be mostly rounding.
        rounded = 0.2 if x.shape[-1] < 16 else 0.03
        exactly = 3 * TOLERANCE[leaf.dtype] + (0 if x.dtype == DOUBLE else 2e-5)
        assert error <= (rounded if half else exactly), name


@SETTINGS
@given(problems(), st.booleans())
def test_qk_norm(problem, heads):
    q, k, _, _ = problem
    if heads:
        q = q[:, :, None].expand(-1, -1, 3, -1)
        k = torch.stack([k, -k], dim=1)
    wants = reference.qk_norm(q.double(), k.double())
    for x, got, want in zip((q, k), adaln.qk_norm(q, k), wants, strict=True):
        assert got.is_contiguous()
        assert_near(got, want, x.dtype, 4.0 if x.shape[-1] > 4 else 400.0)


@pytest.mark.parametrize("dtype", [SINGLE, HALF, DOUBLE], ids=str)
def test_gradient_of_qk_norm(dtype):
    qkv = random(3, 20, 3 * 96, dtype=dtype).requires_grad_()
    wide = qkv.detach().double().requires_grad_()

    def gradient(library, qkv):
        q, k, v = qkv.chunk(3, dim=-1)
        heads = [part.unflatten(-1, (4, 24)).transpose(1, 2) for part in (q, k)]
        a, b = library.qk_norm(*heads)
        loss = (a.double() * random(*a.shape)).sum() + (b.double().square() * random(*b.shape, seed=1)).sum()
        return torch.autograd.grad(loss + v.double().sum(), qkv)[0]

    assert_near(gradient(adaln, qkv), gradient(reference, wide), dtype, 4.0)


@pytest.mark.parametrize("types", [*itertools.product([SINGLE, HALF], repeat=3), (DOUBLE,) * 3], ids=str)
def test_the_pair_that_other_families_call(types):
    _, type_, x_grad_type = types
    parts = [random(40, 3 * 37, dtype=t, seed=i).chunk(3, dim=1)[i] for i, t in enumerate(types)]
    grad, x = parts[0], random(40, 37, dtype=type_, seed=3)
    out, rstd = parts[1], torch.full((40,), torch.nan, dtype=DOUBLE if type_ == DOUBLE else SINGLE)
    _core.norm_rows(x, out, rstd, 1e-5)
    wide = x.double().requires_grad_()
    want = reference.adaln(wide, eps=1e-5)
    assert_near(out, want, type_, 4.0)
    torch.testing.assert_close(
        rstd.double(), 1 / (x.double().var(dim=1, correction=0) + 1e-5).sqrt(), rtol=1e-6, atol=0
    )
    x_grad = parts[2]
    _core.norm_rows_backward(grad, out, rstd, x_grad)
    wanted = torch.autograd.grad(want, wide, grad.double())[0]
    assert_near(x_grad, wanted, x_grad_type, 6.0 if type_ != HALF or x_grad_type == HALF else 2**12)
    for other in (grad, out):  # in place
        if other.dtype == x_grad_type:
            memory = other.clone()
            other_memory = memory if other is grad else grad
            _core.norm_rows_backward(other_memory, memory if other is out else out, rstd, memory)
            assert torch.equal(memory, x_grad)


# ---- memory ----


def test_out():
    x, branch, gate = random(2, 9, 40), random(2, 9, 40, seed=1), random(2, 40, seed=2)
    want = adaln.adaln(x, gate, gate)
    same = x.clone()  # in place
    for rows, out in ((x, torch.empty(2, 9, 40)), (x, random(2, 9, 80)[..., 40:]), (same, same)):
        version = out._version
        assert adaln.adaln(rows, gate, gate, out=out) is out
        assert torch.equal(out, want) and out._version > version
    half = torch.empty(2, 9, 40, dtype=HALF)
    assert adaln.adaln(x, gate, gate, out=half) is half
    assert torch.equal(half, adaln.adaln(x, gate, gate, dtype=HALF))
    want = adaln.gated_residual(x, branch, gate)
    for index in range(2):
        arguments = [x.clone(), branch.clone()]
        assert adaln.gated_residual(*arguments, gate, out=arguments[index]) is arguments[index]
        assert torch.equal(arguments[index], want)
    arrays = [t.numpy() for t in (x, branch, gate)]
    out = np.empty_like(arrays[0])
    assert adaln.gated_residual(*arrays, out=out) is out and np.array_equal(out, want)
    assert adaln.adaln(arrays[0], arrays[2], out=out) is out
    with pytest.raises(ValueError, match="out is given and a gradient is wanted"):
        adaln.adaln(x.clone().requires_grad_(), out=torch.empty_like(x))
    with pytest.raises(ValueError, match="out is given and a gradient is wanted"):
        adaln.gated_residual(x, branch, gate.clone().requires_grad_(), out=torch.empty_like(x))
    with pytest.raises(ValueError, match="out shares memory with x"):
        wide = random(2, 10, 40)
        adaln.adaln(wide[:, 1:], out=wide[:, :9])
    with pytest.raises(ValueError, match="out shares memory with residual"):
        both = torch.empty_like(x)
        _core.adaln_forward(x, branch, None, None, None, None, None, 1e-6, both, both, None)
    with pytest.raises(ValueError, match="out shares memory with gate"):
        adaln.gated_residual(x[:1, :1], branch[:1, :1], gate[:1], out=gate[None, :1])
    with pytest.raises(TypeError, match=r"out has type torch\.float32, want torch\.bfloat16"):
        adaln.adaln(x, dtype=HALF, out=torch.empty_like(x))
    with pytest.raises(ValueError, match=re.escape("out has shape (2, 8, 40), want (2, 9, 40) as x")):
        adaln.adaln(x, out=torch.empty_like(x[:, 1:]))
    fixed = np.zeros((2, 9, 40), np.float32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        adaln.gated_residual(arrays[0], arrays[1], out=fixed)


def test_numpy_gives_the_same_bits():
    x, branch = random(3, 11, 50), random(3, 11, 50, seed=1)
    vectors = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes(3, 50).items())}
    for a, b in zip(
        adaln.gated_residual_adaln(x, branch, **vectors),
        adaln.gated_residual_adaln(
            x.numpy(), branch.numpy(), **{name: vector.numpy() for name, vector in vectors.items()}
        ),
        strict=True,
    ):
        assert np.array_equal(a.numpy(), b) and b.dtype == np.float32
    across = np.asfortranarray(x.numpy())
    assert np.array_equal(adaln.adaln(across), adaln.adaln(x).numpy())
    assert np.array_equal(adaln.qk_norm(across, x.numpy()[0])[0], adaln.qk_norm(x, x)[0].numpy())
    assert adaln.adaln(x.double().numpy()).dtype == np.float64


def shapes(samples, width):
    return {"gate": (samples, width), "shift": (samples, width), "scale": (samples, width),
            "weight": (width,), "bias": (width,)}  # fmt: skip


def test_nothing_is_copied_or_kept_that_is_not_needed():
    mod = random(2, 6 * 32).requires_grad_()
    x, branch = random(2, 5, 32).requires_grad_(), random(2, 5, 32).requires_grad_()
    shift, scale, gate = mod.chunk(6, dim=1)[:3]

    def kept(result):
        saved = result.grad_fn.saved_tensors
        return {t.data_ptr() for t in saved if t is not None and t.numel() >= 32}

    assert kept(adaln.adaln(x, shift, scale)) == {x.data_ptr(), scale.data_ptr()}
    assert kept(adaln.gated_residual(x, branch)) == set()
    assert kept(adaln.gated_residual(x, branch, gate)) == {branch.data_ptr(), gate.data_ptr()}
    residual, _ = adaln.gated_residual_adaln(x, branch, gate, shift, scale)
    assert kept(residual) == {t.data_ptr() for t in (residual, branch, gate, scale)}


def test_nan_and_infinity_stay_in_their_row():
    x = random(2, 6, 20)
    x[0, 2, 3], x[1, 4, 0] = torch.nan, torch.inf
    h = adaln.adaln(x, x[:, 0] * 0, x[:, 0] * 0)
    bad = torch.zeros(2, 6, dtype=torch.bool)
    bad[0, 2] = bad[1, 4] = True
    assert torch.equal(h.isnan().all(dim=-1), bad) and torch.equal(h.isnan().any(dim=-1), bad)
    q, k = adaln.qk_norm(x, x.bfloat16())
    assert torch.equal(q.isnan().any(dim=-1), bad) and torch.equal(k.isnan().all(dim=-1), bad)


def test_rows_of_equal_elements():
    x = torch.full((1, 3, 70), 7.0)
    assert torch.equal(adaln.adaln(x), torch.zeros(1, 3, 70))
    assert adaln.adaln(torch.full((4, 1), 3.0)).tolist() == [[0.0]] * 4


def test_rows_far_from_zero():
    # Two passes: the square of the mean does not swallow the variance.
    x = random(1, 50, 300) + 1000
    assert_near(adaln.adaln(x), reference.adaln(x.double()), SINGLE, 30.0)


# ---- the same bits ----


def everything(x_type=SINGLE, other=SINGLE):
    x, branch = random(5, 90, 333, dtype=x_type), random(5, 90, 333, dtype=other, seed=1)
    leaves = [x, branch]
    leaves += [random(*shape, dtype=other, seed=2 + i) for i, shape in enumerate(shapes(5, 333).values())]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    residual, h = adaln.gated_residual_adaln(
        *leaves[:5], weight=leaves[5], bias=leaves[6], dtype=None if x_type == DOUBLE else other
    )
    q, k = adaln.qk_norm(x, branch)
    plain = adaln.adaln(x.flatten(0, 1), weight=leaves[5])
    loss = sum((t.double().square() * random(*t.shape, seed=9)).sum() for t in (residual, h, q, k, plain))
    return [residual, h, q, k, plain, *torch.autograd.grad(loss, leaves)]


TYPES = [(SINGLE, SINGLE), (SINGLE, HALF), (HALF, SINGLE), (HALF, HALF), (DOUBLE, DOUBLE)]


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(types):
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        results.append(everything(*types))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def on_level(folder):
    """Called in a process of its own."""
    torch.save([[t.detach() for t in everything(*types)] for types in TYPES], folder)


@pytest.mark.parametrize(
    "level", [level for level in _core.isas_compiled() if level in _core.isas_supported()]
)
def test_levels_agree(level, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "TENFOLD_ISA": level}
    code = f"import test_adaln as t; t.on_level({str(tmp_path / 'results')!r})"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    for types, theirs in zip(TYPES, torch.load(tmp_path / "results"), strict=True):
        for a, b in zip(theirs, everything(*types), strict=True):
            # bfloat16 may round to the neighbour, and what is normalised then differs by that.
            tolerance = 0.02 if HALF in types else 1e-5 if types[0] == SINGLE else 1e-12
            torch.testing.assert_close(a, b.detach(), rtol=tolerance, atol=tolerance * float(b.abs().max()))


# ---- gradients ----

SUBSETS = [
    tuple(name for name, there in zip(VECTORS, chosen, strict=True) if there)
    for chosen in itertools.product([False, True], repeat=len(VECTORS))
]


def vectors_for(names, samples=2, width=5):
    all_shapes = shapes(samples, width)
    return [
        random(*all_shapes[name], dtype=DOUBLE, seed=3 + i).requires_grad_() for i, name in enumerate(names)
    ]


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_gradcheck(names):
    x = random(2, 3, 5, dtype=DOUBLE).requires_grad_()
    branch = random(2, 3, 5, dtype=DOUBLE, seed=1).requires_grad_()
    vectors = vectors_for(names)

    def fused(x, branch, *vectors):
        return adaln.gated_residual_adaln(x, branch, **dict(zip(names, vectors, strict=True)))

    assert torch.autograd.gradcheck(fused, (x, branch, *vectors))
    # One of the results alone: its gradient is the only one that arrives.
    assert torch.autograd.gradcheck(lambda *args: fused(*args)[1], (x, branch, *vectors))
    if "gate" not in names:
        single = lambda x, *vectors: adaln.adaln(x, **dict(zip(names, vectors, strict=True)))  # noqa: E731
        assert torch.autograd.gradcheck(single, (x, *vectors))
        if not {"shift", "scale"} & set(names):
            flat = x.detach().flatten(0, 1).requires_grad_()
            assert torch.autograd.gradcheck(single, (flat, *vectors))


def test_gradcheck_of_the_others():
    x = random(2, 3, 5, dtype=DOUBLE).requires_grad_()
    branch = random(2, 3, 5, dtype=DOUBLE, seed=1).requires_grad_()
    gate = random(2, 1, 5, dtype=DOUBLE, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(adaln.gated_residual, (x, branch))
    assert torch.autograd.gradcheck(adaln.gated_residual, (x, branch, gate))
    assert torch.autograd.gradcheck(adaln.qk_norm, (x, branch))
    unused = lambda *args: adaln.gated_residual_adaln(*args)[0]  # noqa: E731
    assert torch.autograd.gradcheck(unused, (x, branch, gate))


@pytest.mark.parametrize("index", range(7))
def test_only_one_gradient_is_wanted(index):
    leaves = [random(2, 3, 5, dtype=DOUBLE), random(2, 3, 5, dtype=DOUBLE, seed=1)]
    leaves += [leaf.detach() for leaf in vectors_for(VECTORS)]
    names = ("x", "branch", *VECTORS)
    leaf = leaves[index].requires_grad_()

    def fused(leaf):
        arguments = dict(zip(names, leaves, strict=True)) | {names[index]: leaf}
        return adaln.gated_residual_adaln(**arguments)

    assert torch.autograd.gradcheck(fused, (leaf,))


def test_gradients_that_lie_in_any_order():
    x = random(2, 3, 6).requires_grad_()
    scale = random(2, 6, seed=1).requires_grad_()
    for upstream in (torch.ones(()).expand(2, 3, 6), random(2, 6, 3).transpose(1, 2)):
        got = torch.autograd.grad(adaln.adaln(x, None, scale), (x, scale), upstream)
        want = torch.autograd.grad(adaln.adaln(x, None, scale), (x, scale), upstream.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_there_is_a_first_gradient_only():
    x, scale = random(2, 3, 5).requires_grad_(), random(2, 5).requires_grad_()
    h = adaln.adaln(x, None, scale)
    for leaf in (x, scale):
        (grad,) = torch.autograd.grad(h.square().sum(), leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match="first gradient only"):
            grad.sum().backward(retain_graph=True)
    q, k = adaln.qk_norm(x, x)
    (grad,) = torch.autograd.grad((q * k).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="qk_norm has a first gradient only"):
        grad.sum().backward()


# ---- torch.compile, opcheck, autocast, vmap, torch.func ----


def block(x, mod, weight):
    shift, scale, gate = mod.chunk(3, dim=-1)
    h = adaln.adaln(x, shift, scale, weight=weight)
    x, h = adaln.gated_residual_adaln(x, h.sin(), gate, shift, scale)
    q, k = adaln.qk_norm(h, x)
    return adaln.gated_residual(x, q * k, gate)


def test_under_compile():
    leaves = random(3, 6, 8).requires_grad_(), random(3, 24).requires_grad_(), random(8).requires_grad_()
    want = block(*leaves)
    wanted = torch.autograd.grad(want.sum(), leaves)
    got = torch.compile(block, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got.sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(*leaves), want)


def test_opcheck():
    ops = torch.ops.tenfold
    x, vectors = random(2, 3, 5), [random(*shape) for shape in shapes(2, 5).values()]
    gate, shift, scale, weight, bias = vectors
    check = partial(torch.library.opcheck, test_utils=("test_schema", "test_faketensor"))
    check(ops.adaln.default, (x, shift, scale, weight, bias, 1e-6, HALF))
    check(ops.adaln.default, (x[0], None, None, None, None, 1e-6, SINGLE))
    check(ops.gated_residual.default, (x, x, gate))
    check(ops.gated_residual.default, (x, x.bfloat16(), None))
    check(ops.gated_residual_adaln.default, (x, x, gate, shift, scale, weight, bias, 1e-6, SINGLE))
    h, statistics = ops.adaln(x, shift, scale, weight, bias, 1e-6, SINGLE)
    check(
        ops.adaln_backward.default,
        (x, statistics, x, gate, scale, weight, bias, x, h, SINGLE, SINGLE, HALF, [True] * 7),
    )
    check(
        ops.adaln_backward.default,
        (x, None, x, gate, None, None, None, x, None, HALF, None, None, [False, True, *[False] * 5]),
    )
    out, rstd = ops.norm_rows(x, 1e-6)
    check(ops.norm_rows.default, (x, 1e-6))
    check(ops.norm_rows_backward.default, (x, out, rstd))


def test_vmap_and_func():
    xs, mods, weight = random(4, 3, 6, 8), random(4, 3, 24), random(8)
    want = torch.stack([block(x, mod, weight) for x, mod in zip(xs, mods, strict=True)])
    got = torch.func.vmap(block, in_dims=(0, 0, None))(xs, mods, weight)
    torch.testing.assert_close(got, want)
    grad = torch.func.grad(lambda *args: block(*args).sum(), argnums=(0, 1, 2))
    wanted = [grad(x, mod, weight) for x, mod in zip(xs, mods, strict=True)]
    leaves = [leaf.clone().requires_grad_() for leaf in (xs[0], mods[0], weight)]
    for a, b in zip(wanted[0], torch.autograd.grad(block(*leaves).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)
    got = torch.func.vmap(grad, in_dims=(0, 0, None))(xs, mods, weight)
    for i in range(3):
        torch.testing.assert_close(got[i], torch.stack([parts[i] for parts in wanted]))
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda x: block(x, mods[0], weight), (xs[0],), (xs[0],))
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.grad(lambda x: torch.func.grad(lambda y: adaln.adaln(y).sin().sum())(x).sum())(xs[0])


def test_under_autocast():
    x, mod = random(3, 6, 8), random(3, 24)
    shift, scale, gate = mod.chunk(3, dim=-1)
    with torch.autocast("cpu", dtype=HALF):
        h = adaln.adaln(x, shift, scale)
        residual, fused = adaln.gated_residual_adaln(x, h, gate, shift, scale)
        assert h.dtype == fused.dtype == HALF
        assert residual.dtype == adaln.gated_residual(x, h, gate).dtype == SINGLE
        assert adaln.adaln(x, dtype=SINGLE).dtype == SINGLE and adaln.adaln(x.double()).dtype == DOUBLE
        assert [t.dtype for t in adaln.qk_norm(x, h)] == [SINGLE, HALF]
        leaf = x.clone().requires_grad_()
        adaln.adaln(leaf, shift, scale).float().sum().backward()
        assert leaf.grad.dtype == SINGLE
        compiled = torch.compile(lambda x: adaln.adaln(x, shift, scale), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), h)
    assert torch.equal(h, adaln.adaln(x, shift, scale, dtype=HALF))
    with torch.autocast("cpu", dtype=torch.float16):
        assert adaln.adaln(x).dtype == SINGLE


class Named(torch.Tensor):
    """A subclass: torch has more to do than to run the kernel."""


def test_subclasses_and_out_in_other_ways():
    x, gate = random(2, 3, 5), random(2, 5)
    named = x.as_subclass(Named)
    assert torch.equal(adaln.gated_residual(named, x, gate), adaln.gated_residual(x, x, gate))
    out = torch.empty_like(x)
    assert adaln.adaln(named, gate, out=out) is out and torch.equal(out, adaln.adaln(x, gate))
    assert adaln.gated_residual(named, x, gate, out=out) is out
    assert torch.equal(out, adaln.gated_residual(x, x, gate))


# ---- what is refused, and what is empty ----


def refused(error, message, function, *args, **kwargs):
    with pytest.raises(error, match=re.escape(message)):
        function(*args, **kwargs)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, lambda x: x], ids=["numpy", "torch"])
def test_wrong_arguments(convert):
    x, vectors = convert(random(2, 3, 5)), convert(random(2, 5))
    short, line = convert(random(2, 4)), convert(random(5))
    per_sample = "want (2, 5) or (2, 1, 5), a row for each sample"
    fused = partial(adaln.gated_residual_adaln, x, x)
    for name in ("gate", "shift", "scale"):
        refused(ValueError, f"{name} has shape (2, 4), {per_sample}", fused, **{name: short})
        refused(ValueError, f"{name} has shape (5,), {per_sample}", fused, **{name: line})
        refused(ValueError, f"{name} has shape (2, 3, 5), {per_sample}", fused, **{name: x})
        whole = convert(torch.ones(2, 5).long())
        refused(TypeError, f"{name} has type int64, want float32 or bfloat16", fused, **{name: whole})
        flat = partial(adaln.gated_residual_adaln, x[0], x[0])
        said = f"{name} is given for x of shape (3, 5), want x (samples, rows, width)"
        refused(ValueError, said, flat, **{name: vectors})
    for name in ("weight", "bias"):
        refused(ValueError, f"{name} has shape (2, 5), want (5,), as wide as x", fused, **{name: vectors})
        wide = convert(random(5, dtype=DOUBLE))
        refused(TypeError, f"{name} has type float64, want float32 or bfloat16", fused, **{name: wide})
    refused(ValueError, "branch has shape (3, 5), want (2, 3, 5) as x", adaln.gated_residual, x, x[0])
    refused(TypeError, "branch has type float64", adaln.gated_residual, x, convert(random(2, 3, 5).double()))
    doubles = convert(random(2, 3, 5).double())
    refused(TypeError, "branch has type float32, want float64", adaln.gated_residual, doubles, x)
    for op in (adaln.adaln, lambda x: adaln.gated_residual(x, x), lambda x: adaln.gated_residual_adaln(x, x)):
        refused(ValueError, "x has shape (2, 3, 0), want rows of at least one element", op, x[..., :0])
        refused(TypeError, "x has type int64", op, convert(torch.ones(2, 3, 5).long()))
    refused(ValueError, "x has shape (), want rows", adaln.adaln, convert(torch.ones(())))
    refused(ValueError, "has shape (3, 0), want rows of at least one", adaln.qk_norm, x[0], x[0, :, :0])
    for eps, shown in ((0.0, "0"), (-1e-6, "-1e-06"), (float("nan"), "nan"), (float("inf"), "inf")):
        said = f"eps is {shown}, want a finite number above 0"
        refused(ValueError, said, adaln.adaln, x, eps=eps)
        refused(ValueError, said, fused, eps=eps)
        refused(ValueError, said, adaln.qk_norm, x, x, eps)
        refused(ValueError, said, _core.norm_rows, x[0], x[0], line[:3], eps)
    refused(
        ValueError, "rstd has shape (5,), want (3,), one per row", _core.norm_rows, x[0], x[0], line, 1e-6
    )


def test_wrong_types_of_h():
    x = random(2, 3, 5)
    refused(TypeError, "dtype is torch.float16, want torch.float32", adaln.adaln, x, dtype=torch.float16)
    refused(TypeError, "dtype is torch.float64, want torch.float32", adaln.adaln, x, dtype=DOUBLE)
    refused(
        TypeError, "dtype is torch.float32, want torch.float64 as x", adaln.adaln, x.double(), dtype=SINGLE
    )
    refused(TypeError, "out has type float64, want float32", adaln.adaln, x.numpy(), dtype=np.float64)
    refused(TypeError, "out has type int64, want float32", adaln.adaln, x, out=x.long())


def test_mixed_libraries():
    x, array = random(2, 3, 5), random(2, 5).numpy()
    said = "x is a torch.Tensor and shift is a numpy.ndarray, want arrays of one library"
    refused(TypeError, said, adaln.adaln, x, array)
    refused(TypeError, "want arrays of one library", adaln.adaln, x.numpy(), x[:, 0])
    refused(TypeError, "and branch is a numpy.ndarray", adaln.gated_residual, x, x.numpy())
    refused(TypeError, "and k is a numpy.ndarray", adaln.qk_norm, x, x.numpy())
    refused(TypeError, "x is a list, want a numpy array", adaln.adaln, [[1.0]])
    refused(TypeError, "q is a list, want a numpy array", adaln.qk_norm, [[1.0]], [[1.0]])


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (0, 0, 5)])
def test_no_rows(shape):
    x = torch.zeros(shape, requires_grad=True)
    vectors = {
        name: torch.ones(size, requires_grad=True) for name, size in shapes(shape[0], shape[2]).items()
    }
    residual, h = adaln.gated_residual_adaln(x, x, **vectors)
    assert residual.shape == h.shape == shape
    (residual.sum() + h.sum()).backward()
    for vector in vectors.values():
        assert torch.equal(vector.grad, torch.zeros_like(vector))
    assert x.grad.shape == shape
    assert adaln.qk_norm(x, x)[1].shape == shape
    assert adaln.adaln(x.detach().numpy()).shape == shape
    assert adaln.adaln(torch.zeros(0, 7)).shape == (0, 7)


def test_leading_dimensions():
    x = random(2, 3, 4, 5, 6)
    want = reference.adaln(x.double()).float()
    for other in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x.permute(3, 2, 1, 0, 4)):
        wanted = want if other.shape == x.shape else want.permute(3, 2, 1, 0, 4)
        torch.testing.assert_close(adaln.adaln(other), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(adaln.qk_norm(other, other[0])[0], wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adaln.adaln(x[0, 0, 0, 0]), want[0, 0, 0, 0], rtol=1e-5, atol=1e-6)
    across = x.numpy().transpose(3, 2, 1, 0, 4)
    assert np.array_equal(adaln.adaln(across), adaln.adaln(torch.from_numpy(across)).numpy())
