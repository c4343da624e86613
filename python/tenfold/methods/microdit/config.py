"""The configuration of a MicroDiT run and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field

from tenfold.diffusion.dit import DiTConfig
from tenfold.diffusion.edm import EDMConfig
from tenfold.diffusion.precision import Precision, uses_bf16
from tenfold.diffusion.text import WIDTH as TEXT_WIDTH

LARGEST_BATCH = 2**16


@dataclass(frozen=True)
class MicroDiTConfig:
    """What a run is: with the data, it determines every weight."""

    model: DiTConfig = field(default_factory=DiTConfig)
    noise: EDMConfig = field(default_factory=EDMConfig)
    data: str = "openmoji"
    """`openmoji`, or a folder of images with captions (NAME.txt beside each image, or one captions.jsonl)."""
    seed: int = 0
    """Seed of the weights, the order of the images, the noise and the samples."""
    steps: int = 0
    """Optimiser steps; 0 takes as many as the budget holds, measured before the first one."""
    batch: int = 64
    """Images of one optimiser step."""
    lr: float = 1.5e-3
    """Peak learning rate, after a linear warm-up and before half a cosine down to zero."""
    warmup: int = 50
    """Steps of the warm-up."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's averaging factors."""
    weight_decay: float = 0.01
    """AdamW's decay of matrices; vectors are not decayed."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.998
    """Decay of the averaged weights, which are the ones that sample."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the null caption, for guidance."""
    mask_ratio: float = 0.0
    """Share of patches dropped between mixer and backbone (deferred masking)."""
    unmasked_share: float = 0.25
    """Last share of the steps that sees every patch, when mask_ratio is not 0."""
    precision: Precision = "auto"
    """Arithmetic of the matrix products; auto is bf16 where the CPU has it. Weights are float32."""
    guidance: float = 2.0
    """Weight of the caption in the samples of the report, and the default when sampling."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 makes about twelve in a run."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for name, only in (("channels", 3), ("text_width", TEXT_WIDTH)):
            if getattr(self.model, name) != only:
                raise ValueError(f"{name}: wanted {only}, got {getattr(self.model, name)}")
        if self.seed >= 2**63:
            raise ValueError(f"seed: wanted less than 2**63, got {self.seed}")
        for name in ("batch", "lr", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: wanted a positive number, got {getattr(self, name)}")
        if self.batch > LARGEST_BATCH:
            raise ValueError(f"batch: wanted at most {LARGEST_BATCH}, got {self.batch}")
        for name in ("steps", "warmup", "checkpoint_every", "weight_decay", "seed", "guidance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: wanted 0 or more, got {getattr(self, name)}")
        for name in ("ema", "caption_dropout", "mask_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted 0 <= {name} < 1, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: wanted two numbers from 0 to below 1, got {self.betas}")
        if not 0 <= self.unmasked_share <= 1:
            raise ValueError(f"unmasked_share: wanted 0 to 1, got {self.unmasked_share}")

    @property
    def bf16(self) -> bool:
        """Whether the matrix products run in bfloat16 on this machine."""
        return uses_bf16(self.precision)


def laptop() -> MicroDiTConfig:
    """Two CPU cores, ten minutes, 32x32 pixels; what it reaches is in docs/microdit.md."""
    return MicroDiTConfig()


def laptop64() -> MicroDiTConfig:
    """Two CPU cores, an hour, 64x64 pixels."""
    return MicroDiTConfig(model=DiTConfig(image_size=64, patch_size=16))


def paper() -> MicroDiTConfig:
    """The published XL/2 at its first stage, on pixels instead of latents: for GPUs, not run by us.

    The paper trains on latents of a pre-trained autoencoder, 32x32 with 4 channels for 256 pixels; this
    preset takes pictures of 32x32 pixels in their place, so that it has the paper's 256 patches, and keeps
    its transformer, masking, optimiser and noise. The learning rate ends at zero, where the paper's first
    stage ends at a third.
    """
    model = DiTConfig(
        image_size=32, patch_size=2, width=1024, depth=28, mixer_width=768, mixer_depth=6, multiple=256,
        experts=8,
    )  # fmt: skip
    return MicroDiTConfig(
        model=model,
        batch=2048,
        lr=2.4e-4,
        warmup=2500,
        steps=280_000,
        betas=(0.9, 0.999),
        weight_decay=0.1,
        clip=0.25,
        noise=EDMConfig(sigma_data=0.9, p_mean=-0.6, prediction="edm", sigma_min=0.002, sigma_max=80.0),
        guidance=5.0,
        mask_ratio=0.75,
        unmasked_share=30 / 280,
    )


PRESETS = {"laptop": laptop, "laptop64": laptop64, "paper": paper}
