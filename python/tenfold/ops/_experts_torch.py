"""The torch half of tenfold.ops.moe.expert_ffn: the core's products in float32 on the CPU, else torch's."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor
from torch.autograd import Function

from tenfold import _core
from tenfold.ops._moe_torch import Gathered, check_library, combine, rows_apart
from tenfold.ops._torch import LIBRARY, apply, define, one_by_one
from tenfold.ops.moe import Activation, Routing

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


# ---- registered operators ----


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


def _rows_of(x: Tensor, token_ids: Tensor) -> Tensor:
    out = x.new_empty((*token_ids.shape, *x.shape[1:]))
    _core.moe_dispatch(rows_apart(x), token_ids, out)
    return out


class _Groups:
    """Products of each expert's rows: one batched product where all experts have as many, else one by one."""

    def __init__(self, offsets: Tensor, rows: int) -> None:
        ends: list[int] = offsets.tolist()
        if ends != sorted(ends) or (ends[-1] if ends else 0) != rows:
            raise ValueError(f"offsets are {ends}, want ascending ends, the last of them {rows}")
        self.slices = [slice(begin, end) for begin, end in pairwise([0, *ends])]
        count = len(ends)
        self.even = ends == [rows // count * (expert + 1) for expert in range(count)]

    def _batch(self, rows: Tensor) -> Tensor:
        return rows.view(len(self.slices), -1, rows.shape[-1])

    def times(self, out: Tensor, rows: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
        """out[r] = rows[r] @ weights[e] + bias[e]."""
        if not self.even:
            for e, at in enumerate(self.slices):
                if bias is None:
                    torch.mm(rows[at], weights[e], out=out[at])
                else:
                    torch.addmm(bias[e], rows[at], weights[e], out=out[at])
        elif bias is None:
            torch.bmm(self._batch(rows), weights, out=self._batch(out))
        else:
            torch.baddbmm(bias[:, None], self._batch(rows), weights, out=self._batch(out))
        return out

    def gradient(self, out: Tensor, left: Tensor, right: Tensor) -> None:
        """out[e] = left^T @ right over the rows of e."""
        if self.even:
            torch.bmm(self._batch(left).mT, self._batch(right), out=out)
            return
        for e, at in enumerate(self.slices):
            torch.mm(left[at].t(), right[at], out=out[e])

    def sums(self, out: Tensor, rows: Tensor) -> None:
        """out[e] = the sum of e's rows."""
        for e, at in enumerate(self.slices):
            torch.sum(rows[at], dim=0, out=out[e])


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
    groups = _Groups(offsets, rows)
    before = hidden if save else x.new_empty((rows, w_in.shape[-1]))
    groups.times(before, _rows_of(x, token_ids), w_in, b_in)
    after = x.new_empty((rows, w_out.shape[1]))
    _core.activate(before, after, activation, gated)
    return groups.times(y, after, w_out, b_out), hidden


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
    rows = token_ids.shape[0]
    groups = _Groups(offsets, rows)
    y_grad = y_grad.contiguous()
    after_grad = groups.times(x.new_empty((rows, w_out.shape[1])), y_grad, w_out.mT)
    before_grad, after = torch.empty_like(hidden), torch.empty_like(after_grad)
    _core.activate_backward(after_grad, hidden, before_grad, after, activation, gated)
    groups.times(x_grad, before_grad, w_in.mT)
    groups.gradient(w_in_grad, _rows_of(x, token_ids), before_grad)
    groups.gradient(w_out_grad, after, y_grad)
    if b_in is not None:
        groups.sums(b_in_grad, before_grad)
    if b_out is not None:
        groups.sums(b_out_grad, y_grad)
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
        ctx.set_materialize_grads(False)  # zeros as many as the hidden values
        ctx.activation, ctx.gated = inputs[9], inputs[10]

    @staticmethod
    def backward(ctx: Any, y_grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """Through both products."""
        if y_grad is None:
            return (None,) * 11
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
