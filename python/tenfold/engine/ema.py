"""Exponential moving average of a module's parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Keeps an average that follows the weights quickly at first: decay_t = min(decay, (1+t)/(10+t)).

    The warm-up of the decay (as in TensorFlow's ExponentialMovingAverage) keeps the random start out of it.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay: wanted 0 <= decay < 1, got {decay}")
        self.decay = decay
        self._live = dict(module.named_parameters())
        self._average = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the weights as they are after optimiser step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), list(self._live.values()), 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Return the average by parameter name (not copies)."""
        return self._average

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        for name, value in self._average.items():
            value.copy_(tensors[name])
