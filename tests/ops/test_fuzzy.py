"""The fuzzy ops against their plain-torch twins in float64, and against the identities they obey."""

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
from tenfold.ops import fuzzy  # noqa: E402
from tenfold.ops.fuzzy import (  # noqa: E402
    Guard,
    atom_logits,
    fuzzy_quantify,
    guarded_pairs,
    log_and,
    log_implies,
    log_or,
    log_quantify,
    logmatmul,
    logmeanexp,
    pmean,
    pmean_error,
    segment_logmeanexp,
    segment_pmean,
)
from tenfold.ops.reference import fuzzy as reference  # noqa: E402

SETTINGS = settings(max_examples=60, deadline=None)
SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64
TYPES = [SINGLE, HALF, DOUBLE]
TOLERANCE = {SINGLE: 2e-6, HALF: 2**-7, DOUBLE: 1e-11}
"""Of the largest number compared: in float32 (float64), or rounded to bfloat16."""
types = pytest.mark.parametrize("dtype", TYPES, ids=str)

QUANTS = ["lme", "lse", "max", "mean", "sum", "min"]
AGGS = ["pmean_error", "pmean", "mean", "min", "max"]
FORMULAS = [
    "0",
    "0 1 and 2 implies",
    "0 1 or",
    "0 1 2 implies or",
    "0 0 implies 1 and",
    "2 0 1 or and",
    "0 1 implies 1 0 implies and",
    "0 not 1 or 2 and",
    "0 1 and_goedel 2 or_goedel",
    "0 1 implies_goedel 2 implies_kleene",
    "0 1 and_lukasiewicz 2 implies_lukasiewicz",
    "0 1 or_lukasiewicz 2 implies_goguen",
    "0 not_goedel 1 or",
]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def logs(*shape, dtype=SINGLE, seed=0, scale=3.0):
    """Log truth values."""
    return (-torch.rand(shape, generator=generator(seed), dtype=DOUBLE) * scale).to(dtype)


def truths(*shape, dtype=SINGLE, seed=0):
    return torch.rand(shape, generator=generator(seed), dtype=DOUBLE).to(dtype)


def normals(*shape, dtype=SINGLE, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=DOUBLE).to(dtype)


def masks(*shape, seed=0, share=0.5):
    return torch.rand(shape, generator=generator(seed + 77)) < share


def relayed(x, kind):
    """The same values with other strides."""
    if kind == 0 or x.dim() == 0:
        return x
    if kind == 1:  # part of a wider array
        return torch.cat([torch.full_like(x, torch.nan), x], dim=-1)[..., x.shape[-1] :]
    if kind == 2 and x.dim() > 1:  # in another order
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]  # every other element


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """New memory is full of NaN: what a kernel leaves out is seen."""
    empty, new_empty, like = torch.empty, torch.Tensor.new_empty, torch.empty_like

    def poison(tensor):
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    def array(shape, dtype=float):
        return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else 77, dtype)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(like(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: poison(new_empty(self, *a, **k)))
    monkeypatch.setattr(np, "empty", array)


def assert_near(got, want, tolerance=None, scale=None):
    """Within the type's tolerance of the largest number."""
    assert got.shape == want.shape, (got.shape, want.shape)
    if got.numel() == 0:
        return
    want = want.detach().double()
    got, bound = got.detach(), TOLERANCE[got.dtype] if tolerance is None else tolerance
    assert torch.equal(got.isinf(), want.isinf()) and not got.isnan().any()
    finite = want[want.isfinite()]
    most = float(finite.abs().max()) if scale is None and finite.numel() else float(scale or 1.0)
    error = (got.double() - want)[want.isfinite()].abs()
    assert error.numel() == 0 or float(error.max()) <= bound * max(most, 1e-30) + 1e-12, (
        float(error.max()),
        most,
    )


def decided(v, order, reduce):
    """Where the greatest of v over the axes to reduce stands clear of the next.

    Where it does not, rounding says which one it is, or that they are equal, and so where the gradient goes.
    test_equals_share_the_gradient is for numbers that are equal.
    """
    kept = [name for name in order if name not in reduce]
    v = v.permute([order.index(name) for name in (*kept, *reduce)]).flatten(len(kept))
    if v.shape[-1] < 2:
        return torch.ones(v.shape[:-1], dtype=torch.bool)
    most, next_one = v.topk(2).values.unbind(-1)
    return most - next_one > 1e-5 * (1 + most.abs())


def is_decided(quantify, operands, axes, reduce, **options):
    """`decided` of a reference's elements, where it takes their maximum or minimum; everything otherwise."""
    how = options.get("quant", options.get("agg"))
    if how not in ("max", "min") or not reduce:
        return None
    options = {**options, "empty": -math.inf if how == "max" else math.inf}
    elements = quantify([x.detach().double() for x in operands], axes, "", **options)
    order = reference.axis_order(axes, options.get("guard"))
    if how == "min":
        elements = -elements
    return decided(elements, order, reduce)


def check(mine, twin, operands, seed=0, tolerance=None, among=None, scale=None):
    """Result and gradients of `mine` against those of `twin` in float64.

    Gradients of the results `among` alone; `scale` is the magnitude of the numbers that results are
    differences of, where that is above theirs.
    """
    leaves = [x.detach().requires_grad_() for x in operands]
    exact = [x.detach().double().requires_grad_() for x in operands]
    got, want = mine(*leaves), twin(*exact)
    assert got.dtype == operands[0].dtype
    if scale is not None and want.isfinite().any():
        scale = max(scale, float(want.detach()[want.isfinite()].abs().max()))
    assert_near(got, want, tolerance, scale)
    assert torch.equal(got, mine(*(x.detach() for x in operands)))  # the path that records nothing
    if want.numel() == 0 and not want.requires_grad:
        return
    # Of one sign: in sums that cancel nothing is to be seen but rounding.
    upstream = (truths(*got.shape, seed=seed + 5) + 0.5).to(got.dtype) * (-1) ** seed
    if among is not None:
        upstream = torch.where(among, upstream, 0.0)
    gots = torch.autograd.grad(got, leaves, upstream, allow_unused=True)
    wants = torch.autograd.grad(want, exact, upstream.double(), allow_unused=True)
    most = max((float(w.abs().max()) for w in wants if w is not None and w.numel()), default=1.0)
    for x, g, w in zip(leaves, gots, wants, strict=True):
        w = torch.zeros_like(x, dtype=DOUBLE) if w is None else w
        assert g.shape == x.shape and g.dtype == x.dtype
        assert_near(g, w, tolerance, scale=max(most, 1e-6))


# ---- quantifiers on random index spaces ----


@st.composite
def spaces(draw, values):
    """Operands over random axes, with a guard or none, and the axes to reduce."""
    axes = "wxyz"[: draw(st.integers(1, 4))]
    few = [0, 1, 2, 3, 5, 9] if len(axes) > 2 else [1, 2, 7, 8, 17, 33, 130]
    sizes = {axis: draw(st.sampled_from(few)) for axis in axes}
    dtype, seed = draw(st.sampled_from(TYPES)), draw(st.integers(0, 2**31))

    def array(i, make):
        names = draw(st.permutations(draw(st.lists(st.sampled_from(axes), unique=True, max_size=len(axes)))))
        shape = [1 if draw(st.integers(0, 9)) == 0 else sizes[name] for name in names]
        return relayed(make(*shape, seed=seed + i), draw(st.integers(0, 3))), "".join(names)

    count = draw(st.integers(1, 4))
    pairs = [array(i, partial(values, dtype=dtype)) for i in range(count)]
    guard = array(50, masks) if draw(st.booleans()) else None
    used = set("".join(names for _, names in pairs) + (guard[1] if guard else ""))
    reduce = draw(st.lists(st.sampled_from(sorted(used)), unique=True)) if used else []
    return [x for x, _ in pairs], [names for _, names in pairs], "".join(reduce), guard, seed


def with_zeros_and_ones(*shape, dtype=SINGLE, seed=0):
    """Truth values with many zeros and ones among them."""
    x = truths(*shape, dtype=dtype, seed=seed)
    kind = torch.randint(0, 6, x.shape, generator=generator(seed + 9))
    return torch.where(kind == 0, 0.0, torch.where(kind == 1, 1.0, x)).to(dtype)


@SETTINGS
@given(
    spaces(logs),
    st.sampled_from(QUANTS),
    st.sampled_from(["and", "or"]),
    st.sampled_from([0.5, 1.0, 3.0, 50.0]),
)
def test_log_quantify(space, quant, conn, alpha):
    operands, axes, reduce, guard, seed = space
    options = {"conn": conn, "quant": quant, "alpha": alpha, "guard": guard}
    if any(0 in x.shape for x in operands) and quant in ("max", "min"):
        return  # torch has no maximum of nothing
    check(
        lambda *xs: log_quantify(xs, axes, reduce, **options),
        lambda *xs: reference.log_quantify(xs, axes, reduce, **options),
        operands,
        seed,
        None if operands[0].dtype != SINGLE else 4e-6 if alpha > 9 else 2e-6,
        is_decided(reference.log_quantify, operands, axes, reduce, **options),
    )


@SETTINGS
@given(
    spaces(truths),
    st.sampled_from(AGGS),
    st.sampled_from(FORMULAS),
    st.sampled_from([1.0, 2.0, 3.0, 6.0, 2.5, 50.0]),
    st.sampled_from([1e-4, 0.0]),
)
def test_fuzzy_quantify(space, agg, formula, p, eps):
    operands, axes, reduce, guard, seed = space
    operands = [operands[i % len(operands)] for i in range(3)]
    axes = [axes[i % len(axes)] for i in range(3)]
    there = "".join(axes) + (guard[1] if guard else "")
    reduce = "".join(name for name in reduce if name in there)  # a fourth operand's are gone
    if operands[0].dtype == HALF and ("goedel" in formula or agg in ("min", "max")):
        return  # numbers that are equal by rounding
    if any(0 in x.shape for x in operands):
        return
    options = {"formula": formula, "agg": agg, "p": p, "eps": eps, "guard": guard}
    used = [i for i in range(3) if str(i) in formula.split()]
    operands = [x.clone() if i in used else x for i, x in enumerate(operands)]
    check(
        lambda *xs: fuzzy_quantify(xs, axes, reduce, **options),
        lambda *xs: reference.fuzzy_quantify(xs, axes, reduce, **options),
        operands,
        seed,
        None if operands[0].dtype != SINGLE else 2e-5 if p > 9 else 4e-6,
        is_decided(reference.fuzzy_quantify, operands, axes, reduce, **options),
        scale=1.0,
    )


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("conn", ["and", "or"])
@pytest.mark.parametrize("reduce", ["y", "x", "xy", "", "z", "xz"])
@types
def test_many_tiles(quant, conn, reduce, dtype):
    """Sizes beyond a tile in every direction, and odd."""
    axes = ["x", "y", "xy", "yz", ""]
    for sizes in ((70, 1100, 3), (1300, 40, 2), (3, 5, 1027)):
        x, y, z = sizes
        operands = [logs(x, dtype=dtype), logs(y, seed=1, dtype=dtype), logs(x, y, seed=2, dtype=dtype)]
        operands += [logs(y, z, seed=3, dtype=dtype), logs(seed=4, dtype=dtype)]
        options = {"conn": conn, "quant": quant, "alpha": 2.0, "guard": (masks(x, z), "xz")}
        check(
            lambda *xs, o=options: log_quantify(xs, axes, reduce, **o),
            lambda *xs, o=options: reference.log_quantify(xs, axes, reduce, **o),
            operands,
            among=is_decided(reference.log_quantify, operands, axes, reduce, **options),
        )


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("agg", AGGS)
@pytest.mark.parametrize("reduce", ["y", "x", "xy", ""])
def test_formulas_of_many_tiles(formula, agg, reduce):
    operands = [truths(70), truths(1100, seed=1), truths(70, 1100, seed=2)]
    axes = ["x", "y", "xy"]
    for p, guard in itertools.product((2.0, 5.0), ((masks(70), "x"), None)):
        options = {"formula": formula, "agg": agg, "p": p, "guard": guard}
        check(
            lambda *xs, o=options: fuzzy_quantify(xs, axes, reduce, **o),
            lambda *xs, o=options: reference.fuzzy_quantify(xs, axes, reduce, **o),
            operands,
            among=is_decided(reference.fuzzy_quantify, operands, axes, reduce, **options),
            scale=1.0,
        )


@pytest.mark.parametrize("formula", FORMULAS)
def test_kinks_and_equal_values(formula):
    """Slopes at 0, 1 and among equals are torch's."""
    values = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=DOUBLE)
    grid = [x.clone() for x in torch.meshgrid(values, values, values, indexing="ij")]
    for eps, dtype in itertools.product((0.0, 1e-4), (SINGLE, DOUBLE)):
        if dtype == SINGLE and eps and "goguen" in formula:
            continue  # where rounding decides
        check(
            lambda *xs, e=eps: fuzzy_quantify(xs, ["xyz"] * 3, "", formula=formula, eps=e),
            lambda *xs, e=eps: reference.fuzzy_quantify(xs, ["xyz"] * 3, "", formula=formula, eps=e),
            [x.to(dtype) for x in grid],
        )


