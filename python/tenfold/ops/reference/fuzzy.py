"""The fuzzy family in plain torch: operands are broadcast, then connected, then reduced."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Names = str | Sequence[str]

RELATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "<": torch.lt,
    "<=": torch.le,
    ">": torch.gt,
    ">=": torch.ge,
}


class Guard(NamedTuple):
    """As tenfold.ops.fuzzy.Guard."""

    values: Tensor
    axes: Names
    relation: str = ""
    bound: float = 0.0
    other: Tensor | None = None


# ---- named axes ----


def axis_order(axes: Sequence[Names], guard: Any = None) -> list[str]:
    """All axes in order of first appearance, those of the guard last."""
    lists = [*axes] if guard is None else [*axes, guard[1]]
    return list(dict.fromkeys(name for names in lists for name in names))


def spread(tensor: Tensor, names: Names, order: list[str]) -> Tensor:
    """The tensor with one dimension for each axis of `order`: size 1 where it lacks it."""
    there = [name for name in order if name in names]
    tensor = tensor.permute([list(names).index(name) for name in there])
    return tensor.reshape([tensor.shape[there.index(name)] if name in there else 1 for name in order])


def guard_mask(guard: Any) -> Tensor:
    """The guard as a boolean tensor over its axes."""
    guard = Guard(*guard)
    if guard.other is not None:
        distance = (guard.values[:, None] - guard.other[None]).square().sum(-1).sqrt()
        return RELATIONS[guard.relation](distance, guard.bound)
    return RELATIONS[guard.relation](guard.values, guard.bound) if guard.relation else guard.values.bool()


def _over(
    operands: Sequence[Tensor], axes: Sequence[Names], guard: Any
) -> tuple[list[str], list[Tensor], Tensor, torch.Size]:
    """All axes, the operands over them, the mask over them and their sizes."""
    order = axis_order(axes, guard)
    spreads = [spread(x, names, order) for x, names in zip(operands, axes, strict=True)]
    mask = torch.ones([1] * len(order), dtype=torch.bool, device=operands[0].device)
    if guard is not None:
        mask = spread(guard_mask(guard), guard[1], order)
    return order, spreads, mask, torch.broadcast_shapes(*(x.shape for x in spreads), mask.shape)


def _reduced(order: list[str], reduce: Names) -> list[int]:
    return [order.index(name) for name in reduce]


# ---- reductions; each leaves out where `mask` is False, and is `empty` where nothing is left ----


def log_mean_exp(v: Tensor, mask: Tensor, dims: list[int], alpha: float, average: bool) -> Tensor:
    """log(sum exp(alpha v)) / alpha, or of the mean; -inf where all are."""
    v = torch.where(mask, v, -math.inf)
    most = v.detach().amax(dims, keepdim=True)
    most = torch.where(most.isfinite(), most, 0.0)
    total = (alpha * (v - most)).exp().sum(dims)
    if average:
        total = total / mask.sum(dims).clamp(min=1)
    some = total != 0  # NaN stays
    logs = torch.where(some, total, 1.0).log() / alpha + most.squeeze(dims)
    return torch.where(some, logs, -math.inf)


_MODEST = 8  # a power that numbers which matter survive


def power_mean(u: Tensor, mask: Tensor, dims: list[int], p: float) -> Tensor:
    """(mean u^p)^(1/p); 0, with zero gradients, where all are 0 and p > 1."""
    if p == 1:
        return _mean(u, mask, dims)
    u = torch.where(mask, u, 0.0)
    if p <= _MODEST:
        return root(_mean(u.pow(p), mask, dims), p)
    most = u.detach().amax(dims, keepdim=True)
    most = torch.where(most == 0, 1.0, most)  # so that a high power of the largest is not 0
    return root(_mean((u / most).pow(p), mask, dims), p) * most.squeeze(dims)


def root(mean: Tensor, p: float) -> Tensor:
    """mean^(1/p); where it is 0 and p > 1 the gradient is 0."""
    if p == 1:
        return mean
    some = mean != 0  # NaN stays
    return torch.where(some, torch.where(some, mean, 1.0).pow(1 / p), 0.0)


def _sum(v: Tensor, mask: Tensor, dims: list[int]) -> Tensor:
    return torch.where(mask, v, 0.0).sum(dims)


def _mean(v: Tensor, mask: Tensor, dims: list[int]) -> Tensor:
    return _sum(v, mask, dims) / mask.sum(dims).clamp(min=1)


def _max(v: Tensor, mask: Tensor, dims: list[int]) -> Tensor:
    return torch.where(mask, v, -math.inf).amax(dims)


def _min(v: Tensor, mask: Tensor, dims: list[int]) -> Tensor:
    return torch.where(mask, v, math.inf).amin(dims)


def _reduce(
    how: Callable[[Tensor, Tensor, list[int]], Tensor],
    v: Tensor,
    mask: Tensor,
    shape: torch.Size,
    dims: list[int],
    empty: float,
) -> Tensor:
    v, mask = v.expand(shape), mask.expand(shape)
    kept = [size for i, size in enumerate(shape) if i not in dims]
    if not dims:
        return torch.where(mask, v, empty)
    if v.numel() == 0:
        return v.new_full(kept, empty) + 0.0 * v.sum()
    return torch.where(mask.any(dims[0]) if len(dims) == 1 else _any(mask, dims), how(v, mask, dims), empty)


def _any(mask: Tensor, dims: list[int]) -> Tensor:
    return mask.sum(dims) > 0


# ---- log space ----


def log_or(*xs: Tensor, alpha: float = 1.0, log_weights: Sequence[float] | None = None) -> Tensor:
    """log(sum of w_k exp(alpha x_k)) / alpha, with weights 1 / number by default."""
    weights = [-math.log(len(xs))] * len(xs) if log_weights is None else log_weights
    shifted = torch.stack(
        torch.broadcast_tensors(*(x + w / alpha for x, w in zip(xs, weights, strict=True))), 0
    )
    return log_mean_exp(shifted, torch.ones_like(shifted, dtype=torch.bool), [0], alpha, False)


def log_and(*xs: Tensor) -> Tensor:
    """The sum."""
    return torch.stack(torch.broadcast_tensors(*xs), 0).sum(0)


def log_implies(nx: Tensor, y: Tensor, alpha: float = 1.0) -> Tensor:
    """not x or y, from the log of not x."""
    return log_or(nx, y, alpha=alpha)


LOG_EMPTY = {"lme": -1e5, "lse": -1e5, "max": -1e5, "mean": 0.0, "sum": 0.0, "min": 0.0}
"""Values of an existential and of a universal quantifier over nothing."""


def log_quantify(
    operands: Sequence[Tensor],
    axes: Sequence[Names],
    reduce: Names,
    *,
    conn: str = "and",
    quant: str = "lme",
    alpha: float = 1.0,
    log_weights: Sequence[float] | None = None,
    guard: Any = None,
    empty: float | None = None,
) -> Tensor:
    """As tenfold.ops.fuzzy.log_quantify."""
    order, spreads, mask, shape = _over(operands, axes, guard)
    v = log_and(*spreads) if conn == "and" else log_or(*spreads, alpha=alpha, log_weights=log_weights)
    reductions: dict[str, Callable[[Tensor, Tensor, list[int]], Tensor]] = {
        "lme": lambda v, mask, dims: log_mean_exp(v, mask, dims, alpha, True),
        "lse": lambda v, mask, dims: log_mean_exp(v, mask, dims, alpha, False),
        "mean": _mean,
        "sum": _sum,
        "max": _max,
        "min": _min,
    }
    empty = LOG_EMPTY[quant] if empty is None else empty
    return _reduce(reductions[quant], v, mask, shape, _reduced(order, reduce), empty)


def logmatmul(a: Tensor, b: Tensor, alpha: float = 1.0, mean: bool = False) -> Tensor:
    """out[.., x, z] = log(sum (or mean) over y of exp(alpha (a[.., x, y] + b[.., y, z]))) / alpha."""
    v = a[..., :, :, None] + b[..., None, :, :]
    if v.shape[-2] == 0:
        return v.sum(-2) - math.inf
    return log_mean_exp(v, torch.ones_like(v, dtype=torch.bool), [v.dim() - 2], alpha, mean)


def logmeanexp(
    x: Tensor,
    dim: int | Sequence[int] | None = None,
    alpha: float = 1.0,
    mask: Tensor | None = None,
    *,
    empty: float = -1e5,
) -> Tensor:
    """log(mean of exp(alpha x)) / alpha over some dimensions."""
    return _over_dims(lambda v, m, dims: log_mean_exp(v, m, dims, alpha, True), x, dim, mask, empty)


def atom_logits(z: Tensor, kind: str = "sigmoid", index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """log P and log(1 - P) of P = sigmoid(z), or of each class of softmax(z)."""
    if kind == "sigmoid":
        return F.logsigmoid(z), F.logsigmoid(-z)
    log = z.log_softmax(-1)
    classes = z.shape[-1]
    own = torch.eye(classes, dtype=torch.bool, device=z.device)
    others = z[..., None, :].expand(*z.shape, classes).masked_fill(own, -math.inf)
    nlog = log_mean_exp(others, ~own.expand(others.shape), [others.dim() - 1], 1.0, False)
    nlog = nlog - z.logsumexp(-1, keepdim=True)
    if index is None:
        return log, nlog
    return log.gather(-1, index[..., None])[..., 0], nlog.gather(-1, index[..., None])[..., 0]


# ---- truth values ----


def _low(x: Tensor, eps: float) -> Tensor:
    """pi0: away from 0."""
    return (1 - eps) * x + eps


def _high(x: Tensor, eps: float) -> Tensor:
    """pi1: away from 1."""
    return (1 - eps) * x


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "not": lambda x: 1 - x,
    "not_goedel": lambda x: torch.where(x == 0, 1.0, 0.0).to(x.dtype),
}
BINARY: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "and": lambda x, y, e: _low(x, e) * _low(y, e),
    "or": lambda x, y, e: _high(x, e) + _high(y, e) - _high(x, e) * _high(y, e),
    "implies": lambda x, y, e: 1 - _low(x, e) + _low(x, e) * _high(y, e),
    "implies_goguen": lambda x, y, e: torch.where(
        _low(x, e) <= y, 1.0, y / torch.where(_low(x, e) <= y, 1.0, _low(x, e))
    ),
    "and_goedel": lambda x, y, e: torch.minimum(x, y),
    "or_goedel": lambda x, y, e: torch.maximum(x, y),
    "implies_kleene": lambda x, y, e: torch.maximum(1 - x, y),
    "implies_goedel": lambda x, y, e: torch.where(x <= y, 1.0, y),
    "and_lukasiewicz": lambda x, y, e: (x + y - 1).clamp(min=0),
    "or_lukasiewicz": lambda x, y, e: (x + y).clamp(max=1),
    "implies_lukasiewicz": lambda x, y, e: (1 - x + y).clamp(max=1),
}


def evaluate(operands: Sequence[Tensor], formula: str | Sequence[str], eps: float) -> Tensor:
    """The truth value of a formula in postfix: operands by number, then what connects them."""
    stack: list[Tensor] = []
    for token in formula.split() if isinstance(formula, str) else formula:
        if token in UNARY:
            stack.append(UNARY[token](stack.pop()))
        elif token in BINARY:
            y, x = stack.pop(), stack.pop()
            stack.append(BINARY[token](x, y, eps))
        else:
            stack.append(operands[int(token)])
    (value,) = stack
    return value


FUZZY_EMPTY = {"pmean_error": 1.0, "pmean": 0.0, "mean": 1.0, "min": 1.0, "max": 0.0}


def fuzzy_quantify(
    operands: Sequence[Tensor],
    axes: Sequence[Names],
    reduce: Names,
    *,
    formula: str | Sequence[str],
    agg: str = "pmean_error",
    p: float = 2.0,
    eps: float = 1e-4,
    guard: Any = None,
    empty: float | None = None,
) -> Tensor:
    """As tenfold.ops.fuzzy.fuzzy_quantify."""
    order, spreads, mask, shape = _over(operands, axes, guard)
    u = evaluate(spreads, formula, eps)
    dims = _reduced(order, reduce)
    empty = FUZZY_EMPTY[agg] if empty is None else empty
    if not dims:
        return _reduce(_mean, u, mask, shape, dims, empty)
    if agg == "pmean_error":
        error = _reduce(
            lambda v, m, d: power_mean(v, m, d, p), 1 - _high(u, eps), mask, shape, dims, 1 - empty
        )
        return 1 - error
    if agg == "pmean":
        return _reduce(lambda v, m, d: power_mean(v, m, d, p), _low(u, eps), mask, shape, dims, empty)
    return _reduce({"mean": _mean, "min": _min, "max": _max}[agg], u, mask, shape, dims, empty)


def pmean(
    x: Tensor,
    dim: int | Sequence[int] | None = None,
    p: float = 2.0,
    mask: Tensor | None = None,
    *,
    eps: float = 0.0,
    empty: float = 0.0,
) -> Tensor:
    """(mean of x^p)^(1/p) over some dimensions, x moved away from 0 by eps."""
    return _over_dims(lambda v, m, d: power_mean(v, m, d, p), _low(x, eps), dim, mask, empty)


def pmean_error(
    x: Tensor,
    dim: int | Sequence[int] | None = None,
    p: float = 2.0,
    mask: Tensor | None = None,
    *,
    eps: float = 0.0,
    empty: float = 1.0,
) -> Tensor:
    """1 - (mean of (1 - x)^p)^(1/p) over some dimensions, x moved away from 1 by eps."""
    error = _over_dims(lambda v, m, d: power_mean(v, m, d, p), 1 - _high(x, eps), dim, mask, 1 - empty)
    return 1 - error


def _over_dims(
    how: Callable[[Tensor, Tensor, list[int]], Tensor],
    x: Tensor,
    dim: int | Sequence[int] | None,
    mask: Tensor | None,
    empty: float,
) -> Tensor:
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    mask = torch.ones((), dtype=torch.bool, device=x.device) if mask is None else mask
    return _reduce(how, x, mask, x.shape, [d % max(x.dim(), 1) for d in dims], empty)


# ---- sparse guards ----


class Pairs(NamedTuple):
    """As tenfold.ops.fuzzy.Pairs."""

    row_ptr: Tensor
    rows: Tensor
    columns: Tensor


def guarded_pairs(guard: Any) -> Pairs:
    """Where a guard over two axes holds, row by row."""
    mask = guard_mask(guard) if isinstance(guard, tuple) else guard
    rows, columns = mask.nonzero(as_tuple=True)
    row_ptr = F.pad(mask.sum(1).cumsum(0), (1, 0))
    return Pairs(row_ptr, rows, columns)


def _segments(how: Callable[[Tensor], Tensor], values: Tensor, row_ptr: Tensor, empty: float) -> Tensor:
    ends = row_ptr.tolist()
    parts = [values[a:b] for a, b in itertools.pairwise(ends)]
    results = [how(part) if part.numel() else part.sum() + empty for part in parts]
    return torch.stack(results) if results else values[:0]


def segment_logmeanexp(values: Tensor, row_ptr: Tensor, alpha: float = 1.0, *, empty: float = -1e5) -> Tensor:
    """logmeanexp of each segment values[row_ptr[i] : row_ptr[i + 1]]."""
    return _segments(lambda x: logmeanexp(x, None, alpha), values, row_ptr, empty)


def segment_pmean(
    values: Tensor,
    row_ptr: Tensor,
    p: float = 2.0,
    *,
    error: bool = False,
    eps: float = 0.0,
    empty: float | None = None,
) -> Tensor:
    """pmean, or pmean_error, of each segment."""
    empty = float(error) if empty is None else empty
    how = pmean_error if error else pmean
    return _segments(lambda x: how(x, None, p, eps=eps), values, row_ptr, empty)
