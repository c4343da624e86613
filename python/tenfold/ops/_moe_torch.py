"""The torch half of tenfold.ops.moe: gradients, transforms and torch.compile.

route    : backward = route_backward, the softmax's own
dispatch : backward = combine without gates, and the other way round
combine  : backward = combine_backward, whose own backward is both of them again
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from tenfold import _core
from tenfold.ops._torch import LIBRARY, apply, define, one_by_one
from tenfold.ops.moe import Routing

Arrays = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def rows_apart(x: Tensor) -> Tensor:
    """The tensor itself where the elements of a row lie side by side, else a copy."""
    return x if x.dim() != 2 or x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


# ---- registered operators ----


def _allocate(logits: Tensor, rows: int, experts: int, tokens: int) -> Arrays:
    def empty(count: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(count, dtype=dtype, device=logits.device)

    return empty(rows), empty(rows, torch.float32), empty(experts), empty(tokens + 1), empty(rows)


def _allocate_topk(logits: Tensor, k: int, renormalize: bool) -> Arrays:
    tokens, experts = logits.shape if logits.dim() == 2 else (0, 1)
    return _allocate(logits, tokens * max(0, k), experts, tokens)


def _allocate_choice(logits: Tensor, capacity: int) -> Arrays:
    batch, tokens, experts = logits.shape if logits.dim() == 3 else (0, 0, 1)
    return _allocate(logits, batch * experts * max(0, capacity), experts, batch * tokens)


def _topk_kernel(logits: Tensor, k: int, renormalize: bool) -> Arrays:
    arrays = _allocate_topk(logits, k, renormalize)
    _core.route_topk(logits, k, renormalize, arrays)
    return arrays


def _allocate_ids(expert_ids: Tensor, experts: int) -> Arrays:
    tokens, k = expert_ids.shape if expert_ids.dim() == 2 else (0, 0)
    ids, gates, offsets, starts, rows = _allocate(expert_ids, tokens * k, max(0, experts), tokens)
    return ids, torch.empty_like(gates, dtype=torch.int32), offsets, starts, rows


def _ids_kernel(expert_ids: Tensor, experts: int) -> Arrays:
    arrays = _allocate_ids(expert_ids, experts)
    _core.route_ids(expert_ids, experts, arrays)
    return arrays


def _choice_kernel(logits: Tensor, capacity: int) -> Arrays:
    arrays = _allocate_choice(logits, capacity)
    _core.route_expert_choice(logits, capacity, arrays)
    return arrays


def _route_backward_kernel(logits: Tensor, gates_grad: Tensor, renormalize: bool, *routing: Tensor) -> Tensor:
    shape = (routing[3].shape[0] - 1, logits.shape[-1])
    grad = torch.empty(shape, dtype=torch.float32, device=logits.device)
    _core.route_backward(logits, gates_grad.contiguous(), renormalize, routing, grad)
    return grad.view(logits.shape)


def _dispatch_kernel(x: Tensor, token_ids: Tensor) -> Tensor:
    out = x.new_empty((*token_ids.shape, *x.shape[1:]))
    _core.moe_dispatch(rows_apart(x), token_ids, out)
    return out


def _combine_kernel(y: Tensor, gates: Tensor | None, starts: Tensor, rows: Tensor) -> Tensor:
    out = y.new_empty((starts.shape[0] - 1, *y.shape[1:]))
    _core.moe_combine(rows_apart(y), None if gates is None else _gates_for(y, gates), starts, rows, out)
    return out


def _combine_backward_kernel(
    out_grad: Tensor, y: Tensor, gates: Tensor, token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    y_grad = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    weights = _gates_for(y, gates)
    gates_grad = torch.empty_like(weights)
    _core.moe_combine_backward(rows_apart(out_grad), rows_apart(y), weights, token_ids, y_grad, gates_grad)
    return y_grad, gates_grad.to(gates.dtype)


def _gates_for(y: Tensor, gates: Tensor) -> Tensor:
    """Gates in the type that rows of y's type are added up in."""
    return gates.to(torch.float64 if y.dtype == torch.float64 else torch.float32).contiguous()


