"""EDM preconditioning, noise distribution and loss (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EDMConfig:
    """Noise levels, in units of the images after scaling to [-1, 1]."""

    sigma_data: float = 0.5
    """Standard deviation of the images."""
    p_mean: float = -0.6
    """Mean of ln(sigma) in training."""
    p_std: float = 1.2
    """Standard deviation of ln(sigma) in training."""

    def __post_init__(self) -> None:
        """Refuse widths that are not positive."""
        for name in ("sigma_data", "p_std"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: wanted a positive number, got {getattr(self, name)}")

    def training_sigmas(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw (count,) float32 noise levels, ln sigma ~ N(p_mean, p_std)."""
        return torch.exp(self.p_mean + self.p_std * torch.randn(count, generator=generator))

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return the coefficients of D(x) = c_skip x + c_out F(c_in x, c_noise) at sigma (N,)."""
        total = sigma**2 + self.sigma_data**2
        return Scalings(
            skip=self.sigma_data**2 / total,
            out=sigma * self.sigma_data * total.rsqrt(),
            input=total.rsqrt(),
            noise=sigma.log() / 4,
        )


@dataclass(frozen=True)
class Scalings:
    """Coefficients per sample, each (N,)."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


def column(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (N,) so that it broadcasts over the trailing dimensions of `like` (N, ...)."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def training_target(clean: Tensor, noisy: Tensor, scalings: Scalings) -> Tensor:
    """Return what F should be: (x0 - c_skip x) / c_out, shape of `clean` (N, ...).

    The EDM loss weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 is 1 / c_out^2, so the weighted
    loss on D is the plain mean squared error on F against this target.
    """
    return (clean - column(scalings.skip, clean) * noisy) / column(scalings.out, clean)
