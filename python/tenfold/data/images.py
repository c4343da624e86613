"""The one shape in which every captioned picture set reaches a trainer."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CaptionedImages:
    """N pictures of one size, a caption and a name for each, and a split that keeps near-twins together.

    ``train`` and ``heldout`` are disjoint, sorted row numbers that cover 0..N-1; two pictures of one group
    are always on the same side.
    """

    images: NDArray[np.uint8]  # (N, H, W, 3), sRGB, over white where the source was transparent
    captions: list[str]
    names: list[str]  # one per picture, no two alike: code points, or the path inside the user's folder
    groups: NDArray[np.int64]  # (N,), numbered from 0 in order of first appearance
    train: NDArray[np.int64]
    heldout: NDArray[np.int64]
    licence: str
    attribution: str
    source: str

    def __len__(self) -> int:
        return len(self.images)
