"""The attention family in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    qk_norm_eps: float | None = None,
) -> Tensor:
    """softmax(scale q k^T) v: q (N, T, H, d), k and v (N, S, H, d), mask (N, S) -> (N, T, H, d)."""
    if qk_norm_eps is not None:
        q, k = qk_norm(q, qk_norm_eps), qk_norm(k, qk_norm_eps)
    scores = torch.einsum("nthd,nshd->nhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], float("-inf"))
    # A query without keys: 0 / 0.
    return torch.einsum("nhts,nshd->nthd", scores.softmax(dim=-1).nan_to_num(0.0), v)


def qk_norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm without parameters over all heads of a row (..., H, d)."""
    return F.layer_norm(x, x.shape[-2:], eps=eps)


def packed(
    q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, scale: float | None = None
) -> Tensor:
    """Sequences behind one another: q (M, H, d), k and v (L, H, d), offsets (N + 1) -> (M, H, d)."""
    ends = zip(q_offsets[:-1], q_offsets[1:], k_offsets[:-1], k_offsets[1:], strict=True)
    parts = [attention(q[None, a:b], k[None, c:d], v[None, c:d], None, scale)[0] for a, b, c, d in ends]
    return torch.cat(parts) if parts else 0.0 * q
