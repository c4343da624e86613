"""The torch half of tenfold.ops.adaln: gradients, transforms and torch.compile.

The three row ops are one kernel forward and one backward, with parts of them absent: `Block` records both.
Inside of a Function kernels are called as they are; the registered operators are for torch.compile, for
torch.func, for modes and for subclasses of torch.Tensor.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version
from torch.compiler import is_dynamo_compiling

from tenfold import _core
from tenfold.ops._torch import LIBRARY, apply, define, one_by_one, put, refuse_out_with_gradient

Grads = tuple[Tensor | None, ...]

H_TYPES = (torch.float32, torch.bfloat16)


def _plain(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be called on these without a detour through torch's dispatcher."""
    return (
        not is_dynamo_compiling()
        and not torch._C._are_functorch_transforms_active()
        and _core.is_plain(tensors)
    )


def _rows(x: Tensor | None) -> Tensor | None:
    """The tensor itself where the kernel can walk through its rows, else a copy."""
    if x is None or x.is_contiguous() or (x.stride(-1) == 1 and x.dim() <= 3):
        return x
    return x.contiguous()


def _vector(vector: Tensor | None) -> Tensor | None:
    """The tensor itself where its elements lie side by side, else a copy."""
    if vector is None or vector.dim() == 0 or vector.stride(-1) == 1:
        return vector
    return vector.contiguous()


def _per_row(x: Tensor, numbers: int) -> Tensor:
    """Memory for (numbers, rows of x)."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((numbers, math.prod(x.shape[:-1])), dtype=dtype)


# ---- registered operators ----


def _empty(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _forward_kernel(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
    residual: Tensor | None,
    h: Tensor | None,
    keep: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Residual, h and, where they are to be kept, h's statistics; `dtype` None: no h.

    `residual` and `h` are memory for them, or None.
    """
    statistics = None
    if branch is not None and residual is None:
        residual = _empty(x, None)
    if dtype is not None:
        h = _empty(x, dtype) if h is None else h
        statistics = _per_row(x, 2) if keep else None
    _core.adaln_forward(
        _rows(x),
        _rows(branch),
        _vector(gate),
        _vector(shift),
        _vector(scale),
        _vector(weight),
        _vector(bias),
        eps,
        residual,
        h,
        statistics,
    )
    return residual, h, statistics


def _adaln_kernel(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor | None, ...]:
    return _forward_kernel(x, None, None, shift, scale, weight, bias, eps, dtype, None, None, True)[1:]


def _fused_kernel(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor | None, ...]:
    return _forward_kernel(x, branch, gate, shift, scale, weight, bias, eps, dtype, None, None, True)