@types
@pytest.mark.parametrize("most", ["max", "min"])
@pytest.mark.parametrize("reduce", ["y", "x", "xy"])
def test_equals_share_the_gradient(dtype, most, reduce):
    """Each of n that are the greatest, in whatever tile, has 1/n of the gradient."""
    for x, y in ((3, 7), (70, 1100), (1300, 40)):
        # Quarters: sums and products of the plain and are exact.
        a, b, c = (torch.randint(-3, 1, shape, generator=generator(i)) / 4 for i, shape in
                   enumerate([(x,), (y,), (x, y)]))  # fmt: skip
        guard = (masks(x, y), "xy")
        for where in (None, guard):
            options = {"quant": most, "guard": where}
            check(
                lambda *xs, o=options: log_quantify(xs, ["x", "y", "xy"], reduce, **o),
                lambda *xs, o=options: reference.log_quantify(xs, ["x", "y", "xy"], reduce, **o),
                [v.to(dtype) for v in (a, b, c)],
            )
            options = {"formula": "0 1 and 2 or_goedel", "agg": most, "eps": 0.0, "guard": where}
            check(
                lambda *xs, o=options: fuzzy_quantify(xs, ["x", "y", "xy"], reduce, **o),
                lambda *xs, o=options: reference.fuzzy_quantify(xs, ["x", "y", "xy"], reduce, **o),
                [(v + 1).to(dtype) for v in (a, b, c)],
            )
    x = torch.zeros(4, 3, dtype=dtype).requires_grad_()
    out = log_quantify([x], ["xy"], "y", quant=most)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.full_like(x, 1 / 3))


@pytest.mark.parametrize("agg", AGGS)
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 7.5])
def test_aggregates_at_zero_and_one(agg, p):
    for x in (torch.zeros(3, 40), torch.ones(3, 40), with_zeros_and_ones(3, 40)):
        leaf = x.clone().requires_grad_()
        out = fuzzy_quantify([leaf], ["xy"], "y", formula="0", agg=agg, p=p, eps=0.0)
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        assert grad.isfinite().all() and out.isfinite().all()
        exact = x.double().requires_grad_()
        want = reference.fuzzy_quantify([exact], ["xy"], "y", formula="0", agg=agg, p=p, eps=0.0)
        assert_near(out, want, 1e-6, scale=1.0)
        assert_near(grad, torch.autograd.grad(want.sum(), exact)[0], 2e-6, scale=1.0)


# ---- log space at its ends ----


@pytest.mark.parametrize("alpha", [1.0, 5.0, 50.0])
@pytest.mark.parametrize("conn", ["and", "or"])
@pytest.mark.parametrize("quant", ["lme", "mean", "max"])
def test_wide_ranges(alpha, conn, quant):
    """Elements far below the largest of their tile, down to -200, as logits of +-200 give them."""
    z = (torch.rand(20, 300, generator=generator(0), dtype=DOUBLE) - 0.5) * 400
    operands = [
        torch.nn.functional.logsigmoid(z[:, 0]),
        torch.nn.functional.logsigmoid(z[0]),
        torch.nn.functional.logsigmoid(-z),
    ]
    operands, axes = [x.float() for x in operands], ["x", "y", "xy"]
    for reduce in ("y", "x", "xy", ""):
        options = {"conn": conn, "quant": quant, "alpha": alpha}
        check(
            lambda *xs, r=reduce, o=options: log_quantify(xs, axes, r, **o),
            lambda *xs, r=reduce, o=options: reference.log_quantify(xs, axes, r, **o),
            operands,
            tolerance=2e-5 * alpha,  # exp of -200 alpha, rounded
            among=is_decided(reference.log_quantify, operands, axes, reduce, **options),
            scale=1.0,
        )


@types
@pytest.mark.parametrize("conn", ["and", "or"])
def test_minus_infinity(conn, dtype):
    a, b = logs(6, dtype=dtype), logs(6, 40, seed=1, dtype=dtype)
    a[1] = b[1] = b[:, 7] = b[2, :30] = -math.inf
    for quant, reduce in itertools.product(("lme", "lse", "max"), ("y", "x", "xy", "")):
        if quant == "max" and conn == "and":
            continue  # torch shares the gradient among elements that are all -inf
        leaves = [a.clone().requires_grad_(), b.clone().requires_grad_()]
        out = log_quantify(leaves, ["x", "xy"], reduce, conn=conn, quant=quant, alpha=2.0)
        want = reference.log_quantify(
            [a.double(), b.double()], ["x", "xy"], reduce, conn=conn, quant=quant, alpha=2.0
        )
        assert_near(out, want, scale=10.0)
        upstream = torch.where(out.isinf(), 1.0, 1.0).to(dtype)
        for grad in torch.autograd.grad(out, leaves, upstream):
            assert grad.isfinite().all()


