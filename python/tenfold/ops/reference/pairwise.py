"""The pairwise family in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def pair_mlp(
    u: Tensor,
    v: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    hidden: Tensor | None = None,
    hidden_bias: Tensor | None = None,
    activation: str = "elu",
) -> Tensor:
    """Scores (n, m) of u (n, H) and v (m, H), by way of (n, m, H)."""
    f = ACTIVATIONS[activation]
    z = f(u[:, None] + v[None])
    if hidden is not None:
        z = f(F.linear(z, hidden, hidden_bias))
    scores = z @ w
    return scores if b is None else scores + b
