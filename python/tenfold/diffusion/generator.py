"""Pictures from captions, out of a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold.diffusion.dit import DiT, DiTConfig, unpatchify
from tenfold.diffusion.edm import EDMConfig
from tenfold.diffusion.guidance import guided_denoiser
from tenfold.diffusion.pixels import PixelScaling
from tenfold.diffusion.precision import Precision, uses_bf16
from tenfold.diffusion.samplers import heun, karras_sigmas
from tenfold.diffusion.text import TextEncoder, TextStates
from tenfold.engine import checkpoint
from tenfold.engine.config import from_dict
from tenfold.engine.run import RunDirectory
from tenfold.engine.schedule import generator
from tenfold.errors import UserError

BATCH = 64
_SAMPLING = 20  # the random stream of the samples' noise, beside those of training and evaluation


@dataclass(frozen=True)
class SamplerConfig:
    """How pictures are drawn."""

    steps: int = 18
    """Noise levels; each but the last costs two evaluations of the network."""
    guidance: float = 2.0
    """Weight of the caption; 1 is none, higher follows the caption more and varies less."""

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled, before any work is done."""
        if self.guidance < 0:
            raise ValueError(f"guidance: wanted at least 0, got {self.guidance}")
        if self.steps < 1:
            raise ValueError(f"steps: wanted at least 1, got {self.steps}")


class Generator:
    """A trained network with everything it needs to draw."""

    def __init__(
        self,
        model: DiT,
        noise: EDMConfig,
        pixels: PixelScaling,
        encoder: TextEncoder,
        precision: Precision = "auto",
    ) -> None:
        self.model, self.noise, self.pixels, self.encoder = model.eval(), noise, pixels, encoder
        self.bf16 = uses_bf16(precision)

    def sample(
        self, captions: Sequence[str], seed: int, sampler: SamplerConfig | None = None
    ) -> NDArray[np.uint8]:
        """Draw one picture per caption: (N, H, W, 3) uint8.

        The noise of picture i depends on (seed, i) alone; no global generator is touched.
        """
        return self.sample_encoded(self.encoder.encode(captions), seed, sampler)

    def sample_encoded(
        self, text: TextStates, seed: int, sampler: SamplerConfig | None = None
    ) -> NDArray[np.uint8]:
        """Draw one picture per encoded caption; as `sample`."""
        sampler = sampler or SamplerConfig()
        config = self.model.config
        shape = (config.tokens, config.patch_size**2 * config.channels)
        sigmas = karras_sigmas(sampler.steps, self.noise.sigma_min, self.noise.sigma_max)
        pictures = []
        for start in range(0, len(text), BATCH):
            rows = slice(start, min(start + BATCH, len(text)))
            streams = [generator(seed, _SAMPLING, index) for index in range(rows.start, rows.stop)]
            noise = torch.stack([torch.randn(shape, generator=stream) for stream in streams])
            denoise = guided_denoiser(
                self.model, self.noise, text.states[rows], text.mask[rows], sampler.guidance, self.bf16
            )
            patches = heun(denoise, noise, sigmas)
            x = unpatchify(patches, config.patch_size, config.image_size, config.image_size)
            pictures.append(self.pixels.decode(x, self.noise.sigma_data))
        if not pictures:
            return np.empty((0, config.image_size, config.image_size, config.channels), np.uint8)
        return np.concatenate(pictures)


def load_generator(path: Path | str, encoder: TextEncoder | None = None) -> Generator:
    """Load the averaged weights of the newest checkpoint of a run.

    Any run whose config.json has `model` (DiTConfig), `noise` (EDMConfig) and `pixels` (PixelScaling) and
    whose checkpoints have the group `ema` will do; it samples in the run's `precision`, "auto" if it names
    none. UserError when the folder is no such run.
    """
    run = RunDirectory.open(Path(path))
    source = str(run.path / "config.json")
    if not {"model", "noise", "pixels"} <= run.config_dict.keys():
        raise UserError(f"{source}: not a text-to-image run (needs model, noise and pixels)")
    config = from_dict(DiTConfig, run.config_dict["model"], source)
    noise = from_dict(EDMConfig, run.config_dict["noise"], source)
    pixels = from_dict(PixelScaling, run.config_dict["pixels"], source)
    precision = run.config_dict.get("precision", "auto")
    if precision not in get_args(Precision):
        raise UserError(f"{source}: 'precision' is {precision!r}; it must be auto, bf16 or fp32")
    newest = checkpoint.latest(run.checkpoints)
    if newest is None:
        raise UserError(f"{run.checkpoints}: no checkpoint yet; train first (--resume {run.path})")
    model = DiT(config)
    loaded = checkpoint.load(newest, groups=["ema"])
    checkpoint.load_module(model, loaded.tensors["ema"], newest)
    return Generator(model, noise, pixels, encoder or TextEncoder.load(), precision)
