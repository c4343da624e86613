"""Multi-head self- and cross-attention with normalised queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.nn.packing import PackedTokens

QK_NORM_EPS = 1e-6


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v with the softmax in float32.

    Shapes: q (N, H, T, d), k and v (N, H, S, d), mask (N, 1, 1, S) boolean, True where a key counts.
    A row whose mask is all False is NaN, as in torch. Plain products are used on purpose: on CPUs the
    backward of torch's flash kernel costs more than everything it saves at these lengths (16-256 tokens).
    """
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1)).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype).matmul(v)


def _split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(N, T, H*d) -> (N, H, T, d)."""
    n, length, _ = x.shape
    return x.reshape(n, length, -1, head_dim).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    """(N, H, T, d) -> (N, T, H*d)."""
    return x.transpose(1, 2).flatten(-2)


def _qk_norm(x: Tensor) -> Tensor:
    """LayerNorm without parameters over the whole hidden width, before the heads are split."""
    return F.layer_norm(x, x.shape[-1:], eps=QK_NORM_EPS)


class SelfAttention(nn.Module):
    """Self-attention over (N, T, width); `inner` is the width of queries, keys and values."""

    def __init__(self, width: int, inner: int, head_dim: int) -> None:
        super().__init__()
        if inner % head_dim:
            raise ValueError(f"inner: {inner} is not a multiple of head_dim {head_dim}")
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to (N, T, width)."""
        q, k, v = (self._heads(part) for part in self._qkv(x))
        y: Tensor = self.out(_merge_heads(attention(q, k, v)))
        return y

    def forward_packed(self, x: Tensor, packing: PackedTokens) -> Tensor:
        """Attend within each sequence of a packed batch: (M, width) -> (M, width)."""
        q, k, v = (self._heads(packing.pad(part)) for part in self._qkv(x))
        y: Tensor = self.out(packing.pack(_merge_heads(attention(q, k, v, packing.key_mask))))
        return y

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return _qk_norm(q), _qk_norm(k), v

    def _heads(self, x: Tensor) -> Tensor:
        return _split_heads(x, self.head_dim)


class CrossAttention(nn.Module):
    """Attention from (N, T, width) to the tokens of a packed batch of captions of the same width."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, y: Tensor, packing: PackedTokens) -> Tensor:
        """Map x (N, T, width) with context y (M, width) to (N, T, width)."""
        q = _split_heads(_qk_norm(self.query(x)), self.head_dim)
        k, v = self.key_value(y).chunk(2, dim=-1)
        k = _split_heads(packing.pad(_qk_norm(k)), self.head_dim)
        v = _split_heads(packing.pad(v), self.head_dim)
        out: Tensor = self.out(_merge_heads(attention(q, k, v, packing.key_mask)))
        return out
