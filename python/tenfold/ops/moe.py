"""Mixture of experts: which tokens go to which expert, there and back.

    routing = route_topk(logits, k)                    # (T, E): each token takes its k best experts, or
    routing = route_expert_choice(logits, capacity)    # (B, N, E): each expert takes its best tokens
    rows = dispatch(x, routing)                        # (T, D) -> (R, D), sorted by expert
    out = combine(expert(rows), routing)               # (R, D) -> (T, D), weighted by the gates

`routing.offsets` are END offsets as torch.nn.functional.grouped_mm takes them. numpy arrays and torch
tensors in CPU memory, and on a GPU torch tensors and cupy arrays (tenfold.ops.patches says how errors are
found there). Nothing one-hot is made, and every result is the same for any number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tenfold import _core
from tenfold.ops._arrays import Array, allocate, contiguous_rows, is_torch, whole
from tenfold.ops.activation import Activation as Activation

__all__ = [
    "Routing",
    "Statistics",
    "balance_loss",
    "combine",
    "dispatch",
    "expert_capacity",
    "expert_ffn",
    "route_expert_choice",
    "route_topk",
    "routing_from_ids",
    "statistics",
    "z_loss",
]


class Routing(NamedTuple):
    """R rows of T tokens for E experts, sorted by expert."""

    token_ids: Array
    """(R,) int32: the token of each row."""
    gates: Array
    """(R,) float32: the weight of each row in its token's sum."""
    offsets: Array
    """(E,) int32: where each expert's rows end."""
    starts: Array
    """(T + 1,) int32: token t has the rows rows[starts[t]:starts[t + 1]]."""
    rows: Array
    """(R,) int32: the rows of each token, ascending."""


class Statistics(NamedTuple):
    """What a routing did."""

    load: Array
    """(E,) int64: rows of each expert."""
    dropped: int
    """Tokens that no expert has."""


def _torch_half() -> Any:
    """tenfold.ops._moe_torch; loaded for the first torch tensor."""
    from tenfold.ops import _moe_torch

    return _moe_torch


def route_topk(logits: Array, k: int, *, renormalize: bool = False) -> Routing:
    """Send each token to its k experts with the highest logits ("token choice").

    Args:
        logits: (T, E) float32 or bfloat16, any strides; every one finite.
        k: experts of each token, 1 <= k <= E. Of equal logits the lower expert comes first.
        renormalize: gates are the softmax over the k chosen experts (Mixtral) instead of over all (Shazeer
            et al., 2017, without noise).

    Returns:
        Routing with R = T k rows: those of an expert are in the order of the tokens. For torch the gates have
        the gradient of their softmax; which experts are chosen has none.

    Raises:
        ValueError: a logit is NaN or infinite (names token and expert), there is no expert, k is out of
            range.
        TypeError: logits are of another type.

    O(T E + T k), in one pass over the logits.
    """
    if is_torch(logits):
        return Routing(*_torch_half().route_topk(logits, k, renormalize))
    k = whole("k", k)
    tokens, experts = logits.shape if len(logits.shape) == 2 else (0, 1)
    routing = _allocate_routing(logits, tokens * max(0, k), experts, tokens)
    _core.route_topk(logits, k, renormalize, tuple(routing))
    return routing


def route_expert_choice(logits: Array, capacity: int) -> Routing:
    """Let each expert take its `capacity` best tokens of each sample (Zhou et al., 2022).

    Args:
        logits: (B, N, E) float32 or bfloat16, any strides; every one finite.
        capacity: tokens that each expert takes from each sample, 0 <= capacity <= N (`expert_capacity`). The
            best are those with the highest softmax over the experts; of equal ones the lower token comes
            first.

    Returns:
        Routing with R = E B capacity rows, in the order (expert, sample, token), of T = B N tokens: token n
        of sample b has the number b N + n. Gates are that softmax, with its gradient for torch.

    Raises:
        ValueError: a logit is NaN or infinite (names sample, token and expert), capacity is out of range.
        TypeError: logits are of another type.

    O(B N E).
    """
    if is_torch(logits):
        return Routing(*_torch_half().route_expert_choice(logits, capacity))
    capacity = whole("capacity", capacity)
    batch, tokens, experts = logits.shape if len(logits.shape) == 3 else (0, 0, 1)
    routing = _allocate_routing(logits, batch * experts * max(0, capacity), experts, batch * tokens)
    _core.route_expert_choice(logits, capacity, tuple(routing))
    return routing


