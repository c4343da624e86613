"""Random formulas for the tests of tenfold.logic."""

from hypothesis import strategies as st

from tenfold.logic.syntax import (
    And,
    Arithmetic,
    Atom,
    Compare,
    Const,
    Domain,
    Formula,
    Func,
    Iff,
    Implies,
    Not,
    Number,
    Or,
    Pred,
    Quantified,
    Var,
)

PEOPLE, THINGS = Domain("people"), Domain("things")
SYMBOLS = (
    PEOPLE, THINGS,
    Pred("A", 0), Pred("P", PEOPLE), Pred("Q", 1), Pred("R", 2), Pred("S", PEOPLE, THINGS),
    Pred("L", 1, gives="logits"), Pred("C", 2, gives="softmax"), Pred("M", 2, gives="mask"),
    Func("f", 1), Const("a", domain=PEOPLE), Const("k"),
)  # fmt: skip
_BY_NAME = {symbol.name: symbol for symbol in SYMBOLS}
CONSTANTS = [_BY_NAME["a"], _BY_NAME["k"]]
PREDICATES = [_BY_NAME[name] for name in "APQRSLC"]


def fits(pred: Pred | Func, terms) -> bool:
    return all(
        wanted is None or term.domain is None or term.domain == wanted
        for wanted, term in zip(pred.domains, terms, strict=True)
    )


def terms(variables, functions=True):
    leaves = st.sampled_from([*variables, *CONSTANTS])
    return leaves | leaves.map(_BY_NAME["f"]) if functions else leaves


@st.composite
def atoms(draw, variables, functions=True):
    pred = draw(st.sampled_from(PREDICATES))
    chosen = tuple(draw(terms(variables, functions)) for _ in range(pred.arity))
    return Atom(pred, chosen) if fits(pred, chosen) else Atom(_BY_NAME["A"], ())


@st.composite
def guards(draw, variables):
    """A guard about all of `variables`, so that none is idle."""
    parts = []
    for var in variables:
        other = draw(st.sampled_from([*variables, Number(draw(st.integers(-1, 3))), Number(1.5)]))
        op = draw(st.sampled_from(["<", "<=", ">", ">=", "=", "!="]))
        left = Arithmetic(draw(st.sampled_from("+-*")), var, Number(draw(st.integers(-2, 2))))
        parts.append(Compare(op, draw(st.sampled_from([var, left])), other))
    if len(variables) > 1:
        parts.append(Atom(_BY_NAME["M"], tuple(draw(st.permutations(variables))[:2])))
    guard = draw(st.permutations(parts))
    joined = guard[0]
    for part in guard[1:]:
        joined = draw(st.sampled_from([And, Or]))(joined, Not(part) if draw(st.booleans()) else part)
    return joined


@st.composite
def formulas(draw, variables=(), depth=3, functions=True, guarded=True) -> Formula:
    """A formula whose free variables are among `variables`."""
    if depth == 0:
        return draw(atoms(variables, functions))
    inner = formulas(variables, depth - 1, functions, guarded)
    kind = draw(st.sampled_from(["atom", "not", "and", "or", "implies", "iff", "forall", "exists", "nary"]))
    if kind == "atom":
        return draw(atoms(variables, functions))
    if kind == "not":
        return Not(draw(inner))
    if kind in ("forall", "exists"):
        return draw(quantified(kind, variables, depth, functions, guarded))
    if kind == "nary":
        parts = draw(st.lists(inner, min_size=1, max_size=4))
        return draw(st.sampled_from([And, Or]))(*parts)
    connect = {"and": And, "or": Or, "implies": Implies, "iff": Iff}[kind]
    return connect(draw(inner), draw(inner))


@st.composite
def quantified(draw, kind, variables, depth, functions, guarded):
    fresh = [f"v{len(variables)}", f"v{len(variables) + 1}"][: draw(st.integers(1, 2))]
    # One name, one variable in all of a formula, so domain and axis hang on the name.
    new = tuple(_variable(name) for name in fresh)
    body = draw(formulas((*variables, *new), depth - 1, functions, guarded))
    guard = draw(st.none() | guards(new)) if guarded else None
    free = (*body.free, *(guard.free if guard is not None else ()))
    used = tuple(var for var in new if var in free)
    if not used:
        return body
    p = draw(st.sampled_from([None, None, 1.0, 3.0]))
    return Quantified(kind, used, body, guard, p)


def _variable(name: str) -> Var:
    number = int(name[1:])
    return Var(name, (None, PEOPLE, THINGS)[number % 3])
