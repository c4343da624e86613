"""Feed-forward layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """(silu(x W_gate) * x W_up) W_down, without biases (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to (..., width)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: Tensor = self.down(F.silu(gate) * up)
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
        y: Tensor = self.down(self.norm(F.gelu(self.up(x), approximate="tanh")))
        return y
