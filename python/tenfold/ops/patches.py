"""Masked patches: keep a random K of N tokens of each sample, work on those, and put the rows back.

    keep_ids, restore_ids = random_keep_ids(batch, tokens, keep, seed, like=x)
    kept = gather_patches(x, keep_ids)                                  # (B, K, D)
    full = restore_patches(network(kept), keep_ids, tokens, mask_token)  # (B, N, D)

numpy arrays and torch tensors in CPU memory, of numbers or bool (whole bytes, native byte order) and any
strides; torch tensors have gradients of any order and work under torch.compile, vmap and autocast.
`restore_ids >= keep` is the mask of dropped tokens (1 = dropped, the mask of MAE).

A build with CUDA takes torch tensors and cupy arrays on a GPU too, all arguments on one device. The kernels
run on the caller's current stream and nothing waits for them, so a call can be captured in a CUDA graph
(after one call outside of it). A wrong id is therefore found after its call has returned: no memory outside
the arrays is touched, and a later call or `tenfold.ops.synchronize()` raises the ValueError; until then the
sample's result is wrong (a row gathered from outside is filled with ones, which is NaN).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import ndarray

from tenfold import _core
from tenfold.ops._arrays import Array, allocate, is_torch, module_of, whole

__all__ = ["gather_patches", "keep_ids_from_mask", "random_keep_ids", "restore_patches"]


def _ask_torch() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_dynamo_compiling()


_tracing: Callable[[], bool] = _ask_torch
"""Whether torch.compile traces this call; torch's own function once torch is used."""


def _torch_half() -> Any:
    """tenfold.ops._patches_torch; loaded for the first torch tensor."""
    from tenfold.ops import _patches_torch

    return _patches_torch


def gather_patches(x: Array, keep_ids: Array, out: Array | None = None) -> Array:
    """Pick rows of each sample: ``out[b, k] = x[b, keep_ids[b, k]]``.

    Equivalent to ``torch.gather(x, 1, keep_ids[..., None].expand(-1, -1, D))`` for x of three dimensions.

    Args:
        x: (B, N, ...), numbers or bool, any strides. Rows that are contiguous in memory are fastest.
        keep_ids: (B, K) int32 or int64, different ids within a sample, 0 <= id < N, any order.
        out: (B, K, ...) of x's type with contiguous rows, written and returned; new memory where None.
            Reusing `out` saves the page faults of large outputs. Not where a gradient is recorded.

    Returns:
        (B, K, ...) of x's library and type.

    Raises:
        ValueError: an id is negative, too large or doubled (names sample and position); shapes do not fit;
            `out` has another shape, overlaps an argument, tears its rows apart, or is given where a
            gradient is recorded.
        TypeError: arrays of different libraries or devices, of memory that this build cannot use, or of a
            wrong type.

    O(B K D) bytes are copied; scratch is 12 N bytes per thread. Bitwise equal for every thread count and
    level. The gradient writes each row of x's gradient once: no atomics, no zero fill, deterministic.
    """
    if type(x) is ndarray or not _tracing():
        result = _core.gather_patches(x, keep_ids, out)
        if result is not NotImplemented:
            return result
    return _torch_half().gather_patches(x, keep_ids, out)


def restore_patches(
    y: Array,
    keep_ids: Array | None = None,
    tokens: int | None = None,
    mask_token: Array | None = None,
    out: Array | None = None,
    *,
    restore_ids: Array | None = None,
) -> Array:
    """Put rows back in place: ``out[b, keep_ids[b, k]] = y[b, k]``, every other row is `mask_token`.

    Give either `keep_ids` and `tokens`, or `restore_ids`, for example MAE's ids_restore unchanged:
    ``out[b, n] = y[b, restore_ids[b, n]]`` where ``restore_ids[b, n] < K``, else `mask_token`.

    Args:
        y: (B, K, ...), numbers or bool, any strides.
        keep_ids: (B, K) int32 or int64, different ids within a sample, 0 <= id < tokens.
        tokens: N, the number of tokens per sample of the result.
        mask_token: (...), the shape of one row, or (1, 1, ...); y's type; zeros where None. Under
            torch.autocast it is cast to y's type.
        out: (B, N, ...) of y's type with contiguous rows, written and returned; new memory where None.
        restore_ids: (B, N) int32 or int64, a permutation of 0..N-1 per sample.

    Returns:
        (B, N, ...) of y's library and type.

    Raises:
        ValueError: as gather_patches; also where both or neither of the two kinds of ids are given.
        TypeError: as gather_patches.

    Writes each of the B N rows once; scratch is 4 N bytes per thread. On a GPU all ids of a sample are read
    once for every 128 of its rows or 32 KiB of them, which is felt from some hundred thousand tokens on.
    Bitwise equal for every thread count and level. mask_token's gradient is summed in float32 (float64 for
    float64) over a fixed partition.
    """
    if restore_ids is not None:
        _check_restore_ids(restore_ids, keep_ids, tokens)
        if type(y) is ndarray or not _tracing():
            result = _core.restore_patches_from_ranks(y, restore_ids, mask_token, out)
            if result is not NotImplemented:
                return result
        return _torch_half().restore_patches_from_ranks(y, restore_ids, mask_token, out)
    if keep_ids is None or tokens is None:
        raise ValueError("want keep_ids and tokens, or restore_ids")
    if type(y) is ndarray or not _tracing():
        result = _core.restore_patches(y, keep_ids, tokens, mask_token, out)
        if result is not NotImplemented:
            return result
    return _torch_half().restore_patches(y, keep_ids, tokens, mask_token, out)