def test_a_nan_is_not_lost():
    for conn, quant in itertools.product(("and", "or"), ("lme", "mean", "sum")):
        x = logs(5, 40)
        x[2, 3] = math.nan
        out = log_quantify([x, logs(5, seed=1)], ["xy", "x"], "y", conn=conn, quant=quant)
        assert out.isnan().tolist() == [False, False, True, False, False]
    for dtype, p in itertools.product((torch.float32, torch.float64), (1.0, 2.0, 2.5, 4.0, 5.0, 6.0)):
        degrees = torch.rand(5, 40, dtype=dtype)
        degrees[2, 3] = math.nan
        for of in (pmean, pmean_error):
            assert of(degrees, 1, p).isnan().tolist() == [False, False, True, False, False]
    for dtype in (torch.float32, torch.float64):
        a, b = logs(5, 40).to(dtype), logs(40, 20, seed=1).to(dtype)
        a[2, 3] = math.nan
        assert logmatmul(a, b).isnan().all(1).tolist() == [False, False, True, False, False]
        b[7, 11] = math.nan
        assert logmatmul(a, b)[0].isnan().nonzero().flatten().tolist() == [11]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", [0, 3, 39])
@pytest.mark.parametrize("over", ["y", "x"])
def test_minimum_and_maximum_do_not_lose_a_nan(dtype, place, over):
    for formula, agg in itertools.product(("0", "0 not"), ("min", "max")):
        degrees = torch.rand(5, 40, dtype=dtype)
        degrees = degrees if over == "y" else degrees.T.contiguous()
        (degrees if over == "y" else degrees.T)[2, place] = math.nan
        degrees.requires_grad_()
        out = fuzzy_quantify([degrees], ["xy" if over == "y" else "yz"], "y", formula=formula, agg=agg)
        assert out.isnan().tolist() == [False, False, True, False, False]
        (grad,) = torch.autograd.grad(out.sum(), degrees)
        lost = (grad if over == "y" else grad.T).isnan()
        assert lost[2].all() and lost.sum() == 40  # as of torch's amax
    for least in (-math.inf, -1.0):
        x = torch.full((5, 40), least, dtype=dtype)
        x[2, place] = math.nan
        for array, axes in ((x, "xy"), (x.T.contiguous(), "yx")):
            for quant in ("max", "lme"):
                out = log_quantify([array], [axes], "y", quant=quant)
                assert out.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(
    "connective",
    ["and", "or", "implies", "implies_goguen", "implies_kleene"]
    + [f"{name}_{kind}" for name in ("and", "or", "implies") for kind in ("goedel", "lukasiewicz")],
)
def test_connectives_do_not_lose_a_nan(connective):
    x, y = torch.full((40,), 0.9), torch.full((40,), 0.4)
    x[3] = y[5] = math.nan
    out = fuzzy_quantify([x, y], ["x", "x"], "", formula=f"0 1 {connective}", agg="mean")
    assert out.isnan().nonzero().flatten().tolist() == [3, 5]
    for negation in ("not", "not_goedel"):
        assert fuzzy_quantify([x], ["x"], "", formula=f"0 {negation}", agg="mean").isnan().sum() == 1


# ---- guards ----


def test_empty_and_full_guards():
    x = logs(4, 30).requires_grad_()
    mask = masks(4, 30)
    mask[1], mask[2] = False, True
    for quant, nothing in fuzzy.LOG_EMPTY.items():
        out = log_quantify([x], ["xy"], "y", quant=quant, alpha=2.0, guard=(mask, "xy"))
        assert out[1] == nothing
        assert out[2] == log_quantify([x], ["xy"], "y", quant=quant, alpha=2.0)[2]
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert not grad[~mask].any() and not grad[1].any() and grad[0].any()
        out = log_quantify([x], ["xy"], "y", quant=quant, guard=(mask, "xy"), empty=7.0)
        assert out[1] == 7
    u = truths(4, 30).requires_grad_()
    for agg, nothing in fuzzy.FUZZY_EMPTY.items():
        for p in (2.0, 6.5):
            out = fuzzy_quantify([u], ["xy"], "y", formula="0", agg=agg, p=p, guard=(mask, "xy"))
            assert out[1] == nothing
            assert out[2] == fuzzy_quantify([u], ["xy"], "y", formula="0", agg=agg, p=p)[2]
            (grad,) = torch.autograd.grad(out.sum(), u)
            assert not grad[~mask].any() and grad[0].any() and grad.isfinite().all()


@pytest.mark.parametrize("relation", ["<", "<=", ">", ">="])
@types
def test_comparisons_inside_the_kernel(relation, dtype):
    x, y = normals(30, 5, dtype=dtype), normals(600, 5, seed=1, dtype=dtype)
    table = logs(30, 600, dtype=dtype)
    distance = (x.double()[:, None] - y.double()[None]).square().sum(-1).sqrt()
    compare = reference.RELATIONS[relation]
    for reduce, (quant, bound) in itertools.product(("y", "x", "xy", ""), (("lme", 2.5), ("mean", 3.0))):
        want = log_quantify([table], ["xy"], reduce, quant=quant, guard=(compare(distance, bound), "xy"))
        got = log_quantify([table], ["xy"], reduce, quant=quant, guard=Guard(x, "xy", relation, bound, y))
        assert torch.equal(got, want)
        got = log_quantify([table], ["xy"], reduce, quant=quant, guard=(y, "yx", relation, bound, x))
        assert torch.equal(got, want)
    values = normals(600, dtype=dtype, seed=3)
    for bound in (0.5, -0.25):
        want = log_quantify([table], ["xy"], "y", guard=(compare(values, bound), "y"))
        assert torch.equal(log_quantify([table], ["xy"], "y", guard=(values, "y", relation, bound)), want)
    nothing = log_quantify([table], ["xy"], "xy", guard=(x, "xy", relation, -1.0, y))
    assert (nothing == -1e5) == (relation in ("<", "<=")) or dtype == HALF


def test_distances_over_outer_axes():
    """Points along axes that are neither rows nor lanes of a tile."""
    w, x = normals(3, 4), normals(5, 4, seed=1)
    table = logs(3, 5, 7, 20)
    mask = (w[:, None] - x[None]).square().sum(-1).sqrt() < 2.8
    for reduce in ("yz", "wx", "xz", "wxyz"):
        want = log_quantify([table], ["wxyz"], reduce, guard=(mask, "wx"))
        assert torch.equal(log_quantify([table], ["wxyz"], reduce, guard=(w, "wx", "<", 2.8, x)), want)


def test_pairs_and_segments():
    table, mask = logs(50, 700), masks(50, 700, share=0.02)
    mask[3] = False
    pairs = guarded_pairs(mask)
    assert torch.equal(torch.stack([pairs.rows, pairs.columns], 1), mask.nonzero())
    assert pairs.row_ptr.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    values = table[pairs.rows, pairs.columns]
    got = segment_logmeanexp(values, pairs.row_ptr, 2.0)
    assert_near(got, logmeanexp(table.double(), 1, 2.0, mask))
    got = segment_pmean(values.exp(), pairs.row_ptr, 3.0)
    assert_near(got, pmean(table.double().exp(), 1, 3.0, mask))
    arrays = guarded_pairs(mask.numpy())
    for mine, other in zip(arrays, pairs, strict=True):
        assert isinstance(mine, np.ndarray) and np.array_equal(mine, other.numpy())
    x, y = normals(20, 3), normals(30, 3, seed=1)
    near = (x[:, None] - y[None]).square().sum(-1).sqrt() <= 1.5
    for guard in ((x, "xy", "<=", 1.5, y), (x.numpy(), "xy", "<=", 1.5, y.numpy())):
        assert np.array_equal(np.asarray(guarded_pairs(guard).columns), near.nonzero()[:, 1].numpy())
    refused(ValueError, "guard has shape (3,), want two dimensions", guarded_pairs, mask[0, :3])


@types
@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0, 6.5])
def test_segments(dtype, error, p):
    ends = torch.tensor([0, 0, 3, 3, 700, 2000, 2000])
    x = truths(2000, dtype=dtype)
    check(
        lambda x: segment_pmean(x, ends, p, error=error, eps=1e-4),
        lambda x: reference.segment_pmean(x, ends, p, error=error, eps=1e-4),
        [x],
    )
    if p == 1:
        check(
            lambda x: segment_logmeanexp(x, ends, 3.0),
            lambda x: reference.segment_logmeanexp(x, ends, 3.0),
            [-x],
            tolerance=None if dtype != SINGLE else 2e-6,
        )
    if dtype != HALF:
        got = segment_pmean(x.numpy(), ends.numpy(), p, error=error)
        assert np.array_equal(got, segment_pmean(x, ends, p, error=error).numpy())


