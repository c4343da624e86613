"""Compiled formulas against the reference: values and gradients, random formulas, domains and guards."""

import itertools
import warnings

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from logic.formulas import SYMBOLS, formulas
from tenfold.logic import (
    And,
    Exists,
    Forall,
    Func,
    Goedel,
    KnowledgeBase,
    LogMeanExp,
    LogProduct,
    LogSumExp,
    Lukasiewicz,
    Max,
    Or,
    PMean,
    PMeanError,
    Pred,
    Product,
    StableProduct,
    Var,
    diagonal,
    distance,
    parse,
    polynomial,
)
from tenfold.logic.syntax import Formula, named_in

SPEED = settings(deadline=None, suppress_health_check=list(HealthCheck))
F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore::tenfold.logic.TrivialOptimumWarning")
SEMANTICS = {
    "stable": StableProduct(2, 2),
    "stable, p=3": StableProduct(3, 2.5, eps=1e-2),
    "product": Product(),
    "product S": Product("S", forall=PMeanError(2), exists=PMean(3)),
    "goedel": Goedel(),
    "goedel S": Goedel("S"),
    "lukasiewicz": Lukasiewicz(),
    "log": LogProduct(LogMeanExp(2.0)),
    "log, sum": LogProduct(LogMeanExp(1.0), forall="sum", total="sum"),
    "log, lse": LogProduct(LogSumExp(3.0)),
    "log, max": LogProduct(Max),
}


def grounded(seed: int) -> dict:
    """Groundings of every symbol of formulas.py, about 4 individuals."""
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(shape, generator=draw, dtype=F64)

    tables = {
        "A": rand(), "P": rand(4), "Q": rand(4), "R": rand(4, 4), "S": rand(4, 4), "L": 4 * rand(4) - 2,
        "C": 4 * rand(4, 4) - 2,
    }  # fmt: skip
    fixed = {
        "M": rand(4, 4) < 0.5, "f": torch.tensor([1, 0, 3, 3]), "a": torch.tensor(2), "k": torch.tensor(0),
        "people": 4, "things": 4, **{f"v{number}": 4 for number in range(12)},
    }  # fmt: skip
    if seed % 3 == 0:  # an index list as the mask
        fixed["M"] = fixed["M"].nonzero()
    return {name: table.requires_grad_() for name, table in tables.items()} | fixed


def truth(formula: Formula, semantics, backend: str, groundings: dict) -> torch.Tensor:
    symbols = named_in(formula)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = KnowledgeBase("Z | ~Z").compile(semantics, backend=backend)
    sizes = {var.name: 4 for var in formula.free}
    given_ = {name: value for name, value in (sizes | groundings).items() if name in symbols}
    return module.truth(formula, **given_)


def gradients(value: torch.Tensor, groundings: dict) -> dict:
    leaves = {
        name: leaf
        for name, leaf in groundings.items()
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad
    }
    if not value.requires_grad:
        return {}
    weights = torch.linspace(0.5, 1.5, max(1, value.numel()), dtype=value.dtype).reshape(value.shape)
    found = torch.autograd.grad((value * weights).sum(), list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaves[name]) if g is None else g
        for name, g in zip(leaves, found, strict=True)
    }


def has_ties(name: str) -> bool:
    """Gradients of minimum and maximum at equal values are shared in different ways, all of them right."""
    return name.startswith("goedel") or name == "log, max"


@pytest.mark.parametrize("name", SEMANTICS)
@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_compiled_formulas_are_the_reference(name, backend):
    compare(name, backend, 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEMANTICS)
def test_many_compiled_formulas_are_the_reference(name):
    compare(name, "fused", 1000)


