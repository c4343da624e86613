"""The torch half of tenfold.ops.mixing: gradients, transforms and torch.compile."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from tenfold import _core
from tenfold.ops._arrays import whole
from tenfold.ops._torch import LIBRARY, apply, define, one_by_one
from tenfold.ops.mixing import Compat, Report, Solution, _check_compat, seed_of, shapes, sweeps_of

Arrays = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""z, V, norms, negative, order, counts."""


def _plain(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be called on these without a detour through torch's dispatcher."""
    return (
        not is_dynamo_compiling()
        and not torch._C._are_functorch_transforms_active()
        and _core.is_plain(tensors)
    )


# ---- registered operators ----


def _empty(S: Tensor, z: Tensor, k: int, order: Tensor | None, keep: bool) -> Arrays:
    """Memory for a solution; `order` is copied where there is one, for outputs must not be inputs."""
    samples, user, variables, width = shapes(S, z, k)
    device = S.device
    state = (samples, variables) if keep else (0,)
    floats = torch.empty(samples, user, device=device, dtype=torch.float32)
    return (
        floats,
        torch.empty((*state, width) if keep else state, device=device, dtype=torch.float32),
        torch.empty(state, device=device, dtype=torch.float32),
        torch.empty(state, device=device, dtype=torch.bool),
        torch.empty(variables - 1, device=device, dtype=torch.int32) if order is None else order.clone(),
        torch.empty(3, samples, device=device, dtype=torch.int32),
    )


def _forward_kernel(
    S: Tensor,
    z: Tensor,
    is_input: Tensor,
    seed: Tensor | int,
    order: Tensor | None,
    V0: Tensor | None,
    k: int,
    max_iter: int,
    eps: float,
    offset: int,
    keep: bool,
) -> Arrays:
    arrays = _empty(S, z, k, order, keep)
    _core.mixing_forward(
        S.contiguous(), z.contiguous(), is_input.contiguous(), None if V0 is None else V0.contiguous(), seed,
        offset, k, max_iter, eps, order is None, arrays,
    )  # fmt: skip
    return arrays


def _backward_kernel(
    S: Tensor,
    z: Tensor,
    is_input: Tensor,
    V: Tensor,
    norms: Tensor,
    negative: Tensor,
    order: Tensor,
    counts: Tensor,
    out_grad: Tensor,
    prox_lam: float,
    sweeps: int,
    official: bool,
    to_S: bool,
    to_z: bool,
) -> tuple[Tensor, Tensor]:
    S_grad = torch.empty(S.shape if to_S else (0,), dtype=torch.float32, device=S.device)
    z_grad = torch.empty(z.shape if to_z else (0,), dtype=torch.float32, device=z.device)
    _core.mixing_backward(
        S.contiguous(), z.contiguous(), is_input.contiguous(), (out_grad, V, norms, negative, order, counts),
        out_grad.contiguous(), prox_lam, sweeps, official, S_grad if to_S else None, z_grad if to_z else None,
    )  # fmt: skip
    return S_grad, z_grad


def _forward_fake(
    S: Tensor, z: Tensor, is_input: Tensor, seed: Tensor, order: Any, V0: Any, k: int, *rest: Any
) -> Arrays:
    return _empty(S, z, k, order, rest[-1])


def _backward_fake(S: Tensor, z: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    to_S, to_z = rest[-2:]
    return S.new_empty(S.shape if to_S else (0,)), z.new_empty(z.shape if to_z else (0,))


_forward_op = define(
    "mixing_forward(Tensor S, Tensor z, Tensor is_input, Tensor seed, Tensor? order, Tensor? V0, SymInt k,"
    " int max_iter, float eps, int offset, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_kernel,
    _forward_fake,
)
_backward_op = define(
    "mixing_backward(Tensor S, Tensor z, Tensor is_input, Tensor V, Tensor norms, Tensor negative,"
    " Tensor order, Tensor counts, Tensor out_grad, float prox_lam, int sweeps, bool official, bool to_S,"
    " bool to_z) -> (Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)
for _operator in (_forward_op, _backward_op):
    torch.library.register_vmap(_operator, partial(one_by_one, _operator), lib=LIBRARY)


def _seed_tensor(seed: Tensor | int) -> Tensor:
    return (
        seed if isinstance(seed, Tensor) else torch.tensor(_as_int64(seed), dtype=torch.int64, device="cpu")
    )


def _as_int64(seed: int) -> int:
    """The whole number with the same low 64 bits."""
    return (whole("seed", seed) + 2**63) % 2**64 - 2**63


# ---- gradients ----


class Mixing(Function):
    """The arguments of the operator but `keep`, then prox_lam and official -> the solution's arrays."""

    @staticmethod
    def forward(
        S: Tensor,
        z: Tensor,
        is_input: Tensor,
        seed: Tensor | int,
        order: Tensor | None,
        V0: Tensor | None,
        k: int,
        max_iter: int,
        eps: float,
        offset: int,
        prox_lam: float,
        official: bool,
    ) -> Arrays:
        """Run the kernel, or the operator."""
        if _plain(S, z, is_input, order, V0):
            return _forward_kernel(S, z, is_input, seed, order, V0, k, max_iter, eps, offset, True)
        arrays: Arrays = _forward_op(
            S, z, is_input, _seed_tensor(seed), order, V0, k, max_iter, eps, offset, True
        )
        return arrays

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Arrays) -> None:
        """Keep the inputs and the solution; only its z has a gradient."""
        ctx.save_for_backward(*inputs[:3], *output[1:])
        ctx.prox_lam, ctx.official = inputs[-2:]
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, out_grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Solve the adjoint system; recorded where something watches, so that doing it again raises."""
        to_S, to_z = ctx.needs_input_grad[:2]
        args = (*ctx.saved_tensors, out_grad, ctx.prox_lam, -1, ctx.official, to_S, to_z)
        plain = _plain(*ctx.saved_tensors, out_grad)
        S_grad, z_grad = _backward_kernel(*args) if plain else apply(MixingBackward, *args)
        return S_grad if to_S else None, z_grad if to_z else None, *(None,) * 10

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element, recording gradients."""
        return one_by_one(partial(apply, Mixing), info, in_dims, *args)


class MixingBackward(Function):
    """As the operator mixing_backward; has no gradient itself."""

    @staticmethod
    def forward(
        S: Tensor,
        z: Tensor,
        is_input: Tensor,
        V: Tensor,
        norms: Tensor,
        negative: Tensor,
        order: Tensor,
        counts: Tensor,
        out_grad: Tensor,
        prox_lam: float,
        sweeps: int,
        official: bool,
        to_S: bool,
        to_z: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run the operator."""
        solution = (V, norms, negative, order, counts)
        result: tuple[Tensor, Tensor] = _backward_op(
            S, z, is_input, *solution, out_grad, prox_lam, sweeps, official, to_S, to_z
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Not provided."""
        raise NotImplementedError("mixing has a first gradient only")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element."""
        return one_by_one(partial(apply, MixingBackward), info, in_dims, *args)


# ---- what tenfold.ops.mixing calls ----

_NOTHING = torch.empty(0, device="cpu")
"""In the place of what a call without gradient does not keep."""


def _want_tensors(**arrays: Any) -> None:
    for name, array in arrays.items():
        if array is not None and not isinstance(array, Tensor):
            kind = f"{type(array).__module__}.{type(array).__name__}"
            raise TypeError(f"S is a torch.Tensor and {name} is a {kind}, want arrays of one library")


def _full_precision(x: Tensor) -> Tensor:
    """Under autocast float32, as torch casts for operators that want it; else as it is."""
    low = x.dtype in (torch.bfloat16, torch.float16)
    return x.float() if low and torch.is_autocast_enabled(x.device.type) else x


def mixing(
    S: Tensor,
    z: Tensor,
    is_input: Tensor,
    k: int | None,
    max_iter: int,
    eps: float,
    prox_lam: float,
    compat: Compat,
    seed: int | Tensor,
    offset: int,
    order: Tensor | None,
    V0: Tensor | None,
) -> tuple[Tensor, Report]:
    """See tenfold.ops.mixing.mixing."""
    official = _check_compat(compat)
    _want_tensors(z=z, is_input=is_input, order=order, V0=V0)
    S, z = _full_precision(S), _full_precision(z)
    samples, _, variables, width = shapes(S, z, k)
    seed, max_iter, offset = seed_of(seed), whole("max_iter", max_iter), whole("offset", offset)
    if _plain(S, z, is_input, order, V0):
        counts = torch.empty(3, samples, dtype=torch.int32, device=S.device)
        visits = torch.empty(variables - 1, dtype=torch.int32, device=S.device) if order is None else order
        out = torch.empty(z.shape, dtype=torch.float32, device=S.device)
        _core.mixing_forward(
            S.contiguous(), z.contiguous(), is_input.contiguous(), None if V0 is None else V0.contiguous(),
            seed, offset, width, max_iter, eps, order is None,
            (out, _NOTHING, _NOTHING, _NOTHING, visits.contiguous(), counts),
        )  # fmt: skip
        return out, Report(*counts.unbind())
    if not prox_lam > 0:
        raise ValueError(f"prox_lam is {prox_lam}, want a positive number")
    seed = _seed_tensor(seed) if is_dynamo_compiling() else seed
    result = apply(Mixing, S, z, is_input, seed, order, V0, width, max_iter, eps, offset, prox_lam, official)
    return result[0], Report(*result[5].unbind())


def mixing_forward(
    S: Tensor,
    z: Tensor,
    is_input: Tensor,
    k: int | None,
    max_iter: int,
    eps: float,
    seed: int | Tensor,
    offset: int,
    order: Tensor | None,
    V0: Tensor | None,
) -> Solution:
    """See tenfold.ops.mixing.mixing_forward."""
    _want_tensors(z=z, is_input=is_input, order=order, V0=V0)
    S, z = _full_precision(S.detach()), _full_precision(z.detach())
    _, _, _, width = shapes(S, z, k)
    seed, max_iter, offset = seed_of(seed), whole("max_iter", max_iter), whole("offset", offset)
    if _plain(S, z, is_input, order, V0):
        arrays = _forward_kernel(S, z, is_input, seed, order, V0, width, max_iter, eps, offset, True)
    else:
        seed = _seed_tensor(seed)
        arrays = _forward_op(S, z, is_input, seed, order, V0, width, max_iter, eps, offset, True)
    return Solution(*arrays)


def mixing_backward(
    S: Tensor,
    z: Tensor,
    is_input: Tensor,
    solution: Solution,
    out_grad: Tensor,
    prox_lam: float,
    sweeps: int | None,
    official: bool,
) -> tuple[Tensor, Tensor]:
    """See tenfold.ops.mixing.mixing_backward."""
    _want_tensors(z=z, is_input=is_input, out_grad=out_grad, V=solution.V)
    tensors: Any = [x.detach() for x in (S, z, is_input, *solution[1:], out_grad)]
    run: Any = _backward_kernel if _plain(*tensors) else _backward_op
    grads: tuple[Tensor, Tensor] = run(*tensors, prox_lam, sweeps_of(sweeps), official, True, True)
    return grads
