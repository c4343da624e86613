"""What the torch halves of the op families share: the operator library and a faster Function.apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad

from tenfold.ops._arrays import register_torch

register_torch()

LIBRARY = torch.library.Library("tenfold", "FRAGMENT")


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register `tenfold::<schema>` for every backend, and its shape rule for torch.compile.

    The operators have no gradient of their own: they are called inside a torch.autograd.Function, the one
    form for which torch.func.grad and vmap(grad) work and torch.func.jvp raises instead of returning zero.
    Reached in any other way with an input that wants a gradient, they raise too.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tenfold::{name}", fake, lib=LIBRARY)
    operator = getattr(torch.ops.tenfold, name).default

    def without_gradient(*args: Any) -> Any:
        if any(isinstance(arg, torch.Tensor) and _wants_gradient(arg) for arg in args):
            raise NotImplementedError(
                f"torch.ops.tenfold.{name} records no gradient here. Call tenfold.ops instead; its ops "
                "support backward, torch.func.grad and vmap, but not forward-mode differentiation, nor "
                "torch.func.grad and jvp inside torch.compile"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    LIBRARY.impl(name, without_gradient, "Autograd")
    return operator


def _wants_gradient(tensor: torch.Tensor) -> bool:
    if torch.is_grad_enabled() and tensor.requires_grad:
        return True
    return forward_ad.unpack_dual(tensor).tangent is not None


def apply(function: type[Function], *args: Any) -> Any:
    """`function.apply(*args)` without the signature that torch inspects at every call (10 us)."""
    if torch.compiler.is_dynamo_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(Function, function).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def refuse_out_with_gradient(out: torch.Tensor | None, *inputs: torch.Tensor | None) -> None:
    """Raise ValueError where a gradient would have to pass through memory that the caller keeps."""
    if out is None or not torch.is_grad_enabled():
        return
    if any(tensor is not None and tensor.requires_grad for tensor in (out, *inputs)):
        raise ValueError(
            "out is given and a gradient is wanted; want out=None, or a call under torch.no_grad()"
        )


def put(result: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """Return `result`, in `out` where that is given; `out` has to fit exactly, as it does for the kernels."""
    if out is None:
        return result
    if out.dtype != result.dtype or out.device != result.device:
        raise TypeError(
            f"out is {out.dtype} on {out.device}, want {result.dtype} on {result.device} as the input"
        )
    if out.shape != result.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, want {tuple(result.shape)}")
    out.copy_(result)  # which returns a subclass where `result` is one
    return out


def fold(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    """Merge a vmapped dimension (None: not vmapped) into the batch: (V, B, ...) -> (V * B, ...)."""
    moved = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)


def one_by_one(call: Callable[..., Any], info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    """A vmap rule: `call` for one element after the other. None among the results stays None."""

    def element(index: int) -> Any:
        return call(
            *(
                arg.select(dim, index) if isinstance(dim, int) else arg
                for arg, dim in zip(args, in_dims, strict=True)
            )
        )

    results = [element(index) for index in range(info.batch_size)]
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results), 0
    stacked = [None if parts[0] is None else torch.stack(parts) for parts in zip(*results, strict=True)]
    dims = [None if part is None else 0 for part in stacked]
    return (stacked, dims) if isinstance(results[0], list) else (tuple(stacked), tuple(dims))