def compare(name: str, backend: str, examples: int) -> None:
    """Values, gradients and round trips of random formulas."""
    semantics = SEMANTICS[name]

    @given(formulas(variables=(Var("v0"),), depth=3), st.integers(0, 100))
    @example(parse("forall x, y: P(x) & R(x, y)", *SYMBOLS), 0)
    @example(parse("exists x, y, z: R(x, y) & R(y, z) & R(x, z)", *SYMBOLS), 1)
    @example(parse("forall x, y, z: R(x, y) & R(y, z) -> R(x, z)", *SYMBOLS), 1)
    @example(parse("exists x: (exists y where M(x, y): R(x, y) | Q(y)) & (A | (Q(x) | L(x)))", *SYMBOLS), 3)
    @example(parse("exists x, y where x < 0: R(x, y) & Q(x) & Q(y)", *SYMBOLS), 1)
    @example(parse("forall x, y where M(x, y): Q(x) & L(y)", *SYMBOLS), 3)
    @example(parse("exists x: forall y where M(x, y): R(x, y) -> Q(y)", *SYMBOLS), 3)
    @example(parse("forall x: exists y where M(y, x): Q(x) & P(y)", *SYMBOLS), 6)
    @example(parse("forall x: exists c: C(x, c) & ~(exists d where c != d: C(x, d))", *SYMBOLS), 2)
    @settings(SPEED, max_examples=examples)
    def check(formula, seed):
        groundings = grounded(seed)
        wanted = truth(formula, semantics, "reference", groundings)
        found = truth(formula, semantics, backend, groundings)
        again = truth(parse(str(formula), *SYMBOLS, Var("v0")), semantics, backend, groundings)
        assert found.shape == wanted.shape
        assert found.dtype == F64
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        assert torch.equal(found, again)
        if not has_ties(name):
            expected, got = gradients(wanted, groundings), gradients(found, groundings)
            for leaf in expected:
                torch.testing.assert_close(got[leaf], expected[leaf], rtol=1e-6, atol=1e-9)

    check()


def test_matrix_products_are_the_reference_whether_they_pay_or_not(monkeypatch):
    """R4 on small tables, with guards, free axes, repeated atoms and several powers."""
    monkeypatch.setattr(polynomial, "PAYS", float("inf"))
    monkeypatch.setattr(polynomial, "LEAST", 0)
    semantics = [StableProduct(2, 3), StableProduct(3, 2, eps=0.1), Product("S", PMeanError(2), PMean(2))]
    texts = [
        "forall x, y, z: R(x, y) & R(y, z) -> R(x, z)",
        "forall x, y where M(x, y): P(x) & R(y, x) -> R(x, y)",
        "forall x, y: P(x) | ~R(x, y) | P(y)",
        "exists x, y: R(x, y) & P(x) & Q(y) & R(y, x)",
        "forall x: exists y, z: R(x, y) & R(y, z) & S(z, x)",
        "forall x, y, z where M(x, z): ~(R(x, y) & R(y, z) & ~P(x))",
        "exists x, y where x < 0: R(x, y) & P(x)",
    ]
    used = 0
    for text, each in itertools.product(texts, semantics):
        groundings = grounded(1)
        names = named_in(parse(text))
        given_ = {name: value for name, value in groundings.items() if name in names}
        module = KnowledgeBase(text, "~Z").compile(each)
        used += "R4" in str(module.explain(Z=torch.tensor(0.0, dtype=F64), **given_))
        wanted, found = (truth(parse(text), each, backend, groundings) for backend in ("reference", "fused"))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        expected, got = gradients(wanted, groundings), gradients(found, groundings)
        for leaf in expected:
            torch.testing.assert_close(got[leaf], expected[leaf], rtol=1e-6, atol=1e-9)
    assert used > 15


def test_matrix_products_are_planned_once_for_each_shape(monkeypatch):
    monkeypatch.setattr(polynomial, "LEAST", 0)
    planned = []
    plan = polynomial._new_plan
    monkeypatch.setattr(polynomial, "_new_plan", lambda *how: planned.append(how) or plan(*how))
    module = KnowledgeBase("forall x, y, z: R(x, y) & R(y, z) -> R(x, z)", "~Z").compile(StableProduct(2))
    for size in (5, 6, 5, 6, 5):
        module(R=torch.rand(size, size), Z=torch.tensor(0.0))
    assert len(planned) == 2
    for size in range(7, 8 + polynomial.MOST_PLANS):
        module(R=torch.rand(size, size), Z=torch.tensor(0.0))
    assert len(planned[0][0].plans) <= polynomial.MOST_PLANS


