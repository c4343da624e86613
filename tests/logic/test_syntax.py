"""The tree, its text, and errors that point at the place."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logic.formulas import SYMBOLS, formulas
from tenfold.logic.errors import FormulaError
from tenfold.logic.parser import Parser, parse
from tenfold.logic.syntax import (
    DEEPEST,
    And,
    Const,
    Domain,
    Exists,
    Forall,
    Func,
    Or,
    Pred,
    Prop,
    Var,
    diagonal,
    named_in,
)

x, y, z = Var("x"), Var("y"), Var("z")
A, B = Prop("A"), Prop("B")
LEFT, RIGHT = Var("i", axis="pair"), Var("j", axis="pair")
P, Q, R = Pred("P", 1), Pred("Q", 1), Pred("R", 2)
SPEED = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def pointed(error: FormulaError) -> str:
    """The text over the carets."""
    shown, carets = str(error).splitlines()[-2:]
    return shown[carets.index("^") : carets.rindex("^") + 1]


@pytest.mark.parametrize(
    ("built", "text"),
    [
        (lambda: Forall[x, y]((P(x) & Q(y)) >> R(x, y)), "forall x, y: P(x) & Q(y) -> R(x, y)"),
        (lambda: Exists[x](P(x), where=x < 3), "exists x where x < 3: P(x)"),
        (lambda: Forall[x](Exists[y](R(x, y)), p=5), "forall[p=5.0] x: exists y: R(x, y)"),
        (lambda: (A & B) >> (A | B), "A & B -> A | B"),
        (lambda: A & (B | A), "A & (B | A)"),
        (lambda: (A >> B) >> A, "(A -> B) -> A"),
        (lambda: A >> (B >> A), "A -> B -> A"),
        (lambda: A & (B & A), "A & (B & A)"),
        (lambda: ~(A & B) | ~~A, "~(A & B) | ~~A"),
        (lambda: A.iff(B).iff(A), "A <-> B <-> A"),
        (lambda: Or(A, B, A) & And(A), "Or(A, B, A) & And(A)"),
        (lambda: Forall[x](P(x)) & A, "(forall x: P(x)) & A"),
        (lambda: ~(x + y * 2 - (z - 1)).eq(-3), "~x + y * 2 - (z - 1) = -3"),
        (lambda: (1 - x) * y >= 0.5, "(1 - x) * y >= 0.5"),
        (lambda: Forall[diagonal("x", "y")](R(*diagonal("x", "y"))), "forall x@x_y, y@x_y: R(x, y)"),
        (lambda: Forall[Var("m", Domain("men"))](P(Var("m", Domain("men")))), "forall m in men: P(m)"),
        (lambda: P(Func("f", 2)(x, y + 1)), "P(f(x, y + 1))"),
    ],
)
def test_text_of_what_operators_build(built, text):
    formula = built()
    assert str(formula) == text
    again = parse(text, *named_in(formula).values())
    assert again == formula
    assert hash(again) == hash(formula)
    assert str(again) == text


@given(formulas())
@SPEED
def test_every_formula_is_read_back_from_its_text(formula):
    assert parse(str(formula), *SYMBOLS) == formula


def test_a_python_flat_or_is_not_the_nested_one():
    assert Or(A, B, A) != A | B | A
    assert parse("Or(A, B, A)") != parse("A | B | A")


@pytest.mark.parametrize(
    ("build", "reason", "place"),
    [
        (lambda: bool(P(x) & Q(x)), "neither true nor false", "P(x) & Q(x)"),
        (lambda: P(x, y), "P takes 1 argument, got 2", "P(x, y)"),
        (lambda: Func("f", 2)(x), "f takes 2 arguments, got 1", "f(x)"),
        (lambda: Pred("F", Domain("men"))(Var("t", Domain("things"))), "one of men here, not of things", "t"),
        (lambda: Forall[x, y](P(x)), "y does not occur", "y"),
        (lambda: Forall[x, x](P(x)), "x is listed twice", "x"),
        (lambda: Forall[x](P(x) & Exists[x](Q(x))), "x is bound again", "exists x: Q(x)"),
        (lambda: Forall[x](P(x), where=Q(x)), "a guard is true or false", "Q(x)"),
        (lambda: P(x) & P(Var("x", axis="pair")), "x is two variables here: x and x@pair", "x"),
        (lambda: Forall[LEFT](R(LEFT, RIGHT)), "shares the axis pair", "j"),
        (lambda: Forall[x](P(x), where=Exists[y](R(x, y))), "no quantifiers", "exists y: R(x, y)"),
    ],
)  # fmt: skip
def test_errors_of_building_point_at_the_place(build, reason, place):
    with pytest.raises(FormulaError, match=re.escape(reason)) as caught:
        build()
    assert pointed(caught.value) == place


@pytest.mark.parametrize(
    ("text", "reason", "place"),
    [
        ("forall x: P(x) & Q(y)", "y is neither bound", "y"),
        ("forall x: P(x) & P(x, x)", "P takes 1 argument, got 2", "P(x, x)"),
        ("forall x, y: P(x)", "y does not occur", "y"),
        ("P(", "the text ends", ""),
        ("A & & B", "wanted a formula or a term, got '&'", "&"),
        ("A B", "wanted the end", "B"),
        ("A & 3", "wanted a formula, this is a term", "3"),
        ("forall x: P(x & A)", "wanted a term, this is a formula", "x & A"),
        ("forall x: x", "wanted a predicate, x is a Var", "x"),
        ("forall x: x < x < x", "comparisons do not chain", "<"),
        ("forall[q=2] x: P(x)", "wanted p", "q"),
        ("(forall x in men: P(x)) & (forall x: Q(x))", "x is two things: the variable x in men and", "x"),
        ("forall[p=0.5] x: P(x)", "at least 1", "0.5"),
        ("A $ B", "no sign of the language: '$'", "$"),
        ("And(A", "wanted ')'", ""),
        ("A & where", "wanted a formula or a term, got 'where'", "where"),
        ("forall lambda: P(lambda)", "no word of Python", "lambda"),
        ("A\n& B C", "wanted the end", "C"),
        ("(" * 300 + "A", "nested more than", "("),
        ("~" * 300 + "A", "nested more than", "~"),
        ("A & " * 300 + "A", "nested more than", None),
        ("1" * 5000 + " < 2", "wanted a finite number", None),
        ("forall x: P(x, 1e999)", "wanted a finite number", "1e999"),
    ],
)
def test_errors_of_reading_point_at_the_place(text, reason, place):
    with pytest.raises(FormulaError, match=re.escape(reason)) as caught:
        parse(text)
    if place:
        assert pointed(caught.value) == place
    assert str(caught.value).splitlines()[-1].strip("^ ") == ""


def test_deep_trees_are_refused_when_built():
    formula = A
    with pytest.raises(FormulaError, match="nested more than"):
        for _ in range(DEEPEST + 1):
            formula = ~formula
    assert parse(str(formula)) == formula


def test_symbols_are_shared_between_texts():
    parser = Parser(Const("anna"))
    parser.formula("P(anna)")
    with pytest.raises(FormulaError, match="P takes 1 argument, got 2"):
        parser.formula("P(anna, anna)")


SIGNS = st.sampled_from(
    ["forall ", "exists ", " where ", " in ", "And(", "Or(", "x", "y", "P(", "R(", "f(", "(", ")", "[p=2]",
     "[", "]", "p", "@", ",", ":", "&", "|", "~", "->", "<->", "<", "<=", "=", "!=", "+", "-", "*", "1",
     "2.5", " ", "\n", "A", "men", "é", "\x00", "'", "1e9", "a", "M("]
)  # fmt: skip


@st.composite
def mutated(draw):
    """The text of a formula with some of its characters taken out, doubled or replaced."""
    text = list(str(draw(formulas(depth=2))))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(text) - 1))
        text[place] = draw(SIGNS | st.just("") | st.just(text[place] * 2))
    return "".join(text)


@pytest.mark.parametrize(
    "source", [mutated(), st.lists(SIGNS, max_size=20).map("".join), st.text(max_size=40)]
)
def test_any_string_is_a_round_trip_or_an_error_with_a_caret(source):
    read = refused = 0

    @given(source)
    @settings(SPEED, max_examples=3400)  # three sources: over 10,000 strings
    def check(text):
        nonlocal read, refused
        try:
            formula = parse(text, *SYMBOLS)
        except FormulaError as error:
            refused += 1
            assert str(error).splitlines()[-1].strip().strip("^") == ""
            assert 0 <= error.start <= len(text)
            return
        read += 1
        assert parse(str(formula), *named_in(formula).values()) == formula

    check()
    assert refused > 100
