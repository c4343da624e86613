"""The activation family in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


def activate(x: Tensor, activation: str = "gelu") -> Tensor:
    """One of the four functions of each element."""
    return ACTIVATIONS[activation](x)


def gated_activation(x: Tensor, activation: str = "silu") -> Tensor:
    """The function of the first half of each row times the second half; x (..., 2 H)."""
    value, factor = x.chunk(2, dim=-1)
    return ACTIVATIONS[activation](value) * factor