@pytest.mark.parametrize(
    ("text", "semantics"),
    [
        ("forall x, y, z: R(x, y) & R(y, z) -> R(x, z)", StableProduct(2, 2)),
        ("forall x, y where M(x, y): Q(x) & L(y)", LogProduct()),
    ],
)
def test_sums_of_bfloat16_are_taken_in_float32(monkeypatch, text, semantics):
    """Sums of thousands of addends stand still in bfloat16, whose steps from 256 on are of 2."""
    monkeypatch.setattr(polynomial, "LEAST", 0)
    draw = torch.Generator().manual_seed(3)
    shapes = {"R": (40, 40), "Q": (900,), "L": (900,)}
    tables = {name: torch.rand(shape, generator=draw) for name, shape in shapes.items() if f"{name}(" in text}
    tables = {name: table.bfloat16() for name, table in tables.items()}
    masks = {"M": torch.rand(900, 900, generator=draw) < 0.5} if "M(" in text else {}
    found = truth(parse(text), semantics, "fused", tables | masks)
    exact = {name: table.double() for name, table in tables.items()}
    wanted = truth(parse(text), semantics, "fused", exact | masks)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=0)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("sizes", [(0, 0, 0), (0, 2, 3), (2, 0, 3), (2, 3, 0)])
def test_matrix_products_of_no_individuals_are_the_reference(sizes, backend):
    x, y, z = sizes
    formula = parse("forall x, y: exists z: R(x, z) & O(y, z)", *SYMBOLS, Pred("O", 2))
    groundings = {"x": x, "y": y, "R": torch.full((x, z), 0.3), "O": torch.full((y, z), 0.4)}
    found, wanted = (truth(formula, LogProduct(), name, groundings) for name in (backend, "reference"))
    torch.testing.assert_close(found, wanted)


def test_a_sum_over_an_index_list_of_bfloat16_is_rounded_once():
    formula = parse("exists x: forall y where M(x, y): L(y)", *SYMBOLS)
    for count in range(257, 400, 13):
        logits = torch.randn(count, generator=torch.Generator().manual_seed(count)).bfloat16()
        listed = torch.stack([torch.zeros(count, dtype=torch.int64), torch.arange(count)], 1)
        module = KnowledgeBase(formula).compile(LogProduct(forall="sum"))
        found = module(L=logits, M=listed, x=1, y=count).loss
        wanted = -torch.nn.functional.logsigmoid(logits).double().sum()
        torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=0)


def test_the_gradient_of_a_mean_by_matrix_products_does_not_vanish_at_0(monkeypatch):
    monkeypatch.setattr(polynomial, "PAYS", float("inf"))
    monkeypatch.setattr(polynomial, "LEAST", 0)
    semantics = Product("S", exists=PMean(1))
    tables = {"R": torch.zeros(3, 4, dtype=F64, requires_grad=True), "P": torch.ones(3, dtype=F64)}
    value = truth(parse("exists x, y: R(x, y) & P(x)"), semantics, "fused", tables)
    (gradient,) = torch.autograd.grad(value, tables["R"])
    torch.testing.assert_close(gradient, torch.full((3, 4), 1 / 12, dtype=F64))


def table_case(text, *shapes, **others):
    draw = torch.Generator().manual_seed(7)
    names = sorted(name for name in named_in(parse(text)) if name.isupper())
    tables = {
        n: 0.1 + 0.8 * torch.rand(*s, generator=draw, dtype=F64) for n, s in zip(names, shapes, strict=True)
    }
    return text, tables, others


@pytest.mark.parametrize(
    "semantics", [StableProduct(), StableProduct(3, 1.5), Product("R"), LogProduct(LogMeanExp(2.0))]
)
@pytest.mark.parametrize(
    ("text", "tables", "others"),
    [
        table_case("forall x, y: P(x) & Q(y) -> R(x, y)", (3,), (4,), (3, 4)),
        table_case("forall x: exists y where x < y: R(x, y) & P(x)", (4,), (4, 4)),
        table_case("exists x, y, z: R(x, y) & S(y, z)", (2, 3), (3, 2)),
        table_case("forall x, y, z: R(x, y) & R(y, z) -> R(x, z)", (3, 3)),
    ],
)
def test_gradients_by_differences(semantics, text, tables, others):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = KnowledgeBase(text).compile(semantics)
    names = list(tables)

    def loss(*values):
        return module(**dict(zip(names, values, strict=True)), **others).loss

    assert torch.autograd.gradcheck(loss, [t.requires_grad_() for t in tables.values()])


