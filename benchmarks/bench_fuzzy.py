"""The fuzzy family against what a user of torch would write instead, and against LTNtorch.

Four formulas over tables of truth values, each to a single number, with the gradients of all tables:

    K1  mean_x LogMeanExp_y (a_x + b_y + c_xy)    forall x exists y (A(x) and B(y) and C(x, y)), log space
    K2  mean_xy LogMeanExp(np_x, nq_y, r_xy)      forall x, y (P(x) and Q(y) -> R(x, y)), log space
    K3  mean_xyz LogMeanExp(nr_xy, nr_yz, r_xz)   forall x, y, z (R(x, y) and R(y, z) -> R(x, z)), log space
    K4  pMeanError_xy ((p_x and q_y) -> r_xy)     as K2, in the stable product with p = 2
    R4  pMeanError_xyz ((r_xy and r_yz) -> r_xz)  as K3, in the stable product with p = 2

"tenfold" of R4 is tenfold.logic, which makes two matrix products of it.

"stack" puts broadcast operands into one tensor and takes logsumexp, "logaddexp" takes it pair by pair,
torch.compile compiles the faster of them; forms.py says how forms are compared. LTNtorch 1.0.2 gets its truth
values as grounded formulas; it takes part where it is installed (`pip install LTNtorch==1.0.2 --no-deps`).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from forms import Compare, Form, error, passes, race, threads, wanted
from tenfold.logic import KnowledgeBase, StableProduct, TrivialOptimumWarning
from tenfold.ops import fuzzy
from tenfold.ops.reference import fuzzy as reference

try:
    import ltn
except ImportError:
    ltn = None

EPS = 1e-4
IMPLICATION = "0 1 and 2 implies"


# ---- the formulas, in the forms that are compared ----


def k1(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return fuzzy.log_quantify([a, b, c], ["x", "y", "xy"], "y").mean()


def k1_eager(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return ((a[:, None] + b + c).logsumexp(1) - math.log(b.shape[0])).mean()


def k2(np: Tensor, nq: Tensor, r: Tensor) -> Tensor:
    return fuzzy.log_quantify([np, nq, r], ["x", "y", "xy"], "xy", conn="or", quant="mean")


def k2_stack(np: Tensor, nq: Tensor, r: Tensor) -> Tensor:
    stacked = torch.stack([np[:, None].expand_as(r), nq.expand_as(r), r])
    return (stacked.logsumexp(0) - math.log(3)).mean()


def k2_logaddexp(np: Tensor, nq: Tensor, r: Tensor) -> Tensor:
    return (torch.logaddexp(torch.logaddexp(np[:, None], nq), r) - math.log(3)).mean()


def k3(nr: Tensor, r: Tensor) -> Tensor:
    return fuzzy.log_quantify([nr, nr, r], ["xy", "yz", "xz"], "xyz", conn="or", quant="mean")


def k3_stack(nr: Tensor, r: Tensor) -> Tensor:
    n = r.shape[0]
    parts = [nr[:, :, None], nr[None], r[:, None]]
    return (torch.stack([x.expand(n, n, n) for x in parts]).logsumexp(0) - math.log(3)).mean()


def k3_logaddexp(nr: Tensor, r: Tensor) -> Tensor:
    return (torch.logaddexp(torch.logaddexp(nr[:, :, None], nr[None]), r[:, None]) - math.log(3)).mean()


def k4(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
    return fuzzy.fuzzy_quantify([p, q, r], ["x", "y", "xy"], "xy", formula=IMPLICATION, eps=EPS)


def k4_eager(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
    def low(x: Tensor) -> Tensor:
        return (1 - EPS) * x + EPS

    def high(x: Tensor) -> Tensor:
        return (1 - EPS) * x

    both = low(low(p[:, None]) * low(q))
    return 1 - (1 - high(1 - both + both * high(r))).square().mean().sqrt()


def k4_ltn(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
    x, y = (ltn.Variable(name, torch.zeros(len(t), 1)) for name, t in (("x", p), ("y", q)))
    conjunction = ltn.Connective(ltn.fuzzy_ops.AndProd())
    implication = ltn.Connective(ltn.fuzzy_ops.ImpliesReichenbach())
    forall = ltn.Quantifier(ltn.fuzzy_ops.AggregPMeanError(p=2), quantifier="f")
    tables = [ltn.LTNObject(t, names) for t, names in ((p, ["x"]), (q, ["y"]), (r, ["x", "y"]))]
    return forall([x, y], implication(conjunction(*tables[:2]), tables[2])).value


def r4_eager(r: Tensor) -> Tensor:
    def low(x: Tensor) -> Tensor:
        return (1 - EPS) * x + EPS

    def high(x: Tensor) -> Tensor:
        return (1 - EPS) * x

    both = low(low(r[:, :, None]) * low(r[None]))
    return 1 - (1 - high(1 - both + both * high(r[:, None]))).square().mean().sqrt()


def r4_ltn(r: Tensor) -> Tensor:
    n = len(r)
    x, y, z = (ltn.Variable(name, torch.zeros(n, 1)) for name in "xyz")
    conjunction = ltn.Connective(ltn.fuzzy_ops.AndProd())
    implication = ltn.Connective(ltn.fuzzy_ops.ImpliesReichenbach())
    forall = ltn.Quantifier(ltn.fuzzy_ops.AggregPMeanError(p=2), quantifier="f")
    first, second, third = (ltn.LTNObject(r, list(names)) for names in ("xy", "yz", "xz"))
    return forall([x, y, z], implication(conjunction(first, second), third)).value


def logs(*shape: int) -> Tensor:
    """Log truth values of sigmoids of normal logits."""
    return torch.nn.functional.logsigmoid(2 * torch.randn(*shape))


def exact(form: Form) -> Form:
    """The reference's form of a formula."""
    kinds: dict[Form, Form] = {
        k1: lambda *t: reference.log_quantify(t, ["x", "y", "xy"], "y").mean(),
        k2: lambda *t: reference.log_quantify(t, ["x", "y", "xy"], "xy", conn="or", quant="mean"),
        k3: lambda nr, r: reference.log_quantify(
            [nr, nr, r], ["xy", "yz", "xz"], "xyz", conn="or", quant="mean"
        ),
        k4: lambda *t: reference.fuzzy_quantify(t, ["x", "y", "xy"], "xy", formula=IMPLICATION, eps=EPS),
    }
    return kinds[form]


