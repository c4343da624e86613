"""Multi-head self- and cross-attention with normalised queries and keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.nn.packing import PackedTokens
from tenfold.ops.attention import attention_kvpacked, attention_qkvpacked

QK_NORM_EPS = 1e-6


def _qk_norm(x: Tensor) -> Tensor:
    """LayerNorm without parameters over all heads of a row (..., H, d)."""
    return F.layer_norm(x, x.shape[-2:], eps=QK_NORM_EPS)


def torch_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """As the op, by torch's kernel, which uses a GPU's matrix units: (N, T, H, d), mask (N, 1, 1, S)."""
    q, k, v = (x.transpose(1, 2) for x in (_qk_norm(q).to(v.dtype), _qk_norm(k).to(v.dtype), v))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


class SelfAttention(nn.Module):
    """Self-attention over (N, T, width); `inner` is the width of queries, keys and values.

    Queries and keys are normalised over all heads. On a CPU tenfold's kernels, elsewhere torch's.
    """

    def __init__(self, width: int, inner: int, head_dim: int) -> None:
        super().__init__()
        if inner % head_dim:
            raise ValueError(f"inner: {inner} is not a multiple of head_dim {head_dim}")
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to (N, T, width)."""
        qkv = self._qkv(x)
        if x.device.type == "cpu":
            heads = attention_qkvpacked(qkv, qk_norm_eps=QK_NORM_EPS)
        else:
            q, k, v = qkv.unbind(-3)
            heads = torch_attention(q, k, v)
        out: Tensor = self.out(heads.flatten(-2))
        return out

    def forward_packed(self, x: Tensor, packing: PackedTokens) -> Tensor:
        """Attend within each sequence of a packed batch: (M, width) -> (M, width)."""
        qkv = self._qkv(x)
        if x.device.type == "cpu":
            heads = attention_qkvpacked(qkv, offsets=packing.offsets, qk_norm_eps=QK_NORM_EPS)
        else:
            q, k, v = packing.pad(qkv).unbind(-3)
            heads = packing.pack(torch_attention(q, k, v, packing.key_mask))
        out: Tensor = self.out(heads.flatten(-2))
        return out

    def _qkv(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., 3, H, d)."""
        x = self.qkv(x)
        return x.view(*x.shape[:-1], 3, -1, self.head_dim)


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
        q, kv = self.query(x), self.key_value(y)
        q = q.view(*q.shape[:-1], -1, self.head_dim)
        kv = kv.view(*kv.shape[:-1], 2, -1, self.head_dim)
        if x.device.type == "cpu":
            heads = attention_kvpacked(q, kv, k_offsets=packing.offsets, qk_norm_eps=QK_NORM_EPS)
        else:
            k, v = packing.pad(kv).unbind(-3)
            heads = torch_attention(q, k, v, packing.key_mask)
        out: Tensor = self.out(heads.flatten(-2))
        return out
