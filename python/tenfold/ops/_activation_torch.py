"""The torch half of tenfold.ops.activation: gradients, transforms and torch.compile.

Both ops are one kernel forward and one backward. Where nothing watches kernels are called as they are; the
registered operators are for torch.compile, for torch.func, for modes and for subclasses of torch.Tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from tenfold import _core
from tenfold.ops._torch import LIBRARY, apply, define, put, refuse_out_with_gradient
from tenfold.ops.activation import halved


def _plain(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be called on these without a detour through torch's dispatcher."""
    return (
        not is_dynamo_compiling()
        and not torch._C._are_functorch_transforms_active()
        and _core.is_plain(tensors)
    )


def _rows(x: Tensor) -> Tensor:
    """The tensor itself where the kernel can walk through its rows, else a copy."""
    if x.dim() > 4:
        return x.contiguous()
    return x if x.dim() == 0 or x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


# ---- registered operators ----


def _empty(x: Tensor, gated: bool) -> Tensor:
    return torch.empty(halved(x.shape) if gated else x.shape, dtype=x.dtype, device=x.device)


def _forward_kernel(x: Tensor, activation: str, gated: bool) -> Tensor:
    out = _empty(x, gated)
    _core.activate(_rows(x), out, activation, gated)
    return out


def _backward_kernel(grad: Tensor, x: Tensor, activation: str, gated: bool) -> Tensor:
    x_grad = _empty(x, gated=False)
    _core.activate_backward(_rows(grad), _rows(x), x_grad, None, activation, gated)
    return x_grad


_forward_op = define(
    "activate(Tensor x, str activation, bool gated) -> Tensor",
    _forward_kernel,
    lambda x, activation, gated: _empty(x, gated),
)
_backward_op = define(
    "activate_backward(Tensor grad, Tensor x, str activation, bool gated) -> Tensor",
    _backward_kernel,
    lambda grad, x, activation, gated: _empty(x, gated=False),
)


def _in_front(size: int, dim: int | None, x: Tensor) -> Tensor:
    """`x` with the vmapped dimension (None: not vmapped) in front of the others."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _forward_vmap(info: Any, in_dims: Any, x: Tensor, activation: str, gated: bool) -> tuple[Tensor, int]:
    x = _in_front(info.batch_size, in_dims[0], x)
    if gated:
        halved(x.shape[1:])
    return apply(Activate, x, activation, gated), 0


def _backward_vmap(
    info: Any, in_dims: Any, grad: Tensor, x: Tensor, activation: str, gated: bool
) -> tuple[Tensor, int]:
    grad, x = (_in_front(info.batch_size, dim, t) for dim, t in zip(in_dims, (grad, x), strict=False))
    return apply(ActivateBackward, grad, x, activation, gated), 0


torch.library.register_vmap(_forward_op, _forward_vmap, lib=LIBRARY)
torch.library.register_vmap(_backward_op, _backward_vmap, lib=LIBRARY)


# ---- gradients ----


class Activate(Function):
    """x, activation, gated -> the activated values."""

    @staticmethod
    def forward(x: Tensor, activation: str, gated: bool) -> Tensor:
        """Run the kernel, or the operator."""
        run = _forward_kernel if _plain(x) else _forward_op
        result: Tensor = run(x, activation, gated)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep x."""
        ctx.save_for_backward(inputs[0])
        ctx.activation, ctx.gated = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """One pass over both; recorded where something watches, so that differentiating again raises."""
        (x,) = ctx.saved_tensors
        args = (grad, x, ctx.activation, ctx.gated)
        return _backward_kernel(*args) if _plain(grad, x) else apply(ActivateBackward, *args), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        """All elements at once."""
        return _forward_vmap(info, in_dims, *args)


class ActivateBackward(Function):
    """As the operator activate_backward; has no gradient itself."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor, activation: str, gated: bool) -> Tensor:
        """Run the operator."""
        result: Tensor = _backward_op(grad, x, activation, gated)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Not provided."""
        raise NotImplementedError("activate and gated_activation have a first gradient only")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        """All elements at once."""
        return _backward_vmap(info, in_dims, *args)


# ---- what tenfold.ops.activation calls ----


def activate(x: Tensor, activation: str, out: Tensor | None) -> Tensor:
    """See tenfold.ops.activation.activate."""
    return _run(x, activation, False, out)


def gated_activation(x: Tensor, activation: str, out: Tensor | None) -> Tensor:
    """See tenfold.ops.activation.gated_activation."""
    return _run(x, activation, True, out)


def _run(x: Tensor, activation: str, gated: bool, out: Tensor | None) -> Tensor:
    if out is not None and not isinstance(out, Tensor):
        kind = f"{type(out).__module__}.{type(out).__name__}"
        raise TypeError(f"x is a torch.Tensor and out is a {kind}, want arrays of one library")
    refuse_out_with_gradient(out, x)
    if _plain(x, out):
        if out is None:
            return _forward_kernel(x, activation, gated)
        _core.activate(_rows(x), out, activation, gated)
        return out
    return put(apply(Activate, x, activation, gated), out)