def test_segments_that_do_not_fit():
    x = truths(10)
    for ends in ([0, 5, 4, 10], [0, 11], [1, 10], [0, 9], [-1, 10]):
        refused(
            ValueError, "want numbers that never fall, from 0 to 10", segment_pmean, x, torch.tensor(ends)
        )
    refused(TypeError, "row_ptr has type int32, want int64", segment_pmean, x, torch.tensor([0, 10]).int())
    refused(ValueError, "row_ptr has shape (0,)", segment_pmean, x, torch.tensor([], dtype=torch.int64))
    refused(
        ValueError, "values has shape (2, 5), want one", segment_pmean, x.view(2, 5), torch.tensor([0, 10])
    )


# ---- identities (Real Logic and logLTN: rules that a compiler may use) ----


def test_log_mean_exp_is_the_log_of_the_power_mean():
    u = truths(6, 900, dtype=DOUBLE) * 0.9 + 0.05
    for p in (1.0, 2.0, 3.5, 8.0):
        torch.testing.assert_close(logmeanexp(u.log(), 1, p), pmean(u, 1, p).log(), rtol=1e-12, atol=1e-12)


def test_a_nested_or_is_a_flat_one_with_weights():
    a, b, c = (logs(40, seed=i, dtype=DOUBLE) for i in range(3))
    nested = log_or(log_or(a, b, alpha=3.0), c, alpha=3.0)
    flat = log_or(a, b, c, alpha=3.0, log_weights=[math.log(0.25), math.log(0.25), math.log(0.5)])
    torch.testing.assert_close(flat, nested, rtol=1e-13, atol=1e-13)
    assert float((log_or(a, b, c, alpha=3.0) - nested).abs().max()) > 0.05


def test_rules_of_factorisation():
    a, b, c = logs(20, dtype=DOUBLE), logs(30, seed=1, dtype=DOUBLE), logs(20, 30, seed=2, dtype=DOUBLE)
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    axes = ["x", "y", "xy"]
    # R1: the mean of a conjunction is the sum of means.
    close(log_quantify([a, b, c], axes, "xy", quant="mean"), a.mean() + b.mean() + c.mean())
    # R2: exists over or is the or of exists.
    wide = log_quantify([c, b], ["xy", "y"], "y", conn="or", alpha=2.0)
    close(wide, log_or(logmeanexp(c, 1, 2.0), logmeanexp(b, 0, 2.0), alpha=2.0))
    # R3: exists over and is a product of the log semiring.
    d = logs(30, 7, seed=3, dtype=DOUBLE)
    close(log_quantify([c, d], ["xy", "yz"], "y", alpha=2.0), logmatmul(c, d, 2.0, mean=True))
    close(log_quantify([c, d], ["xy", "yz"], "y", quant="lse", alpha=2.0), logmatmul(c, d, 2.0))
    # R4: transitivity in the stable product with p = 2 is two matrix products.
    r, eps = truths(25, 25, dtype=DOUBLE), 1e-4
    keep, n = 1 - eps, 25
    low, rest = keep * r + eps, 1 - keep * r
    one, two = low @ low, (low**2) @ (low**2)
    once = keep * one + eps * n
    twice = keep**2 * two + 2 * eps * keep * one + eps**2 * n
    total = eps**2 * n**3 + 2 * eps * keep * (rest * once).sum() + keep**2 * (rest**2 * twice).sum()
    got = fuzzy_quantify([r, r, r], ["xy", "yz", "xz"], "xyz", formula="0 1 and 2 implies", eps=eps)
    close(got, 1 - (total / n**3).sqrt())


def test_bounds_of_log_mean_exp():
    x = logs(9, 400, scale=60.0)
    for alpha in (1.0, 50.0):
        value, most = logmeanexp(x, 1, alpha), x.amax(1)
        assert (value <= most + 1e-5).all() and (value >= most - math.log(400) / alpha - 1e-5).all()


# ---- the same formulas in LTNtorch ----


@pytest.mark.parametrize("p", [1, 2, 6])
@pytest.mark.parametrize("quantifier", ["f", "e"])
def test_formulas_as_in_ltntorch(quantifier, p):
    ltn = pytest.importorskip("ltn", reason="LTNtorch is not installed")
    ops = ltn.fuzzy_ops
    tables = [truths(7), truths(9, seed=1), truths(7, 9, seed=2)]
    connectives = {
        "and": ops.AndProd(),
        "or": ops.OrProbSum(),
        "implies": ops.ImpliesReichenbach(),
        "and_goedel": ops.AndMin(),
        "or_goedel": ops.OrMax(),
        "implies_kleene": ops.ImpliesKleeneDienes(),
        "and_lukasiewicz": ops.AndLuk(),
        "or_lukasiewicz": ops.OrLuk(),
        "implies_lukasiewicz": ops.ImpliesLuk(),
    }
    aggregate = ops.AggregPMeanError(p=p) if quantifier == "f" else ops.AggregPMean(p=p)
    for first, second in itertools.product(connectives, repeat=2):
        leaves = [t.clone().requires_grad_() for t in tables]
        x, y = ltn.Variable("x", torch.zeros(7, 1)), ltn.Variable("y", torch.zeros(9, 1))
        objects = [
            ltn.LTNObject(t, names) for t, names in zip(leaves, (["x"], ["y"], ["x", "y"]), strict=True)
        ]
        inner = ltn.Connective(connectives[first])(*objects[:2])
        whole = ltn.Connective(connectives[second])(inner, objects[2])
        want = ltn.Quantifier(aggregate, quantifier=quantifier)([x, y], whole).value
        agg = "pmean_error" if quantifier == "f" else "pmean"
        mine = [t.clone().requires_grad_() for t in tables]
        got = fuzzy_quantify(mine, ["x", "y", "xy"], "xy", formula=f"0 1 {first} 2 {second}", agg=agg, p=p)
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-6)
        for a, b in zip(torch.autograd.grad(got, mine), torch.autograd.grad(want, leaves), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


# ---- along dimensions, elementwise ----


@types
@pytest.mark.parametrize("dim", [None, 0, 1, -1, (0, 2), (2, 1), ()])
def test_over_dimensions(dim, dtype):
    for shape in ((5, 6, 7), (3, 1, 600)):
        for mask in (None, masks(*shape), masks(shape[1], 1), masks(shape[2])):
            x, kind = logs(*shape, dtype=dtype), (1 if shape[1] == 6 else 2)
            if dim == () and mask is not None:
                continue
            check(
                lambda x, m=mask: logmeanexp(x, dim, 2.0, m),
                lambda x, m=mask: reference.logmeanexp(x, dim, 2.0, m) if dim != () else x,
                [relayed(x, kind)],
            )
            for p in (2.0, 6.0):
                for mine, twin in ((pmean, reference.pmean), (pmean_error, reference.pmean_error)):
                    check(
                        lambda x, m=mask, f=mine, p=p: f(x, dim, p, m, eps=1e-4),
                        lambda x, m=mask, f=twin, p=p: f(x, dim, p, m, eps=1e-4) if dim != () else x,
                        [relayed(truths(*shape, dtype=dtype), kind)],
                        tolerance=4e-6 if dtype == SINGLE else None,
                    )


def test_more_dimensions_than_a_kernel_takes():
    x, mask = logs(2, 3, 2, 5, 4), masks(3, 1, 5, 1)
    check(
        lambda x: logmeanexp(x, (1, 3), 2.0, mask),
        lambda x: reference.logmeanexp(x, (1, 3), 2.0, mask),
        [x],
    )
    others = [logs(2, 3, 2, 5, 4), logs(2, 5, 4, seed=1), logs(3, 1, 1, 1, seed=2)]
    for array in (lambda x: x, torch.Tensor.numpy):
        got = log_or(*map(array, others), alpha=2.0)
        assert_near(torch.as_tensor(got), reference.log_or(*(o.double() for o in others), alpha=2.0))
    check(lambda *xs: log_and(*xs), lambda *xs: reference.log_and(*xs), others)
    rows = [logs(2, 1, 2, 1, 2), logs(1, 2, 1, 2, 1)]
    refused(ValueError, "broadcast over 5 groups of dimensions, want at most 4", log_and, *rows)


@types
def test_elementwise(dtype):
    shapes = [((7, 1), (1, 30)), ((600,), (3, 600)), ((), (4, 5)), ((2, 3, 4, 5), (3, 1, 5))]
    for a_shape, b_shape in shapes:
        a, b = logs(*a_shape, dtype=dtype), logs(*b_shape, seed=1, dtype=dtype)
        for alpha in (1.0, 50.0):
            check(
                lambda a, b, al=alpha: log_or(a, b, alpha=al),
                lambda a, b, al=alpha: reference.log_or(a, b, alpha=al),
                [a, b],
                tolerance=None if dtype != SINGLE else 4e-6,
            )
        check(log_and, reference.log_and, [a, b])
        check(lambda a, b: log_implies(a, b, 2.0), lambda a, b: reference.log_implies(a, b, 2.0), [a, b])
    eight = [logs(3, 20, seed=i, dtype=dtype) for i in range(8)]
    check(lambda *xs: log_or(*xs, alpha=3.0), lambda *xs: reference.log_or(*xs, alpha=3.0), eight)
    assert_near(log_or(eight[0], alpha=3.0), eight[0].double())


# ---- products ----


@types
@pytest.mark.parametrize("mean", [False, True])
def test_logmatmul(dtype, mean):
    for (x, y, z), lead in itertools.product(
        [(1, 1, 1), (7, 5, 3), (50, 33, 70), (130, 20, 49)], [((), ()), ((2,), ()), ((3, 1), (2,))]
    ):
        a, b = logs(*lead[0], x, y, dtype=dtype), logs(*lead[1], y, z, seed=1, dtype=dtype)
        for alpha in (1.0, 5.0):
            check(
                lambda a, b, al=alpha: logmatmul(a, b, al, mean),
                lambda a, b, al=alpha: reference.logmatmul(a, b, al, mean),
                [a, relayed(b, 2)],
                tolerance=4e-6 if dtype == SINGLE else None,
            )


def test_products_that_underflow():
    a, b = logs(20, 30, dtype=DOUBLE, scale=200.0), logs(30, 25, seed=1, dtype=DOUBLE, scale=200.0)
    a[3], b[:, 4], a[5, 3:] = -math.inf, -math.inf, -math.inf
    leaves, exact = [x.float().requires_grad_() for x in (a, b)], [x.float().double() for x in (a, b)]
    exact = [x.requires_grad_() for x in exact]
    got, want = logmatmul(*leaves, 5.0), reference.logmatmul(*exact, 5.0)
    assert_near(got, want)
    assert got[3].isinf().all() and got[:, 4].isinf().all() and got[0, 0].isfinite()
    grads = torch.autograd.grad(got[got.isfinite()].sum(), leaves)
    wants = torch.autograd.grad(want[want.isfinite()].sum(), exact)
    for grad, other in zip(grads, wants, strict=True):
        assert_near(grad, other, 5e-4)  # exponentials of numbers around -1000


def test_products_of_nothing():
    for mean, dtype in itertools.product((False, True), TYPES):
        out = logmatmul(logs(2, 0, dtype=dtype), logs(0, 3, dtype=dtype), mean=mean)
        assert out.tolist() == [[-math.inf] * 3] * 2
    a, b = logs(0, 4).requires_grad_(), logs(4, 3).requires_grad_()
    out = logmatmul(a, b)
    assert out.shape == (0, 3)
    assert torch.autograd.grad(out.sum(), [a, b])[1].tolist() == [[0.0] * 3] * 4
    got = logmatmul(logs(5, 4).numpy(), logs(2, 4, 3).numpy(), 2.0)
    assert got.shape == (2, 5, 3)
    assert np.array_equal(got, logmatmul(logs(5, 4), logs(2, 4, 3), 2.0).numpy())


# ---- atoms ----


@types
def test_sigmoid_atoms(dtype):
    z = torch.cat([normals(500, dtype=DOUBLE) * 5, torch.tensor([0.0, 200, -200, 20, -20, 90, -90, 1e-6])])
    z = z.to(dtype)
    for out in range(2):
        check(lambda z, o=out: atom_logits(z)[o], lambda z, o=out: reference.atom_logits(z)[o], [z])
    if dtype == SINGLE:  # small values are right to their last digits
        log, nlog = atom_logits(z)
        want = reference.atom_logits(z.double())
        for got, exact in zip((log, nlog), want, strict=True):
            normal = exact.abs() > 1e-37
            assert float(((got.double() - exact) / exact)[normal].abs().max()) < 3e-7
    assert atom_logits(torch.tensor(0.5, dtype=dtype))[0].shape == ()


@types
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 17, 100])
def test_softmax_atoms(dtype, classes):
    z = normals(40, classes, dtype=DOUBLE) * 5
    z[0] = torch.linspace(-200, 200, classes) if classes > 1 else 3.0
    z[1] = 0.5  # all equal
    z = z.to(dtype)
    index = torch.arange(40) % classes
    for out in range(2):
        if classes == 1 and out == 1:
            leaf = z.clone().requires_grad_()
            nlog = atom_logits(leaf, "softmax")[1]
            assert nlog.isinf().all() and not torch.autograd.grad(nlog, leaf, torch.ones_like(nlog))[0].any()
            continue
        check(
            lambda z, o=out: atom_logits(z, "softmax")[o],
            lambda z, o=out: reference.atom_logits(z, "softmax")[o],
            [z],
        )
        check(
            lambda z, o=out: atom_logits(z, "softmax", index)[o],
            lambda z, o=out: reference.atom_logits(z, "softmax", index)[o],
            [z],
        )
    for got, want in zip(atom_logits(z, "softmax", index), atom_logits(z, "softmax"), strict=True):
        torch.testing.assert_close(got, want.gather(1, index[:, None])[:, 0], rtol=1e-6, atol=1e-6)


