"""The torch half of tenfold.ops.fuzzy: gradients, transforms and torch.compile.

All quantifiers are one kernel forward and one backward, told apart by a `Spec`. Where nothing watches kernels
are called as they are; the registered operators are for torch.compile, for torch.func, for modes and for
subclasses of torch.Tensor. vmap adds an axis: no element of a batch is computed for itself while there are
letters left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from tenfold import _core
from tenfold.ops._torch import LIBRARY, apply, define, fold, one_by_one
from tenfold.ops.fuzzy import LETTERS, Spec, atoms_shape, out_shape, product_batch, sizes_of

Tensors = Sequence[Tensor]


def _plain(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be called on these without a detour through torch's dispatcher."""
    return (
        not is_dynamo_compiling()
        and not torch._C._are_functorch_transforms_active()
        and _core.is_plain(tensors)
    )


def _recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd looks on."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _call(function: type[Function], operator: Any, *args: Any) -> Any:
    """`operator` by way of its Function, which raises where its own gradient is wanted.

    Not under torch.compile: dynamo takes a Function in a backward pass, or one that autograd does not look
    at, for one with a context where its forward has arguments without number; and there the operator raises
    by itself.
    """
    return operator(*args) if is_dynamo_compiling() else apply(function, *args)


def _state_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _sizes(operands: Tensors, guards: Tensors, spec: Spec) -> list[int]:
    return sizes_of(tuple(LETTERS), spec.axes, [x.shape for x in operands], [x.shape for x in guards])


# ---- registered operators: quantifiers ----


def _empty(operands: Tensors, guards: Tensors, spec: Spec, keep: bool) -> tuple[Tensor, Tensor]:
    """The result and what the backward pass needs of it, of size 0 where that is nothing."""
    x = operands[0]
    shape = out_shape(spec, _sizes(operands, guards, spec))
    keep = keep and spec.quantifier != "copy"
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    return out, torch.empty((2, *shape) if keep else (0,), dtype=_state_type(x), device=x.device)


def _run_forward(operands: Tensors, guards: Tensors, spec: Spec, keep: bool) -> tuple[Tensor, Tensor]:
    out, state = _empty(operands, guards, spec, keep)
    _core.fuzzy_quantify(
        tuple(operands), tuple(guards), *spec, out, state if keep and spec.quantifier != "copy" else None
    )
    return out, state


def _run_backward(
    grad: Tensor, state: Tensor, operands: Tensors, guards: Tensors, spec: Spec, wanted: Sequence[bool]
) -> list[Tensor]:
    grads = [torch.empty_like(x) if want else None for x, want in zip(operands, wanted, strict=True)]
    _call_backward(grad, state, operands, guards, spec, grads, [False] * len(operands))
    return [x for x in grads if x is not None]


def _call_backward(
    grad: Tensor,
    state: Tensor,
    operands: Tensors,
    guards: Tensors,
    spec: Spec,
    grads: Sequence[Tensor | None],
    add_to: list[bool],
) -> None:
    kept = None if spec.quantifier == "copy" else state
    _core.fuzzy_quantify_backward(grad, kept, tuple(operands), tuple(guards), *spec, tuple(grads), add_to)


def _forward_kernel(operands: Tensors, guards: Tensors, *rest: Any) -> tuple[Tensor, Tensor]:
    *spec, keep = rest
    return _run_forward(operands, guards, Spec(*spec), keep)


def _forward_fake(operands: Tensors, guards: Tensors, *rest: Any) -> tuple[Tensor, Tensor]:
    *spec, keep = rest
    return _empty(operands, guards, Spec(*spec), keep)


def _backward_kernel(
    grad: Tensor, state: Tensor, operands: Tensors, guards: Tensors, *rest: Any
) -> list[Tensor]:
    *spec, wanted = rest
    return _run_backward(grad, state, operands, guards, Spec(*spec), wanted)


def _backward_fake(
    grad: Tensor, state: Tensor, operands: Tensors, guards: Tensors, *rest: Any
) -> list[Tensor]:
    return [torch.empty_like(x) for x, want in zip(operands, rest[-1], strict=True) if want]


