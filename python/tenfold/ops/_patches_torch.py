"""The torch half of tenfold.ops.patches: gradients, transforms and torch.compile.

Gathering and restoring are linear, and each is the other's backward:

    gather  (x)       : backward = restore(grad, no mask token)
    restore (y, mask) : backward = gather(grad), dropped_sum(grad)
    dropped_sum (x)   : backward = restore(zeros, mask = grad)

so gradients of any order come from the same three kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from tenfold import _core
from tenfold.ops import patches as _patches
from tenfold.ops._torch import LIBRARY, apply, define, fold, put, refuse_out_with_gradient
from tenfold.ops.patches import _check_counts, _check_mask

vars(_patches)["_tracing"] = is_dynamo_compiling

Call: TypeAlias = Callable[..., Tensor]
SUMMED = (torch.float32, torch.float64, torch.bfloat16)
"""Types that the kernel of dropped_sum adds up itself; others go through float32."""


# ---- registered operators ----


def _dropped_sum_kernel(x: Tensor, keep_ids: Tensor) -> Tensor:
    wide = x if x.dtype in SUMMED else x.float()
    total: Tensor = _core.raw_dropped_sum(wide.contiguous(), keep_ids)
    return total.to(x.dtype)


def _keep_ids_kernel(restore_ids: Tensor, keep: int) -> Tensor:
    keep_ids = restore_ids.new_empty((restore_ids.shape[0], keep))
    _core.keep_ids_from_ranks(restore_ids, keep_ids)
    return keep_ids


def _random_kernel(
    batch: int, tokens: int, keep: int, seed: int, offset: int, ordered: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    keep_ids = torch.empty((batch, keep), dtype=torch.int64, device=device)
    restore_ids = torch.empty((batch, tokens), dtype=torch.int64, device=device)
    _core.random_keep_ids(keep_ids, restore_ids, seed % 2**64, offset, ordered)
    return keep_ids, restore_ids


def _mask_kernel(mask: Tensor, keep: int) -> Tensor:
    counts = mask.sum(dim=1)
    _check_counts((counts != keep).nonzero()[:, 0].tolist(), counts, keep)
    # A stable sort puts the kept tokens first, in order.
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :keep].contiguous()


_mask_op = define(
    "keep_ids_from_mask(Tensor mask, SymInt keep) -> Tensor",
    _mask_kernel,
    lambda mask, keep: mask.new_empty((mask.shape[0], keep), dtype=torch.int64),
)
_gather_op = define(
    "gather_patches(Tensor x, Tensor keep_ids) -> Tensor",
    lambda x, keep_ids: _core.raw_gather_patches(x, keep_ids, None),
    lambda x, keep_ids: x.new_empty((*keep_ids.shape, *x.shape[2:])),
)
_restore_op = define(
    "restore_patches(Tensor y, Tensor keep_ids, SymInt tokens, Tensor? mask_token) -> Tensor",
    lambda y, keep_ids, tokens, mask: _core.raw_restore_patches(y, keep_ids, tokens, mask, None),
    lambda y, keep_ids, tokens, mask: y.new_empty((y.shape[0], tokens, *y.shape[2:])),
)
_dropped_sum_op = define(
    "dropped_sum(Tensor x, Tensor keep_ids) -> Tensor",
    _dropped_sum_kernel,
    lambda x, keep_ids: x.new_empty(x.shape[2:]),
)
_keep_ids_op = define(
    "keep_ids_from_ranks(Tensor restore_ids, SymInt keep) -> Tensor",
    _keep_ids_kernel,
    lambda restore_ids, keep: restore_ids.new_empty((restore_ids.shape[0], keep)),
)
_random_op = define(
    "random_keep_ids(SymInt batch, SymInt tokens, SymInt keep, SymInt seed, SymInt offset, bool ordered,"
    " Device device) -> (Tensor, Tensor)",
    _random_kernel,
    lambda batch, tokens, keep, seed, offset, ordered, device: (
        torch.empty((batch, keep), dtype=torch.int64, device=device),
        torch.empty((batch, tokens), dtype=torch.int64, device=device),
    ),
)


# ---- the three linear maps: the kernel where nothing watches, else the operator ----


def _gather_rows(x: Tensor, keep_ids: Tensor) -> Tensor:
    result = NotImplemented if is_dynamo_compiling() else _core.gather_patches(x, keep_ids, None)
    return _gather_op(x, keep_ids) if result is NotImplemented else result  # type: ignore[no-any-return]


def _restore_rows(y: Tensor, keep_ids: Tensor, tokens: int, mask_token: Tensor | None) -> Tensor:
    if not is_dynamo_compiling():
        result = _core.restore_patches(y, keep_ids, tokens, mask_token, None)
        if result is not NotImplemented:
            return result  # type: ignore[no-any-return]
    return _restore_op(y, keep_ids, tokens, mask_token)  # type: ignore[no-any-return]


# ---- vmap: one call over the merged batch; `call` is the operator, or the Function that records it ----


def _vmap_gather(call: Call, info: Any, in_dims: Any, x: Tensor, keep_ids: Tensor) -> tuple[Tensor, int]:
    size = info.batch_size
    out = call(fold(x, in_dims[0], size), fold(keep_ids, in_dims[1], size))
    return out.unflatten(0, (size, -1)), 0


def _vmap_restore(
    call: Call, info: Any, in_dims: Any, y: Tensor, keep_ids: Tensor, tokens: int, mask_token: Tensor | None
) -> tuple[Tensor, int]:
    size = info.batch_size
    rows, ids = fold(y, in_dims[0], size), fold(keep_ids, in_dims[1], size)
    if mask_token is None or in_dims[3] is None:
        return call(rows, ids, tokens, mask_token).unflatten(0, (size, -1)), 0
    # A mask token per element is blended in afterwards.
    out = call(rows, ids, tokens, None).unflatten(0, (size, -1))
    kept = _restore_op(torch.ones_like(ids, dtype=torch.bool), ids, tokens, None)
    kept = kept.unflatten(0, (size, -1)).reshape(*out.shape[:3], *[1] * (out.dim() - 3))
    return torch.where(kept, out, mask_token.movedim(in_dims[3], 0)[:, None, None]), 0


def _vmap_dropped_sum(call: Call, info: Any, in_dims: Any, x: Tensor, keep_ids: Tensor) -> tuple[Tensor, int]:
    size = info.batch_size  # each element has its own sum, so each is its own call
    rows = [x] * size if in_dims[0] is None else x.unbind(in_dims[0])
    ids = [keep_ids] * size if in_dims[1] is None else keep_ids.unbind(in_dims[1])
    return torch.stack([call(row, one) for row, one in zip(rows, ids, strict=True)]), 0


def _vmap_keep_ids(call: Call, info: Any, in_dims: Any, restore_ids: Tensor, keep: int) -> tuple[Tensor, int]:
    folded = fold(restore_ids, in_dims[0], info.batch_size)
    return call(folded, keep).unflatten(0, (info.batch_size, -1)), 0


for _operator, _rule in (
    (_gather_op, _vmap_gather),
    (_restore_op, _vmap_restore),
    (_dropped_sum_op, _vmap_dropped_sum),
    (_keep_ids_op, _vmap_keep_ids),
):
    torch.library.register_vmap(_operator, partial(_rule, _operator), lib=LIBRARY)


# ---- gradients ----


class Gather(Function):
    """x (B, N, ...), keep_ids (B, K) -> (B, K, ...)."""

    @staticmethod
    def forward(x: Tensor, keep_ids: Tensor) -> Tensor:
        """Gather."""
        return _gather_rows(x, keep_ids)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep the ids and the number of tokens."""
        ctx.save_for_backward(inputs[1])
        ctx.tokens = inputs[0].shape[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Put the rows of `grad` back; dropped tokens get zero."""
        (keep_ids,) = ctx.saved_tensors
        return apply(Restore, grad, keep_ids, ctx.tokens, None), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        """Over the merged batch, recording gradients."""
        return _vmap_gather(partial(apply, Gather), info, in_dims, *args)


class Restore(Function):
    """y (B, K, ...), keep_ids (B, K), mask_token (...) or None -> (B, tokens, ...)."""

    @staticmethod
    def forward(y: Tensor, keep_ids: Tensor, tokens: int, mask_token: Tensor | None) -> Tensor:
        """Restore."""
        return _restore_rows(y, keep_ids, tokens, mask_token)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the ids."""
        ctx.save_for_backward(inputs[1])
        ctx.tokens = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        """Gather the kept rows of `grad`; add up the dropped ones."""
        (keep_ids,) = ctx.saved_tensors
        wants_y, _, _, wants_mask = ctx.needs_input_grad
        y_grad = apply(Gather, grad, keep_ids) if wants_y else None
        mask_grad = apply(DroppedSum, grad, keep_ids) if wants_mask else None
        return y_grad, None, None, mask_grad

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        """Over the merged batch, recording gradients."""
        return _vmap_restore(partial(apply, Restore), info, in_dims, *args)


class DroppedSum(Function):
    """x (B, N, ...), keep_ids (B, K) -> (...), the sum of the rows that keep_ids does not name."""

    @staticmethod
    def forward(x: Tensor, keep_ids: Tensor) -> Tensor:
        """Sum."""
        return _dropped_sum_op(x, keep_ids)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep the ids and the number of tokens."""
        ctx.save_for_backward(inputs[1])
        ctx.tokens = inputs[0].shape[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Every dropped row gets `grad`."""
        (keep_ids,) = ctx.saved_tensors
        zeros = grad.new_zeros((*keep_ids.shape, *grad.shape))
        return apply(Restore, zeros, keep_ids, ctx.tokens, grad), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        """Over the merged batch, recording gradients."""
        return _vmap_dropped_sum(partial(apply, DroppedSum), info, in_dims, *args)


# ---- what tenfold.ops.patches calls where the core says NotImplemented, and under torch.compile ----


def gather_patches(x: Tensor, keep_ids: Tensor, out: Tensor | None) -> Tensor:
    """See tenfold.ops.patches.gather_patches."""
    refuse_out_with_gradient(out, x)
    return put(apply(Gather, x, keep_ids), out)


def restore_patches(
    y: Tensor, keep_ids: Tensor, tokens: int, mask_token: Tensor | None, out: Tensor | None
) -> Tensor:
    """See tenfold.ops.patches.restore_patches."""
    mask_token = _as_row(mask_token, y)
    refuse_out_with_gradient(out, y, mask_token)
    return put(apply(Restore, y, keep_ids, tokens, mask_token), out)


def restore_patches_from_ranks(
    y: Tensor, restore_ids: Tensor, mask_token: Tensor | None, out: Tensor | None
) -> Tensor:
    """See tenfold.ops.patches.restore_patches, with restore_ids."""
    keep_ids = _keep_ids_op(restore_ids, y.shape[1])
    return restore_patches(y, keep_ids, restore_ids.shape[1], mask_token, out)


def _as_row(mask_token: Tensor | None, y: Tensor) -> Tensor | None:
    """A mask token (1, 1, ...) as one row; under autocast in y's type, as torch.cat's operands would be."""
    if mask_token is None:
        return None
    if mask_token.dim() == y.dim() and mask_token.shape[:2] == (1, 1):
        mask_token = mask_token[0, 0]
    if mask_token.dtype != y.dtype and torch.is_autocast_enabled(y.device.type):
        mask_token = mask_token.to(y.dtype)
    return mask_token


def random_keep_ids(
    batch: int, tokens: int, keep: int, seed: int, offset: int, ordered: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """See tenfold.ops.patches.random_keep_ids."""
    if is_dynamo_compiling():
        signed = seed - 2**64 if seed >= 2**63 else seed  # operators take signed numbers
        return _random_op(batch, tokens, keep, signed, offset, ordered, device)  # type: ignore[no-any-return]
    return _random_kernel(batch, tokens, keep, seed, offset, ordered, device)


def keep_ids_from_mask(mask: Tensor, keep: int | None) -> Tensor:
    """See tenfold.ops.patches.keep_ids_from_mask."""
    _check_mask(mask.dtype == torch.bool, mask.dtype, tuple(mask.shape))
    if is_dynamo_compiling():
        if keep is None:
            raise ValueError("keep is None under torch.compile, want the number of kept tokens")
        return _mask_op(mask, keep)  # type: ignore[no-any-return]
    if keep is None:
        keep = int(mask[0].sum()) if len(mask) else 0
    return _mask_kernel(mask, keep)
