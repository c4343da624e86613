"""Pictures and captions as the loop takes them: scaled patches, encoded captions, a verified manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tenfold.data.folder import image_folder
from tenfold.data.images import CaptionedImages
from tenfold.data.manifest import Manifest
from tenfold.data.openmoji import openmoji
from tenfold.diffusion.dit import patchify
from tenfold.diffusion.pixels import PixelScaling
from tenfold.diffusion.text import TextEncoder, TextStates
from tenfold.methods.microdit.config import MicroDiTConfig

OPENMOJI = "openmoji"


@dataclass(frozen=True)
class Prepared:
    """A captioned set, encoded."""

    images: CaptionedImages
    text: TextStates
    encoder: TextEncoder
    manifest: Manifest


def prepare(config: MicroDiTConfig) -> Prepared:
    """Read and encode the set that `config.data` names; UserError names the file that does not fit."""
    size = config.model.image_size
    images = openmoji(size) if config.data == OPENMOJI else image_folder(Path(config.data), size)
    encoder = TextEncoder.load()
    return Prepared(images, encoder.encode(images.captions), encoder, Manifest.of(images))


def anchored(config: MicroDiTConfig) -> MicroDiTConfig:
    """Return the config with its folder of pictures as an absolute path: a run is opened from anywhere."""
    return config if config.data == OPENMOJI else replace(config, data=str(Path(config.data).absolute()))


def patches_of(config: MicroDiTConfig, prepared: Prepared, pixels: PixelScaling) -> Tensor:
    """Return every picture as scaled patches, (N, T, p*p*3) float32."""
    x = pixels.encode(prepared.images.images, config.noise.sigma_data)
    return patchify(x, config.model.patch_size)


def trim(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cut padding that no caption of the batch reaches: (N, L, D), (N, L) to the longest one."""
    length = int(mask.sum(dim=1).max())
    return states[:, :length], mask[:, :length]


def rows_of(text: TextStates, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return states and mask of some captions."""
    return text.states.index_select(0, rows), text.mask.index_select(0, rows)


def tensor(rows: object) -> Tensor:
    """Return numpy row numbers as int64."""
    return torch.as_tensor(rows, dtype=torch.int64)