def test_a_certain_class_leaves_the_others_their_share():
    z = torch.tensor([60.0, 0.0, -3.0]).requires_grad_()
    log, nlog = atom_logits(z, "softmax")
    others = math.exp(-60.0) + math.exp(-63.0)
    assert nlog[0].item() == pytest.approx(math.log(others), abs=1e-4)
    assert log[0].item() == pytest.approx(-others, rel=1e-5)  # log(1 - P) of what 1 - P rounds away
    (grad,) = torch.autograd.grad(nlog[0], z)
    torch.testing.assert_close(grad, torch.tensor([-1.0, 0.95257, 0.04743]), rtol=1e-4, atol=1e-5)


def test_atoms_of_numpy_and_what_is_refused():
    z = normals(6, 5)
    for kind, index in (("sigmoid", None), ("softmax", None), ("softmax", torch.arange(6) % 5)):
        mine = atom_logits(z.numpy(), kind, None if index is None else index.numpy())
        for got, want in zip(mine, atom_logits(z, kind, index), strict=True):
            assert np.array_equal(got, want.numpy())
    refused(ValueError, "kind is 'tanh', want sigmoid or softmax", atom_logits, z, "tanh")
    refused(ValueError, "index is given and kind is 'sigmoid'", atom_logits, z, "sigmoid", torch.arange(6))
    refused(ValueError, "index has shape (5,), want (6,)", atom_logits, z, "softmax", torch.arange(5))
    refused(ValueError, "z has shape (6, 0), want (..., classes)", atom_logits, z[:, :0], "softmax")
    refused(ValueError, "index has 6 at place 2", atom_logits, z, "softmax", torch.tensor([0, 1, 6, 0, 0, 0]))
    refused(ValueError, "index has -1 at place 0", atom_logits, z, "softmax", torch.tensor([-1] * 6))
    refused(
        TypeError, "index has type int32, want int64", atom_logits, z, "softmax", torch.arange(6).int() % 5
    )


# ---- memory ----


@pytest.mark.parametrize("reduce", ["x", "y"])
@pytest.mark.parametrize("formula", ["0 1 implies", "0 1 or", "0 1 and not", "0 1 2 implies or"])
def test_small_errors_keep_their_digits(formula, reduce):
    """Of what is nearly true everywhere: 1 - u has few digits where u was rounded."""
    draw = torch.Generator().manual_seed(2)
    low, high = (0.003 * torch.rand(5, 300, generator=draw) for _ in range(2))
    first = 1 - high if formula == "0 1 or" else low
    xs = [first, 1 - high[0], low[1]][: 3 if "2" in formula else 2]
    axes = ["xy", "y", "y"][: len(xs)]
    exact, leaves = ([x.to(dtype).requires_grad_() for x in xs] for dtype in (DOUBLE, SINGLE))
    want = reference.fuzzy_quantify(exact, axes, reduce, formula=formula).sum()
    got = fuzzy_quantify(leaves, axes, reduce, formula=formula).sum()
    gradients = zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, exact), strict=True)
    for ours, theirs in gradients:
        assert_near(ours, theirs, 1e-6)


@pytest.mark.parametrize("lanes", [600, 1000, 1025, 2060])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_of_many_lanes(rows, lanes):
    """Work is cut along the lanes; a sum of parts has nothing in it of what memory held before."""
    draw = torch.Generator().manual_seed(5)
    tables = [torch.rand(shape, generator=draw) for shape in ((rows,), (lanes,), (rows, lanes))]
    axes = ["x", "y", "xy"]
    calls = [
        (lambda m, xs: m.fuzzy_quantify(xs, axes, "xy", formula="0 1 and 2 implies"), tables),
        (lambda m, xs: m.fuzzy_quantify(xs, axes, "xy", formula="0 1 and 2 implies not", agg="mean"), tables),
        (lambda m, xs: m.log_quantify(xs, axes, "xy"), [x.log() for x in tables]),
        (lambda m, xs: m.log_quantify(xs, axes, "xy", conn="or", quant="mean"), [x.log() for x in tables]),
    ]
    for call, xs in calls:
        exact = [x.double().requires_grad_() for x in xs]
        want = torch.autograd.grad(call(reference, exact), exact)
        leaves = [x.clone().requires_grad_() for x in xs]
        for _ in range(20):
            junk = [torch.full((size,), 1e9) for size in range(1, 64)]  # what is allocated next is not zero
            out = call(fuzzy, leaves)
            del junk
            for got, wanted in zip(torch.autograd.grad(out, leaves), want, strict=True):
                assert_near(got, wanted)