def _check_restore_ids(restore_ids: Array, keep_ids: Array | None, tokens: int | None) -> None:
    if keep_ids is not None:
        raise ValueError("both keep_ids and restore_ids are given, want one of them")
    shape: tuple[int, ...] = getattr(restore_ids, "shape", ())
    if tokens is not None and len(shape) == 2 and tokens != shape[1]:
        raise ValueError(f"tokens is {tokens} and restore_ids has {shape[1]} per sample")


def random_keep_ids(
    batch: int,
    tokens: int,
    keep: int,
    seed: int,
    offset: int = 0,
    ordered: bool = False,
    *,
    like: Array | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Draw `keep` of `tokens` ids for each sample, uniformly without replacement.

    Sample b is a function of (seed, offset + b) alone: the same numbers for every thread count, instruction
    set, library and batch size. A rank of a distributed run passes its first sample's number as `offset`.

    Args:
        batch: B, number of samples.
        tokens: N, tokens per sample.
        keep: K, tokens to keep, 0 <= K <= N.
        seed: 0 <= seed < 2**64.
        offset: number of the first sample, 0 <= offset < 2**63.
        ordered: ascending ids, kept and dropped; otherwise the order is random too.
        like: an array whose library and device the ids come in, as int64; numpy where None.
        out: (keep_ids (B, K), restore_ids (B, N)), both int32 or both int64, written and returned.

    Returns:
        keep_ids (B, K), and restore_ids (B, N), a permutation: ``restore_ids[b, keep_ids[b, k]] == k``, and
        K or more for dropped tokens.

    Raises:
        ValueError: a number is out of range, or `out` has another shape.
        TypeError: a number is not whole, or `out` has another type.

    O(B N). Philox4x32-10 (Salmon et al., SC 2011) and the first K steps of a Fisher-Yates shuffle; ids are
    uniform up to a bias below N / 2**32.
    """
    batch, tokens = _whole_below("batch", batch, 2**63), _whole_below("tokens", tokens, 2**31)
    keep = _whole_below("keep", keep, tokens + 1)
    seed, offset = _whole_below("seed", seed, 2**64), _whole_below("offset", offset, 2**63)
    if not isinstance(ordered, bool | np.bool_):
        raise TypeError(f"ordered is {ordered!r}, want True or False")
    if out is None and like is not None and is_torch(like):
        ids: tuple[Array, Array] = _torch_half().random_keep_ids(
            batch, tokens, keep, seed, offset, ordered, like.device
        )
        return ids
    if out is None:
        out = allocate(like, (batch, keep), np.int64), allocate(like, (batch, tokens), np.int64)
    if not isinstance(out, tuple | list) or len(out) != 2:
        raise TypeError(f"out is a {type(out).__name__}, want a pair: keep_ids and restore_ids")
    keep_ids, restore_ids = out
    for name, array, shape in (
        ("keep_ids", keep_ids, (batch, keep)),
        ("restore_ids", restore_ids, (batch, tokens)),
    ):
        if tuple(array.shape) != shape:
            raise ValueError(f"out: {name} has shape {tuple(array.shape)}, want {shape}")
    if is_torch(keep_ids):
        _torch_half()  # so that the core can tell autograd what is written
    _core.random_keep_ids(keep_ids, restore_ids, seed, offset, ordered)
    return keep_ids, restore_ids


def _whole_below(name: str, value: Any, limit: int) -> int:
    number = whole(name, value)
    if not 0 <= number < limit:
        raise ValueError(f"{name} is {number}, want 0 <= {name} < {limit}")
    return number


def keep_ids_from_mask(mask: Array, keep: int | None = None) -> Array:
    """Ids of the kept tokens, ascending, from a mask that is true for tokens to KEEP.

    Masks that are true for dropped tokens (MAE, MicroDiT) go in inverted: ``keep_ids_from_mask(~mask)``.

    Args:
        mask: (B, N) bool. Every sample keeps the same number of tokens. Not under torch.vmap: its values
            are read.
        keep: that number; found from the mask where None. Under torch.compile it must be given.

    Returns:
        (B, keep) int64 of mask's library.

    Raises:
        ValueError: a sample keeps another number of tokens (names the sample); mask is not (B, N).
        TypeError: mask is not bool.
    """
    if is_torch(mask):
        return _torch_half().keep_ids_from_mask(mask, keep)
    if isinstance(mask, np.ma.MaskedArray):
        raise TypeError("mask is a numpy.ma.MaskedArray, want its .data or .filled()")
    library = module_of(mask)
    mask = library.asarray(mask)
    _check_mask(mask.dtype == np.bool_, mask.dtype, tuple(mask.shape))
    counts = mask.sum(axis=1)
    keep = (int(counts[0]) if len(counts) else 0) if keep is None else keep
    _check_counts(library.flatnonzero(counts != keep).tolist(), counts, keep)
    return library.nonzero(mask)[1].reshape(len(mask), keep)


def _check_mask(is_bool: bool, dtype: object, shape: tuple[int, ...]) -> None:
    if not is_bool:
        raise TypeError(f"mask has type {dtype}, want bool")
    if len(shape) != 2:
        raise ValueError(f"mask has shape {shape}, want (batch, tokens)")


def _check_counts(wrong: list[int], counts: Array, keep: int) -> None:
    if wrong:
        raise ValueError(
            f"mask keeps {int(counts[wrong[0]])} tokens of sample {wrong[0]}, want {keep} in every sample"
        )
