"""Images as the network sees them: centred, with a fixed standard deviation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class PixelScaling:
    """Statistics of a training set in units of [-1, 1]: mean per channel, one standard deviation."""

    mean: tuple[float, float, float]
    std: float

    def __post_init__(self) -> None:
        """Refuse a deviation that nothing can be divided by."""
        if self.std <= 0:
            raise ValueError(f"std: wanted a positive number, got {self.std}")

    @staticmethod
    def fit(images: NDArray[np.uint8]) -> PixelScaling:
        """Measure images (N, H, W, 3)."""
        mean = images.mean(axis=(0, 1, 2), dtype=np.float64) / 127.5 - 1.0
        squares = sum(float(np.square(image / 127.5 - 1.0 - mean).sum()) for image in images)
        std = math.sqrt(squares / images.size)
        # A set of one colour has no deviation; any positive number then leaves it as it is.
        return PixelScaling((float(mean[0]), float(mean[1]), float(mean[2])), std or 1.0)

    def encode(self, images: NDArray[np.uint8], sigma_data: float) -> Tensor:
        """Map images (N, H, W, 3) uint8 to (N, 3, H, W) float32 with standard deviation `sigma_data`."""
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return ((x - torch.tensor(self.mean).reshape(1, 3, 1, 1)) * (sigma_data / self.std)).contiguous()

    def decode(self, x: Tensor, sigma_data: float) -> NDArray[np.uint8]:
        """Map (N, 3, H, W) float32 back to images (N, H, W, 3) uint8, clipped and rounded."""
        x = x * (self.std / sigma_data) + torch.tensor(self.mean).reshape(1, 3, 1, 1)
        pixels = ((x + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