_SPEC = "str axes, str kept, str formula, str quantifier, str relation, float[] numbers"
_forward_op = define(
    f"fuzzy_quantify(Tensor[] operands, Tensor[] guards, {_SPEC}, bool keep) -> (Tensor, Tensor)",
    _forward_kernel,
    _forward_fake,
)
_backward_op = define(
    "fuzzy_quantify_backward(Tensor grad, Tensor state, Tensor[] operands, Tensor[] guards,"
    f" {_SPEC}, bool[] wanted) -> Tensor[]",
    _backward_kernel,
    _backward_fake,
)


# ---- a batch is one more axis ----


def _in_front(size: int, dim: int | None, x: Tensor) -> Tensor:
    """`x` with the vmapped dimension (None: not vmapped) in front of the others."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _with_axis(spec: Spec, batched: Sequence[bool], guard: bool) -> Spec | None:
    """The spec with a new axis in front of what is batched; None where no letter is left."""
    free = [letter for letter in LETTERS if letter not in spec.axes]
    if not free:
        return None
    each, bar, where = spec.axes.partition("|")
    axes = [free[0] * more + letters for letters, more in zip(each.split(","), batched, strict=True)]
    where = free[0] * guard + where
    return spec._replace(axes=",".join(axes) + bar + where, kept=free[0] + spec.kept)


def _forward_vmap(
    info: Any, in_dims: Any, operands: Tensors, guards: Tensors, spec: Spec, keep: bool
) -> tuple[Any, Any]:
    dims, guard_dims = in_dims
    points = len(guards) == 2 and any(dim is not None for dim in guard_dims)
    guard = bool(guards) and guard_dims[0] is not None
    new = None if points else _with_axis(spec, [dim is not None for dim in dims], guard)
    call = partial(_quantify, spec=spec, keep=keep)
    if new is None:
        return _each(call, info.batch_size, dims, guard_dims, operands, guards)
    operands = [x if dim is None else x.movedim(dim, 0) for x, dim in zip(operands, dims, strict=True)]
    guards = [x if dim is None else x.movedim(dim, 0) for x, dim in zip(guards, guard_dims, strict=True)]
    out, state = _quantify(operands, guards, new, keep)
    return (out, state), (0, 1 if state.numel() or state.dim() > 1 else None)


def _each(
    call: Callable[..., Any], size: int, dims: Any, guard_dims: Any, operands: Tensors, guards: Tensors
) -> tuple[Any, Any]:
    def at(xs: Tensors, all_dims: Any, i: int) -> list[Tensor]:
        return [x if dim is None else x.select(dim, i) for x, dim in zip(xs, all_dims, strict=True)]

    results = [call(at(operands, dims, i), at(guards, guard_dims, i)) for i in range(size)]
    out = torch.stack([first for first, _ in results])
    states = [state for _, state in results]
    if states[0].dim() == 1 and states[0].shape[0] == 0:
        return (out, states[0]), (0, None)
    return (out, torch.stack(states)), (0, 0)


def _backward_vmap(
    info: Any,
    in_dims: Any,
    grad: Tensor,
    state: Tensor,
    operands: Tensors,
    guards: Tensors,
    spec: Spec,
    wanted: Sequence[bool],
) -> tuple[list[Tensor], list[int]]:
    grad_dim, state_dim, dims, guard_dims = in_dims
    size = info.batch_size
    points = len(guards) == 2 and any(dim is not None for dim in guard_dims)
    guard = bool(guards) and guard_dims[0] is not None
    batched = [dim is not None or want for dim, want in zip(dims, wanted, strict=True)]
    new = None if points else _with_axis(spec, batched, guard)
    if new is None:

        def at(x: Tensor, dim: int | None, i: int) -> Tensor:
            return x if dim is None else x.select(dim, i)

        parts = [
            _quantify_backward(
                at(grad, grad_dim, i),
                at(state, state_dim, i),
                [at(x, dim, i) for x, dim in zip(operands, dims, strict=True)],
                [at(x, dim, i) for x, dim in zip(guards, guard_dims, strict=True)],
                spec,
                wanted,
            )
            for i in range(size)
        ]
        stacked = [torch.stack(each) for each in zip(*parts, strict=True)]
        return stacked, [0] * len(stacked)
    # A gradient of its own for each element, of what they share too.
    operands = [
        _in_front(size, dim, x) if more else x for x, dim, more in zip(operands, dims, batched, strict=True)
    ]
    guards = [x if dim is None else x.movedim(dim, 0) for x, dim in zip(guards, guard_dims, strict=True)]
    if spec.quantifier != "copy":
        state = _in_front(size, state_dim, state).movedim(0, 1)
    grads = _quantify_backward(_in_front(size, grad_dim, grad), state, operands, guards, new, wanted)
    return list(grads), [0] * len(grads)


def _op_vmap(info: Any, in_dims: Any, operands: Any, guards: Any, *rest: Any) -> tuple[Any, Any]:
    *spec, keep = rest
    return _forward_vmap(info, in_dims[:2], operands, guards, Spec(*spec), keep)


def _backward_op_vmap(
    info: Any, in_dims: Any, grad: Any, state: Any, operands: Any, guards: Any, *rest: Any
) -> tuple[Any, Any]:
    *spec, wanted = rest
    return _backward_vmap(info, in_dims[:4], grad, state, operands, guards, Spec(*spec), wanted)


torch.library.register_vmap(_forward_op, _op_vmap, lib=LIBRARY)
torch.library.register_vmap(_backward_op, _backward_op_vmap, lib=LIBRARY)


# ---- gradients of quantifiers ----


class Quantify(Function):
    """spec, number of operands, keep, buffers, operands and guards -> the result and its state."""

    @staticmethod
    def forward(spec: Spec, count: int, keep: bool, buffers: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Run the kernel, or the operator."""
        operands, guards = tensors[:count], tensors[count:]
        if _plain(*tensors):
            return _run_forward(operands, guards, spec, keep)
        result: tuple[Tensor, Tensor] = _forward_op(list(operands), list(guards), *_plain_spec(spec), keep)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the operands; the state has no gradient."""
        ctx.spec, ctx.count, _, ctx.buffers, *tensors = inputs
        ctx.save_for_backward(output[1], *tensors)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Compute the formula again; recorded where something watches, so that doing it twice raises."""
        state, *tensors = ctx.saved_tensors
        operands, guards = tensors[: ctx.count], tensors[ctx.count :]
        wanted = list(ctx.needs_input_grad[4 : 4 + ctx.count])
        buffers = ctx.buffers or [None] * ctx.count
        nothing = (None,) * 4
        if not any(wanted):
            return (*nothing, *(None for _ in tensors))
        if ctx.buffers is not None:
            grads = [
                None if not want else torch.empty_like(x) if buffer is None else buffer
                for x, want, buffer in zip(operands, wanted, buffers, strict=True)
            ]
            _call_backward(
                grad, state, operands, guards, ctx.spec, grads, [buffer is not None for buffer in buffers]
            )
            given = [g if b is None else None for g, b in zip(grads, buffers, strict=True)]
            return (*nothing, *given, *(None for _ in guards))
        some = iter(_quantify_backward(grad, state, operands, guards, ctx.spec, wanted))
        return (*nothing, *(next(some) if want else None for want in wanted), *(None for _ in guards))

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, spec: Spec, count: int, keep: bool, buffers: Any, *tensors: Tensor
    ) -> tuple[Any, Any]:
        """One more axis."""
        dims = in_dims[4:]
        return _forward_vmap(info, (dims[:count], dims[count:]), tensors[:count], tensors[count:], spec, keep)