def quiet_module(text, *symbols, semantics=SEMANTICS["stable"]):
    return KnowledgeBase(text, symbols=symbols).compile(semantics)


def explained(text, semantics, **groundings):
    module = quiet_module(text, semantics=semantics)
    explanation = module.explain(**groundings)
    return [done.rule for done in explanation.axioms[str(parse(text))]], explanation


def test_a_conjunction_under_forall_is_never_broadcast():
    p, q = torch.rand(300), torch.rand(400)
    rules, explanation = explained("forall x, y: P(x) & Q(y)", LogProduct(), P=p, Q=q)
    assert rules.count("R1: forall, fused") == 2
    (text,) = explanation.axioms
    assert explanation.peak(text) < 4 * 4 * (300 + 400) + 100
    assert "R1: forall, fused" in str(explanation)


def test_exists_over_a_conjunction_is_a_matrix_product():
    rules, explanation = explained(
        "forall x, z: exists y: R(x, y) & S(y, z)", LogProduct(), R=torch.rand(50, 60), S=torch.rand(60, 70)
    )
    assert "R3: matrix product of exponentials" in rules
    (text,) = explanation.axioms
    assert explanation.peak(text) < 50 * 60 * 70 * 4 / 2


def test_transitivity_is_two_matrix_products():
    rules, explanation = explained(
        "forall x, y, z: R(x, y) & R(y, z) -> R(x, z)", StableProduct(2), R=torch.rand(128, 128)
    )
    assert "R4: 6 terms, 3 partial sums" in rules  # two products, and the sum of what is made of them
    (text,) = explanation.axioms
    assert explanation.peak(text) < 128**3 * 4 / 2


def test_small_formulas_are_fused():
    rules, _ = explained(
        "forall x, y: P(x) & Q(y) -> R(x, y)",
        StableProduct(2),
        P=torch.rand(9),
        Q=torch.rand(8),
        R=torch.rand(9, 8),
    )
    assert "forall, fused" in rules


def test_a_nested_or_is_flattened_with_its_weights():
    """Note I2: (1/4, 1/4, 1/2), not thirds."""
    tables = {name: torch.rand(5, dtype=F64) for name in "PQR"}
    x = Var("x")
    P, Q, R = (Pred(name, 1) for name in "PQR")
    semantics = LogProduct(LogMeanExp(3.0))
    nested = Forall[x](P(x) | Q(x) | R(x))
    flat = Forall[x](Or(P(x), Q(x), R(x)))
    values = []
    for formula, backend in itertools.product((nested, flat), ("fused", "reference")):
        values.append(truth(formula, semantics, backend, tables))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[2], values[3])
    assert abs(values[0] - values[2]) > 1e-4


def test_diagonal_variables_go_together():
    x, y = diagonal("x", "y")
    R = Pred("R", 2)
    table = torch.rand(6, 6, dtype=F64)
    found = truth(Forall[x, y](R(x, y)), Lukasiewicz(), "fused", {"R": table})
    torch.testing.assert_close(found, table.diagonal().mean())


def test_equal_individuals_are_evaluated_once():
    calls = []

    def net(a, b):
        calls.append(len(a))
        return torch.sigmoid((a * b).sum(-1) + a[:, 0])

    x, y = Var("x"), Var("y")
    F = Pred("F", 2, grounding=net)
    features = torch.randn(5, 3)
    knowledge = KnowledgeBase(Forall[x, y](F(x, y) >> F(y, x)), Forall[x, y](~F(x, y) | F(x, y)))
    knowledge.compile(StableProduct(), validate=False)(x=features, y=features)
    assert calls == [25]


