"""Fuzzy logic over named axes: connectives and quantifiers in one pass, and nothing broadcast in memory.

    # exists y (A(x) and B(y) and C(x, y)), in log space: (X,) from tables (X,), (Y,), (X, Y)
    l = log_quantify([a, b, c], ["x", "y", "xy"], "y", alpha=2.0)
    # forall x, y ((P(x) and Q(y)) -> R(x, y)) of Real Logic: a single number
    t = fuzzy_quantify([p, q, r], ["x", "y", "xy"], "xy", formula="0 1 and 2 implies", p=2.0)

Two ways of computing with truth: as a degree from 0 to 1 (Badreddine, d'Avila Garcez, Serafini and
Spranger, 2020, "Logic Tensor Networks", arXiv 2012.13635), and as its logarithm, from -inf to 0 (the same
authors, 2023, "logLTN", arXiv 2306.14546). numpy arrays and torch tensors in CPU memory, and on a GPU torch
tensors and cupy arrays.

Axes: operands are tensors over named axes, at most four in all. ``["x", "y", "xy"]``, or with longer names
``[("cat",), ("dog",), ("cat", "dog")]``, names each operand's dimensions in order; an axis is as long as the
operands that have it, and a dimension of size 1 counts as not there. The result has the axes that are not
reduced, in the order in which they first appear.

Guards: a quantifier may be restricted to where a guard holds: a boolean array with its axes,
``guard=(mask, "xy")``, or `Guard`, whose comparison is evaluated inside of the kernel. Over nothing the value
is that of `empty`, and gradients are 0.

Types: float32, bfloat16 (torch) and float64, one for all operands; computed in float32 (float64 for float64)
and rounded once. Results and gradients are the same bits for any number of threads. For torch each op has a
first gradient, which computes the formula again instead of keeping it, and adds up over the axes that an
operand lacks; differentiating it again raises NotImplementedError, as forward-mode differentiation does. vmap
and torch.compile work. alpha, p and weights are numbers, which may change from call to call; torch.compile
compiles anew for each value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from tenfold import _core
from tenfold.ops._arrays import Array, allocate, is_torch, module_of

__all__ = [
    "Guard",
    "Pairs",
    "atom_logits",
    "fuzzy_quantify",
    "guarded_pairs",
    "log_and",
    "log_implies",
    "log_or",
    "log_quantify",
    "logmatmul",
    "logmeanexp",
    "pmean",
    "pmean_error",
    "segment_logmeanexp",
    "segment_pmean",
]

Names: TypeAlias = str | Sequence[str]
Relation: TypeAlias = Literal["", "<", "<=", ">", ">="]
Dims: TypeAlias = int | Sequence[int] | None

MOST_AXES, MOST_OPERANDS, MOST_STEPS = 4, 8, 64
"""What a kernel takes: csrc/fuzzy/fuzzy.h."""

UNARY = ("not", "not_goedel")
BINARY = (
    "and", "or", "implies", "implies_goguen", "and_goedel", "or_goedel", "implies_goedel", "implies_kleene",
    "and_lukasiewicz", "or_lukasiewicz", "implies_lukasiewicz",
)  # fmt: skip
LOG_EMPTY = {"lme": -1e5, "lse": -1e5, "max": -1e5, "mean": 0.0, "sum": 0.0, "min": 0.0}
FUZZY_EMPTY = {"pmean_error": 1.0, "pmean": 0.0, "mean": 1.0, "min": 1.0, "max": 0.0}
"""Values of quantifiers over nothing: exists is false, forall true."""


class Guard(NamedTuple):
    """Where a quantifier looks: a mask, or a comparison that the kernel evaluates.

    ``Guard(mask, "xy")``: where mask is true. ``Guard(d, "xy", "<", 0.5)``: where d is below 0.5.
    ``Guard(a, "xy", "<", 0.5, b)``: where the Euclidean distance of the points a (X, features) and b
    (Y, features) is below 0.5; no (X, Y) array is made. A tuple works as well. A guard has no gradient.
    """

    values: Array
    axes: Names
    relation: Relation = ""
    bound: float = 0.0
    other: Array | None = None


class Pairs(NamedTuple):
    """Index pairs of a guard, row by row: those of row i are from row_ptr[i] to row_ptr[i + 1]."""

    row_ptr: Array
    """(rows + 1,) int64."""
    rows: Array
    """(pairs,) int64."""
    columns: Array
    """(pairs,) int64."""


class Spec(NamedTuple):
    """What a kernel is told besides its arrays."""

    axes: str  # of the operands, "ab,a,b", then of the guard, "ab,a,b|ab"; a letter per axis
    kept: str  # axes of the result
    formula: str  # "and", "or": in log space; otherwise postfix
    quantifier: str  # as `quant` and `agg`, or "copy": none
    relation: str
    numbers: tuple[float, ...]  # alpha or p, eps, empty, bound, then log-weights of the operands


def log_quantify(
    operands: Sequence[Array],
    axes: Sequence[Names],
    reduce: Names,
    *,
    conn: Literal["and", "or"] = "and",
    quant: Literal["lme", "lse", "max", "mean", "sum", "min"] = "lme",
    alpha: float = 1.0,
    log_weights: Sequence[float] | None = None,
    guard: Guard | tuple[Any, ...] | None = None,
    empty: float | None = None,
    grad_buffers: Sequence[Array | None] | None = None,
) -> Array:
    """Connect log truth values element by element, and quantify over axes.

    conn "and" is the sum of the operands, "or" their scaled LogMeanExp
    ``log(mean_k exp(alpha l_k)) / alpha``. quant "lme" (exists) is the LogMeanExp over the reduced axes,
    "mean" (forall) the mean; "lse" is "lme" without the division by the count. logLTN, arXiv 2306.14546.

    Args:
        operands: 1 to 8 arrays of log truth values, up to 0, -inf among them.
        axes: the axes of each, at most four in all.
        reduce: axes to quantify over; none ("") gives the connective alone.
        conn: and, or.
        quant: lme, lse, max, mean, sum or min; of n equals that are max or min each has 1/n of the gradient.
        alpha: sharpness of "or", "lme" and "lse", above 0: towards max as it grows.
        log_weights: for "or", the logarithm of each operand's weight; they should add up to 1. Default: equal
            weights. A nested "or" is a flat one with products of weights.
        guard: where the quantifier looks.
        empty: value over nothing; by default -1e5 for lme, lse and max, 0 for mean, sum and min.
        grad_buffers: for torch, an array of each operand's shape and type, or None: the backward pass adds
            the gradient to it, and gives autograd none. Not under torch.func or torch.compile.

    Returns:
        An array over the axes that are left, of the operands' type.

    Raises:
        ValueError: no operand or more than 8, more than 4 axes, axes that do not fit the dimensions, sizes
            that differ, an unknown name, alpha that is not above 0.
        TypeError: another type, operands of several types, libraries or devices.

    O(product of all sizes) time; scratch memory of O(threads) tiles, and at most 16 times what operands that
    lack an axis take. lme, max and their gradients are right at -inf; where all is -inf the value is -inf
    and gradients are 0.
    """
    alpha = _above("alpha", alpha, 0.0)
    _one_of("conn", conn, ("and", "or"))
    _one_of("quant", quant, tuple(LOG_EMPTY))
    weights: tuple[float, ...] = ()
    if conn == "or":
        weights = _log_weights(log_weights, len(operands))
    elif log_weights is not None:
        raise ValueError("log_weights is given and conn is 'and', want log_weights with conn='or' only")
    empty = LOG_EMPTY[quant] if empty is None else float(empty)
    numbers = (alpha, 0.0, empty, 0.0, *weights)
    return _quantify(operands, axes, reduce, conn, quant, numbers, guard, grad_buffers)


def fuzzy_quantify(
    operands: Sequence[Array],
    axes: Sequence[Names],
    reduce: Names,
    *,
    formula: str | Sequence[str],
    agg: Literal["pmean_error", "pmean", "mean", "min", "max"] = "pmean_error",
    p: float = 2.0,
    eps: float = 1e-4,
    guard: Guard | tuple[Any, ...] | None = None,
    empty: float | None = None,
    grad_buffers: Sequence[Array | None] | None = None,
) -> Array:
    """Evaluate a formula on truth values from 0 to 1 element by element, and aggregate over axes.

    The formula is in postfix: ``"0 1 and 2 implies"`` is (0 and 1) -> 2 for operands 0, 1 and 2. Connectives:

        not                  1 - x                        not_goedel       1 where x = 0, else 0
        and                  x y                          and_goedel       min(x, y)
        or                   x + y - x y                  or_goedel        max(x, y)
        implies              1 - x + x y (Reichenbach)    implies_goedel   1 where x <= y, else y
        implies_goguen       1 where x <= y, else y / x   implies_kleene   max(1 - x, y)
        and_lukasiewicz      max(x + y - 1, 0)            or_lukasiewicz   min(x + y, 1)
        implies_lukasiewicz  min(1 - x + y, 1)

    with Real Logic's stable product: eps moves both operands of "and" and the left one of "implies" and
    "implies_goguen" away from 0, and both of "or" and the right one of "implies" away from 1; what pmean
    aggregates is moved away from 0, what pmean_error aggregates away from 1. eps = 0 is the plain form.
    pmean (exists) is ``(mean u^p)^(1/p)``, pmean_error (forall) ``1 - (mean (1 - u)^p)^(1/p)``; LTN, arXiv
    2012.13635, sections 2 and 4. Of two equals min and max give each half of the gradient; where a bound is
    met exactly (x + y = 1 of the Lukasiewicz forms) the slope is that inside of it, as torch.clamp's.

    Args:
        operands: 1 to 8 arrays of truth values.
        axes: the axes of each, at most four in all.
        reduce: axes to aggregate over; none ("") gives the formula alone, without the aggregator's eps.
        formula: numbers of operands and names of connectives, at most 64.
        agg: pmean_error, pmean, mean, min or max; of n equals that are min or max each has 1/n of the
            gradient, "equal" meaning of the numbers that were computed.
        p: exponent of the means, at least 1: towards min (pmean_error) or max (pmean) as it grows.
        eps: see above.
        guard: where the quantifier looks.
        empty: value over nothing; by default 1 for pmean_error, mean and min, 0 for pmean and max.
        grad_buffers: as for log_quantify.

    Returns:
        An array over the axes that are left, of the operands' type.

    Raises:
        ValueError: no operand or more than 8, more than 4 axes, axes that do not fit the dimensions, sizes
            that differ, an unknown name, a formula that does not end with one value, p below 1.
        TypeError: another type, operands of several types, libraries or devices.

    Where all aggregated numbers of a pmean with p > 1 are 0 its gradient is 0. Time and memory as for
    log_quantify.
    """
    p = _above("p", p, 1.0, inclusive=True)
    _one_of("agg", agg, tuple(FUZZY_EMPTY))
    postfix = formula if isinstance(formula, str) else " ".join(formula)
    _check_formula(postfix, len(operands))
    empty = FUZZY_EMPTY[agg] if empty is None else float(empty)
    numbers = (p, _eps(eps), empty, 0.0)
    return _quantify(operands, axes, reduce, postfix, agg, numbers, guard, grad_buffers)


def log_and(*xs: Array) -> Array:
    """The conjunction of log truth values: their sum.

    Args:
        xs: 1 to 8 arrays that broadcast as in numpy; at most four dimensions that cannot be merged.

    Returns:
        An array of the broadcast shape, of the arrays' type. No gradient or operand is broadcast in memory.

    Raises:
        ValueError, TypeError: as for log_quantify.
    """
    return _elementwise(xs, "and", (1.0, 0.0, 0.0, 0.0))


def log_or(*xs: Array, alpha: float = 1.0, log_weights: Sequence[float] | None = None) -> Array:
    """The disjunction of log truth values: log(mean_k exp(alpha x_k)) / alpha; logLTN, arXiv 2306.14546.

    Args:
        xs: 1 to 8 arrays that broadcast as in numpy; at most four dimensions that cannot be merged.
        alpha: sharpness, above 0.
        log_weights: as for log_quantify.

    Returns:
        An array of the broadcast shape, of the arrays' type; between max - log(number) / alpha and max.

    Raises:
        ValueError, TypeError: as for log_quantify.
    """
    alpha = _above("alpha", alpha, 0.0)
    return _elementwise(xs, "or", (alpha, 0.0, 0.0, 0.0, *_log_weights(log_weights, len(xs))))


def log_implies(nx: Array, y: Array, alpha: float = 1.0) -> Array:
    """The implication x -> y in log space: log_or(nx, y), from the log of not x.

    Args:
        nx: log of 1 minus the truth of x, as atom_logits gives it.
        y: log truth of y.
        alpha: sharpness, above 0.

    Returns:
        An array of the broadcast shape, of the arrays' type.

    Raises:
        ValueError, TypeError: as for log_quantify.
    """
    return log_or(nx, y, alpha=alpha)


def logmeanexp(
    x: Array, dim: Dims = None, alpha: float = 1.0, mask: Array | None = None, *, empty: float = -1e5
) -> Array:
    """log(mean exp(alpha x)) / alpha over dimensions: the existential quantifier of log space.

    Args:
        x: an array of any strides.
        dim: a dimension or several, or None for all.
        alpha: sharpness, above 0.
        mask: boolean, broadcast to x: only where it is true.
        empty: value where nothing is left.

    Returns:
        An array without these dimensions, of x's type. -inf where all is -inf, with zero gradients.

    Raises:
        ValueError: dim out of range or twice, mask that does not broadcast to x, alpha not above 0.
        TypeError: another type, library or device.
    """
    return _over_dims(x, dim, mask, "and", "lme", (_above("alpha", alpha, 0.0), 0.0, float(empty), 0.0))


def pmean(
    x: Array,
    dim: Dims = None,
    p: float = 2.0,
    mask: Array | None = None,
    *,
    eps: float = 0.0,
    empty: float = 0.0,
) -> Array:
    """(mean x^p)^(1/p) over dimensions: the existential quantifier of Real Logic.

    Args:
        x: truth values from 0 to 1, any strides. With p = 1, any numbers: their mean.
        dim: a dimension or several, or None for all.
        p: exponent, at least 1.
        mask: boolean, broadcast to x: only where it is true.
        eps: moves x away from 0 first: (1 - eps) x + eps.
        empty: value where nothing is left.

    Returns:
        An array without these dimensions, of x's type. Where all is 0 and p > 1 gradients are 0.

    Raises:
        ValueError: dim out of range or twice, mask that does not broadcast to x, p below 1.
        TypeError: another type, library or device.
    """
    numbers = (_above("p", p, 1.0, inclusive=True), _eps(eps), float(empty), 0.0)
    return _over_dims(x, dim, mask, "0", "pmean", numbers)


def pmean_error(
    x: Array,
    dim: Dims = None,
    p: float = 2.0,
    mask: Array | None = None,
    *,
    eps: float = 0.0,
    empty: float = 1.0,
) -> Array:
    """1 - (mean (1 - x)^p)^(1/p) over dimensions: the universal quantifier of Real Logic.

    Args:
        x: truth values from 0 to 1, any strides.
        dim: a dimension or several, or None for all.
        p: exponent, at least 1.
        mask: boolean, broadcast to x: only where it is true.
        eps: moves x away from 1 first: (1 - eps) x.
        empty: value where nothing is left.

    Returns:
        An array without these dimensions, of x's type. Where all is 1 and p > 1 gradients are 0.

    Raises:
        ValueError: dim out of range or twice, mask that does not broadcast to x, p below 1.
        TypeError: another type, library or device.
    """
    numbers = (_above("p", p, 1.0, inclusive=True), _eps(eps), float(empty), 0.0)
    return _over_dims(x, dim, mask, "0", "pmean_error", numbers)


def logmatmul(a: Array, b: Array, alpha: float = 1.0, mean: bool = False) -> Array:
    """exists y (A(x, y) and B(y, z)) in log space: a matrix product of the log semiring.

    ``out[.., x, z] = log(sum_y exp(alpha (a[.., x, y] + b[.., y, z]))) / alpha``

    A matrix product of exponentials, each row of a and column of b relative to its largest; elements whose
    sum would be lost in it are computed one by one, so that no result underflows.

    Args:
        a: (..., X, Y) log values.
        b: (..., Y, Z), with leading dimensions that broadcast with those of a.
        alpha: sharpness, above 0.
        mean: divide the sum by Y: LogMeanExp. Y = 0 gives -inf.

    Returns:
        (..., X, Z) of the arrays' type.

    Raises:
        ValueError: fewer than two dimensions, shapes that do not fit, alpha not above 0.
        TypeError: another type, arrays of two types, libraries or devices.

    O(X Y Z) multiplications; scratch memory for twice a and b and, in the backward pass, one array of
    the result's size.
    """
    alpha = _above("alpha", alpha, 0.0)
    if is_torch(a) or is_torch(b):
        return _torch_half().logmatmul(a, b, alpha, bool(mean))
    batch = product_batch(a.shape, b.shape)
    flat_a, flat_b = (_batch_of_matrices(x, batch) for x in (a, b))
    out = allocate(a, (flat_a.shape[0], a.shape[-2], b.shape[-1]), a.dtype)
    _core.logmatmul(flat_a, flat_b, alpha, bool(mean), out)
    return out if len(batch) == 1 else out.reshape(*batch, *out.shape[1:])


def atom_logits(
    z: Array, kind: Literal["sigmoid", "softmax"] = "sigmoid", index: Array | None = None
) -> tuple[Array, Array]:
    """log P and log(1 - P) of an atom from its logits, both in one pass and without cancellation.

    Args:
        z: logits, (...) for sigmoid, (..., C) for softmax over the last dimension.
        kind: sigmoid: P = 1 / (1 + e^-z). softmax: P_c = e^(z_c) / sum_k e^(z_k), a row of C atoms.
        index: for softmax, (...) int64: only this class of each row.

    Returns:
        Two arrays of z's type and shape, without the last dimension where index is given.

    Raises:
        ValueError: another kind, index without softmax or of another shape, an index out of range.
        TypeError: another type, library or device.

    log(1 - P) of the largest class is the log of the others' sum, shifted by the second largest logit.
    O(size) for the values and for the gradient, which is computed from z again. One class only: P = 1, and
    log(1 - P) = -inf with zero gradient.
    """
    _one_of("kind", kind, ("sigmoid", "softmax"))
    if index is not None and kind != "softmax":
        raise ValueError("index is given and kind is 'sigmoid', want index with kind='softmax' only")
    if is_torch(z):
        both: tuple[Array, Array] = _torch_half().atom_logits(z, kind == "softmax", index)
        return both
    shape = atoms_shape(z.shape, kind == "softmax", None if index is None else index.shape)
    log, nlog = allocate(z, shape, z.dtype), allocate(z, shape, z.dtype)
    _core.atom_logits(_dense(z), kind == "softmax", None if index is None else _dense(index), log, nlog)
    return log, nlog


def guarded_pairs(guard: Array | Guard | tuple[Any, ...]) -> Pairs:
    """Index pairs where a guard over two axes holds, row by row: gather with them, then reduce by segment.

    Args:
        guard: a boolean array (rows, columns), or a `Guard` over two axes.

    Returns:
        row_ptr, rows and columns.

    Raises:
        ValueError: not two dimensions.

    O(rows columns), and waits for the device.
    """
    mask = _mask_of(guard) if isinstance(guard, tuple) else guard
    if len(mask.shape) != 2:
        raise ValueError(f"guard has shape {tuple(mask.shape)}, want two dimensions")
    if is_torch(mask):
        return Pairs(*_torch_half().pairs(mask))
    library = module_of(mask)
    rows, columns = library.nonzero(mask)
    row_ptr = library.zeros(mask.shape[0] + 1, library.int64)
    row_ptr[1:] = library.cumsum(library.count_nonzero(mask, axis=1))
    return Pairs(row_ptr, rows, columns)


def segment_logmeanexp(values: Array, row_ptr: Array, alpha: float = 1.0, *, empty: float = -1e5) -> Array:
    """logmeanexp of each segment values[row_ptr[i] : row_ptr[i + 1]].

    Args:
        values: (n,) log truth values, such as those of guarded pairs.
        row_ptr: (segments + 1,) int64, from 0 to n, never falling.
        alpha: sharpness, above 0.
        empty: value of a segment without elements.

    Returns:
        (segments,) of the values' type.

    Raises:
        ValueError: other shapes, a row_ptr that does not run from 0 to n, alpha not above 0.
        TypeError: another type, library or device.
    """
    numbers = (_above("alpha", alpha, 0.0), 0.0, float(empty), 0.0)
    return _segments(values, row_ptr, Spec("a", "", "and", "lme", "", numbers))


def segment_pmean(
    values: Array,
    row_ptr: Array,
    p: float = 2.0,
    *,
    error: bool = False,
    eps: float = 0.0,
    empty: float | None = None,
) -> Array:
    """pmean, or with `error` pmean_error, of each segment values[row_ptr[i] : row_ptr[i + 1]].

    Args:
        values: (n,) truth values; with p = 1 and without error any numbers: the mean of each segment.
        row_ptr: (segments + 1,) int64, from 0 to n, never falling.
        p: exponent, at least 1.
        error: the universal form.
        eps: as for pmean and pmean_error.
        empty: value of a segment without elements; by default 0, or 1 with error.

    Returns:
        (segments,) of the values' type.

    Raises:
        ValueError: other shapes, a row_ptr that does not run from 0 to n, p below 1.
        TypeError: another type, library or device.
    """
    empty = float(error) if empty is None else float(empty)
    numbers = (_above("p", p, 1.0, inclusive=True), _eps(eps), empty, 0.0)
    return _segments(values, row_ptr, Spec("a", "", "0", "pmean_error" if error else "pmean", "", numbers))


# ---- what the arguments are, for the torch half too ----


def _torch_half() -> Any:
    """tenfold.ops._fuzzy_torch; loaded for the first torch tensor."""
    from tenfold.ops import _fuzzy_torch

    return _fuzzy_torch


def _above(name: str, value: float, least: float, inclusive: bool = False) -> float:
    value = float(value)
    if not (least < value < math.inf or (inclusive and value == least)):  # no isfinite: dynamo may trace it
        said = "at least" if inclusive else "above"
        raise ValueError(f"{name} is {value:g}, want a finite number {said} {least:g}")
    return value


def _eps(eps: float) -> float:
    if not 0.0 <= eps < 1.0:
        raise ValueError(f"eps is {eps:g}, want a number from 0 to below 1")
    return float(eps)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, want {', '.join(choices[:-1])} or {choices[-1]}")


def _log_weights(log_weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if log_weights is None:
        return (-math.log(max(count, 1)),) * count
    if len(log_weights) != count:
        raise ValueError(
            f"log_weights has {len(log_weights)} numbers for {count} operands, want one for each"
        )
    return tuple(map(float, log_weights))


@functools.lru_cache(maxsize=1024)
def _check_formula(formula: str, operands: int) -> None:
    tokens, depth = formula.split(), 0
    if len(tokens) > MOST_STEPS:
        raise ValueError(f"formula has {len(tokens)} steps, want at most {MOST_STEPS}")
    for token in tokens:
        if token.isdecimal() and int(token) < operands:
            depth += 1
        elif token in BINARY and depth >= 2:
            depth -= 1
        elif token in UNARY and depth >= 1:
            pass
        elif token in BINARY or token in UNARY:
            raise ValueError(f"formula {formula!r}: {token!r} finds too few values, want postfix")
        else:
            raise ValueError(
                f"formula {formula!r} has {token!r}, want an operand's number below {operands} or one of "
                f"{', '.join((*UNARY, *BINARY))}"
            )
    if depth != 1:
        raise ValueError(f"formula {formula!r} leaves {depth} values, want one")


class _Axes(NamedTuple):
    names: tuple[str, ...]  # what the user calls them
    axes: str  # as in Spec
    kept: str


LETTERS = "abcd"


@functools.lru_cache(maxsize=1024)
def _axes(axes: tuple[Names, ...], reduce: Names, guard: Names | None, guard_arrays: int) -> _Axes:
    lists = [*axes] if guard is None else [*axes, guard]
    names = tuple(dict.fromkeys(name for each in lists for name in each))
    if len(names) > MOST_AXES:
        raise ValueError(f"axes are {', '.join(names)}, want at most {MOST_AXES}")
    for i, each in enumerate(lists):
        if len(set(each)) != len(each):
            said = "guard" if i == len(axes) else f"axes[{i}]"
            raise ValueError(f"{said} names an axis twice: {', '.join(each)}")
    letters = dict(zip(names, LETTERS, strict=False))
    for i, name in enumerate(reduce):
        if name not in letters or name in reduce[:i]:
            said = "twice" if name in letters else f"and axes are {', '.join(names)}"
            raise ValueError(f"reduce has {name!r} {said}, want each axis once at most")
    encoded = ",".join("".join(letters[name] for name in each) for each in axes)
    if guard is not None:
        if guard_arrays == 2 and len(guard) != 2:
            raise ValueError(f"guard compares distances over {len(guard)} axes, want two")
        encoded += "|" + "".join(letters[name] for name in guard)
    return _Axes(names, encoded, "".join(letters[name] for name in names if name not in reduce))


def sizes_of(
    names: tuple[str, ...], axes: str, operands: Sequence[tuple[int, ...]], guards: Sequence[tuple[int, ...]]
) -> list[int]:
    """The size of each axis; ValueError where shapes do not fit."""
    each, _, guard = axes.partition("|")
    shapes = [(f"operands[{i}]", letters, operands[i]) for i, letters in enumerate(each.split(","))]
    if len(guards) == 1:
        shapes.append(("guard", guard, guards[0]))
    elif len(guards) == 2:
        if any(len(shape) != 2 for shape in guards) or guards[0][1] != guards[1][1]:
            got = " and ".join(str(tuple(shape)) for shape in guards)
            raise ValueError(f"guard's points have shapes {got}, want (n, features) and (m, features)")
        shapes += [("guard", letter, shape[:1]) for letter, shape in zip(guard, guards, strict=True)]
    sizes, first = [1] * len(names), [""] * len(names)
    for said, letters, shape in shapes:
        if len(shape) != len(letters):
            raise ValueError(f"{said} has shape {tuple(shape)}, want {len(letters)} dimensions as its axes")
        for letter, size in zip(letters, shape, strict=True):
            axis = LETTERS.index(letter)
            if size == 1 or size == sizes[axis]:
                continue
            if first[axis]:
                raise ValueError(
                    f"axis {names[axis]} has size {sizes[axis]} in {first[axis]} and {size} in {said}, "
                    "want one size (or 1)"
                )
            sizes[axis], first[axis] = size, said
    return sizes


def out_shape(spec: Spec, sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the axes that are left."""
    return tuple(sizes[LETTERS.index(letter)] for letter in spec.kept)