def routing_from_ids(expert_ids: Array, weights: Array, experts: int) -> Routing:
    """Make the routing of a choice made elsewhere: token t goes to expert_ids[t, i] with weights[t, i].

    Args:
        expert_ids: (T, k) int32 or int64, 0 <= id < experts, any order within a token.
        weights: (T, k), any floating type.
        experts: E.

    Returns:
        Routing with R = T k rows; those of an expert are in the order of the tokens. The gates are the
        weights in float32, for torch with their gradient.

    Raises:
        ValueError: an id is out of range (names token and place), shapes do not fit.
        TypeError: ids of another type, or arrays of different libraries.
    """
    if tuple(weights.shape) != tuple(expert_ids.shape):
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}, want {tuple(expert_ids.shape)} as expert_ids"
        )
    if is_torch(expert_ids):
        return Routing(*_torch_half().routing_from_ids(expert_ids, weights, experts))
    experts = whole("experts", experts)
    tokens, k = expert_ids.shape if len(expert_ids.shape) == 2 else (0, 0)
    routing = _allocate_routing(expert_ids, tokens * k, max(0, experts), tokens)
    source = allocate(expert_ids, tokens * k, np.int32)
    _core.route_ids(expert_ids, experts, tuple(routing._replace(gates=source)))
    return routing._replace(gates=weights.reshape(-1).astype(np.float32)[source])


def expert_capacity(tokens: int, experts: int, factor: float) -> int:
    """Tokens that one expert takes from one sample: int(factor * tokens / experts), from 1 to `tokens`."""
    if experts < 1 or tokens < 0 or not factor > 0:
        raise ValueError(
            f"want tokens >= 0, experts >= 1 and factor > 0, got {tokens}, {experts} and {factor}"
        )
    return min(tokens, max(1, int(factor * tokens / experts)))


def dispatch(x: Array, routing: Routing) -> Array:
    """Copy each row's token: ``out[r] = x[routing.token_ids[r]]``.

    Args:
        x: (T, D) float32, bfloat16 (torch) or float64.
        routing: of T tokens.

    Returns:
        (R, D) of x's library and type. Its gradient adds up the rows of each token in float32, in the order
        of the rows.

    Raises:
        ValueError: a token id is out of range (names it), x is not (T, D).
        TypeError: another type, or arrays of different libraries.
    """
    if is_torch(x):
        return _torch_half().dispatch(x, routing)
    x = contiguous_rows(x)
    out = allocate(x, (routing.token_ids.shape[0], *x.shape[1:]), x.dtype)
    _core.moe_dispatch(x, routing.token_ids, out)
    return out


def combine(y: Array, routing: Routing, *, weighted: bool = True) -> Array:
    """Add up each token's rows: ``out[t] = sum of gates[r] * y[r] over the rows r of token t``.

    Args:
        y: (R, D) float32, bfloat16 (torch) or float64.
        routing: of R rows.
        weighted: multiply by the gates; otherwise the plain sum.

    Returns:
        (T, D) of y's library and type, zero for a token without rows. Added up in float32 (float64 for
        float64) in the order of the rows and rounded once: deterministic, no atomics.

    Raises:
        ValueError: rows lead out of range (names the token), shapes do not fit.
        TypeError: another type, or arrays of different libraries.
    """
    if is_torch(y):
        return _torch_half().combine(y, routing, weighted)
    y = contiguous_rows(y)
    gates = routing.gates.astype(np.float64) if y.dtype == np.float64 else routing.gates
    out = allocate(y, (routing.starts.shape[0] - 1, *y.shape[1:]), y.dtype)
    _core.moe_combine(y, gates if weighted else None, routing.starts, routing.rows, out)
    return out