def _gated_kernel(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor | None:
    return _forward_kernel(x, branch, gate, None, None, None, None, 1.0, None, None, None, False)[0]


def _new_grads(
    x: Tensor,
    branch_type: torch.dtype | None,
    gate: Tensor | None,
    shift_type: torch.dtype | None,
    scale: Tensor | None,
    weight: Tensor | None,
    bias_type: torch.dtype | None,
    wanted: list[bool],
) -> list[Tensor | None]:
    """Memory for the gradients of (x, branch, gate, shift, scale, weight, bias)."""
    types = (
        x.dtype,
        branch_type,
        None if gate is None else gate.dtype,
        shift_type,
        None if scale is None else scale.dtype,
        None if weight is None else weight.dtype,
        bias_type,
    )
    per_sample = (x.shape[0], x.shape[-1])
    shapes = (x.shape, x.shape, per_sample, per_sample, per_sample, x.shape[-1:], x.shape[-1:])
    return [
        torch.empty(shape, dtype=dtype, device=x.device) if want else None
        for shape, dtype, want in zip(shapes, types, wanted, strict=True)
    ]


def _backward_kernel(
    x: Tensor,
    statistics: Tensor | None,
    branch: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual_grad: Tensor | None,
    h_grad: Tensor | None,
    branch_type: torch.dtype | None,
    shift_type: torch.dtype | None,
    bias_type: torch.dtype | None,
    wanted: list[bool],
) -> list[Tensor]:
    """The wanted ones of the gradients of (x, branch, gate, shift, scale, weight, bias)."""
    grads = _new_grads(x, branch_type, gate, shift_type, scale, weight, bias_type, wanted)
    _core.adaln_backward(
        _rows(x),
        statistics,
        _rows(branch),
        _vector(gate),
        _vector(scale),
        _vector(weight),
        _vector(bias),
        _rows(residual_grad),
        _rows(h_grad),
        tuple(grads),
    )
    return [grad for grad in grads if grad is not None]


def _backward_fake(x: Tensor, *args: Any) -> list[Tensor]:
    _, _, gate, scale, weight, _, _, _, branch_type, shift_type, bias_type, wanted = args
    grads = _new_grads(x, branch_type, gate, shift_type, scale, weight, bias_type, wanted)
    return [grad for grad in grads if grad is not None]


def _norm_kernel(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out, rstd = _empty(x, None), _per_row(x, 1)[0]
    _core.norm_rows(_grid(x), out, rstd, eps)
    return out, rstd


def _norm_backward_kernel(grad: Tensor, normalised: Tensor, rstd: Tensor) -> Tensor:
    x_grad = _empty(normalised, None)
    _core.norm_rows_backward(_grid(grad), normalised, rstd, x_grad)
    return x_grad


def _grid(x: Tensor) -> Tensor:
    """The tensor itself where norm_rows can walk through its rows, else a copy."""
    if x.is_contiguous() or (x.stride(-1) == 1 and x.dim() <= 4):
        return x
    return x.contiguous()


_VECTORS = "Tensor? shift, Tensor? scale, Tensor? weight, Tensor? bias, float eps, ScalarType dtype"
_adaln_op = define(
    f"adaln(Tensor x, {_VECTORS}) -> (Tensor, Tensor)",
    _adaln_kernel,
    lambda x, shift, scale, weight, bias, eps, dtype: (_empty(x, dtype), _per_row(x, 2)),
)
_fused_op = define(
    f"gated_residual_adaln(Tensor x, Tensor branch, Tensor? gate, {_VECTORS}) -> (Tensor, Tensor, Tensor)",
    _fused_kernel,
    lambda x, branch, gate, shift, scale, weight, bias, eps, dtype: (
        _empty(x, None),
        _empty(x, dtype),
        _per_row(x, 2),
    ),
)
_gated_op = define(
    "gated_residual(Tensor x, Tensor branch, Tensor? gate) -> Tensor",
    _gated_kernel,
    lambda x, branch, gate: _empty(x, None),
)
_backward_op = define(
    "adaln_backward(Tensor x, Tensor? statistics, Tensor? branch, Tensor? gate, Tensor? scale,"
    " Tensor? weight, Tensor? bias, Tensor? residual_grad, Tensor? h_grad, ScalarType? branch_type,"
    " ScalarType? shift_type, ScalarType? bias_type, bool[] wanted) -> Tensor[]",
    _backward_kernel,
    _backward_fake,
)
_norm_op = define(
    "norm_rows(Tensor x, float eps) -> (Tensor, Tensor)",
    _norm_kernel,
    lambda x, eps: (_empty(x, None), _per_row(x, 1)[0]),
)
_norm_backward_op = define(
    "norm_rows_backward(Tensor grad, Tensor normalised, Tensor rstd) -> Tensor",
    _norm_backward_kernel,
    lambda grad, normalised, rstd: _empty(normalised, None),
)

for _operator in (_adaln_op, _fused_op, _gated_op, _backward_op, _norm_op, _norm_backward_op):
    torch.library.register_vmap(_operator, partial(one_by_one, _operator), lib=LIBRARY)


# ---- gradients ----


def _keep_absent_grads(ctx: Any) -> None:
    """Have None, not zeros, for the gradient of what is not used; dynamo knows only zeros."""
    if not is_dynamo_compiling():
        ctx.set_materialize_grads(False)


class Block(Function):
    """x, branch or None, gate, shift, scale, weight, bias, eps, h's dtype or None -> residual, h, statistics.

    What was not asked for is None.
    """

    @staticmethod
    def forward(
        x: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        shift: Tensor | None,
        scale: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        dtype: torch.dtype | None,
    ) -> Grads:
        """Run the kernel, or one of the operators."""
        if _plain(x, branch, gate, shift, scale, weight, bias):
            return _forward_kernel(x, branch, gate, shift, scale, weight, bias, eps, dtype, None, None, True)
        if branch is None:
            return None, *_adaln_op(x, shift, scale, weight, bias, eps, dtype)
        if dtype is None:
            return _gated_op(x, branch, gate), None, None
        return _fused_op(x, branch, gate, shift, scale, weight, bias, eps, dtype)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Grads) -> None:
        """Keep what was normalised, and the vectors; branch for the gate, bias for the scale."""
        x, branch, gate, shift, scale, weight, bias, _, dtype = inputs
        residual, _, statistics = output
        _keep_absent_grads(ctx)
        if statistics is not None:
            ctx.mark_non_differentiable(statistics)
        ctx.save_for_backward(
            None if dtype is None else x if residual is None else residual,
            statistics,
            branch if gate is not None else None,
            gate,
            scale,
            weight,
            bias if scale is not None else None,
        )
        ctx.types = tuple(None if one is None else one.dtype for one in (x, branch, shift, bias))
        ctx.shapes = tuple(None if one is None else one.shape for one in (gate, shift, scale))

    @staticmethod
    def backward(
        ctx: Any, residual_grad: Tensor | None, h_grad: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """One pass over the rows; the sums over them are the vectors' gradients."""
        given = residual_grad if h_grad is None else h_grad
        if given is None:
            return (None,) * 9
        x_type, branch_type, shift_type, bias_type = ctx.types
        normalised, statistics, *others = ctx.saved_tensors
        if h_grad is None:
            normalised, statistics = residual_grad, None  # only its shape is looked at
        wanted = list(ctx.needs_input_grad[:7])
        wanted[0] = h_grad is not None
        if h_grad is None:
            wanted[3:] = [False] * 4
        # Without a gate, branch's gradient is x's.
        shared = wanted[1] and others[1] is None and branch_type == x_type
        wanted[1] = wanted[1] and not shared
        args = (
            normalised, statistics, *others, residual_grad, h_grad, branch_type, shift_type, bias_type, wanted
        )  # fmt: skip
        found = iter(_run_backward(*args) if any(wanted) else ())
        grads = [next(found) if want else None for want in wanted]
        if h_grad is None:
            grads[0] = residual_grad
        if shared:
            grads[1] = grads[0]
        for place, shape in zip((2, 3, 4), ctx.shapes, strict=True):
            grad = grads[place]
            if grad is not None and len(shape) == 3:
                grads[place] = grad[:, None]
        if not ctx.needs_input_grad[0]:
            grads[0] = None
        return *grads, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element, recording gradients."""
        return one_by_one(partial(apply, Block), info, in_dims, *args)


def _run_backward(*args: Any) -> Any:
    """The kernel where nothing watches; else recorded, so that differentiating again raises."""
    tensors = args[:9]
    return _backward_kernel(*args) if _plain(*tensors) else apply(BlockBackward, *args)


class BlockBackward(Function):
    """The arguments of the operator adaln_backward -> the wanted gradients."""

    @staticmethod
    def forward(
        x: Tensor,
        statistics: Tensor | None,
        branch: Tensor | None,
        gate: Tensor | None,
        scale: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        residual_grad: Tensor | None,
        h_grad: Tensor | None,
        branch_type: torch.dtype | None,
        shift_type: torch.dtype | None,
        bias_type: torch.dtype | None,
        wanted: list[bool],
    ) -> tuple[Tensor, ...]:
        """Run the operator."""
        rows, types = (residual_grad, h_grad), (branch_type, shift_type, bias_type)
        return tuple(_backward_op(x, statistics, branch, gate, scale, weight, bias, *rows, *types, wanted))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Not provided."""
        raise NotImplementedError("adaln, gated_residual and gated_residual_adaln have a first gradient only")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element."""
        return one_by_one(partial(apply, BlockBackward), info, in_dims, *args)


class NormRows(Function):
    """x (..., D), eps -> its normalised rows, and rstd (R)."""

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Normalise."""
        return _norm_kernel(x, eps) if _plain(x) else _norm_op(x, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        """Keep the results."""
        _keep_absent_grads(ctx)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        """From the normalised rows alone."""
        if grad is None:
            return None, None
        args = (grad, *ctx.saved_tensors)
        return _norm_backward_kernel(*args) if _plain(*args) else apply(NormRowsBackward, *args), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element, recording gradients."""
        return one_by_one(partial(apply, NormRows), info, in_dims, *args)


class NormRowsBackward(Function):
    """The gradient of the normalised rows, these, and rstd -> the gradient of x."""

    @staticmethod
    def forward(grad: Tensor, normalised: Tensor, rstd: Tensor) -> Tensor:
        """Run the operator."""
        return _norm_backward_op(grad, normalised, rstd)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Not provided."""
        raise NotImplementedError("qk_norm has a first gradient only")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element."""
        return one_by_one(partial(apply, NormRowsBackward), info, in_dims, *args)


# ---- what tenfold.ops.adaln calls ----


def _check(x: Tensor, tensors: dict[str, Tensor | None]) -> None:
    """Raise TypeError where not everything is a tensor of torch."""
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            kind = type(tensor)
            raise TypeError(
                f"x is a torch.Tensor and {name} is a {kind.__module__}.{kind.__name__}, want arrays of one"
                " library"
            )


def _check_eps(eps: float) -> float:
    if not 0.0 < eps < math.inf:
        raise ValueError(f"eps is {eps:g}, want a finite number above 0")
    return float(eps)


def _h_type(x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type of h: as asked for; else bfloat16 where autocast goes there; else x's."""
    if dtype is None:
        device = x.device.type
        if x.dtype in H_TYPES and torch.is_autocast_enabled(device):
            cast = torch.get_autocast_dtype(device)
            return cast if cast in H_TYPES else x.dtype
        return x.dtype
    if x.dtype == torch.float64 and dtype != torch.float64:
        raise TypeError(f"dtype is {dtype}, want torch.float64 as x")
    if x.dtype != torch.float64 and dtype not in H_TYPES:
        raise TypeError(f"dtype is {dtype}, want torch.float32 or torch.bfloat16")
    return dtype


def adaln(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
    out: Tensor | None,
) -> Tensor:
    """See tenfold.ops.adaln.adaln."""
    eps = _check_eps(eps)
    dtype = _h_type(x, dtype) if out is None else _type_of_out(dtype, out)
    if _plain(x, shift, scale, weight, bias, out):
        h = _forward_kernel(x, None, None, shift, scale, weight, bias, eps, dtype, None, out, False)[1]
        return _written(h, out)
    _check(x, {"shift": shift, "scale": scale, "weight": weight, "bias": bias, "out": out})
    refuse_out_with_gradient(out, x, shift, scale, weight, bias)
    return put(apply(Block, x, None, None, shift, scale, weight, bias, eps, dtype)[1], out)


def _type_of_out(dtype: torch.dtype | None, out: Tensor) -> torch.dtype:
    if dtype not in (None, out.dtype):
        raise TypeError(f"out has type {out.dtype}, want {dtype} as dtype says")
    return out.dtype


def _written(result: Any, out: Tensor | None) -> Tensor:
    if out is not None:
        increment_version(out)
    return result  # type: ignore[no-any-return]


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor | None, out: Tensor | None) -> Tensor:
    """See tenfold.ops.adaln.gated_residual."""
    if _plain(x, branch, gate, out):
        args = (None, None, None, None, 1.0, None, out, None, False)
        return _written(_forward_kernel(x, branch, gate, *args)[0], out)
    _check(x, {"branch": branch, "gate": gate, "out": out})
    refuse_out_with_gradient(out, x, branch, gate)
    return put(apply(Block, x, branch, gate, None, None, None, None, 1.0, None)[0], out)


def gated_residual_adaln(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """See tenfold.ops.adaln.gated_residual_adaln."""
    eps, dtype = _check_eps(eps), _h_type(x, dtype)
    if _plain(x, branch, gate, shift, scale, weight, bias):
        args = (shift, scale, weight, bias, eps, dtype, None, None, False)
        return _forward_kernel(x, branch, gate, *args)[:2]  # type: ignore[return-value]
    vectors = {"gate": gate, "shift": shift, "scale": scale, "weight": weight, "bias": bias}
    _check(x, {"branch": branch, **vectors})
    residual, h, _ = apply(Block, x, branch, gate, shift, scale, weight, bias, eps, dtype)
    return residual, h


def qk_norm(q: Tensor, k: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See tenfold.ops.adaln.qk_norm."""
    if not isinstance(k, Tensor):
        kind = type(k)
        raise TypeError(
            f"q is a torch.Tensor and k is a {kind.__module__}.{kind.__name__}, want arrays of one library"
        )
    eps = _check_eps(eps)
    if _plain(q, k):
        return _norm_kernel(q, eps)[0], _norm_kernel(k, eps)[0]
    return apply(NormRows, q, eps)[0], apply(NormRows, k, eps)[0]
