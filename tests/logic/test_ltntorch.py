"""Equality with LTNtorch 1.0.2, of the extra `test`.

Known deviations, each of theirs: guarded quantifiers return float64 there; a diagonal is a state of the
variables that the next quantifier undoes.
LTNtorch has no log space, and of aggregators mean, min, pMean and pMeanError.
"""

import warnings

import pytest
import torch

from tenfold.logic import (
    Goedel,
    KnowledgeBase,
    Lukasiewicz,
    Mean,
    Min,
    PMean,
    PMeanError,
    Product,
    StableProduct,
)

ltn = pytest.importorskip("ltn")
ops = ltn.fuzzy_ops


class Table(torch.nn.Module):
    """A table as LTNtorch's predicates want it: a function of rows of indices."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, *rows):
        return self.table[tuple(row[:, 0].long() for row in rows)]


def theirs(connectives, forall, exists):
    names = ("Not", "And", "Or", "Implies")
    wrapped = {name: ltn.Connective(op) for name, op in zip(names, connectives, strict=True)}
    return {
        **wrapped,
        "Forall": ltn.Quantifier(forall, quantifier="f"),
        "Exists": ltn.Quantifier(exists, quantifier="e"),
    }


STABLE = (ops.NotStandard(), ops.AndProd(), ops.OrProbSum(), ops.ImpliesReichenbach())
PLAIN = (
    ops.NotStandard(), ops.AndProd(stable=False), ops.OrProbSum(stable=False),
    ops.ImpliesGoguen(stable=False),
)  # fmt: skip
GOEDEL = (ops.NotStandard(), ops.AndMin(), ops.OrMax(), ops.ImpliesGodel())
KLEENE = (ops.NotStandard(), ops.AndMin(), ops.OrMax(), ops.ImpliesKleeneDienes())
LUKASIEWICZ = (ops.NotStandard(), ops.AndLuk(), ops.OrLuk(), ops.ImpliesLuk())
PAIRS = {
    "stable product": (
        StableProduct(2, 3), theirs(STABLE, ops.AggregPMeanError(p=2), ops.AggregPMean(p=3)),
    ),
    "product": (
        Product("R", PMeanError(2), PMean(2)),
        theirs(PLAIN, ops.AggregPMeanError(p=2, stable=False), ops.AggregPMean(p=2, stable=False)),
    ),
    "goedel": (
        Goedel("R", Min, PMean(2)), theirs(GOEDEL, ops.AggregMin(), ops.AggregPMean(p=2, stable=False)),
    ),
    "kleene": (
        Goedel("S", Min, PMean(2)), theirs(KLEENE, ops.AggregMin(), ops.AggregPMean(p=2, stable=False)),
    ),
    "lukasiewicz": (
        Lukasiewicz("S", Mean, PMean(1)),
        theirs(LUKASIEWICZ, ops.AggregMean(), ops.AggregPMean(p=1, stable=False)),
    ),
}  # fmt: skip
FORMULAS = {
    "forall x, y: P(x) & Q(y) -> R(x, y)": lambda o, P, Q, R, x, y: (
        o["Forall"]([x, y], o["Implies"](o["And"](P(x), Q(y)), R(x, y)))
    ),
    "forall x: exists y: R(x, y) | ~Q(y)": lambda o, P, Q, R, x, y: (
        o["Forall"](x, o["Exists"](y, o["Or"](R(x, y), o["Not"](Q(y)))))
    ),
    "exists x: P(x) & (forall y: P(x) -> R(x, y) | Q(y))": lambda o, P, Q, R, x, y: (
        o["Exists"](x, o["And"](P(x), o["Forall"](y, o["Implies"](P(x), o["Or"](R(x, y), Q(y))))))
    ),
    "forall x, y where x <= y: R(x, y) & P(x)": lambda o, P, Q, R, x, y: (
        o["Forall"](
            [x, y], o["And"](R(x, y), P(x)), cond_vars=[x, y],
            cond_fn=lambda a, b: torch.le(a.value, b.value),
        )
    ),
    "exists x, y where x > y: R(x, y) & Q(y)": lambda o, P, Q, R, x, y: (
        o["Exists"](
            [x, y], o["And"](R(x, y), Q(y)), cond_vars=[x, y],
            cond_fn=lambda a, b: torch.gt(a.value, b.value),
        )
    ),
    "forall x: exists y where x < y: R(x, y) | P(x)": lambda o, P, Q, R, x, y: (
        o["Forall"](
            x,
            o["Exists"](
                y, o["Or"](R(x, y), P(x)), cond_vars=[x, y],
                cond_fn=lambda a, b: torch.lt(a.value, b.value),
            ),
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("text", FORMULAS)
def test_values_and_gradients_are_those_of_ltntorch(name, text):
    semantics, operators = PAIRS[name]
    draw = torch.Generator().manual_seed(3)
    tables = [torch.rand(shape, generator=draw).requires_grad_() for shape in ((5,), (6,), (5, 6))]
    x, y = (ltn.Variable(n, torch.arange(k)[:, None].float()) for n, k in (("x", 5), ("y", 6)))
    predicates = [ltn.Predicate(Table(table)) for table in tables]
    wanted = FORMULAS[text](operators, *predicates, x, y).value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = KnowledgeBase(text).compile(semantics)
    given = {n: t for n, t in zip("PQR", tables, strict=True) if n in module.knowledge.symbols}
    found = module.truth(text, **given)
    torch.testing.assert_close(found, wanted.float(), rtol=2e-5, atol=2e-6)
    leaves = list(given.values())
    # None is 0: Goedel's R-implication has no slope by its premise, and theirs leaves it out of the graph.
    expected = torch.autograd.grad(wanted, leaves, allow_unused=True, materialize_grads=True)
    got = torch.autograd.grad(found, leaves, allow_unused=True, materialize_grads=True)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("kind", ["Forall", "Exists"])
def test_diagonals_are_those_of_ltntorch(name, kind):
    semantics, operators = PAIRS[name]
    draw = torch.Generator().manual_seed(4)
    p, r = (torch.rand(shape, generator=draw).requires_grad_() for shape in ((5,), (5, 5)))
    x, y = (ltn.Variable(n, torch.arange(5)[:, None].float()) for n in "xy")
    P, R = ltn.Predicate(Table(p)), ltn.Predicate(Table(r))
    wanted = operators[kind](ltn.diag(x, y), operators["Implies"](P(x), R(x, y))).value
    text = f"{kind.lower()} x@pair, y@pair: P(x) -> R(x, y)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = KnowledgeBase(text).compile(semantics).truth(text, P=p, R=r)
    torch.testing.assert_close(found, wanted.float(), rtol=2e-5, atol=2e-6)
    expected = torch.autograd.grad(wanted, [p, r], allow_unused=True, materialize_grads=True)
    got = torch.autograd.grad(found, [p, r], allow_unused=True, materialize_grads=True)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=2e-4, atol=2e-6)
