"""Attention of short sequences: 16 to about 1024 tokens, where torch's own kernels spend more than they save.

    out = attention(q, k, v)              # (N, T, H, d), (N, S, H, d), (N, S, H, d) -> (N, T, H, d)
    out = attention_qkvpacked(qkv)        # (N, T, 3, H, d): one linear layer's output, as it is
    out = attention_kvpacked(q, kv)       # (N, T, H, d), (N, S, 2, H, d)

The layout is that of flash-attn; `q.transpose(1, 2)` makes it of torch's (N, H, T, d), without a copy. numpy
arrays and torch tensors in CPU memory, and on a GPU torch tensors and cupy arrays. The softmax is float32 in
every case; results are the same for any number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from tenfold import _core
from tenfold.ops._arrays import Array, allocate, contiguous_rows, is_torch

__all__ = ["attention", "attention_kvpacked", "attention_qkvpacked"]


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    key_mask: Array | None = None,
    q_offsets: Array | None = None,
    k_offsets: Array | None = None,
    scale: float | None = None,
    qk_norm_eps: float | None = None,
) -> Array:
    """Return ``softmax(scale * q k^T) v`` of each sample and head.

    Args:
        q: (N, T, H, d) float32; torch tensors bfloat16 or float64 too. With `q_offsets` (M, H, d).
        k: (N, S, H, d), v: the same. With `k_offsets` (L, H, d).
        key_mask: (N, S) boolean, True where a key counts. Masked keys are left out of all products, so
            padding costs nothing. A query without keys gets zeros.
        q_offsets: (N + 1,) int32, ascending from 0 to M: sample n has the rows q_offsets[n] to
            q_offsets[n + 1] of sequences that lie behind one another (flash-attn's cu_seqlens).
        k_offsets: the same for k and v, in place of a mask.
        scale: a positive number; 1 / sqrt(d) where None.
        qk_norm_eps: normalise q and k first, to mean 0 and variance 1 over all heads of a row, without
            parameters, this added to the variance (Dehghani et al., 2023, there per head). None: as they are.

    Returns:
        As q, dense. For torch with first gradients of q, k and v; the backward pass computes the
        probabilities again instead of keeping them.

    Raises:
        ValueError: shapes do not fit, offsets do not ascend from 0 to the number of rows, scale is not
            positive, a mask beside k_offsets.
        TypeError: another type, or arrays of different libraries or devices.

    bfloat16 values are multiplied as they are, with the processor's own instructions where it has them (AMX,
    AVX-512 BF16), and added up in float32; probabilities and their gradients are rounded to bfloat16 between
    the two products. O(T S d) time; two numbers per query are kept, and scratch
    on the CPU is below (24 S + 2048) (d + 64) bytes per thread.
    """
    return _run((q, k, v), key_mask, q_offsets, k_offsets, scale, qk_norm_eps)


def attention_qkvpacked(
    qkv: Array,
    *,
    key_mask: Array | None = None,
    offsets: Array | None = None,
    scale: float | None = None,
    qk_norm_eps: float | None = None,
) -> Array:
    """Return the self-attention of qkv (N, T, 3, H, d), or (M, 3, H, d) with `offsets`.

    `attention` explains the arguments. The gradient comes as one array of qkv's shape too, so that no pass
    over memory puts it together.
    """
    _want_packed("qkv", qkv, 3, offsets)
    return _run((qkv,), key_mask, offsets, offsets, scale, qk_norm_eps)


def attention_kvpacked(
    q: Array,
    kv: Array,
    *,
    key_mask: Array | None = None,
    q_offsets: Array | None = None,
    k_offsets: Array | None = None,
    scale: float | None = None,
    qk_norm_eps: float | None = None,
) -> Array:
    """Return the attention of q (N, T, H, d) to kv (N, S, 2, H, d), or (L, 2, H, d) with `k_offsets`.

    `attention` explains the arguments. The gradient of kv comes as one array too.
    """
    _want_packed("kv", kv, 2, k_offsets)
    return _run((q, kv), key_mask, q_offsets, k_offsets, scale, qk_norm_eps)


def split(sources: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """Views of queries, keys and values in one, two or three arrays."""

    def part(packed: Array, index: int) -> Array:
        return packed[..., index, :, :]

    if len(sources) == 1:
        return part(sources[0], 0), part(sources[0], 1), part(sources[0], 2)
    if len(sources) == 2:
        return sources[0], part(sources[1], 0), part(sources[1], 1)
    return sources[0], sources[1], sources[2]


def _want_packed(name: str, packed: Array, parts: int, offsets: Array | None) -> None:
    shape = tuple(packed.shape)
    rank = 5 if offsets is None else 4
    if len(shape) != rank or shape[-3] != parts:
        rows = "samples, tokens" if offsets is None else "tokens"
        raise ValueError(f"{name} has shape {shape}, want ({rows}, {parts}, heads, width)")


def _run(
    sources: tuple[Array, ...],
    key_mask: Array | None,
    q_offsets: Array | None,
    k_offsets: Array | None,
    scale: float | None,
    eps: float | None,
) -> Array:
    width = sources[0].shape[-1] if len(sources[0].shape) else 0
    scale = 1.0 / math.sqrt(max(1, width)) if scale is None else float(scale)
    if eps is not None and not 0 < eps < math.inf:
        raise ValueError(f"qk_norm_eps is {eps}, want a positive number")
    if is_torch(sources[0]):
        from tenfold.ops import _attention_torch

        return _attention_torch.attention(sources, key_mask, q_offsets, k_offsets, scale, eps)
    for name, source in zip("qkv", sources, strict=False):
        if is_torch(source):
            raise TypeError(f"{name} is a torch.Tensor, want arrays of one library")
    q, k, v = (contiguous_rows(part) for part in split(sources))
    if eps is not None:
        q, k = _normalise(q, eps), _normalise(k, eps)
    out = allocate(q, q.shape, q.dtype)
    rows = math.prod(q.shape[:-2])
    statistics = allocate(q, (2, q.shape[-2] if len(q.shape) > 1 else 0, rows), np.float32)
    _core.attention_forward(q, k, v, q_offsets, k_offsets, key_mask, scale, out, statistics)
    return out


def _normalise(x: Array, eps: float) -> Array:
    rows = x.reshape(-1, math.prod(x.shape[-2:]))
    out = allocate(x, rows.shape, x.dtype)
    _core.norm_rows(rows, out, allocate(x, len(rows), np.float32), eps)
    return out.reshape(x.shape)
