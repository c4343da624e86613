"""Knowledge bases: axioms, groundings by name, queries, entailment, warnings and errors."""

import re
import warnings

import pytest
import torch
from torch import nn

from tenfold.logic import (
    Axiom,
    Const,
    Domain,
    Exists,
    Forall,
    FormulaError,
    Func,
    Goedel,
    KnowledgeBase,
    Linear,
    LogMeanExp,
    LogProduct,
    LogSumExp,
    Lukasiewicz,
    PMean,
    PMeanError,
    Pred,
    Product,
    Prop,
    StableProduct,
    Stepwise,
    TrivialOptimumWarning,
    Var,
    brave,
    distance,
    refute,
)

x, y = Var("x"), Var("y")
P, Q, R = Pred("P", 1), Pred("Q", 1), Pred("R", 2)
MEAN = Lukasiewicz(exists=PMean(1))


def quiet(*axioms, semantics=MEAN, backend="fused", **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KnowledgeBase(*axioms, **settings).compile(semantics, backend=backend)


def test_axioms_have_names_weights_and_degrees():
    p, q = torch.tensor([0.2, 0.4]), torch.tensor([1.0, 0.5])
    knowledge = KnowledgeBase(
        Axiom(Forall[x](P(x)), weight=3.0), Axiom(Forall[x](~Q(x)), name="never"), sometimes="exists x: Q(x)"
    )
    found = knowledge.compile(MEAN)(P=p, Q=q)
    assert list(found.axioms) == ["forall x: P(x)", "never", "sometimes"]
    torch.testing.assert_close(found.axioms["never"], torch.tensor(0.25))
    torch.testing.assert_close(found.total, torch.tensor((3 * 0.3 + 0.25 + 0.75) / 5))
    torch.testing.assert_close(found.loss, 1 - found.total)


def test_the_total_of_the_stable_product_is_a_power_mean_of_errors():
    p = torch.tensor([0.2, 0.9])
    found = quiet("forall x: P(x)", "exists x: P(x)", semantics=StableProduct(1, 1, eps=0.0, p_total=2))(P=p)
    error = torch.tensor([1 - 0.55, 1 - 0.55]).square().mean().sqrt()
    torch.testing.assert_close(found.total, 1 - error)


def test_in_log_space_the_loss_is_minus_the_logarithm():
    p = torch.tensor([0.5, 0.25])
    found = quiet("forall x: P(x)", semantics=LogProduct())(P=p)
    torch.testing.assert_close(found.total, torch.tensor(0.125).sqrt())
    torch.testing.assert_close(found.loss, -torch.tensor(0.125).sqrt().log())


def test_modules_and_trainable_constants_are_parameters():
    network = nn.Linear(2, 1)
    F = Pred("F", 1, gives="logits", grounding=network)
    anna, bert = Const("anna", torch.zeros(2), trainable=True), torch.ones(2)
    # A product: the Lukasiewicz conjunction has no gradient where it is 0, which it often is by chance.
    module = quiet(F(anna) & ~F(Const("bert", bert)), semantics=StableProduct(eps=0.0))
    assert {id(p) for p in module.parameters()} == {id(anna.value), *(id(p) for p in network.parameters())}
    parameters = [anna.value, *network.parameters()]
    found = torch.autograd.grad(module().loss, parameters)
    truth = network(anna.value).sigmoid() * (1 - network(bert).sigmoid())
    for mine, want in zip(found, torch.autograd.grad(1 - truth.squeeze(), parameters), strict=True):
        torch.testing.assert_close(mine, want)
        assert mine.abs().sum() > 0


def test_tables_are_indexed_by_constants_integers_and_functions():
    table = torch.rand(4, 4)
    father = torch.tensor([1, 2, 3, 3])
    k, f = Const("k", 2), Func("f", 1)
    module = quiet("Z | ~Z")
    torch.testing.assert_close(module.truth(R(k, x), R=table), table[2])
    torch.testing.assert_close(module.truth(R(x, f(x)), R=table, f=father), table[range(4), father])
    rows = torch.tensor([3, 0, 3])
    torch.testing.assert_close(module.truth(R(x, y), R=table, x=rows), table[rows])


@pytest.mark.parametrize("backend", ["fused", "torch", "reference"])
def test_constants_that_are_numbers_are_told_apart(backend):
    """Each is a tensor for the call only, and the next may lie where it lay."""
    F = Pred("F", 1, grounding=lambda rows: rows / 100)
    constants = [Const(f"c{number}") for number in range(20)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = KnowledgeBase(*map(F, constants)).compile(StableProduct(), backend=backend)
    found = module(**{f"c{number}": float(number) for number in range(20)}).axioms.values()
    torch.testing.assert_close(torch.stack(list(found)), torch.arange(20) / 100)


@pytest.mark.parametrize("backend", ["fused", "torch", "reference"])
def test_a_number_is_as_exact_as_the_degrees(backend):
    heat = Func("heat", 1, grounding=lambda rows: rows[:, 0])
    knowledge = KnowledgeBase("forall x where heat(x) < 0.1: P(x)", "~Z", symbols=[heat])
    x_, p = torch.tensor([[0.1], [0.05]], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = knowledge.compile(MEAN, backend=backend)(x=x_, P=p, Z=0.0)
    assert found.axioms["forall x where heat(x) < 0.1: P(x)"] == 1.0


def test_queries_of_truth_value_and_unseen_individuals():
    network = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    people = Domain("people")
    module = quiet("forall v in people: G(v)", symbols=[Pred("G", people)])
    seen, unseen = torch.randn(5, 3), torch.randn(7, 3)
    v = Var("v", people)
    torch.testing.assert_close(module(people=seen, G=network).total, network(seen).mean())
    torch.testing.assert_close(
        module.truth("forall v in people: G(v)", people=unseen, G=network), network(unseen).mean()
    )
    torch.testing.assert_close(
        module.truth(Pred("G", people)(v), people=unseen, G=network), network(unseen)[:, 0]
    )
    torch.testing.assert_close(module.truth("G(w)", w=unseen, G=network), network(unseen)[:, 0])
    with pytest.raises(FormulaError, match="w is neither bound"):
        module.truth("G(w)", people=unseen, G=network)
    doubled = Func("double", 1, grounding=lambda rows: 2 * rows)
    torch.testing.assert_close(module.value(doubled(v), people=unseen), 2 * unseen)
    torch.testing.assert_close(module.value(Var("i") + 1, i=4), torch.arange(4) + 1)


def test_free_axes_are_in_the_order_of_the_formula():
    table = torch.rand(3, 4)
    module = quiet("Z | ~Z")
    assert module.truth(Q(y) & R(x, y), Q=torch.rand(4), R=table).shape == (4, 3)
    assert module.truth(R(x, y) & Q(y), Q=torch.rand(4), R=table).shape == (3, 4)


def test_a_network_sees_rows_and_a_softmax_its_class():
    network = nn.Linear(2, 5)
    C = Pred("C", 2, gives="softmax")
    features = torch.randn(6, 2)
    module = quiet("Z | ~Z")
    wanted = network(features).softmax(-1)
    torch.testing.assert_close(module.truth(C(x, y), C=network, x=features), wanted)
    torch.testing.assert_close(module.truth(C(x, 3), C=network, x=features), wanted[:, 3])
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    a, b = Var("a", axis="pair"), Var("b", axis="pair")
    found = module.truth(C(a, b), C=network, a=features, b=labels)
    torch.testing.assert_close(found, wanted[range(6), labels])


def test_a_guard_is_a_mask_an_index_list_or_a_comparison():
    table = torch.rand(4, 4, dtype=torch.float64)
    mask = torch.rand(4, 4) < 0.5
    wanted = table[mask].mean()
    pairs = mask.nonzero()
    formula = "forall x, y where M(x, y): R(x, y)"
    torch.testing.assert_close(quiet(formula)(R=table, M=mask).total, wanted)
    torch.testing.assert_close(quiet(formula)(R=table, M=pairs).total, wanted)
    below = torch.ones(4, 4).triu(1).bool()
    torch.testing.assert_close(quiet("forall x, y where x < y: R(x, y)")(R=table).total, table[below].mean())


@pytest.mark.parametrize(
    "semantics", [StableProduct(2, 3, eps=0.0), Product(), LogProduct(), LogProduct(forall="sum")], ids=repr
)
@pytest.mark.parametrize(
    "formula",
    [
        "forall x: exists y where M(x, y): R(x, y) & Q(y)",
        "exists y: forall x where M(x, y): Q(x) -> R(x, y)",
        "forall x, y, z where T(x, y, z): R(x, y) | R(y, z)",
        "forall y: exists x, z where T(x, y, z): R(x, y) | R(y, z)",
        "exists x, z: forall y where T(x, y, z): R(x, y) | R(y, z)",
    ],
)
def test_an_index_list_with_a_free_axis_is_quantified_by_segments(formula, semantics):
    """As the mask that names the same rows; rows in any order, some individuals without any."""
    draw = torch.Generator().manual_seed(0)
    kept = torch.rand(5, 5, 5, generator=draw) < 0.3
    kept[2] = kept[:, 3] = False
    lists = {name: mask.nonzero() for name, mask in (("M", kept[0]), ("T", kept))}
    lists = {name: rows[torch.randperm(len(rows), generator=draw)] for name, rows in lists.items()}
    tables = {
        "R": torch.rand(5, 5, dtype=torch.float64, generator=draw, requires_grad=True),
        "Q": torch.rand(5, dtype=torch.float64, generator=draw, requires_grad=True),
    }
    module = quiet(formula, semantics=semantics)
    used = {name: table for name, table in tables.items() if name in formula}
    guard = next(name for name in lists if name in formula)
    found = module(**used, **{guard: lists[guard]}).total
    wanted = module(**used, **{guard: {"M": kept[0], "T": kept}[guard]}).total
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for ours, mask in zip(
        torch.autograd.grad(found, list(used.values())),
        torch.autograd.grad(wanted, list(used.values())),
        strict=True,
    ):
        torch.testing.assert_close(ours, mask, rtol=1e-10, atol=1e-12)


def test_a_sparse_guard_of_many_individuals_takes_no_dense_memory():
    """100,000 by 100,000 pairs would be 10 GB even as bytes."""
    people = 100_000
    rows = torch.arange(people)
    friends = torch.cat([torch.stack([rows, (rows + step) % people], 1) for step in (1, 7)])
    smokes = torch.rand(people, dtype=torch.float64)
    module = quiet("forall x: exists y where M(x, y): Q(y)", semantics=StableProduct(2, 1, eps=0.0))
    found = module(Q=smokes, M=friends, x=people, y=people).total
    some = (smokes.roll(-1) + smokes.roll(-7)) / 2
    torch.testing.assert_close(found, 1 - (1 - some).square().mean().sqrt())


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize(
    ("wide", "narrow", "below"),
    [(torch.float32, torch.bfloat16, 0.2999), (torch.float64, torch.float32, 0.3 - 1e-9)],
    ids=["bfloat16", "float32"],
)
def test_a_comparison_is_not_rounded_to_the_type_of_the_degrees(wide, narrow, below, backend):
    """In the narrow type what is a bit below the bound is above it, or equal to it."""
    points = torch.tensor([0.1, below, 0.5], dtype=wide)
    degrees = torch.tensor([0, 1, 0], dtype=narrow)
    module = quiet("exists x where x < 0.3: P(x)", backend=backend)
    assert module(x=points, P=degrees).total == 0.5
    module = quiet("exists x, y where distance(x, y) < 0.3: P(x)", symbols=[distance], backend=backend)
    assert module(x=points[:, None], y=torch.zeros(1, 1, dtype=wide), P=degrees).total == 0.5


@pytest.mark.parametrize("count", [3, 25])
def test_a_network_under_an_index_list_sees_the_fewer_rows(count):
    """The listed pairs, or all pairs where the list is longer: the value is the same."""
    network = nn.Linear(2, 1).double()
    points = torch.randn(5, 1, dtype=torch.float64)
    pairs = torch.rand(5, 5).flatten().argsort()[:count]
    pairs = torch.stack([pairs // 5, pairs % 5], 1)
    seen = []

    def likes(a, b):
        seen.append(len(a))
        return network(torch.cat([a, b], 1))

    module = quiet("forall x, y where M(x, y): G(x, y)", symbols=[Pred("G", 2, gives="logits")])
    found = module(M=pairs, x=points, y=points, G=likes).total
    rows = torch.cat([points[pairs[:, 0]], points[pairs[:, 1]]], 1)
    torch.testing.assert_close(found, network(rows).sigmoid().mean())
    assert seen == [min(count, 25)]


@pytest.mark.parametrize("semantics", [StableProduct(), LogProduct(), MEAN], ids=repr)
@pytest.mark.parametrize(
    "formula", ["forall x, y where M(x, y): G(x, y)", "exists x: forall y where M(x, y): G(x, y)"]
)
def test_a_network_under_an_empty_index_list_sees_nothing(formula, semantics):
    network = nn.Linear(2, 1)
    seen = []

    def likes(a, b):
        seen.append(len(a))
        return network(torch.cat([a, b], 1))

    module = quiet(formula, semantics=semantics, symbols=[Pred("G", 2, gives="logits")])
    points, nothing = torch.randn(5, 1), torch.zeros(0, 2, dtype=torch.int64)
    total = module(M=nothing, x=points, y=points, G=likes).total
    torch.testing.assert_close(total, module(M=torch.zeros(5, 5) > 0, x=points, y=points, G=likes).total)
    assert seen[0] == 0
    total.backward()
    assert not network.weight.grad.any()


def test_schedules_are_numbers_of_the_step():
    p = torch.tensor([0.1, 0.9])
    semantics = StableProduct(2, Stepwise((0, 1.0), (10, 6.0)), eps=0.0)
    module = quiet("exists x: P(x)", semantics=semantics)
    torch.testing.assert_close(module(step=9, P=p).axioms["exists x: P(x)"], torch.tensor(0.5))
    sixth = p.pow(6).mean().pow(1 / 6)
    torch.testing.assert_close(module(step=10, P=p).axioms["exists x: P(x)"], sixth)
    with pytest.raises(ValueError, match="call with step="):
        module(P=p)
    assert Linear(1, 5, 20).at(5) == 2.0
    assert Linear(1, 5, 20).at(50) == 5.0


@pytest.mark.parametrize(
    ("axioms", "what"),
    [
        (["forall x: P(x)", "forall x: P(x) -> Q(x)"], ["true"]),
        (["forall x: ~P(x)", "forall x: P(x) -> Q(x)"], ["false"]),
        (["forall x: P(x) -> Q(x)"], ["true", "false"]),
        (["forall x: P(x)", "forall x: ~Q(x)"], []),
        (["forall x: P(x) | x < 2"], ["true"]),
    ],
)
def test_a_trivial_optimum_is_warned_of(axioms, what):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        KnowledgeBase(*axioms).compile(MEAN)
    assert all(issubclass(w.category, TrivialOptimumWarning) for w in caught)
    assert [re.search(r"every atom is (\w+)", str(w.message))[1] for w in caught] == what


def test_the_papers_example_of_refutation():
    """(A or B) does not entail A: section 3.4 of the paper; nothing is true at the start."""
    knowledge = KnowledgeBase(Prop("A") | Prop("B"))
    start = {"A": torch.tensor(0.0), "B": torch.tensor(0.0)}
    found = refute(knowledge, "A", StableProduct(), start)
    assert not found.entailed
    assert found.satisfaction > 0.95
    assert found.truth < 0.05
    assert found.counterexample["B"] > 0.9


def test_what_is_entailed_is_not_refuted():
    knowledge = KnowledgeBase("A & B")
    start = {"A": torch.tensor(0.3), "B": torch.tensor(0.2)}
    assert refute(knowledge, "A", StableProduct(), start, rate=1e-2, steps=600).entailed
    assert brave(knowledge, "A", StableProduct(), [start], rate=1e-2, steps=300).entailed
    starts = [{"A": torch.tensor(a), "B": torch.tensor(b)} for a, b in ((0.9, 0.1), (0.1, 0.9))]
    found = brave(KnowledgeBase("A | B"), "A", StableProduct(), starts, rate=1e-2, steps=300)
    assert found.counterexample is not None


def test_searches_take_numbers_and_schedules_and_name_what_is_wrong():
    knowledge, semantics = KnowledgeBase("A & B"), StableProduct(Linear(1, 2, 100))
    assert refute(knowledge, "A", semantics, {"A": 0.3, "B": 0.2}, rate=1e-2, steps=300).entailed
    with pytest.raises(TypeError, match=r"Aa: no symbol of the knowledge base \(did you mean A\?\)"):
        refute(knowledge, "A", semantics, {"Aa": 0.3, "B": 0.2}, steps=1)
    with pytest.raises(TypeError, match="A: the search changes it, so wanted floats"):
        brave(knowledge, "A", semantics, [{"A": torch.tensor(0), "B": 0.2}], steps=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KnowledgeBase(P(x)), "x is not bound by a quantifier\n  P(x)\n    ^"),
        (lambda: KnowledgeBase(Forall[x](P(x)), "forall x: P(x, x)"), "P takes 1 argument, got 2"),
        (lambda: KnowledgeBase(Forall[x](P(x)), Forall[x, y](Pred("P", 2)(x, y))), "P is two things"),
    ],
)
def test_errors_of_knowledge_bases_show_the_formula(make, message):
    with pytest.raises(FormulaError) as caught:
        make()
    assert message in str(caught.value)


def test_logits_of_a_callable_that_should_give_degrees_are_refused():
    module = quiet("forall x: P(x)", "exists x: Q(x)")
    features, q = torch.randn(5, 2), torch.rand(5)
    module.truth("exists x: Q(x)", Q=q)  # a query is not the first call of training
    for _ in range(2):
        with pytest.raises(ValueError, match=r"P: degrees of truth lie in \[0, 1\], got .*gives='logits'"):
            module(P=lambda rows: 4 * rows.sum(-1).sign(), x=features, Q=q)
    assert 0 <= module(P=lambda rows: rows.sum(-1).sigmoid(), x=features, Q=q).total <= 1


def test_the_gradient_of_a_total_that_is_a_mean_does_not_vanish_at_1():
    p = torch.ones(2, requires_grad=True)
    mean = PMeanError(1)
    quiet("forall x: P(x)", semantics=Product(forall=mean, total=mean))(P=p).loss.backward()
    torch.testing.assert_close(p.grad, torch.tensor([-0.5, -0.5]))


@pytest.mark.parametrize("backend", ["fused", "torch", "reference"])
def test_an_index_list_of_nothing_is_a_guard(backend):
    module = KnowledgeBase("forall x, y where M(x, y): R(x, y)", "~Z").compile(
        StableProduct(eps=0.0), backend=backend
    )
    found = module(R=torch.rand(3, 3), M=torch.zeros(0, 2, dtype=torch.int64), Z=0.0)
    assert found.total == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1, 2]], "M: wanted an index list (1, 2), got (1, 3)"),
        ([0, 1], "M: wanted an index list (2, 2), got (2,)"),
        ([[0, -1]], "an index list has row -1; rows are counted from 0"),
        ([[0, 3]], "an index list has row 3, but y has 3 individuals"),
    ],
)
@pytest.mark.parametrize("body", ["R(x, y)", "P(x) & R(y, x)"])
def test_index_lists_that_do_not_fit_are_refused(rows, message, body):
    for text in (f"forall x, y where M(x, y): {body}", f"forall x, y where ~M(x, y): {body}"):
        given = {"R": torch.rand(3, 3), "M": torch.tensor(rows), "P": T3}
        module = quiet(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            module(**{name: given[name] for name in given if name in module.knowledge.symbols})


@pytest.mark.parametrize("backend", ["fused", "torch", "reference"])
@pytest.mark.parametrize("semantics", [StableProduct(2, 3), MEAN, LogProduct(LogMeanExp(2.0))])
def test_a_nan_is_not_taken_for_satisfied(backend, semantics):
    knowledge = KnowledgeBase("forall x: P(x)", "exists x: P(x)", "~Z")
    module = knowledge.compile(semantics, backend=backend, validate=False)
    assert module(P=torch.tensor([0.9, float("nan"), 0.8]), Z=0.0).loss.isnan()


@pytest.mark.parametrize("backend", ["fused", "torch", "reference"])
def test_a_high_power_does_not_underflow(backend):
    knowledge = KnowledgeBase("forall x: P(x)", "exists x: P(x)", "~Z")
    p = torch.tensor([0.2, 0.9, 0.5], requires_grad=True)
    axioms = knowledge.compile(StableProduct(1000, 1000, eps=0.0), backend=backend)(P=p, Z=0.0).axioms
    root = 3 ** (-1 / 1000)
    torch.testing.assert_close(axioms["forall x: P(x)"], torch.tensor(1 - 0.8 * root))
    torch.testing.assert_close(axioms["exists x: P(x)"], torch.tensor(0.9 * root))
    for axiom, row in (("forall x: P(x)", 0), ("exists x: P(x)", 1)):
        (gradient,) = torch.autograd.grad(axioms[axiom], p, retain_graph=True)
        torch.testing.assert_close(gradient, torch.eye(3)[row] * root, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_rows_are_counted_from_0_and_do_not_wrap(backend):
    """-1 is no individual, whether a constant, a variable's or a function's."""
    p, q = torch.rand(4), torch.rand(3)
    symbols = [Const("a"), Func("f", 1)]
    module = quiet("P(a) & forall x: Q(x)", "forall x: P(f(x))", symbols=symbols, backend=backend)
    good = {"P": p, "Q": q, "a": torch.tensor(3), "f": torch.tensor([0, 3, 1])}
    module(**good)
    for wrong, row in (({"a": torch.tensor(-1)}, -1), ({"f": torch.tensor([0, -2, 1])}, -2)):
        with pytest.raises(ValueError, match=f"P: has no row {row}; rows are counted from 0"):
            module(**(good | wrong))
    for wrong in ({"a": torch.tensor(4)}, {"f": torch.tensor([0, 4, 1])}):
        with pytest.raises(ValueError, match="P: a row out of range"):
            module(**(good | wrong))


def test_an_index_list_with_a_row_twice_is_refused():
    module = quiet("forall x, y where M(x, y): R(x, y)")
    with pytest.raises(ValueError, match="M: an index list names each row once"):
        module(R=torch.rand(3, 3), M=torch.tensor([[0, 1], [2, 2], [0, 1]]))


T3, T4 = torch.rand(3), torch.rand(4)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"P": T3}, ValueError, "Q: has no grounding; give Q=..."),
        ({"P": T3, "Q": T4}, ValueError, "Q: has 4 rows on axis 0, but x has 3 individuals"),
        ({"P": T3, "Q": T3, "Qq": T3}, TypeError, "Qq: no symbol of the knowledge base (did you mean Q?)"),
        ({"P": T3, "Q": torch.rand(3, 3)}, ValueError, "Q: wanted a table of 1 axes, got (3, 3)"),
        ({"P": 2 * torch.ones(3), "Q": T3}, ValueError, "P: degrees of truth lie in [0, 1], got 2 to 2"),
        ({"P": lambda v: v, "Q": lambda v: v}, ValueError, "x: how many individuals? Give x=n or x=features"),
        (
            {"P": T3, "Q": lambda v: v.sum(), "x": T3[:, None]},
            ValueError,
            "Q: wanted (3, ...) from its callable",
        ),
        ({"P": T3, "Q": T3, "x": "three"}, ValueError, "x: wanted a number of individuals or a tensor"),
        ({"P": T3, "Q": "three"}, ValueError, "Q: wanted a tensor or a callable"),
        ({"P": T3.numpy(), "Q": T3}, ValueError, "P: wanted a tensor or a callable, got array("),
    ],
)
def test_errors_of_groundings_name_the_symbol(given, error, message):
    module = quiet(Forall[x](P(x) >> Q(x)))
    with pytest.raises(error, match=re.escape(message)):
        module(**given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StableProduct(0.5), "p: wanted a number at least 1, got 0.5"),
        (lambda: LogProduct(LogMeanExp(0.0)), "alpha: wanted a number above 0"),
        (lambda: LogProduct(PMean(2)), "exists: wanted LogMeanExp, LogSumExp or Max, got pmean"),
        (lambda: Goedel(forall=LogSumExp(1.0)), "forall: wanted pmean or"),
        (lambda: StableProduct(eps=0.7), "eps: wanted 0 <= eps < 0.5"),
        (lambda: Stepwise((3, 1.0)), "rising from step 0"),
        (lambda: Axiom(Prop("A"), weight=0), "weight: wanted a number above 0"),
        (lambda: KnowledgeBase(), "axioms: wanted at least one"),
        (lambda: KnowledgeBase("A", "A"), "axioms: 'A' is there twice"),
        (lambda: KnowledgeBase("step"), "step: is the keyword of schedules"),
        (lambda: Pred("two words", 1), "name: wanted letters"),
        (lambda: Pred("P", 1, gives="odds"), "gives: wanted one of truth, logits, softmax, mask"),
        (lambda: Exists[x](P(x), p=0.5), "p: wanted a number of at least 1"),
        (lambda: PMean(float("nan")), "p: wanted a number at least 1, got nan"),
    ],
)
def test_errors_of_settings_name_the_argument(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_what_is_no_formula_symbol_or_keyword_is_refused():
    with pytest.raises(TypeError, match="wanted a formula or its text, got 3"):
        KnowledgeBase(3)
    with pytest.raises(TypeError, match="symbols: wanted Var, Const, Func, Pred or Domain, got 'P'"):
        KnowledgeBase("forall x: P(x)", symbols=["P"])
    with pytest.raises(TypeError, match="1 positional argument"):
        quiet("forall x: P(x)")(T3)  # no step
    with pytest.raises(TypeError, match=r"got bool False; terms are compared by .eq\(\)"):
        Forall[x](P(x), where=x == 1)


def test_bfloat16_in_bfloat16_out():
    found = quiet("forall x, y: P(x) & Q(y) -> R(x, y)", semantics=StableProduct())(
        P=torch.rand(8).bfloat16(), Q=torch.rand(9).bfloat16(), R=torch.rand(8, 9).bfloat16()
    )
    assert found.loss.dtype == torch.bfloat16
