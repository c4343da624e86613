"""The adaln family in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def adaln(
    x: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``(LN(x) * weight + bias) * (1 + scale) + shift``; x (N, T, D), shift and scale (N, D)."""
    wide = _wide(x)
    mean = wide.mean(dim=-1, keepdim=True)
    variance = (wide - mean).square().mean(dim=-1, keepdim=True)
    h = (wide - mean) * (variance + eps).rsqrt()
    h = h if weight is None else h * _wide(weight)
    h = h if bias is None else h + _wide(bias)
    h = h if scale is None else h * (1 + _per_sample(scale))
    h = h if shift is None else h + _per_sample(shift)
    return h.to(x.dtype if dtype is None else dtype)


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor | None = None) -> Tensor:
    """``x + gate * branch`` in x's type; gate (N, D)."""
    added = _wide(branch) if gate is None else _per_sample(gate) * _wide(branch)
    return (_wide(x) + added).to(x.dtype)


def gated_residual_adaln(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The residual, and its modulated normalisation."""
    residual = gated_residual(x, branch, gate)
    return residual, adaln(residual, shift, scale, weight=weight, bias=bias, eps=eps, dtype=dtype)


def qk_norm(q: Tensor, k: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Both normalised over their last dimension."""
    return adaln(q, eps=eps), adaln(k, eps=eps)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _per_sample(vectors: Tensor) -> Tensor:
    """(N, D) or (N, 1, D) as (N, 1, D)."""
    return _wide(vectors if vectors.dim() == 3 else vectors[:, None])
