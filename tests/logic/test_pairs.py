"""Predicates whose module scores all pairs of two variables by itself: the same values, no rows of pairs."""

import re

import pytest
import torch
from torch import nn

from tenfold.logic import Func, KnowledgeBase, LogProduct, Pred, StableProduct, diagonal
from tenfold.nn.pairwise import PairMLP

SEMANTICS = [StableProduct(2, 3), LogProduct()]
semantics_ = pytest.mark.parametrize("semantics", SEMANTICS, ids=["degrees", "logs"])
backends = pytest.mark.parametrize("backend", ["fused", "torch", "reference"])
pytestmark = pytest.mark.filterwarnings("ignore::tenfold.logic.TrivialOptimumWarning")


class Counting(PairMLP):
    """Keeps how its scores were asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.calls = []

    def forward(self, x, y):
        self.calls.append(("forward", tuple(x.shape), tuple(y.shape)))
        return super().forward(x, y)

    def pairs(self, x, y):
        self.calls.append(("pairs", tuple(x.shape), tuple(y.shape)))
        return super().pairs(x, y)


class Degrees(nn.Module):
    """Truth values, with a last dimension of 1."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, x, y):
        return self.scores(x, y).sigmoid()[..., None]

    def pairs(self, x, y):
        return self.scores.pairs(x, y).sigmoid()[..., None]


def evaluate(formula, symbols, semantics, backend, leaves, groundings):
    """The degrees and their gradients."""
    module = KnowledgeBase("Z | ~Z", symbols=symbols).compile(semantics, backend=backend)
    value = module.truth(formula, **groundings)
    weights = torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)
    return value, torch.autograd.grad((value * weights).sum(), leaves)


@semantics_
@backends
@pytest.mark.parametrize("gives", ["logits", "truth"])
@pytest.mark.parametrize(
    ("formula", "calls"),
    [
        ("forall x, y: R(x, y)", [((7, 3), (5, 2))]),
        ("forall x: exists y: R(x, y) & Q(y)", [((7, 3), (5, 2))]),
        ("forall x, y where M(x, y): ~R(x, y) | Q(y)", [((7, 3), (5, 2))]),
        ("exists y: R(x, y) -> Q(y)", [((7, 3), (5, 2))]),
        ("forall x, y: R(f(x), y) & R(x, y)", [((7, 3), (5, 2))] * 2),
    ],
)
def test_pairs_are_asked_for_and_give_the_same(formula, calls, gives, backend, semantics):
    torch.manual_seed(0)
    network = Counting(3, 2, (8, 4))
    x, y = torch.randn(7, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    leaves = [x, y, *network.parameters()]
    double = Func("f", 1, grounding=lambda rows: 2 * rows)
    groundings = {"x": x, "y": y, "Q": torch.rand(5)} if "Q" in formula else {"x": x, "y": y}
    if "M" in formula:
        groundings["M"] = torch.rand(7, 5) < 0.6
    results = []
    for of_pairs in (True, False):
        module = network if gives == "logits" else Degrees(network)
        called = module if of_pairs else (lambda a, b, m=module: m(a, b))  # a function has no such method
        symbols = [Pred("R", 2, gives=gives), Pred("M", 2, gives="mask"), double]
        results.append(evaluate(formula, symbols, semantics, backend, leaves, groundings | {"R": called}))
        found, network.calls = network.calls, []
        if of_pairs:
            assert found == [("pairs", *shapes) for shapes in calls]
        else:
            assert found and all(name == "forward" for name, *_ in found)
    (mine, mine_grads), (theirs, their_grads) = results
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine_grads, their_grads, rtol=1e-4, atol=1e-6)


@backends
def test_what_is_zipped_is_no_list_of_all_pairs(backend):
    network = Counting(3, 2, (8,))
    a, b = diagonal("a", "b")
    features = {"a": torch.randn(6, 3), "b": torch.randn(6, 2)}
    R = Pred("R", 2, gives="logits")
    module = KnowledgeBase("Z | ~Z").compile(StableProduct(), backend=backend)
    found = module.truth(R(a, b), R=network, **features)
    torch.testing.assert_close(found, network(*features.values()).sigmoid())
    assert {name for name, *_ in network.calls} == {"forward"}
    x = torch.randn(9, 3)
    network = Counting(3, 3, (8,))
    symbols = [R, Pred("M", 2, gives="mask")]
    module = KnowledgeBase("Z | ~Z", symbols=symbols).compile(StableProduct(), backend=backend)
    listed = torch.tensor([[0, 1], [2, 5], [8, 8]])
    text = "forall x, y where M(x, y): R(x, y)"
    found = module.truth(text, R=network, x=x, y=x, M=listed)
    dense = torch.zeros(9, 9, dtype=torch.bool)
    dense[tuple(listed.T)] = True
    torch.testing.assert_close(module.truth(text, R=network, x=x, y=x, M=dense), found)
    if backend == "fused":
        assert network.calls[0] == ("forward", (3, 3), (3, 3))
    # One variable twice, and functions of one variable.
    network.calls.clear()
    module.truth("R(x, x)", R=network, x=x)
    assert network.calls == [("forward", (9, 3), (9, 3))]


def test_other_predicates_take_rows():
    """Three arguments, classes, masks, and arguments of two axes or of none."""

    class Module(nn.Module):
        def forward(self, *rows):
            return torch.stack([sum(row.sum(-1) for row in rows)] * 2, -1)

        def pairs(self, x, y):
            raise AssertionError("pairs was called")

    class One(Module):
        def forward(self, *rows):
            return sum(row.sum(-1) for row in rows)

    x, y = torch.randn(4, 2), torch.randn(3, 2)
    C, T = Pred("C", 3, gives="softmax"), Pred("T", 3, gives="logits")
    knowledge = KnowledgeBase("Z | ~Z", symbols=[C, T, Pred("R", 2, gives="logits")])
    module = knowledge.compile(StableProduct())
    assert module.truth("C(x, y, 1)", C=Module(), x=x, y=y).shape == (4, 3)
    assert module.truth("T(x, y, y)", T=One(), x=x, y=y).shape == (4, 3)
    assert module.truth("R(x, x)", R=One(), x=x).shape == (4,)


def test_a_part_of_a_module_called_pairs_is_no_method():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.pairs = nn.Linear(4, 1)

        def forward(self, x, y):
            return self.pairs(torch.cat([x, y], dim=-1))

    knowledge = KnowledgeBase("Z | ~Z", symbols=[Pred("R", 2, gives="logits")])
    module = knowledge.compile(StableProduct())
    assert module.truth("R(x, y)", R=Module(), x=torch.ones(2, 2), y=torch.ones(3, 2)).shape == (2, 3)


def test_a_result_of_another_shape_is_refused():
    class Wrong(nn.Module):
        def forward(self, x, y):
            return x.sum(-1)

        def pairs(self, x, y):
            return x @ y.T if len(x) == 2 else x

    knowledge = KnowledgeBase("Z | ~Z", symbols=[Pred("R", 2, gives="logits")])
    module = knowledge.compile(StableProduct())
    assert module.truth("R(x, y)", R=Wrong(), x=torch.ones(2, 2), y=torch.ones(3, 2)).shape == (2, 3)
    message = re.escape("R: wanted (4, 3) from its method pairs, got (4, 2)")
    with pytest.raises(ValueError, match=message):
        module.truth("R(x, y)", R=Wrong(), x=torch.ones(4, 2), y=torch.ones(3, 2))