class QuantifyBackward(Function):
    """spec, number of operands, wanted, grad, state, operands and guards -> gradients; has none itself."""

    @staticmethod
    def forward(spec: Spec, count: int, wanted: tuple[bool, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the operator."""
        grad, state, *arrays = tensors
        return tuple(
            _backward_op(grad, state, arrays[:count], arrays[count:], *_plain_spec(spec), list(wanted))
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Not provided."""
        raise NotImplementedError("the quantifiers and connectives of fuzzy have a first gradient only")

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, spec: Spec, count: int, wanted: tuple[bool, ...], *tensors: Tensor
    ) -> tuple[Any, Any]:
        """One more axis."""
        grad, state, *arrays = tensors
        dims = in_dims[3:]
        in_dims = (dims[0], dims[1], dims[2 : 2 + count], dims[2 + count :])
        grads, out_dims = _backward_vmap(
            info, in_dims, grad, state, arrays[:count], arrays[count:], spec, wanted
        )
        return tuple(grads), tuple(out_dims)


def _plain_spec(spec: Spec) -> tuple[Any, ...]:
    return (*spec[:-1], list(spec.numbers))


def _quantify(operands: Tensors, guards: Tensors, spec: Spec, keep: bool) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = apply(Quantify, spec, len(operands), keep, None, *operands, *guards)
    return result


def _quantify_backward(
    grad: Tensor, state: Tensor, operands: Tensors, guards: Tensors, spec: Spec, wanted: Sequence[bool]
) -> Sequence[Tensor]:
    if _plain(grad, state, *operands, *guards):
        return _run_backward(grad, state, operands, guards, spec, wanted)
    result: Sequence[Tensor]
    if is_dynamo_compiling():  # see _call
        result = _backward_op(
            grad, state, list(operands), list(guards), *_plain_spec(spec), list(map(bool, wanted))
        )
    else:
        result = apply(QuantifyBackward, spec, len(operands), tuple(wanted), grad, state, *operands, *guards)
    return result


def quantify(
    operands: tuple[Tensor, ...],
    guards: tuple[Tensor, ...],
    spec: Spec,
    sizes: list[int],
    grad_buffers: Sequence[Tensor | None] | None,
) -> Tensor:
    """See tenfold.ops.fuzzy: log_quantify and fuzzy_quantify, and what is made of them."""
    for name, arrays in (("operands", operands), ("guard", guards)):
        for i, x in enumerate(arrays):
            if not isinstance(x, Tensor):
                kind = f"{type(x).__module__}.{type(x).__name__}"
                raise TypeError(f"{name}[{i}] is a {kind}, want torch tensors as the other arrays")
    if grad_buffers is not None:
        _check_buffers(operands, grad_buffers)
        grad_buffers = tuple(grad_buffers)
    if _plain(*operands, *guards):
        return _run_forward(operands, guards, spec, False)[0]
    if is_dynamo_compiling() and not _recorded(*operands):  # see _call
        alone: Tensor = _forward_op(list(operands), list(guards), *_plain_spec(spec), False)[0]
        return alone
    out: Tensor = apply(Quantify, spec, len(operands), True, grad_buffers, *operands, *guards)[0]
    return out


def _check_buffers(operands: tuple[Tensor, ...], buffers: Sequence[Tensor | None]) -> None:
    if is_dynamo_compiling() or torch._C._are_functorch_transforms_active():
        raise ValueError("grad_buffers is given under torch.compile or torch.func, want None")
    if len(buffers) != len(operands):
        raise ValueError(
            f"grad_buffers are {len(buffers)} for {len(operands)} operands, want one, or None, for each"
        )
    for i, (x, buffer) in enumerate(zip(operands, buffers, strict=True)):
        if buffer is None:
            continue
        if buffer.dtype != x.dtype or buffer.device != x.device:
            raise TypeError(
                f"grad_buffers[{i}] is {buffer.dtype} on {buffer.device}, want {x.dtype} on {x.device}"
            )
        if buffer.shape != x.shape:
            raise ValueError(
                f"grad_buffers[{i}] has shape {tuple(buffer.shape)}, want {tuple(x.shape)} as operands[{i}]"
            )
        if buffer.requires_grad:
            raise ValueError(f"grad_buffers[{i}] requires a gradient, want memory that does not")


# ---- atoms, products, segments: forward, and a backward that is not differentiated again ----


def _once(name: str, op: Any, vmap_rule: Callable[..., Any]) -> type[Function]:
    """A Function that runs an operator, and raises where its own gradient is wanted."""

    class Once(Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            raise NotImplementedError(f"{name} has a first gradient only")

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
            return vmap_rule(info, in_dims, *args)

    return Once


def _atoms_empty(z: Tensor, softmax: bool, index: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = atoms_shape(z.shape, softmax, None if index is None else index.shape)
    return z.new_empty(shape), z.new_empty(shape)


def _atoms_kernel(z: Tensor, softmax: bool, index: Tensor | None) -> tuple[Tensor, Tensor]:
    log, nlog = _atoms_empty(z, softmax, index)
    _core.atom_logits(z.contiguous(), softmax, None if index is None else index.contiguous(), log, nlog)
    return log, nlog


def _atoms_backward_kernel(
    log_grad: Tensor, nlog_grad: Tensor, z: Tensor, softmax: bool, index: Tensor | None
) -> Tensor:
    z_grad = z.new_empty(z.shape)
    _core.atom_logits_backward(
        log_grad.contiguous(),
        nlog_grad.contiguous(),
        z.contiguous(),
        softmax,
        None if index is None else index.contiguous(),
        z_grad,
    )
    return z_grad


_atoms_op = define(
    "atom_logits(Tensor z, bool softmax, Tensor? index) -> (Tensor, Tensor)", _atoms_kernel, _atoms_empty
)
_atoms_backward_op = define(
    "atom_logits_backward(Tensor log_grad, Tensor nlog_grad, Tensor z, bool softmax, Tensor? index)"
    " -> Tensor",
    _atoms_backward_kernel,
    lambda log_grad, nlog_grad, z, softmax, index: z.new_empty(z.shape),
)


def _atoms_vmap(info: Any, in_dims: Any, z: Tensor, softmax: bool, index: Tensor | None) -> tuple[Any, Any]:
    z = _in_front(info.batch_size, in_dims[0], z)
    index = None if index is None else _in_front(info.batch_size, in_dims[2], index)
    return apply(Atoms, z, softmax, index), (0, 0)


def _atoms_backward_vmap(
    info: Any,
    in_dims: Any,
    log_grad: Tensor,
    nlog_grad: Tensor,
    z: Tensor,
    softmax: bool,
    index: Tensor | None,
) -> tuple[Any, Any]:
    arrays = [
        _in_front(info.batch_size, dim, x)
        for dim, x in zip(in_dims[:3], (log_grad, nlog_grad, z), strict=True)
    ]
    index = None if index is None else _in_front(info.batch_size, in_dims[4], index)
    return apply(AtomsBackward, *arrays, softmax, index), 0


torch.library.register_vmap(_atoms_op, _atoms_vmap, lib=LIBRARY)
torch.library.register_vmap(_atoms_backward_op, _atoms_backward_vmap, lib=LIBRARY)
AtomsBackward = _once("atom_logits", _atoms_backward_op, _atoms_backward_vmap)


class Atoms(Function):
    """z, softmax, index -> log P, log(1 - P)."""

    @staticmethod
    def forward(z: Tensor, softmax: bool, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the kernel, or the operator."""
        run = _atoms_kernel if _plain(z, index) else _atoms_op
        result: tuple[Tensor, Tensor] = run(z, softmax, index)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the logits."""
        z, ctx.softmax, index = inputs
        ctx.save_for_backward(z, index)

    @staticmethod
    def backward(ctx: Any, log_grad: Tensor, nlog_grad: Tensor) -> tuple[Tensor, None, None]:
        """From the logits again."""
        z, index = ctx.saved_tensors
        args = (log_grad, nlog_grad, z, ctx.softmax, index)
        plain = _plain(log_grad, nlog_grad, z, index)
        z_grad = _atoms_backward_kernel(*args) if plain else _call(AtomsBackward, _atoms_backward_op, *args)
        return z_grad, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """All elements at once."""
        return _atoms_vmap(info, in_dims, *args)


def atom_logits(z: Tensor, softmax: bool, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """See tenfold.ops.fuzzy.atom_logits."""
    if index is not None and not isinstance(index, Tensor):
        raise TypeError(f"index is a {type(index).__name__}, want a torch tensor as z")
    atoms_shape(z.shape, softmax, None if index is None else index.shape)
    if _plain(z, index):
        return _atoms_kernel(z, softmax, index)
    log, nlog = apply(Atoms, z, softmax, index)
    return log, nlog


def _product_empty(a: Tensor, b: Tensor, alpha: float, mean: bool) -> Tensor:
    return a.new_empty((a.shape[0], a.shape[1], b.shape[2]))


def _product_kernel(a: Tensor, b: Tensor, alpha: float, mean: bool) -> Tensor:
    out = _product_empty(a, b, alpha, mean)
    _core.logmatmul(a, b, alpha, mean, out)
    return out


def _product_backward_kernel(
    grad: Tensor, a: Tensor, b: Tensor, alpha: float, mean: bool, to_a: bool, to_b: bool
) -> tuple[Tensor, Tensor]:
    a_grad, b_grad = _product_grads(a, b, to_a, to_b)
    _core.logmatmul_backward(grad, a, b, alpha, mean, a_grad if to_a else None, b_grad if to_b else None)
    return a_grad, b_grad


def _product_grads(a: Tensor, b: Tensor, to_a: bool, to_b: bool) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape if to_a else (0,)), b.new_empty(b.shape if to_b else (0,))


_product_op = define(
    "logmatmul(Tensor a, Tensor b, float alpha, bool mean) -> Tensor", _product_kernel, _product_empty
)
_product_backward_op = define(
    "logmatmul_backward(Tensor grad, Tensor a, Tensor b, float alpha, bool mean, bool to_a,"
    " bool to_b) -> (Tensor, Tensor)",
    _product_backward_kernel,
    lambda grad, a, b, alpha, mean, to_a, to_b: _product_grads(a, b, to_a, to_b),
)


def _product_vmap(
    info: Any, in_dims: Any, a: Tensor, b: Tensor, alpha: float, mean: bool
) -> tuple[Tensor, int]:
    size = info.batch_size
    folded = [fold(x, dim, size) for x, dim in zip((a, b), in_dims, strict=False)]
    return apply(LogMatmul, *folded, alpha, mean).unflatten(0, (size, -1)), 0


def _product_backward_vmap(
    info: Any, in_dims: Any, grad: Tensor, a: Tensor, b: Tensor, *rest: Any
) -> tuple[Any, Any]:
    size = info.batch_size
    folded = [fold(x, dim, size) for x, dim in zip((grad, a, b), in_dims, strict=False)]
    grads = apply(LogMatmulBackward, *folded, *rest)
    wanted = rest[-2:]
    return (
        tuple(g.unflatten(0, (size, -1)) if want else g for g, want in zip(grads, wanted, strict=True)),
        tuple(0 if want else None for want in wanted),
    )


torch.library.register_vmap(_product_op, _product_vmap, lib=LIBRARY)
torch.library.register_vmap(_product_backward_op, _product_backward_vmap, lib=LIBRARY)
LogMatmulBackward = _once("logmatmul", _product_backward_op, _product_backward_vmap)


class LogMatmul(Function):
    """a (B, X, Y), b (B, Y, Z), alpha, mean -> (B, X, Z)."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, alpha: float, mean: bool) -> Tensor:
        """Run the kernel, or the operator."""
        result: Tensor = (_product_kernel if _plain(a, b) else _product_op)(a, b, alpha, mean)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep both."""
        a, b, ctx.alpha, ctx.mean = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Two more products."""
        a, b = ctx.saved_tensors
        to_a, to_b = ctx.needs_input_grad[:2]
        args = (grad, a, b, ctx.alpha, ctx.mean, to_a, to_b)
        plain = _plain(grad, a, b)
        a_grad, b_grad = (
            _product_backward_kernel(*args)
            if plain
            else _call(LogMatmulBackward, _product_backward_op, *args)
        )
        return a_grad if to_a else None, b_grad if to_b else None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """All elements at once."""
        return _product_vmap(info, in_dims, *args)


def logmatmul(a: Tensor, b: Tensor, alpha: float, mean: bool) -> Tensor:
    """See tenfold.ops.fuzzy.logmatmul."""
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}, want two torch tensors")
    batch = product_batch(a.shape, b.shape)
    size = math.prod(batch)
    flat = [x.expand(*batch, *x.shape[-2:]).reshape(size, *x.shape[-2:]) for x in (a, b)]
    run: Callable[..., Tensor] = _product_kernel if _plain(*flat) else partial(apply, LogMatmul)
    out = run(*flat, alpha, mean)
    return out.reshape(*batch, *out.shape[1:])


def _segments_empty(
    values: Tensor, row_ptr: Tensor, quantifier: str, numbers: Sequence[float]
) -> tuple[Tensor, Tensor]:
    segments = row_ptr.shape[0] - 1
    state = torch.empty((2, segments), dtype=_state_type(values), device=values.device)
    return values.new_empty(segments), state


def _segments_kernel(
    values: Tensor, row_ptr: Tensor, quantifier: str, numbers: Sequence[float]
) -> tuple[Tensor, Tensor]:
    out, state = _segments_empty(values, row_ptr, quantifier, numbers)
    _core.fuzzy_segments(values.contiguous(), row_ptr.contiguous(), quantifier, numbers, out, state)
    return out, state


def _segments_backward_kernel(
    grad: Tensor, state: Tensor, values: Tensor, row_ptr: Tensor, quantifier: str, numbers: Sequence[float]
) -> Tensor:
    values_grad = values.new_empty(values.shape)
    _core.fuzzy_segments_backward(
        grad.contiguous(),
        state.contiguous(),
        values.contiguous(),
        row_ptr.contiguous(),
        quantifier,
        numbers,
        values_grad,
    )
    return values_grad


_segments_op = define(
    "fuzzy_segments(Tensor values, Tensor row_ptr, str quantifier, float[] numbers) -> (Tensor, Tensor)",
    _segments_kernel,
    _segments_empty,
)
_segments_backward_op = define(
    "fuzzy_segments_backward(Tensor grad, Tensor state, Tensor values, Tensor row_ptr, str quantifier,"
    " float[] numbers) -> Tensor",
    _segments_backward_kernel,
    lambda grad, state, values, row_ptr, quantifier, numbers: values.new_empty(values.shape),
)


def _segments_vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    return one_by_one(partial(apply, Segments), info, in_dims, *args)


def _segments_backward_vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    return one_by_one(partial(apply, SegmentsBackward), info, in_dims, *args)


torch.library.register_vmap(_segments_op, _segments_vmap, lib=LIBRARY)
torch.library.register_vmap(_segments_backward_op, _segments_backward_vmap, lib=LIBRARY)
SegmentsBackward = _once(
    "segment_logmeanexp and segment_pmean", _segments_backward_op, _segments_backward_vmap
)


class Segments(Function):
    """values, row_ptr, quantifier, numbers -> the result and its state."""

    @staticmethod
    def forward(
        values: Tensor, row_ptr: Tensor, quantifier: str, numbers: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Run the kernel, or the operator."""
        run = _segments_kernel if _plain(values, row_ptr) else _segments_op
        result: tuple[Tensor, Tensor] = run(values, row_ptr, quantifier, list(numbers))
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the values; the state has no gradient."""
        values, row_ptr, ctx.quantifier, ctx.numbers = inputs
        ctx.save_for_backward(output[1], values, row_ptr)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None, None]:
        """From the values again."""
        args = (grad, *ctx.saved_tensors, ctx.quantifier, list(ctx.numbers))
        plain = _plain(*args[:4])
        grad = (
            _segments_backward_kernel(*args)
            if plain
            else _call(SegmentsBackward, _segments_backward_op, *args)
        )
        return grad, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element."""
        return _segments_vmap(info, in_dims, *args)


def segments(values: Tensor, row_ptr: Tensor, spec: Spec) -> Tensor:
    """See tenfold.ops.fuzzy: segment_logmeanexp and segment_pmean."""
    if not isinstance(row_ptr, Tensor):
        raise TypeError(f"row_ptr is a {type(row_ptr).__name__}, want a torch tensor as values")
    numbers = list(spec.numbers)
    if _plain(values, row_ptr):
        return _segments_kernel(values, row_ptr, spec.quantifier, numbers)[0]
    out: Tensor = apply(Segments, values, row_ptr, spec.quantifier, numbers)[0]
    return out


# ---- index pairs ----


def pairs(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See tenfold.ops.fuzzy.guarded_pairs."""
    rows, columns = mask.nonzero(as_tuple=True)
    row_ptr = torch.nn.functional.pad(mask.count_nonzero(dim=1).cumsum(0), (1, 0))
    return row_ptr, rows, columns


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of points (n, features) and (m, features)."""
    return (a[:, None] - b[None]).square().sum(-1).sqrt()