_topk_op = define(
    "route_topk(Tensor logits, SymInt k, bool renormalize) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _topk_kernel,
    _allocate_topk,
)
_ids_op = define(
    "route_ids(Tensor expert_ids, SymInt experts) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _ids_kernel,
    _allocate_ids,
)
_choice_op = define(
    "route_expert_choice(Tensor logits, SymInt capacity) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _choice_kernel,
    _allocate_choice,
)
_route_backward_op = define(
    "route_backward(Tensor logits, Tensor gates_grad, bool renormalize, Tensor token_ids, Tensor gates,"
    " Tensor offsets, Tensor starts, Tensor rows) -> Tensor",
    _route_backward_kernel,
    lambda logits, gates_grad, renormalize, *routing: torch.empty(
        logits.shape, dtype=torch.float32, device=logits.device
    ),
)
_dispatch_op = define(
    "moe_dispatch(Tensor x, Tensor token_ids) -> Tensor",
    _dispatch_kernel,
    lambda x, token_ids: x.new_empty((*token_ids.shape, *x.shape[1:])),
)
_combine_op = define(
    "moe_combine(Tensor y, Tensor? gates, Tensor starts, Tensor rows) -> Tensor",
    _combine_kernel,
    lambda y, gates, starts, rows: y.new_empty((starts.shape[0] - 1, *y.shape[1:])),
)
_combine_backward_op = define(
    "moe_combine_backward(Tensor out_grad, Tensor y, Tensor gates, Tensor token_ids) -> (Tensor, Tensor)",
    _combine_backward_kernel,
    lambda out_grad, y, gates, token_ids: (
        torch.empty(y.shape, dtype=y.dtype, device=y.device),
        torch.empty_like(gates),
    ),
)


# ---- vmap: each element has a routing of its own, so each is its own call ----


for _operator in (
    _topk_op,
    _ids_op,
    _choice_op,
    _route_backward_op,
    _dispatch_op,
    _combine_op,
    _combine_backward_op,
):
    torch.library.register_vmap(_operator, partial(one_by_one, _operator), lib=LIBRARY)


# ---- gradients ----


