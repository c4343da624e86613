"""Feed-forward layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.ops.activation import activate, gated_activation

_OURS = (torch.float32, torch.bfloat16)  # types of the ops; torch's functions do the others


class SwiGLU(nn.Module):
    """(silu(x W_gate) * x W_up) W_down, without biases (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to (..., width)."""
        y: Tensor = self.down(_swiglu(self.gate_up(x)))
        return y


class MLP(nn.Module):
    """Linear, GELU (tanh form), Linear, with biases; an optional LayerNorm before the last layer."""

    def __init__(self, inputs: int, hidden: int, outputs: int, norm: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(inputs, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-6, bias=False) if norm else nn.Identity()
        self.down = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        y: Tensor = self.down(self.norm(_gelu_tanh(self.up(x))))
        return y


def _swiglu(hidden: Tensor) -> Tensor:
    if hidden.dtype in _OURS:
        y: Tensor = gated_activation(hidden, "silu")
        return y
    gate, up = hidden.chunk(2, dim=-1)
    return F.silu(gate) * up


def _gelu_tanh(hidden: Tensor) -> Tensor:
    return activate(hidden, "gelu_tanh") if hidden.dtype in _OURS else F.gelu(hidden, approximate="tanh")
