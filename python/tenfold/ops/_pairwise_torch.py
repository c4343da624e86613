"""The torch half of tenfold.ops.pairwise: gradients, transforms and torch.compile.

One kernel forward and one backward. Where nothing watches they are called as they are; the registered
operators are for torch.compile, for torch.func, for modes and for subclasses of torch.Tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from tenfold import _core
from tenfold.ops._torch import LIBRARY, apply, define, one_by_one
from tenfold.ops.pairwise import scores_shape

ARGUMENTS = ("u", "v", "w", "b", "hidden", "hidden_bias")


def _plain(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be called on these without a detour through torch's dispatcher."""
    return (
        not is_dynamo_compiling()
        and not torch._C._are_functorch_transforms_active()
        and _core.is_plain(tensors)
    )


# ---- registered operators ----


def _empty(u: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return torch.empty(scores_shape(u.shape, v.shape), dtype=u.dtype, device=u.device)


def _forward_kernel(
    u: Tensor,
    v: Tensor,
    w: Tensor,
    b: Tensor | None,
    hidden: Tensor | None,
    hidden_bias: Tensor | None,
    activation: str,
) -> Tensor:
    out = _empty(u, v)
    _core.pair_mlp(u, v, w, b, hidden, hidden_bias, activation, out)
    return out


def _empty_grads(
    grad: Tensor,
    u: Tensor,
    v: Tensor,
    w: Tensor,
    hidden: Tensor | None,
    hidden_bias: Tensor | None,
    activation: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    shapes = (u.shape, v.shape, w.shape, (), *(() if x is None else x.shape for x in (hidden, hidden_bias)))
    return [
        torch.empty(shape, dtype=u.dtype, device=u.device)
        for shape, want in zip(shapes, wanted, strict=True)
        if want
    ]


def _backward_kernel(
    grad: Tensor,
    u: Tensor,
    v: Tensor,
    w: Tensor,
    hidden: Tensor | None,
    hidden_bias: Tensor | None,
    activation: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    grads = _empty_grads(grad, u, v, w, hidden, hidden_bias, activation, wanted)
    some = iter(grads)
    each = [next(some) if want else None for want in wanted]
    _core.pair_mlp_backward(grad, u, v, w, hidden, hidden_bias, activation, *each)
    return grads


_forward_op = define(
    "pair_mlp(Tensor u, Tensor v, Tensor w, Tensor? b, Tensor? hidden, Tensor? hidden_bias,"
    " str activation) -> Tensor",
    _forward_kernel,
    _empty,
)
_backward_op = define(
    "pair_mlp_backward(Tensor grad, Tensor u, Tensor v, Tensor w, Tensor? hidden, Tensor? hidden_bias,"
    " str activation, bool[] wanted) -> Tensor[]",
    _backward_kernel,
    _empty_grads,
)


def _forward_vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    return one_by_one(partial(apply, PairMlp), info, in_dims, *args)


def _gradients(*args: Any) -> list[Tensor]:
    return list(apply(PairMlpBackward, *args))


def _backward_vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    return one_by_one(_gradients, info, in_dims, *args)


torch.library.register_vmap(_forward_op, _forward_vmap, lib=LIBRARY)
torch.library.register_vmap(_backward_op, _backward_vmap, lib=LIBRARY)


# ---- gradients ----


class PairMlp(Function):
    """u, v, w, b, hidden, hidden_bias, activation -> the scores."""

    @staticmethod
    def forward(
        u: Tensor,
        v: Tensor,
        w: Tensor,
        b: Tensor | None,
        hidden: Tensor | None,
        hidden_bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        """Run the kernel, or the operator."""
        run = _forward_kernel if _plain(u, v, w, b, hidden, hidden_bias) else _forward_op
        result: Tensor = run(u, v, w, b, hidden, hidden_bias, activation)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the arguments, without b."""
        u, v, w, _, hidden, hidden_bias, ctx.activation = inputs
        ctx.save_for_backward(u, v, w, hidden, hidden_bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Both layers again; recorded where something watches, so that differentiating again raises."""
        tensors = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[: len(ARGUMENTS)])
        args = (grad, *tensors, ctx.activation, wanted)
        if _plain(grad, *tensors):
            grads: Sequence[Tensor] = _backward_kernel(*args)
        elif is_dynamo_compiling():  # the operator raises by itself where its gradient is wanted
            grads = _backward_op(*args)
        else:
            grads = apply(PairMlpBackward, *args[:-1], tuple(wanted))
        some = iter(grads)
        return (*(next(some) if want else None for want in wanted), None)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element."""
        return _forward_vmap(info, in_dims, *args)


class PairMlpBackward(Function):
    """As the operator pair_mlp_backward; has no gradient itself."""

    @staticmethod
    def forward(
        grad: Tensor,
        u: Tensor,
        v: Tensor,
        w: Tensor,
        hidden: Tensor | None,
        hidden_bias: Tensor | None,
        activation: str,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        """Run the operator."""
        return tuple(_backward_op(grad, u, v, w, hidden, hidden_bias, activation, list(wanted)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Not provided."""
        raise NotImplementedError("pair_mlp has a first gradient only")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element."""
        grads, dims = _backward_vmap(info, in_dims, *args)
        return tuple(grads), tuple(dims)


def pair_mlp(
    u: Tensor,
    v: Tensor,
    w: Tensor,
    b: Tensor | None,
    hidden: Tensor | None,
    hidden_bias: Tensor | None,
    activation: str,
) -> Tensor:
    """See tenfold.ops.pairwise.pair_mlp."""
    args = (u, v, w, b, hidden, hidden_bias)
    for name, x in zip(ARGUMENTS, args, strict=True):
        if not isinstance(x, Tensor) and (x is not None or name in ("v", "w")):
            kind = f"{type(x).__module__}.{type(x).__name__}"
            raise TypeError(f"u is a torch.Tensor and {name} is a {kind}, want arrays of one library")
    if _plain(*args):
        return _forward_kernel(*args, activation)
    out: Tensor = apply(PairMlp, *args, activation)
    return out