def test_one_logit_gives_both_signs():
    knowledge = KnowledgeBase("forall x: L(x) | ~L(x)", symbols=[Pred("L", 1, gives="logits")])
    module = knowledge.compile(LogProduct(LogMeanExp(1.0)))
    logits = torch.tensor([-200.0, -20.0, 0.0, 20.0, 200.0], requires_grad=True)
    found = module(L=logits)
    found.loss.backward()
    torch.testing.assert_close(found.total, torch.tensor(0.5))
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", ["stable", "goedel", "lukasiewicz", "log"])
def test_quantifiers_over_nothing(name):
    P = torch.rand(4, dtype=F64).requires_grad_()
    for kind, wanted in (("forall", 1.0), ("exists", 0.0)):
        found = truth(parse(f"{kind} x where x < 0: P(x)"), SEMANTICS[name], "fused", {"P": P})
        assert found == wanted
        (gradient,) = torch.autograd.grad(found, P)
        assert torch.equal(gradient, torch.zeros_like(P))


def test_and_or_of_one_is_itself():
    table = torch.rand(4, dtype=F64)
    x = Var("x")
    for connect in (And, Or):
        for semantics in SEMANTICS.values():
            found = truth(Exists[x](connect(Pred("P", 1)(x))), semantics, "fused", {"P": table})
            torch.testing.assert_close(
                found, truth(parse("exists x: P(x)"), semantics, "reference", {"P": table})
            )


@pytest.mark.parametrize("name", [name for name in SEMANTICS if not has_ties(name)])
@pytest.mark.parametrize(
    "text",
    [
        "forall x, y, c where M(x, y): C(x, c) <-> C(y, c)",
        "forall x, y: P(x) & (exists c: C(x, c) & C(y, c)) -> R(x, y) | (P(y) | Q(x))",
        "exists x, c: forall y: C(y, c) | R(x, y) & P(x) | R(y, x)",
        "exists c, x: C(x, c) | P(x) & ~C(x, c)",
    ],
)
def test_short_and_long_axes_in_any_order(name, text):
    draw = torch.Generator().manual_seed(0)
    shapes = {"C": (40, 3), "P": (40,), "Q": (40,), "R": (40, 40)}
    tables = {n: torch.rand(s, generator=draw, dtype=F64).requires_grad_() for n, s in shapes.items()}
    groundings = {**tables, "M": torch.rand(40, 40, generator=draw) < 0.3, "x": 40, "y": 40}
    wanted, found = (truth(parse(text), SEMANTICS[name], b, groundings) for b in ("reference", "fused"))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    expected, got = gradients(wanted, tables), gradients(found, tables)
    for leaf in expected:
        torch.testing.assert_close(got[leaf], expected[leaf], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in SEMANTICS if not has_ties(name)])
@pytest.mark.parametrize(
    "guard", ["distance(x, y) < 0.7", "0.7 <= distance(x, y)", "heat(x) > 0.2", "distance(x, x) >= 0.1"]
)
def test_comparisons_in_the_kernel_are_the_reference(name, guard):
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(20, 3, generator=draw, dtype=F64)
    table = torch.rand(20, 20, generator=draw, dtype=F64).requires_grad_()
    heat = Func("heat", 1, grounding=lambda rows: rows[:, 0])
    for text in (
        f"forall x, y where {guard}: R(x, y) -> R(y, x)",
        f"exists y: forall x where {guard}: R(x, y)",
    ):
        if "y" in guard and text.startswith("exists"):
            text = text.replace("R(x, y)", "(R(x, y) & R(y, x))")
        formula = parse(text, distance, heat)
        given_ = {"R": table, "x": points, "y": points}
        wanted, found = (truth(formula, SEMANTICS[name], b, given_) for b in ("reference", "fused"))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        expected, got = gradients(wanted, {"R": table}), gradients(found, {"R": table})
        torch.testing.assert_close(got["R"], expected["R"], rtol=1e-6, atol=1e-9)


def test_a_guard_on_distances_makes_no_array_of_pairs():
    P = torch.rand(300)
    points = torch.randn(300, 2)
    module = quiet_module("forall x, y where distance(x, y) < 0.5: P(x) -> P(y)", distance)
    explanation = module.explain(P=P, x=points, y=points)
    (name,) = explanation.axioms
    assert explanation.moved(name) < 300 * 300
