"""What tenfold.diffusion.dit does with tenfold's ops, in eager torch: the same network, function by function.

`swapped(form)` puts one of these forms in the place of the ops, so that a model computes the same with the
same weights: "best" is the fastest that we know how to write, "published" is what the published code of
MicroDiT and most diffusion transformers do (scaled_dot_product_attention, one-hot dispatch, gather with an
expanded index).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.diffusion import dit
from tenfold.nn import attention as nn_attention
from tenfold.nn.moe import ExpertChoiceFFN


def adaln(
    x: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    h = F.layer_norm(x, x.shape[-1:], weight, eps=eps)
    if shift is None or scale is None:
        return h
    return torch.addcmul(shift[:, None], h, scale[:, None] + 1.0)


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor | None = None) -> Tensor:
    return x + branch if gate is None else torch.addcmul(x, gate[:, None], branch)


def gated_residual_adaln(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    x = gated_residual(x, branch, gate)
    return x, adaln(x, shift, scale, weight=weight, eps=eps)


def _normalised(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-2:], eps=eps)


def products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention (N, T, H, d) as two products with a softmax in float32 between them."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1)).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype).matmul(v).transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q.to(v.dtype), k.to(v.dtype), v))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


def gather_expanded(x: Tensor, keep_ids: Tensor) -> Tensor:
    return x.gather(1, keep_ids[..., None].expand(-1, -1, x.shape[-1]))


def gather_flat(x: Tensor, keep_ids: Tensor) -> Tensor:
    rows = keep_ids + torch.arange(len(x))[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(*keep_ids.shape, -1)


def _choose(layer: ExpertChoiceFFN, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gates and tokens (B, E, k) of each expert."""
    weights = layer.logits(x).softmax(dim=-1)
    taken = int(layer.capacity * x.shape[1] / weights.shape[-1])
    return weights.transpose(1, 2).topk(taken, dim=-1)  # type: ignore[return-value]


def experts_by_indices(layer: ExpertChoiceFFN, x: Tensor) -> Tensor:
    samples, tokens, width = x.shape
    gates, ids = _choose(layer, x)
    flat = (ids + torch.arange(samples)[:, None, None] * tokens).transpose(0, 1).flatten()
    rows = x.reshape(-1, width).index_select(0, flat).view(len(layer.w_in), -1, width)
    done = torch.bmm(F.gelu(torch.bmm(rows, layer.w_in)), layer.w_out).flatten(0, 1)
    weighted = done * gates.transpose(0, 1).reshape(-1, 1).to(done.dtype)
    return torch.zeros_like(done[: samples * tokens]).index_add(0, flat, weighted).view(samples, tokens, -1)


def experts_by_one_hot(layer: ExpertChoiceFFN, x: Tensor) -> Tensor:
    gates, ids = _choose(layer, x)
    one_hot = F.one_hot(ids, x.shape[1]).to(
        torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    )
    rows = torch.einsum("bekn,bnd->ebkd", one_hot, x.to(one_hot.dtype))
    hidden = F.gelu(torch.bmm(rows.flatten(1, 2), layer.w_in))
    done = torch.bmm(hidden, layer.w_out).view(rows.shape)
    return torch.einsum("bekn,ebkd,bek->bnd", one_hot, done, gates.to(one_hot.dtype))


FORMS: dict[str, dict[str, Any]] = {
    "best": {"attention": products, "experts": experts_by_indices, "gather": gather_flat},
    "published": {"attention": sdpa, "experts": experts_by_one_hot, "gather": gather_expanded},
}


@contextmanager
def swapped(form: str) -> Iterator[None]:
    """Run networks of tenfold.diffusion.dit in a form of FORMS."""
    chosen = FORMS[form]
    attend = chosen["attention"]

    def self_attention(layer: nn_attention.SelfAttention, x: Tensor) -> Tensor:
        q, k, v = layer._qkv(x).unbind(-3)
        eps = nn_attention.QK_NORM_EPS
        return layer.out(attend(_normalised(q, eps), _normalised(k, eps), v, None).flatten(-2))

    def packed(layer: nn_attention.SelfAttention, x: Tensor, packing: Any) -> Tensor:
        q, k, v = packing.pad(layer._qkv(x)).unbind(-3)
        eps = nn_attention.QK_NORM_EPS
        heads = attend(_normalised(q, eps), _normalised(k, eps), v, packing.key_mask)
        return layer.out(packing.pack(heads.flatten(-2)))

    def cross(layer: nn_attention.CrossAttention, x: Tensor, y: Tensor, packing: Any) -> Tensor:
        q = layer.query(x).unflatten(-1, (-1, layer.head_dim))
        kv = layer.key_value(y).unflatten(-1, (2, -1, layer.head_dim))
        k, v = packing.pad(kv).unbind(-3)
        eps = nn_attention.QK_NORM_EPS
        heads = attend(_normalised(q, eps), _normalised(k, eps), v, packing.key_mask)
        return layer.out(heads.flatten(-2))

    with (
        mock.patch.object(dit, "adaln", adaln),
        mock.patch.object(dit, "gated_residual", gated_residual),
        mock.patch.object(dit, "gated_residual_adaln", gated_residual_adaln),
        mock.patch.object(dit, "gather_patches", chosen["gather"]),
        mock.patch.object(nn_attention.SelfAttention, "forward", self_attention),
        mock.patch.object(nn_attention.SelfAttention, "forward_packed", packed),
        mock.patch.object(nn_attention.CrossAttention, "forward", cross),
        mock.patch.object(ExpertChoiceFFN, "forward", chosen["experts"]),
    ):
        yield