def test_operands_that_repeat():
    """Strides of 0 are read as they are; their gradient has every element."""
    row = logs(40)
    wide = row.expand(30, 40)
    table = logs(30, 40, seed=1)
    for conn in ("and", "or"):
        want = log_quantify([row, table], ["y", "xy"], "y", conn=conn, alpha=2.0)
        assert torch.equal(log_quantify([wide, table], ["xy", "xy"], "y", conn=conn, alpha=2.0), want)
    leaf = row.clone().requires_grad_()
    for axes, make in ((["y", "xy"], lambda x: x), (["xy", "xy"], lambda x: x.expand(30, 40))):
        for conn in ("and", "or"):
            for reduce in ("xy", "x"):
                out = log_quantify([make(leaf), table], axes, reduce, conn=conn, alpha=2.0).sum()
                exact = row.double().requires_grad_()
                want = reference.log_quantify(
                    [make(exact), table.double()], axes, reduce, conn=conn, alpha=2.0
                ).sum()
                assert_near(torch.autograd.grad(out, leaf)[0], torch.autograd.grad(want, exact)[0])
        out = fuzzy_quantify([make(leaf.exp()), table.exp()], axes, "xy", formula="0 1 implies")
        (grad,) = torch.autograd.grad(out, leaf)
        exact = row.double().requires_grad_()
        want = reference.fuzzy_quantify(
            [make(exact.exp()), table.double().exp()], axes, "xy", formula="0 1 implies"
        )
        assert_near(grad, torch.autograd.grad(want, exact)[0])


@types
def test_gradient_buffers(dtype):
    xs = [logs(30, dtype=dtype), logs(50, seed=1, dtype=dtype), logs(30, 50, seed=2, dtype=dtype)]
    axes = ["x", "y", "xy"]
    leaves = [x.clone().requires_grad_() for x in xs]
    plain = torch.autograd.grad(log_quantify(leaves, axes, "xy", conn="or", quant="mean"), leaves)
    buffers = [torch.ones_like(x) for x in xs]
    buffers[1] = None
    out = log_quantify(leaves, axes, "xy", conn="or", quant="mean", grad_buffers=buffers)
    out.backward()
    assert leaves[0].grad is None and leaves[2].grad is None
    assert torch.equal(leaves[1].grad, plain[1])
    for i in (0, 2):
        assert_near(buffers[i], plain[i].double() + 1, scale=1.0)
    strided = torch.zeros(30, 100, dtype=dtype)[:, ::2]
    log_quantify(leaves, axes, "xy", conn="or", quant="mean", grad_buffers=[None, None, strided]).backward()
    assert_near(strided, plain[2].double(), scale=float(plain[2].abs().max()))
    truth = [x.exp().requires_grad_() for x in xs]
    options = {"formula": "0 1 and 2 implies"}
    want = torch.autograd.grad(fuzzy_quantify(truth, axes, "xy", **options), truth)
    given = [torch.zeros_like(x) for x in xs]
    fuzzy_quantify(truth, axes, "xy", **options, grad_buffers=given).backward()
    for got, other in zip(given, want, strict=True):
        assert torch.equal(got, other)


def test_gradient_buffers_that_do_not_fit():
    x = logs(3, 4).requires_grad_()
    run = partial(log_quantify, [x], ["xy"], "y")
    refused(ValueError, "grad_buffers are 2 for 1 operands", run, grad_buffers=[None, None])
    refused(ValueError, "grad_buffers[0] has shape (3,), want (3, 4)", run, grad_buffers=[torch.zeros(3)])
    refused(TypeError, "grad_buffers[0] is torch.float64", run, grad_buffers=[torch.zeros(3, 4).double()])
    refused(
        ValueError, "grad_buffers[0] requires a gradient", run, grad_buffers=[x.detach().requires_grad_()]
    )
    array = x.detach().numpy()
    refused(ValueError, "are no torch tensors", log_quantify, [array], ["xy"], "y", grad_buffers=[None])


def test_what_is_kept_and_made():
    """The backward pass keeps the operands and two numbers per result, and makes the gradients alone."""
    xs = [logs(30), logs(50, seed=1), logs(30, 50, seed=2)]
    leaves = [x.requires_grad_() for x in xs]
    out = log_quantify(leaves, ["x", "y", "xy"], "y")
    state, *saved = out.grad_fn.saved_tensors
    assert state.shape == (2, 30)
    assert [s.data_ptr() for s in saved] == [x.data_ptr() for x in xs]


def test_numpy_gives_the_same_bits():
    xs = [logs(30), logs(50, seed=1), logs(30, 50, seed=2)]
    mask = masks(30, 50)
    for conn, quant in itertools.product(("and", "or"), QUANTS):
        want = log_quantify(xs, ["x", "y", "xy"], "y", conn=conn, quant=quant, guard=(mask, "xy"))
        for order in ("C", "F"):
            arrays = [np.array(x.numpy(), order=order) for x in xs]
            got = log_quantify(arrays, ["x", "y", "xy"], "y", conn=conn, quant=quant,
                               guard=(mask.numpy(), "xy"))  # fmt: skip
            assert isinstance(got, np.ndarray) and got.dtype == np.float32
            if order == "C":
                assert np.array_equal(got, want.numpy())
            else:
                np.testing.assert_allclose(got, want.numpy(), rtol=1e-5)
    u = [x.exp().numpy().astype(np.float64) for x in xs]
    got = fuzzy_quantify(u, [("x",), ("y",), ("x", "y")], ("x", "y"), formula=["0", "1", "and", "2", "or"])
    want = reference.fuzzy_quantify([torch.from_numpy(x) for x in u], ["x", "y", "xy"], "xy",
                                    formula="0 1 and 2 or")  # fmt: skip
    assert got == pytest.approx(want.item(), abs=1e-12)


# ---- the same bits ----


def everything(dtype):
    """Results and gradients of large problems: a list of each call's."""
    calls = []

    def record(out, leaves):
        outs = list(out) if isinstance(out, tuple) else [out]
        total = sum((k + 1) * x.sum() for k, x in enumerate(outs))
        calls.append([*(x.detach() for x in outs), *torch.autograd.grad(total, leaves)])

    log = [logs(100, dtype=dtype), logs(1300, seed=1, dtype=dtype), logs(100, 1300, seed=2, dtype=dtype)]
    log.append(logs(1300, 3, seed=3, dtype=dtype))
    axes = ["x", "y", "xy", "yz"]
    mask = masks(100, 1300)
    for conn, quant, reduce in itertools.product(("and", "or"), QUANTS, ("y", "x", "xyz", "")):
        leaves = [x.clone().requires_grad_() for x in log]
        options = {"conn": conn, "quant": quant, "alpha": 2.0, "guard": (mask, "xy")}
        record(log_quantify(leaves, axes, reduce, **options), leaves)
    for agg, reduce, p in itertools.product(AGGS, ("y", "x", "xy"), (2.0, 5.0)):
        leaves = [x.exp().requires_grad_() for x in log[:3]]
        record(fuzzy_quantify(leaves, axes[:3], reduce, formula="0 1 and 2 implies", agg=agg, p=p), leaves)
    pair = [log[2].clone().requires_grad_(), log[2].t().clone().requires_grad_()]
    record(logmatmul(*pair, 2.0), pair)
    z = (log[2] * 4 + 6).requires_grad_()
    for kind in ("sigmoid", "softmax"):
        record(atom_logits(z, kind), [z])
    values, ends = log[2].reshape(-1).requires_grad_(), torch.arange(0, 130001, 1000)
    record(segment_logmeanexp(values, ends, 2.0), [values])
    return calls


@types
def test_any_number_of_threads_gives_the_same_bits(dtype):
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        results.append(everything(dtype))
    torch.set_num_threads(threads)
    flat = [list(itertools.chain.from_iterable(calls)) for calls in results]
    for other in flat[1:]:
        assert all(torch.equal(a, b) for a, b in zip(flat[0], other, strict=True))


def on_level(path):
    """Called in a process of its own."""
    torch.save([everything(dtype) for dtype in TYPES], path)


@pytest.mark.parametrize(
    "level", [level for level in ("baseline", "avx2", "avx512") if level in _core.isas_supported()]
)
def test_levels_agree(level, tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "TENFOLD_ISA": level}
    code = f"import test_fuzzy as t; t.on_level({str(tmp_path / 'results')!r})"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    for dtype, theirs in zip(TYPES, torch.load(tmp_path / "results"), strict=True):
        tolerance = {SINGLE: 1e-5, HALF: 2**-6, DOUBLE: 1e-12}[dtype]
        for their_call, call in zip(theirs, everything(dtype), strict=True):
            # Of the largest gradient of the call: a slope of nearly 0 is a difference of numbers near 1.
            most = max(float(x.abs().max()) for x in call[1:])
            for a, b in zip(their_call, call, strict=True):
                bound = tolerance * max(most, float(b.abs().max()))
                # Another one of nearly equal numbers may be the greatest: few elements differ.
                wrong = ((a.double() - b.double()).abs() > bound).double().mean()
                assert float(wrong) <= 1e-3