class Route(Function):
    """logits, k (or capacity), renormalize (None for expert choice) -> the five arrays of a routing."""

    @staticmethod
    def forward(logits: Tensor, count: int, renormalize: bool | None) -> Arrays:
        """Route."""
        if renormalize is None:
            return _choice_op(logits, count)  # type: ignore[no-any-return]
        return _topk_op(logits, count, renormalize)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, bool | None], output: Arrays) -> None:
        """Keep the logits and the routing; only the gates have a gradient."""
        ctx.save_for_backward(inputs[0], *output)
        ctx.renormalize = bool(inputs[2])
        ctx.mark_non_differentiable(output[0], *output[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Through the softmax."""
        logits, *routing = ctx.saved_tensors
        grad = apply(RouteBackward, logits, grads[1], ctx.renormalize, *routing)
        return grad.to(logits.dtype), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element, recording gradients."""
        return one_by_one(partial(apply, Route), info, in_dims, *args)


class RouteBackward(Function):
    """logits, the gates' gradient (R), renormalize, the routing -> the logits' gradient, float32."""

    @staticmethod
    def forward(
        logits: Tensor,
        gates_grad: Tensor,
        renormalize: bool,
        token_ids: Tensor,
        gates: Tensor,
        offsets: Tensor,
        starts: Tensor,
        rows: Tensor,
    ) -> Tensor:
        """Through the softmax."""
        routing = (token_ids, gates, offsets, starts, rows)
        return _route_backward_op(logits, gates_grad, renormalize, *routing)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Not provided."""
        raise NotImplementedError("the gates of a routing have a first gradient only")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element."""
        return one_by_one(partial(apply, RouteBackward), info, in_dims, *args)


class Dispatch(Function):
    """x (T, D), token_ids (R), starts (T + 1), rows (R) -> (R, D)."""

    @staticmethod
    def forward(x: Tensor, token_ids: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
        """Dispatch."""
        return _dispatch_op(x, token_ids)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the routing."""
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Add up the rows of each token."""
        return apply(Gathered, grad, *ctx.saved_tensors), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element, recording gradients."""
        return one_by_one(partial(apply, Dispatch), info, in_dims, *args)


class Gathered(Function):
    """y (R, D), token_ids (R), starts (T + 1), rows (R) -> (T, D), the plain sums; Dispatch's transpose."""

    @staticmethod
    def forward(y: Tensor, token_ids: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
        """Add up."""
        return _combine_op(y, None, starts, rows)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the routing."""
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Copy each token's gradient to its rows."""
        return apply(Dispatch, grad, *ctx.saved_tensors), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element, recording gradients."""
        return one_by_one(partial(apply, Gathered), info, in_dims, *args)


class Combine(Function):
    """y (R, D), gates (R), token_ids (R), starts (T + 1), rows (R) -> (T, D)."""

    @staticmethod
    def forward(y: Tensor, gates: Tensor, token_ids: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
        """Add up, weighted."""
        return _combine_op(y, gates, starts, rows)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep everything."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Scale each token's gradient for its rows; the gates' are products of rows."""
        y_grad, gates_grad = apply(CombineBackward, grad, *ctx.saved_tensors)
        return y_grad, gates_grad, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element, recording gradients."""
        return one_by_one(partial(apply, Combine), info, in_dims, *args)


class CombineBackward(Function):
    """out_grad (T, D), y (R, D), gates (R), the routing -> gradients of y and of the gates.

    y_grad[r] = gates[r] out_grad[t] and gates_grad[r] = y[r] . out_grad[t], for t the token of r. With
    gradients u of the first and v of the second, that of out_grad is the sum of gates[r] u[r] + v[r] y[r]
    over t's rows, and those of y and gates are v[r] out_grad[t] and u[r] . out_grad[t]: this function again.
    """

    @staticmethod
    def forward(
        out_grad: Tensor, y: Tensor, gates: Tensor, token_ids: Tensor, starts: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scale, and multiply rows."""
        return _combine_backward_op(out_grad, y, gates, token_ids)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep everything."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, y_grad: Tensor, gates_grad: Tensor) -> tuple[Tensor | None, ...]:
        """As the docstring of the class says."""
        out_grad, y, gates, *routing = ctx.saved_tensors
        to_out = apply(Combine, y_grad, gates, *routing) + apply(Combine, y, gates_grad, *routing)
        to_y, to_gates = apply(CombineBackward, out_grad, y_grad, gates_grad, *routing)
        return to_out, to_y, to_gates, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element, recording gradients."""
        return one_by_one(partial(apply, CombineBackward), info, in_dims, *args)


# ---- what tenfold.ops.moe calls ----


def check_library(name: str, tensor: Tensor, routing: Routing) -> None:
    if not isinstance(routing.token_ids, Tensor):
        raise TypeError(
            f"{name} is a {type(tensor).__name__} of torch and the routing is made of "
            f"{type(routing.token_ids).__module__}.{type(routing.token_ids).__name__}, want one library"
        )


def route_topk(logits: Tensor, k: int, renormalize: bool) -> Arrays:
    """See tenfold.ops.moe.route_topk."""
    return apply(Route, logits, k, renormalize)  # type: ignore[no-any-return]


def route_expert_choice(logits: Tensor, capacity: int) -> Arrays:
    """See tenfold.ops.moe.route_expert_choice."""
    return apply(Route, logits, capacity, None)  # type: ignore[no-any-return]


def routing_from_ids(expert_ids: Tensor, weights: Tensor, experts: int) -> Arrays:
    """See tenfold.ops.moe.routing_from_ids."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"expert_ids is a tensor of torch and weights is a {type(weights)}, want one library")
    token_ids, source, offsets, starts, rows = _ids_op(expert_ids, experts)
    return token_ids, weights.reshape(-1).float()[source], offsets, starts, rows


def dispatch(x: Tensor, routing: Routing) -> Tensor:
    """See tenfold.ops.moe.dispatch."""
    check_library("x", x, routing)
    return apply(Dispatch, x, routing.token_ids, routing.starts, routing.rows)  # type: ignore[no-any-return]


def combine(y: Tensor, routing: Routing, weighted: bool) -> Tensor:
    """See tenfold.ops.moe.combine."""
    check_library("y", y, routing)
    if not weighted:
        return apply(Gathered, y, routing.token_ids, routing.starts, routing.rows)  # type: ignore[no-any-return]
    ids, gates, _, starts, rows = routing
    return apply(Combine, y, gates, ids, starts, rows)  # type: ignore[no-any-return]
