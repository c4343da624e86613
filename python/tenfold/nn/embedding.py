"""Fixed sinusoidal codes of positions and noise levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_PERIOD = 10_000.0


def position_code(rows: int, columns: int, width: int) -> Tensor:
    """Return the fixed 2-D sin-cos code of a grid, (rows*columns, width) float32, row-major.

    The first half of the channels codes the column, the second the row; each half holds sines, then
    cosines, at frequencies 10000^(-j / (width/4)) (MAE, arXiv 2111.06377).
    """
    if width % 4:
        raise ValueError(f"width: a position code needs a multiple of 4, got {width}")
    frequencies = MAX_PERIOD ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def axis(positions: Tensor) -> Tensor:
        angles = positions.double().outer(frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([axis(column.flatten()), axis(row.flatten())], dim=1).float()


def noise_code(c_noise: Tensor, width: int) -> Tensor:
    """Return the sinusoidal code of c_noise (N,), cosines first: (N, width) float32 (arXiv 2212.09748)."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=c_noise.device)
    angles = c_noise.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