# ---- gradients ----


def test_gradcheck():
    xs = [x.requires_grad_() for x in (logs(3, dtype=DOUBLE), logs(4, seed=1, dtype=DOUBLE),
                                       logs(3, 4, seed=2, dtype=DOUBLE))]  # fmt: skip
    mask = masks(3, 4)
    for conn, quant, reduce in itertools.product(("and", "or"), QUANTS, ("y", "xy", "")):
        run = partial(log_quantify, axes=["x", "y", "xy"], reduce=reduce, conn=conn, quant=quant, alpha=2.0,
                      guard=(mask, "xy"))  # fmt: skip
        assert torch.autograd.gradcheck(lambda *xs, run=run: run(xs), xs)
    us = [(x.detach().exp() * 0.9 + 0.05).requires_grad_() for x in xs]
    for formula, agg in itertools.product(FORMULAS, AGGS):
        run = partial(fuzzy_quantify, axes=["x", "y", "xy"], reduce="y", formula=formula, agg=agg, p=3.0)
        assert torch.autograd.gradcheck(lambda *xs, run=run: run(xs), us)
    a, b = logs(3, 4, dtype=DOUBLE).requires_grad_(), logs(4, 2, seed=1, dtype=DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: logmatmul(a, b, 2.0, True), (a, b))
    z = normals(3, 4, dtype=DOUBLE).requires_grad_()
    for kind in ("sigmoid", "softmax"):
        assert torch.autograd.gradcheck(lambda z, kind=kind: atom_logits(z, kind), (z,))
    ends = torch.tensor([0, 5, 5, 12])
    flat = logs(12, dtype=DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segment_logmeanexp(x, ends, 2.0), (flat,))
    assert torch.autograd.gradcheck(lambda x: segment_pmean(x.exp(), ends, 2.0, error=True), (flat,))


def test_gradients_of_some_operands():
    xs = [logs(30), logs(50, seed=1), logs(30, 50, seed=2)]
    for conn in ("and", "or"):
        leaves = [x.clone().requires_grad_() for x in xs]
        all_of = torch.autograd.grad(log_quantify(leaves, ["x", "y", "xy"], "y", conn=conn).sum(), leaves)
        for i in range(3):
            some = [x.clone().requires_grad_(k == i) for k, x in enumerate(xs)]
            out = log_quantify(some, ["x", "y", "xy"], "y", conn=conn)
            assert torch.equal(torch.autograd.grad(out.sum(), some[i])[0], all_of[i])


def calls():
    """Every op on a small problem: a function of one leaf, and the leaf."""
    ends = torch.tensor([0, 5, 5, 12])
    b, mask = logs(4, seed=1), masks(3, 4)
    return {
        "log_quantify": (lambda x: log_quantify([x, b], ["xy", "y"], "y", conn="or", alpha=2.0), logs(3, 4)),
        "guarded": (lambda x: log_quantify([x, b], ["xy", "y"], "x", guard=(mask, "xy")), logs(3, 4)),
        "fuzzy_quantify": (
            lambda x: fuzzy_quantify([x, b.exp()], ["xy", "y"], "xy", formula="0 1 implies"),
            truths(3, 4),
        ),
        "log_or": (lambda x: log_or(x, b, alpha=2.0), logs(3, 4)),
        "logmeanexp": (lambda x: logmeanexp(x, 0, 2.0), logs(3, 4)),
        "logmatmul": (lambda x: logmatmul(x, b[:, None], 2.0), logs(3, 4)),
        "sigmoid": (lambda z: sum(atom_logits(z)), normals(3, 4)),
        "softmax": (lambda z: sum(atom_logits(z, "softmax")), normals(3, 4)),
        "segments": (lambda x: segment_logmeanexp(x, ends, 2.0), logs(12)),
    }


every = pytest.mark.parametrize("name", list(calls()))


@every
def test_there_is_a_first_gradient_only(name):
    run, x = calls()[name]
    leaf = x.requires_grad_()
    (grad,) = torch.autograd.grad(run(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="first gradient only"):
        grad.sum().backward()


@every
def test_gradients_that_lie_in_any_order(name):
    run, x = calls()[name]
    leaf = x.requires_grad_()
    out = run(leaf)
    got = torch.autograd.grad(out.sum(), leaf, retain_graph=True)[0]
    assert torch.equal(got, torch.autograd.grad(out, leaf, torch.ones_like(out))[0])


# ---- torch.compile, opcheck, vmap, torch.func ----


@every
def test_under_compile(name):
    torch._dynamo.reset()  # or the lambda below is compiled again and again, until torch has enough
    run, x = calls()[name]
    leaf = x.requires_grad_()
    compiled = torch.compile(lambda x: run(x.sin() - 1).cos(), fullgraph=True, backend="aot_eager")
    want, got = run(leaf.sin() - 1).cos(), compiled(leaf)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), leaf), torch.autograd.grad(want.sum(), leaf))
    torch.testing.assert_close(compiled(x.detach()), want.detach())


def test_opcheck():
    checks = partial(torch.library.opcheck, test_utils=("test_schema", "test_faketensor"))
    ops = torch.ops.tenfold
    xs, mask = [logs(3), logs(4, seed=1), logs(3, 4, seed=2)], masks(3, 4)
    spec = ("a,b,ab|ab", "a", "or", "lme", "", [2.0, 0.0, -1e5, 0.0, -1.0, -1.0, -1.0])
    checks(ops.fuzzy_quantify.default, (xs, [mask], *spec, True))
    out, state = ops.fuzzy_quantify(xs, [mask], *spec, True)
    checks(ops.fuzzy_quantify_backward.default, (out, state, xs, [mask], *spec, [True, False, True]))
    z = normals(3, 4)
    checks(ops.atom_logits.default, (z, True, None))
    checks(ops.atom_logits_backward.default, (z, z, z, False, None))
    checks(ops.logmatmul.default, (logs(2, 3, 4), logs(2, 4, 5), 2.0, True))
    checks(ops.logmatmul_backward.default,
           (logs(2, 3, 5), logs(2, 3, 4), logs(2, 4, 5), 2.0, True, True, False))  # fmt: skip
    ends = torch.tensor([0, 2, 4])
    checks(ops.fuzzy_segments.default, (xs[1], ends, "lme", [2.0, 0.0, 0.0, 0.0]))
    _, state = ops.fuzzy_segments(xs[1], ends, "lme", [2.0, 0.0, 0.0, 0.0])
    checks(
        ops.fuzzy_segments_backward.default,
        (ends[1:].float(), state, xs[1], ends, "lme", [2.0, 0.0, 0.0, 0.0]),
    )
    with pytest.raises(NotImplementedError, match="records no gradient"):
        ops.atom_logits(z.requires_grad_(), True, None)


@every
def test_vmap_and_func(name):
    run, x = calls()[name]
    xs = torch.stack([x, x * 0.5, x * 0.25])
    torch.testing.assert_close(torch.func.vmap(run)(xs), torch.stack([run(x) for x in xs]))
    grad = torch.func.grad(lambda x: run(x).square().sum())
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(grad(x), torch.autograd.grad(run(leaf).square().sum(), leaf)[0])
    torch.testing.assert_close(torch.func.vmap(grad)(xs), torch.stack([grad(x) for x in xs]))
    out = run(leaf)
    upstreams = normals(3, *out.shape)
    many = torch.func.vmap(lambda v: torch.autograd.grad(out, leaf, v, retain_graph=True)[0])(upstreams)
    each = [torch.autograd.grad(out, leaf, v, retain_graph=True)[0] for v in upstreams]
    torch.testing.assert_close(many, torch.stack(each))
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(run, (x,), (x,))


def test_vmap_of_several_and_of_four_axes():
    a, b, c = logs(5, 3), logs(4, seed=1), logs(3, 4, 5, seed=2)
    mask = masks(5, 3, 4)

    def run(a, c, mask):
        return log_quantify([a, b, c], ["x", "y", "xy"], "y", conn="or", guard=(mask, "xy"))

    got = torch.func.vmap(run, in_dims=(0, 2, 0))(a, c, mask)
    torch.testing.assert_close(got, torch.stack([run(a[i], c[..., i], mask[i]) for i in range(5)]))
    grads = torch.func.vmap(torch.func.grad(lambda b, a: log_quantify([a, b], ["x", "y"], "xy")),
                            in_dims=(None, 0))(b, a)  # fmt: skip
    assert grads.shape == (5, 4)  # one per element, of what they share
    four = logs(2, 2, 3, 2, 5)
    got = torch.func.vmap(lambda x: log_quantify([x], ["wxyz"], "xz"))(four)
    torch.testing.assert_close(got, torch.stack([log_quantify([x], ["wxyz"], "xz") for x in four]))
    grad = torch.func.grad(lambda x: log_quantify([x], ["wxyz"], "xz").square().sum())
    torch.testing.assert_close(torch.func.vmap(grad)(four), torch.stack([grad(x) for x in four]))
    points, others = normals(4, 3, 2), normals(6, 2, seed=1)
    table = logs(3, 6)

    def near(points):
        return log_quantify([table], ["xy"], "y", guard=(points, "xy", "<", 1.0, others))

    torch.testing.assert_close(torch.func.vmap(near)(points), torch.stack([near(p) for p in points]))