def product_batch(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Leading dimensions of a product; ValueError where shapes do not fit."""
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ValueError(f"a has shape {tuple(a)} and b {tuple(b)}, want (..., X, Y) and (..., Y, Z)")
    return _broadcast([a[:-2], b[:-2]], "leading dimensions of a and b")


def atoms_shape(shape: tuple[int, ...], softmax: bool, index: tuple[int, ...] | None) -> tuple[int, ...]:
    """Of log P; ValueError where shapes do not fit."""
    if softmax and (len(shape) == 0 or shape[-1] == 0):
        raise ValueError(f"z has shape {tuple(shape)}, want (..., classes) for kind='softmax'")
    if index is None:
        return tuple(shape)
    if tuple(index) != tuple(shape[:-1]):
        raise ValueError(f"index has shape {tuple(index)}, want {tuple(shape[:-1])} as z without its classes")
    return tuple(index)


def _broadcast(shapes: Sequence[tuple[int, ...]], said: str) -> tuple[int, ...]:
    rank = max([0, *map(len, shapes)])
    result = [1] * rank
    for shape in shapes:
        for i, size in enumerate(shape, rank - len(shape)):
            if size != 1 and result[i] not in (1, size):
                raise ValueError(
                    f"{said} have shapes {', '.join(str(tuple(s)) for s in shapes)}, which do not broadcast"
                )
            result[i] = size if size != 1 else result[i]
    return tuple(result)


# ---- how they reach the kernels ----


def _quantify(
    operands: Sequence[Array],
    axes: Sequence[Names],
    reduce: Names,
    formula: str,
    quantifier: str,
    numbers: tuple[float, ...],
    guard: Guard | tuple[Any, ...] | None,
    grad_buffers: Sequence[Array | None] | None,
) -> Array:
    operands = tuple(operands)
    if not 1 <= len(operands) <= MOST_OPERANDS:
        raise ValueError(f"operands are {len(operands)}, want 1 to {MOST_OPERANDS}")
    if len(axes) != len(operands):
        raise ValueError(f"axes are {len(axes)} for {len(operands)} operands, want the axes of each")
    guards: tuple[Array, ...] = ()
    guard_axes, relation = None, ""
    if guard is not None:
        guard = Guard(*guard)
        guards = (guard.values,) if guard.other is None else (guard.values, guard.other)
        guard_axes, relation = _hashable(guard.axes), guard.relation
        _one_of("guard's relation", relation, ("", "<", "<=", ">", ">="))
        if guard.other is not None and not relation:
            raise ValueError("guard has other and no relation, want one to compare distances with a bound")
        numbers = (*numbers[:3], float(guard.bound), *numbers[4:])
    plan = _axes(tuple(_hashable(each) for each in axes), _hashable(reduce), guard_axes, len(guards))
    quantifier = quantifier if len(reduce) else "copy"
    spec = Spec(plan.axes, plan.kept, formula, quantifier, relation, numbers)
    return _run(operands, guards, spec, plan.names, grad_buffers)


def _hashable(names: Names) -> Names:
    return names if isinstance(names, str) else tuple(names)


def _run(
    operands: tuple[Array, ...],
    guards: tuple[Array, ...],
    spec: Spec,
    names: tuple[str, ...],
    grad_buffers: Sequence[Array | None] | None = None,
) -> Array:
    for i, x in enumerate(operands):
        if not hasattr(x, "dtype"):
            raise TypeError(f"operands[{i}] is a {type(x).__name__}, want a numpy array or a torch tensor")
    sizes = sizes_of(names, spec.axes, [x.shape for x in operands], [x.shape for x in guards])
    if any(map(is_torch, operands)):
        return _torch_half().quantify(operands, guards, spec, sizes, grad_buffers)
    if grad_buffers is not None:
        raise ValueError("grad_buffers is given and the operands are no torch tensors, want None")
    out = allocate(operands[0], out_shape(spec, sizes), operands[0].dtype)
    _core.fuzzy_quantify(operands, guards, *spec, out, None)
    return out


def _elementwise(xs: tuple[Array, ...], formula: str, numbers: tuple[float, ...]) -> Array:
    if not 1 <= len(xs) <= MOST_OPERANDS:
        raise ValueError(f"xs are {len(xs)} arrays, want 1 to {MOST_OPERANDS}")
    shape = _broadcast([x.shape for x in xs], "xs")
    if len(shape) > MOST_AXES:
        groups = _merged(shape, [x.shape for x in xs])
        xs = tuple(_regroup(x, groups, len(shape)) for x in xs)
    rank = min(len(shape), MOST_AXES)
    names = LETTERS[:rank] if len(shape) <= MOST_AXES else LETTERS[: len(groups)]
    axes = ",".join(names[len(names) - len(x.shape) :] for x in xs)
    # An axis that the first operands lack still comes in its place: `kept` says the order.
    out = _run(xs, (), Spec(axes, names, formula, "copy", "", numbers), tuple(names))
    return out if len(shape) <= MOST_AXES else out.reshape(shape)


def _merged(shape: tuple[int, ...], shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Neighbouring dimensions that all arrays have, or lack, together."""
    full = [(1,) * (len(shape) - len(each)) + tuple(each) for each in shapes]

    def has(i: int) -> list[bool]:
        return [each[i] == shape[i] for each in full]

    groups: list[list[int]] = []
    for i in range(len(shape)):
        if groups and has(i) == has(groups[-1][-1]):
            groups[-1].append(i)
        else:
            groups.append([i])
    if len(groups) > MOST_AXES:
        raise ValueError(f"xs broadcast over {len(groups)} groups of dimensions, want at most {MOST_AXES}")
    return groups


def _regroup(x: Array, groups: list[list[int]], rank: int) -> Array:
    full = (1,) * (rank - len(x.shape)) + tuple(x.shape)
    return x.reshape([math.prod(full[i] for i in group) for group in groups])


def _over_dims(
    x: Array, dim: Dims, mask: Array | None, formula: str, quantifier: str, numbers: tuple[float, ...]
) -> Array:
    if not hasattr(x, "dtype"):
        raise TypeError(f"x is a {type(x).__name__}, want a numpy array or a torch tensor")
    rank = len(x.shape)
    dims = _dims(dim, rank)
    if mask is not None and _broadcast([x.shape, mask.shape], "x and mask") != tuple(x.shape):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, want one that broadcasts to x's {tuple(x.shape)}"
        )
    if not dims:
        quantifier = "copy"
    if rank > MOST_AXES:
        return _over_many(x, dims, mask, formula, quantifier, numbers)
    names = LETTERS[:rank]
    axes = names if mask is None else names + "|" + names[rank - len(mask.shape) :]
    kept = "".join(letter for i, letter in enumerate(names) if i not in dims)
    return _run(
        (x,),
        () if mask is None else (mask,),
        Spec(axes, kept, formula, quantifier, "", numbers),
        tuple(names),
    )


