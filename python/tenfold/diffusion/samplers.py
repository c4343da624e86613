"""Heun's method on the probability-flow ODE, with Karras noise levels."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

RHO = 7.0


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Return `steps` decreasing noise levels and a final zero, (steps+1,) float64 (EDM, equation 5)."""
    if steps < 1:
        raise ValueError(f"steps: wanted at least 1, got {steps}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min, sigma_max: wanted 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / RHO), sigma_max ** (1 / RHO)
    return torch.cat([(high + ramp * (low - high)) ** RHO, torch.zeros(1, dtype=torch.float64)])


def heun(denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate from pure noise to images (EDM, algorithm 1 without churn).

    `denoise(x, sigma)` maps x (N, ...) float32 and sigma (N,) to the denoised images. `noise` has unit
    variance. The state is float64; the last step has no correction. Returns float32.
    """
    x = noise.double() * sigmas[0]
    for sigma, following in itertools.pairwise(sigmas):
        slope = (x - _call(denoise, x, sigma)) / sigma
        euler = x + (following - sigma) * slope
        if following > 0:
            correction = (euler - _call(denoise, euler, following)) / following
            euler = x + (following - sigma) * (slope + correction) / 2
        x = euler
    return x.float()


def _call(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
    return denoise(x.float(), sigma.float().expand(x.shape[0])).double()
