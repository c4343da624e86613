"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) over captions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tenfold.diffusion.dit import DiT
from tenfold.diffusion.edm import EDMConfig, column
from tenfold.diffusion.precision import autocast


def drop_captions(states: Tensor, mask: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the captions where dropped (N,) is True by the null caption: one token of zeros.

    Shapes: states (N, L, D), mask (N, L) boolean. The inputs are not changed.
    """
    first = torch.zeros_like(mask)
    first[:, 0] = True
    null = dropped[:, None]
    return states.masked_fill(null[..., None], 0.0), torch.where(null, first, mask)


def guided_denoiser(
    model: DiT, noise: EDMConfig, states: Tensor, mask: Tensor, guidance: float, bf16: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return D(x, sigma) on patches for `samplers.heun`, guided towards the captions.

    Guidance acts on the raw output, F_null + guidance (F_caption - F_null), which is linear in D too. At
    guidance 1 the null caption is not computed.
    """
    if guidance != 1.0:
        everyone = torch.ones(len(mask), dtype=torch.bool)
        null_states, null_mask = drop_captions(states, mask, everyone)
        states, mask = torch.cat([states, null_states]), torch.cat([mask, null_mask])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        scale = noise.scalings(sigma)
        inputs, levels = column(scale.input, x) * x, scale.noise
        if guidance != 1.0:
            inputs, levels = torch.cat([inputs, inputs]), torch.cat([levels, levels])
        with torch.no_grad(), autocast(bf16):
            raw: Tensor = model(inputs, levels, states, mask).float()
        if guidance != 1.0:
            caption, null = raw.chunk(2)
            raw = null + guidance * (caption - null)
        return column(scale.skip, x) * x + column(scale.out, x) * raw

    return denoise