def _over_many(
    x: Array,
    dims: tuple[int, ...],
    mask: Array | None,
    formula: str,
    quantifier: str,
    numbers: tuple[float, ...],
) -> Array:
    """The same for more dimensions than a kernel takes: those that stay and those that go, merged."""
    kept = [i for i in range(len(x.shape)) if i not in dims]
    left = [x.shape[i] for i in kept]

    def merged(array: Array) -> Array:
        moved = array.permute(*kept, *dims) if is_torch(array) else array.transpose(*kept, *dims)
        return moved.reshape(math.prod(left), -1)

    guards: tuple[Array, ...] = ()
    if mask is not None:
        full = mask.expand(x.shape) if is_torch(mask) else module_of(mask).broadcast_to(mask, x.shape)
        guards = (merged(full),)
    spec = Spec(
        "ab" if mask is None else "ab|ab", "ab" if not dims else "a", formula, quantifier, "", numbers
    )
    return _run((merged(x),), guards, spec, ("a", "b")).reshape(left)


def _dims(dim: Dims, rank: int) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(rank))
    dims = []
    for d in [dim] if isinstance(dim, int) else dim:
        if not -rank <= d < rank:
            raise ValueError(f"dim is {dim}, want dimensions of an array of {rank}")
        dims.append(d % rank)
    if len(set(dims)) != len(dims):
        raise ValueError(f"dim is {dim}, want each dimension once")
    return tuple(dims)


