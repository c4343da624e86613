"""EDM's noise levels, preconditioning and loss (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scalings:
    """Coefficients per sample, each (N,): D(x) = skip x + out F(input x, noise), loss weight on F."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor
    weight: Tensor


@dataclass(frozen=True)
class EDMConfig:
    """Noise levels, in the units of the scaled images, and what the network predicts."""

    sigma_data: float = 0.5
    """Standard deviation of the images after scaling."""
    p_mean: float = 1.0
    """Mean of ln(sigma) in training; high levels teach which picture a caption means."""
    p_std: float = 1.2
    """Standard deviation of ln(sigma) in training."""
    prediction: Literal["clean", "edm"] = "clean"
    """What the network puts out: the clean image, or EDM's mixture of image and noise."""
    weight_cap: float = 5.0
    """Largest weight of a noise level in the loss on clean images; EDM's own weight grows without bound."""

    sigma_min: float = 0.8
    """Level at which sampling ends with the network's own image; EDM goes down to 0.002."""
    sigma_max: float = 40.0
    """Level at which sampling starts."""

    def __post_init__(self) -> None:
        """Refuse levels that make no sense."""
        if not 0 < self.sigma_min < self.sigma_max:
            levels = f"{self.sigma_min} and {self.sigma_max}"
            raise ValueError(f"sigma_min: wanted 0 < sigma_min < sigma_max, got {levels}")
        for name in ("sigma_data", "p_std", "weight_cap"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: wanted a positive number, got {getattr(self, name)}")

    def training_sigmas(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw (count,) float32 noise levels, ln sigma ~ N(p_mean, p_std)."""
        return torch.exp(self.p_mean + self.p_std * torch.randn(count, generator=generator))

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return the coefficients at sigma (N,).

        With prediction "edm" they are EDM's (table 1) and its loss weight is 1 on F. A patch of large
        pixel count is as wide as the network, which then spends itself on passing the noise through, and
        samples keep a grain. With "clean" the network puts out images, which fill far fewer dimensions (Li
        and He 2025, arXiv 2511.13720): skip is 0, out is sigma_data, and the weight is EDM's,
        1 + sigma_data^2 / sigma^2 on F, capped (Min-SNR, Hang et al. 2023, arXiv 2303.09556).
        """
        total = sigma**2 + self.sigma_data**2
        inputs, noise = total.rsqrt(), sigma.log() / 4
        if self.prediction == "clean":
            weight = (total / sigma**2).clamp(max=self.weight_cap)
            out = torch.full_like(sigma, self.sigma_data)
            return Scalings(torch.zeros_like(sigma), out, inputs, noise, weight)
        skip, out = self.sigma_data**2 / total, sigma * self.sigma_data * inputs
        return Scalings(skip, out, inputs, noise, torch.ones_like(sigma))


def column(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (N,) so that it broadcasts over the trailing dimensions of `like` (N, ...)."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def training_target(clean: Tensor, noisy: Tensor, scalings: Scalings) -> Tensor:
    """Return what F should be: (x0 - skip x) / out, shape of `clean` (N, ...).

    EDM's loss weight on D, (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, is `weight` / out^2, so the
    weighted loss on D is `weight` times the squared error of F against this target.
    """
    return (clean - column(scalings.skip, clean) * noisy) / column(scalings.out, clean)


def weighted_loss(raw: Tensor, target: Tensor, scalings: Scalings) -> Tensor:
    """Return the mean over samples and entries of weight (F - target)^2, a scalar."""
    return (column(scalings.weight, raw) * (raw - target).square()).mean()
