"""The torch half of tenfold.ops.moe.expert_ffn: the core's products in float32 on the CPU, else torch's."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from tenfold import _core
from tenfold.ops._moe_torch import Gathered, check_library, combine, rows_apart
from tenfold.ops._torch import LIBRARY, apply, define, one_by_one
from tenfold.ops.moe import Activation, Routing

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


# ---- registered operators ----


def _activate(name: str, hidden: Tensor) -> Tensor:
    if name in ("gelu", "gelu_tanh"):
        return F.gelu(hidden, approximate="tanh" if name == "gelu_tanh" else "none")
    return F.silu(hidden) if name == "silu" else F.relu(hidden)


def _activate_backward(name: str, grad: Tensor, hidden: Tensor) -> Tensor:
    if name in ("gelu", "gelu_tanh"):
        approximate = "tanh" if name == "gelu_tanh" else "none"
        return torch.ops.aten.gelu_backward(grad, hidden, approximate=approximate)  # type: ignore[no-any-return]
    if name == "silu":
        return torch.ops.aten.silu_backward(grad, hidden)  # type: ignore[no-any-return]
    return torch.ops.aten.threshold_backward(grad, hidden, 0)  # type: ignore[no-any-return]


def _in_core(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def _check(x: Tensor, offsets: Tensor, w_in: Tensor, w_out: Tensor, activation: str, gated: bool) -> None:
    """What the core checks itself, for the way through torch."""
    if activation not in get_args(Activation):
        raise ValueError(f"activation is '{activation}', want gelu, gelu_tanh, silu or relu")
    for name, weight in (("w_in", w_in), ("w_out", w_out)):
        if weight.dtype != x.dtype:
            raise TypeError(f"{name} has type {weight.dtype}, want {x.dtype} as x")
        if weight.dim() != 3:
            raise ValueError(f"{name} has shape {tuple(weight.shape)}, want three dimensions")
    experts, inner = w_in.shape[0], w_in.shape[2]
    if gated and inner % 2:
        raise ValueError(f"w_in has shape {tuple(w_in.shape)}, want an even last dimension for a gate")
    for name, tensor, wanted in (
        ("w_in", w_in, (experts, x.shape[-1], inner)),
        ("w_out", w_out, (experts, inner // 2 if gated else inner, x.shape[-1])),
        ("offsets", offsets, (experts,)),
    ):
        if tuple(tensor.shape) != wanted:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, want {wanted}")


def _ends(offsets: Tensor, rows: int) -> list[int]:
    ends: list[int] = offsets.tolist()
    if ends != sorted(ends) or (ends[-1] if ends else 0) != rows:
        raise ValueError(f"offsets are {ends}, want ascending ends, the last of them {rows}")
    return ends


def _rows_of(x: Tensor, token_ids: Tensor) -> Tensor:
    out = x.new_empty((*token_ids.shape, *x.shape[1:]))
    _core.moe_dispatch(rows_apart(x), token_ids, out)
    return out


def _affine(out: Tensor, rows: Tensor, weights: Tensor, bias: Tensor | None, expert: int) -> Tensor:
    if bias is None:
        return torch.mm(rows, weights[expert], out=out)
    return torch.addmm(bias[expert], rows, weights[expert], out=out)


def _experts_kernel(
    x: Tensor,
    token_ids: Tensor,
    offsets: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    activation: str,
    gated: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    rows = token_ids.shape[0]
    y = x.new_empty((rows, *x.shape[1:]))
    hidden = x.new_empty((rows if save else 0, w_in.shape[-1]))
    if _in_core(x):
        kept = hidden if save else None
        weights = (w_in, w_out, b_in, b_out)
        _core.experts_forward(rows_apart(x), token_ids, offsets, *weights, activation, gated, y, kept)
        return y, hidden
    _check(x, offsets, w_in, w_out, activation, gated)
    begin = 0
    for expert, end in enumerate(_ends(offsets, rows)):
        before = hidden[begin:end] if save else x.new_empty((end - begin, w_in.shape[-1]))
        _affine(before, _rows_of(x, token_ids[begin:end]), w_in, b_in, expert)
        value, factor = before.chunk(2, dim=1) if gated else (before, None)
        after = _activate(activation, value)
        _affine(y[begin:end], after if factor is None else after.mul_(factor), w_out, b_out, expert)
        begin = end
    return y, hidden


def _experts_backward_kernel(
    y_grad: Tensor,
    hidden: Tensor,
    x: Tensor,
    token_ids: Tensor,
    offsets: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    activation: str,
    gated: bool,
) -> Grads:
    grads = _empty_grads(y_grad, x, w_in, w_out, b_in, b_out)
    x_grad, w_in_grad, w_out_grad, b_in_grad, b_out_grad = grads
    if _in_core(x):
        weights = (w_in, w_out, b_in, b_out)
        given = (*grads[:3], None if b_in is None else b_in_grad, None if b_out is None else b_out_grad)
        y_grad = y_grad.contiguous()
        _core.experts_backward(
            rows_apart(x), token_ids, offsets, *weights, activation, gated, hidden, y_grad, given
        )
        return grads
    begin = 0
    for expert, end in enumerate(_ends(offsets, token_ids.shape[0])):
        rows = slice(begin, end)
        begin = end
        value, factor = hidden[rows].chunk(2, dim=1) if gated else (hidden[rows], None)
        after = _activate(activation, value)
        grad = y_grad[rows] @ w_out[expert].t()
        if factor is None:
            before_grad, used = _activate_backward(activation, grad, value), after
        else:
            value_grad = _activate_backward(activation, grad * factor, value)
            before_grad, used = torch.cat([value_grad, grad * after], dim=1), after * factor
        torch.mm(before_grad, w_in[expert].t(), out=x_grad[rows])
        torch.mm(_rows_of(x, token_ids[rows]).t(), before_grad, out=w_in_grad[expert])
        torch.mm(used.t(), y_grad[rows], out=w_out_grad[expert])
        if b_in is not None:
            b_in_grad[expert] = before_grad.sum(dim=0)
        if b_out is not None:
            b_out_grad[expert] = y_grad[rows].sum(dim=0)
    return grads


def _empty_grads(
    y_grad: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None
) -> Grads:
    """Memory of the gradients; those of biases that are not there are empty."""
    return (
        torch.empty(y_grad.shape, dtype=x.dtype, device=x.device),
        _dense_like(w_in),
        _dense_like(w_out),
        x.new_empty(0 if b_in is None else b_in.shape),
        x.new_empty(0 if b_out is None else b_out.shape),
    )


def _dense_like(weight: Tensor) -> Tensor:
    """Memory for the gradient of a weight: in its layout where a row or column of that lies side by side."""
    if 1 in weight.stride()[-2:]:
        return torch.empty_like(weight)
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


_experts_op = define(
    "experts(Tensor x, Tensor token_ids, Tensor offsets, Tensor w_in, Tensor w_out, Tensor? b_in,"
    " Tensor? b_out, str activation, bool gated, bool save) -> (Tensor, Tensor)",
    _experts_kernel,
    lambda x, token_ids, offsets, w_in, w_out, b_in, b_out, activation, gated, save: (
        x.new_empty((token_ids.shape[0], *x.shape[1:])),
        x.new_empty((token_ids.shape[0] if save else 0, w_in.shape[-1])),
    ),
)
_experts_backward_op = define(
    "experts_backward(Tensor y_grad, Tensor hidden, Tensor x, Tensor token_ids, Tensor offsets, Tensor w_in,"
    " Tensor w_out, Tensor? b_in, Tensor? b_out, str activation, bool gated)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _experts_backward_kernel,
    lambda y_grad, hidden, x, token_ids, offsets, *weights_and_kind: _empty_grads(
        y_grad, x, *weights_and_kind[:4]
    ),
)
for _operator in (_experts_op, _experts_backward_op):
    torch.library.register_vmap(_operator, partial(one_by_one, _operator), lib=LIBRARY)


# ---- gradients ----


class ExpertRows(Function):
    """x (T, D), token_ids, offsets, starts and rows of the routing, weights, biases -> (R, D), (R, I)."""

    @staticmethod
    def forward(
        x: Tensor,
        token_ids: Tensor,
        offsets: Tensor,
        starts: Tensor,
        rows: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        b_in: Tensor | None,
        b_out: Tensor | None,
        activation: str,
        gated: bool,
    ) -> tuple[Tensor, Tensor]:
        """Each expert on its rows."""
        result: tuple[Tensor, Tensor] = _experts_op(
            x, token_ids, offsets, w_in, w_out, b_in, b_out, activation, gated, True
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the inputs and the hidden values."""
        ctx.save_for_backward(output[1], *inputs[:9])
        ctx.mark_non_differentiable(output[1])
        ctx.activation, ctx.gated = inputs[9], inputs[10]

    @staticmethod
    def backward(ctx: Any, y_grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Through both products."""
        hidden, x, token_ids, offsets, starts, rows, w_in, w_out, b_in, b_out = ctx.saved_tensors
        inputs = (x, token_ids, offsets, w_in, w_out, b_in, b_out)
        x_rows, w_in_grad, w_out_grad, b_in_grad, b_out_grad = apply(
            ExpertRowsBackward, y_grad, hidden, *inputs, ctx.activation, ctx.gated
        )
        x_grad = apply(Gathered, x_rows, token_ids, starts, rows) if ctx.needs_input_grad[0] else None
        biases = (None if b_in is None else b_in_grad, None if b_out is None else b_out_grad)
        return x_grad, None, None, None, None, w_in_grad, w_out_grad, *biases, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element, recording gradients."""
        return one_by_one(partial(apply, ExpertRows), info, in_dims, *args)


class ExpertRowsBackward(Function):
    """As the operator experts_backward; has no gradient itself."""

    @staticmethod
    def forward(
        y_grad: Tensor,
        hidden: Tensor,
        x: Tensor,
        token_ids: Tensor,
        offsets: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        b_in: Tensor | None,
        b_out: Tensor | None,
        activation: str,
        gated: bool,
    ) -> Grads:
        """Gradients of x's rows, the weights and the biases (empty where there are none)."""
        grads: Grads = _experts_backward_op(
            y_grad, hidden, x, token_ids, offsets, w_in, w_out, b_in, b_out, activation, gated
        )
        return grads

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Grads) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        """Not provided."""
        raise NotImplementedError("expert_ffn has a first gradient only")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element."""
        return one_by_one(partial(apply, ExpertRowsBackward), info, in_dims, *args)


# ---- what tenfold.ops.moe calls ----


def expert_ffn(
    x: Tensor,
    routing: Routing,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    activation: str,
    gated: bool,
) -> Tensor:
    """See tenfold.ops.moe.expert_ffn."""
    check_library("x", x, routing)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, w_in, w_out = x.to(dtype), w_in.to(dtype), w_out.to(dtype)
        b_in, b_out = (None if bias is None else bias.to(dtype) for bias in (b_in, b_out))
    token_ids, _, offsets, starts, rows = routing
    weights = (w_in, w_out, b_in, b_out)
    if _recorded(x, *weights):
        y, _ = apply(ExpertRows, x, token_ids, offsets, starts, rows, *weights, activation, gated)
    else:
        y, _ = _experts_op(x, token_ids, offsets, *weights, activation, gated, False)
    return combine(y, routing, weighted=True)


def _recorded(*tensors: Tensor | None) -> bool:
    """Whether a gradient may be wanted, so that the hidden values are kept."""
    if torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
