"""The moe family in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.ops.moe import Routing
from tenfold.ops.reference.activation import activate, gated_activation


def route_topk(logits: Tensor, k: int, renormalize: bool = False) -> Routing:
    """Each token's k highest logits (T, E), of equal ones the lower expert; rows sorted by expert, token."""
    weights = logits.float().softmax(dim=-1)
    expert_ids = logits.float().argsort(dim=-1, descending=True, stable=True)[:, :k]
    gates = weights.gather(1, expert_ids)
    if renormalize:
        gates = gates / gates.sum(dim=1, keepdim=True)
    tokens = torch.arange(len(logits))[:, None].expand(-1, k)
    return _sorted(expert_ids.flatten(), tokens.flatten(), gates.flatten(), *logits.shape)


def routing_from_ids(expert_ids: Tensor, weights: Tensor, experts: int) -> Routing:
    """The routing of expert_ids (T, k) with weights (T, k)."""
    order = expert_ids.long().argsort(dim=1, stable=True)
    ids, gates = expert_ids.long().gather(1, order), weights.float().gather(1, order)
    tokens = torch.arange(len(ids))[:, None].expand_as(ids)
    return _sorted(ids.flatten(), tokens.flatten(), gates.flatten(), len(ids), experts)


def route_expert_choice(logits: Tensor, capacity: int) -> Routing:
    """Each expert's `capacity` tokens of each sample with the highest softmax; logits (B, N, E).

    Ties go to the lower token; rows in the order (expert, sample, token). Zhou et al., 2022,
    "Mixture-of-Experts with Expert Choice Routing".
    """
    batch, tokens, experts = logits.shape
    weights = logits.float().softmax(dim=-1).permute(2, 0, 1)  # (E, B, N)
    chosen = weights.argsort(dim=-1, descending=True, stable=True)[..., :capacity].sort(dim=-1).values
    first = torch.arange(batch)[None, :, None] * tokens
    expert_ids = torch.arange(experts)[:, None, None].expand_as(chosen)
    gates = weights.gather(2, chosen)
    return _sorted(expert_ids.flatten(), (chosen + first).flatten(), gates.flatten(), batch * tokens, experts)


def _sorted(expert_ids: Tensor, token_ids: Tensor, gates: Tensor, tokens: int, experts: int) -> Routing:
    order = expert_ids.argsort(stable=True)
    token_ids = token_ids[order]
    offsets = torch.bincount(expert_ids, minlength=experts).cumsum(0)
    starts = F.pad(torch.bincount(token_ids, minlength=tokens).cumsum(0), (1, 0))
    rows = token_ids.argsort(stable=True)
    return Routing(token_ids.int(), gates[order], offsets.int(), starts.int(), rows.int())


def dispatch(x: Tensor, routing: Routing) -> Tensor:
    """``x[token_ids]``; x (T, D)."""
    return x[routing.token_ids.long()]


def combine(y: Tensor, routing: Routing, weighted: bool = True) -> Tensor:
    """Sum of gates[r] * y[r] over the rows of each token, y (R, D); in y's type."""
    wide = y.double()
    if weighted:
        wide = wide * routing.gates.double()[:, None]
    out = wide.new_zeros(len(routing.starts) - 1, y.shape[1])
    summed: Tensor = out.index_add(0, routing.token_ids.long(), wide)
    return summed.to(y.dtype)


def expert_ffn(
    x: Tensor,
    routing: Routing,
    w_in: Tensor,
    w_out: Tensor,
    activation: str = "gelu",
    gated: bool = False,
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
) -> Tensor:
    """Loop over the experts; x (T, D), w_in (E, D, H) or (E, D, 2 H), w_out (E, H, D)."""
    rows, parts, begin = dispatch(x, routing), [], 0
    for expert, end in enumerate(routing.offsets.tolist()):
        hidden = rows[begin:end] @ w_in[expert] + (0 if b_in is None else b_in[expert])
        value = gated_activation(hidden, activation) if gated else activate(hidden, activation)
        parts.append(value @ w_out[expert] + (0 if b_out is None else b_out[expert]))
        begin = end
    return combine(torch.cat(parts), routing)