# ---- the rows ----


@threads
@passes
@pytest.mark.parametrize("n", [20, 100, 1000, 4096])
def test_k1(compare: Compare, n: int, backward: bool, threads: int) -> None:
    tables = [logs(n), logs(n), logs(n, n)]
    forms: dict[str, Form] = {"tenfold": k1, "eager": k1_eager}
    targets = {
        1000: wanted(threads, eager=("K1 against eager", 4.0)),
        4096: wanted(threads, torch_compile=("K1 against torch.compile", 1.2)),
    }.get(n, {})
    race(compare, "K1", f"{n}x{n}", tables, forms, backward, threads, exact(k1), targets, k1_eager)


@threads
@passes
@pytest.mark.parametrize("n", [20, 100, 1000, 4096])
def test_k2(compare: Compare, n: int, backward: bool, threads: int) -> None:
    tables = [logs(n), logs(n), logs(n, n)]
    forms: dict[str, Form] = {"tenfold": k2, "stack": k2_stack, "logaddexp": k2_logaddexp}
    targets = {
        1000: wanted(threads, logaddexp=("K2 against logaddexp", 6.0)),
        4096: wanted(threads, torch_compile=("K2 against torch.compile", 5.0)),
    }.get(n, {})
    race(compare, "K2", f"{n}x{n}", tables, forms, backward, threads, exact(k2), targets, k2_logaddexp)


@threads
@passes
@pytest.mark.parametrize("n", [10, 128, 256])
def test_k3(compare: Compare, n: int, backward: bool, threads: int) -> None:
    tables = [logs(n, n), logs(n, n)]
    forms: dict[str, Form] = {"tenfold": k3, "stack": k3_stack, "logaddexp": k3_logaddexp}
    targets = {
        128: wanted(threads, logaddexp=("K3 against logaddexp", 6.0)),
        256: wanted(threads, torch_compile=("K3 against torch.compile", 10.0)),
    }.get(n, {})
    race(compare, "K3", f"{n}x{n}x{n}", tables, forms, backward, threads, exact(k3), targets, k3_logaddexp)


@threads
@passes
@pytest.mark.parametrize("n", [20, 100, 1000, 4000, 4096])
def test_k4(compare: Compare, n: int, backward: bool, threads: int) -> None:
    tables = [torch.rand(n), torch.rand(n), torch.rand(n, n)]
    forms: dict[str, Form] = {"tenfold": k4, "eager": k4_eager}
    if ltn is not None and n != 4096:
        forms["LTNtorch"] = k4_ltn
    targets = {
        1000: wanted(threads, eager=("K4 against eager", 15.0), LTNtorch=("LTNtorch, n = 1000", 40.0)),
        4000: wanted(threads, LTNtorch=("LTNtorch, n = 4000", 30.0)),
        4096: wanted(threads, torch_compile=("K4 against torch.compile", 2.0)),
    }.get(n, {})
    targets = {name: target for name, target in targets.items() if name in {**forms, "torch.compile": 0}}
    race(compare, "K4", f"{n}x{n}", tables, forms, backward, threads, exact(k4), targets, k4_eager)