def _segments(values: Array, row_ptr: Array, spec: Spec) -> Array:
    for name, array in (("values", values), ("row_ptr", row_ptr)):
        if not hasattr(array, "dtype"):
            raise TypeError(f"{name} is a {type(array).__name__}, want a numpy array or a torch tensor")
        if len(array.shape) != 1:
            raise ValueError(f"{name} has shape {tuple(array.shape)}, want one dimension")
    if row_ptr.shape[0] == 0:
        raise ValueError("row_ptr has shape (0,), want (segments + 1,)")
    if is_torch(values):
        return _torch_half().segments(values, row_ptr, spec)
    out = allocate(values, (row_ptr.shape[0] - 1,), values.dtype)
    _core.fuzzy_segments(_dense(values), _dense(row_ptr), spec.quantifier, spec.numbers, out, None)
    return out


def _dense(x: Array) -> Array:
    """The array of numpy or cupy itself where its elements lie side by side in order, else a copy."""
    stride = x.dtype.itemsize
    for size, step in zip(reversed(x.shape), reversed(x.strides), strict=True):
        if size > 1 and step != stride:
            return module_of(x).ascontiguousarray(x)
        stride *= size
    return x


def _batch_of_matrices(x: Array, batch: tuple[int, ...]) -> Array:
    if len(batch) == 1 and tuple(x.shape[:-2]) == batch:
        return x
    full = module_of(x).broadcast_to(x, (*batch, *x.shape[-2:]))
    return full.reshape(math.prod(batch), *x.shape[-2:])


def _mask_of(guard: Guard | tuple[Any, ...]) -> Array:
    """A guard over two axes as a boolean array."""
    guard = Guard(*guard)
    values: Any = guard.values
    if guard.other is not None:
        if is_torch(values):
            values = _torch_half().distances(values, guard.other)
        else:
            values = ((values[:, None] - guard.other[None]) ** 2).sum(-1) ** 0.5
    compare = {"<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}
    return getattr(values, compare[guard.relation])(guard.bound) if guard.relation else values