@every
def test_types_under_autocast(name):
    run, x = calls()[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(x).dtype == SINGLE


# ---- what is refused, and what is empty ----


def refused(error, message, function, *args, **kwargs):
    with pytest.raises(error, match=re.escape(message)):
        function(*args, **kwargs)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, lambda x: x], ids=["numpy", "torch"])
def test_wrong_arguments(convert):
    a, b, c = convert(logs(3)), convert(logs(4)), convert(logs(3, 4))
    run, axes = log_quantify, ["x", "y", "xy"]
    refused(ValueError, "operands are 0, want 1 to 8", run, [], [], "")
    refused(ValueError, "operands are 9, want 1 to 8", run, [a] * 9, ["x"] * 9, "")
    refused(ValueError, "axes are 1 for 2 operands", run, [a, b], ["x"], "")
    refused(ValueError, "axes are v, w, x, y, z, want at most 4", run, [a] * 5, list("vwxyz"), "")
    refused(ValueError, "axes[0] names an axis twice: x, x", run, [c], ["xx"], "x")
    refused(ValueError, "reduce has 'z' and axes are x, y", run, [c], ["xy"], "z")
    refused(ValueError, "reduce has 'x' twice", run, [c], ["xy"], "xx")
    refused(ValueError, "operands[0] has shape (3,), want 2 dimensions", run, [a], ["xy"], "x")
    said = "axis x has size 3 in operands[0] and 4 in operands[1]"
    refused(ValueError, said, run, [a, b], ["x", "x"], "x")
    refused(ValueError, "conn is 'xor', want and or or", run, [a], ["x"], "x", conn="xor")
    refused(ValueError, "quant is 'median', want lme, lse", run, [a], ["x"], "x", quant="median")
    for alpha in (0.0, -1.0, math.nan, math.inf):
        refused(ValueError, "want a finite number above 0", run, [a], ["x"], "x", alpha=alpha)
    refused(ValueError, "log_weights is given and conn is 'and'", run, [a], ["x"], "x", log_weights=[0.0])
    said = "log_weights has 1 numbers for 2 operands"
    refused(ValueError, said, run, [a, a], ["x", "x"], "x", conn="or", log_weights=[0.0])
    whole = convert(torch.ones(3).long())
    refused(
        TypeError, "operands[0] has type int64, want float32, bfloat16 or float64", run, [whole], ["x"], "x"
    )
    other = convert(logs(4, dtype=DOUBLE))
    refused(
        TypeError, "operands[1] has type float64 and operands[0] float32", run, [a, other], ["x", "y"], ""
    )
    refused(TypeError, "operands[0] is a float, want", run, [1.0], ["x"], "x")
    run = partial(fuzzy_quantify, [a, b, c], axes, "x")
    refused(ValueError, "p is 0.5, want a finite number at least 1", run, formula="0", p=0.5)
    refused(ValueError, "eps is 1, want a number from 0 to below 1", run, formula="0", eps=1.0)
    refused(ValueError, "agg is 'lme', want pmean_error", run, formula="0", agg="lme")
    refused(ValueError, "formula '0 and': 'and' finds too few values", run, formula="0 and")
    refused(ValueError, "formula '0 1' leaves 2 values, want one", run, formula="0 1")
    refused(ValueError, "formula '' leaves 0 values, want one", run, formula="")
    refused(ValueError, "has '3', want an operand's number below 3", run, formula="3")
    refused(ValueError, "has 'xor', want an operand's number below 3 or one of not", run, formula="0 1 xor")
    refused(ValueError, "formula has 65 steps, want at most 64", run, formula="0 " + "not " * 64)


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, lambda x: x], ids=["numpy", "torch"])
def test_wrong_guards(convert):
    c, mask = convert(logs(3, 4)), convert(masks(3, 4))
    run = partial(log_quantify, [c], ["xy"], "y")
    refused(TypeError, "guard has type float32, want bool", run, guard=(c, "xy"))
    refused(TypeError, "guard has type bool, want float32 as the operands, to compare", run,
            guard=(mask, "xy", "<", 1.0))  # fmt: skip
    refused(ValueError, "guard has shape (3, 4), want 1 dimensions", run, guard=(mask, "x"))
    refused(ValueError, "axis y has size 4 in operands[0] and 3 in guard", run, guard=(mask, "yx"))
    refused(ValueError, "guard's relation is '!=', want", run, guard=(c, "xy", "!=", 1.0))
    refused(ValueError, "guard has other and no relation", run, guard=(c, "xy", "", 1.0, c))
    refused(ValueError, "guard compares distances over 1 axes, want two", run, guard=(c, "x", "<", 1.0, c))
    said = "guard's points have shapes (3, 4) and (4, 3), want (n, features)"
    refused(ValueError, said, run, guard=(c, "xy", "<", 1.0, convert(logs(4, 3))))
    run = partial(logmeanexp, c)
    refused(ValueError, "dim is 2, want dimensions of an array of 2", run, 2)
    refused(ValueError, "dim is (0, -2), want each dimension once", run, (0, -2))
    refused(ValueError, "mask has shape (2, 3, 4), want one that broadcasts to x's (3, 4)", run, 0,
            mask=convert(masks(2, 3, 4)))  # fmt: skip
    refused(ValueError, "a has shape (3, 4) and b (3, 4), want (..., X, Y) and (..., Y, Z)", logmatmul, c, c)
    refused(ValueError, "xs have shapes (3, 4), (3,), which do not broadcast", log_or, c, convert(logs(3)))
    refused(ValueError, "xs are 0 arrays, want 1 to 8", log_and)


def test_mixed_libraries():
    a, b = logs(3), logs(3, seed=1).numpy()
    said = "operands[1] is a numpy.ndarray, want torch tensors"
    refused(TypeError, said, log_quantify, [a, b], ["x", "x"], "x")
    refused(TypeError, "operands[0] is a numpy.ndarray, want torch", log_quantify, [b, a], ["x", "x"], "x")
    refused(TypeError, "guard[0] is a numpy.ndarray", log_quantify, [a], ["x"], "x", guard=(b > 0, "x"))
    refused(TypeError, "b is a ndarray, want two torch tensors", logmatmul, a[None], b[:, None])
    refused(TypeError, "row_ptr is a ndarray", segment_pmean, a, np.array([0, 3]))
    refused(TypeError, "values is a list, want a numpy array", segment_pmean, [1.0], np.array([0, 3]))


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (0, 0)])
def test_empty(sizes):
    x = torch.zeros(sizes, requires_grad=True)
    row = logs(sizes[1]).requires_grad_()
    for quant, reduce in itertools.product(QUANTS, ("y", "x", "xy", "")):
        out = log_quantify([x, row], ["xy", "y"], reduce, quant=quant)
        kept = [size for size, axis in zip(sizes, "xy", strict=True) if axis not in reduce]
        assert list(out.shape) == kept
        assert reduce == "" or bool((out == fuzzy.LOG_EMPTY[quant]).all())
        grads = torch.autograd.grad(out.sum(), [x, row])
        assert not any(g.any() for g in grads) and [g.shape for g in grads] == [x.shape, row.shape]
    out = fuzzy_quantify([x], ["xy"], "xy", formula="0 not")
    assert out == 1 and torch.autograd.grad(out, x)[0].shape == sizes
    assert logmeanexp(x, 1).shape == sizes[:1] and log_or(x, row).shape == sizes
    log, nlog = atom_logits(x)
    assert log.shape == nlog.shape == sizes
    assert segment_pmean(x.reshape(-1), torch.tensor([0, 0])).tolist() == [0]
    assert segment_pmean(x.reshape(-1), torch.tensor([0])).shape == (0,)


def test_a_gradient_of_nothing_writes_nothing():
    """Empty arrays of numpy have strides of 0, as those that repeat an element do."""
    around = np.full(3, 7.0, np.float32)
    nothing = np.lib.stride_tricks.as_strided(around[1:], (0,), (0,))
    x = np.zeros(2, np.float32)
    spec = ("a,b", "a", "and", "lme", "", (1.0, 0.0, -1e5, 0.0))
    out, state = np.zeros(2, np.float32), np.zeros((2, 2), np.float32)
    _core.fuzzy_quantify((x, nothing), (), *spec, out, state)
    assert (out == -1e5).all()
    grad = np.ones(2, np.float32)
    _core.fuzzy_quantify_backward(
        np.ones(2, np.float32), state, (x, nothing), (), *spec, (grad, nothing), [False, False]
    )
    assert (grad == 0).all() and (around == 7).all()