def expert_ffn(
    x: Array,
    routing: Routing,
    w_in: Array,
    w_out: Array,
    activation: Activation = "gelu",
    *,
    gated: bool = False,
    b_in: Array | None = None,
    b_out: Array | None = None,
) -> Array:
    """Run each expert's two-layer network on its tokens, and add up what they give.

    ``out[t] = sum over t's rows r of gates[r] * (activate(x[t] @ w_in[e] + b_in[e]) @ w_out[e] + b_out[e])``
    for the expert e of row r.

    Args:
        x: (T, D) float32; torch tensors bfloat16 or float64 too.
        routing: of T tokens.
        w_in: (E, D, H), or (E, D, 2 H) where `gated`. Any strides: weights kept as (E, H, D), as by Hugging
            Face and vLLM, go in as ``w.transpose(1, 2)`` without a copy.
        w_out: (E, H, D), any strides.
        activation: gelu, gelu_tanh, silu or relu.
        gated: the second half of the hidden values multiplies the activated first half (Shazeer, 2020).
        b_in: (E, H) or (E, 2 H), b_out: (E, D); none where None.

    Returns:
        (T, D) of x's library and type. For torch with gradients of x, the weights, the biases and the gates.

    Raises:
        ValueError: shapes do not fit, a token id or offset is out of range, an unknown activation.
        TypeError: another type, or arrays of different libraries.

    In float32 on the CPU the products are tenfold's own: rows are found while they are packed and the hidden
    values stay in the cache; the same bits for any number of threads. Otherwise they are torch's, one
    batched product where all experts have as many rows, else an expert at a time; on a GPU that waits for the
    offsets. Saves the hidden values (R, H) for the backward pass.
    """
    if is_torch(x):
        from tenfold.ops import _experts_torch

        return _experts_torch.expert_ffn(x, routing, w_in, w_out, b_in, b_out, activation, gated)
    x = contiguous_rows(x)
    y = np.empty((routing.token_ids.shape[0], *x.shape[1:]), np.float32)
    _core.experts_forward(
        x, routing.token_ids, routing.offsets, w_in, w_out, b_in, b_out, activation, gated, y, None
    )
    return combine(y, routing)


def statistics(routing: Routing) -> Statistics:
    """Count the rows of each expert, and the tokens that none took."""
    if is_torch(routing.offsets):
        load = routing.offsets.diff(prepend=routing.offsets.new_zeros(1)).long()
    else:
        load = np.diff(routing.offsets, prepend=np.int32(0)).astype(np.int64)
    return Statistics(load, int((routing.starts[1:] == routing.starts[:-1]).sum()))


def balance_loss(logits: Array, routing: Routing) -> Array:
    """Auxiliary loss that evens out the load: E * sum_e f_e P_e (Fedus et al., 2021, equation 4).

    f_e is expert e's share of the rows and P_e the mean of its softmax over the tokens; 1 where both are
    even. logits (..., E), those of the routing. A torch tensor with a gradient through P, or a numpy number.
    """
    experts = logits.shape[-1]
    load = statistics(routing).load
    share = load / max(1, routing.token_ids.shape[0])
    if is_torch(logits):
        mean = logits.float().softmax(dim=-1).reshape(-1, experts).mean(dim=0)
        return experts * (share.to(mean.dtype) * mean).sum()
    return experts * (share * _softmax(logits).reshape(-1, experts).mean(axis=0)).sum()


def z_loss(logits: Array) -> Array:
    """Auxiliary loss that keeps logits small: the mean of logsumexp(logits)^2.

    Zoph et al., 2022, equation 5. logits (..., E). A torch tensor with a gradient, or a numpy number.
    """
    if is_torch(logits):
        return logits.float().logsumexp(dim=-1).square().mean()
    highest = logits.max(axis=-1)
    return np.square(highest + np.log(np.exp(logits - highest[..., None]).sum(axis=-1))).mean()


def _softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _allocate_routing(like: Array, rows: int, experts: int, tokens: int) -> Routing:
    return Routing(
        allocate(like, rows, np.int32),
        allocate(like, rows, np.float32),
        allocate(like, experts, np.int32),
        allocate(like, tokens + 1, np.int32),
        allocate(like, rows, np.int32),
    )