@threads
@passes
@pytest.mark.parametrize("n", [10, 128, 256])
def test_transitivity(compare: Compare, n: int, backward: bool, threads: int) -> None:
    knowledge = KnowledgeBase(transitive="forall x, y, z: R(x, y) & R(y, z) -> R(x, z)")
    with warnings.catch_warnings(action="ignore", category=TrivialOptimumWarning):  # nothing is trained
        module = knowledge.compile(StableProduct(p_forall=2, eps=EPS), validate=False)

    def r4(r: Tensor) -> Tensor:
        return module(R=r).axioms["transitive"]

    forms: dict[str, Form] = {"tenfold": r4, "eager": r4_eager}
    if ltn is not None:
        forms["LTNtorch"] = r4_ltn
    title, limit = {128: ("factorised, n = 128", 15.0), 256: ("factorised, n = 256", 100.0)}.get(n, ("", 0.0))
    targets = wanted(threads, eager=(title, limit)) if title else {}
    tables = [torch.rand(n, n)]
    race(compare, "R4", f"{n}x{n}x{n}", tables, forms, backward, threads, r4_eager, targets, r4_eager)


@threads
def test_gradients_into_memory_that_is_there(compare: Compare, threads: int) -> None:
    """K1 with its largest gradient added to a kept buffer: nothing is touched for the first time."""
    n = 4096
    tables = [logs(n), logs(n), logs(n, n)]
    leaves = [t.requires_grad_() for t in tables]
    buffers = [torch.zeros_like(t) for t in tables]

    def added() -> Any:
        return fuzzy.log_quantify(leaves, ["x", "y", "xy"], "y", grad_buffers=buffers).mean().backward()

    def eager() -> Any:
        return k1_eager(*leaves).backward()

    eager()  # from here on autograd adds to what is there
    wrong = error(k1, tables, True, exact(k1))
    compare({"tenfold": added, "eager": eager}, threads, wrong, op="K1 and backward, adding to gradients",
            shape=f"{n}x{n}", dtype="fp32", regime="reused", targets={})  # fmt: skip


@threads
@passes
@pytest.mark.parametrize("n", [128, 256])
def test_logmatmul(compare: Compare, n: int, backward: bool, threads: int) -> None:
    tables = [logs(n, n), logs(n, n)]
    weights = torch.randn(n, n)

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return (fuzzy.logmatmul(a, b) * weights).sum()

    def broadcast(a: Tensor, b: Tensor) -> Tensor:
        return ((a[:, :, None] + b).logsumexp(1) * weights).sum()

    def twin(a: Tensor, b: Tensor) -> Tensor:
        return (reference.logmatmul(a, b) * weights.double()).sum()

    title, limit = ("logmatmul, n = 128", 15.0) if n == 128 else ("logmatmul, n = 256", 100.0)
    forms: dict[str, Form] = {"tenfold": ours, "broadcast": broadcast}
    targets = wanted(threads, broadcast=(title, limit))
    race(compare, "logmatmul", f"{n}x{n}x{n}", tables, forms, backward, threads, twin, targets, broadcast)


@threads
@passes
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_atoms(compare: Compare, kind: str, backward: bool, threads: int) -> None:
    z = 3 * torch.randn(4096, 10)

    def ours(z: Tensor) -> Tensor:
        log, nlog = fuzzy.atom_logits(z, kind)
        return (log - 0.5 * nlog).sum()

    def eager(z: Tensor) -> Tensor:
        if kind == "sigmoid":
            log, nlog = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
        else:
            log, nlog = reference.atom_logits(z, "softmax")
        return (log - 0.5 * nlog).sum()

    forms: dict[str, Form] = {"tenfold": ours, "eager": eager}
    race(compare, f"atom_logits {kind}", "4096x10", [z], forms, backward, threads, eager, {}, eager)


@threads
@passes
def test_sparse_guards(compare: Compare, backward: bool, threads: int) -> None:
    """exists y : near(x, y) A(x, y), with 5 % of the pairs near: as pairs, and as a mask."""
    n = 1800
    table, mask = logs(n, n), torch.rand(n, n) < 0.05
    pairs = fuzzy.guarded_pairs(mask)

    def ours(t: Tensor) -> Tensor:
        return fuzzy.segment_logmeanexp(t[pairs.rows, pairs.columns], pairs.row_ptr).mean()

    def masked(t: Tensor) -> Tensor:
        return fuzzy.logmeanexp(t, 1, 1.0, mask).mean()

    def eager(t: Tensor) -> Tensor:
        filled = t.masked_fill(~mask, -math.inf).logsumexp(1)
        return (filled - mask.sum(1).log()).mean()

    forms: dict[str, Form] = {"tenfold": ours, "tenfold, mask": masked, "eager": eager}
    race(compare, "guarded exists, 5 %", f"{n}x{n}", [table], forms, backward, threads, eager, {})
