"""The problems of each task as tensors, a row each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Some problems. Bits are cell by cell, digit by digit; the labels of pictures are for scores alone."""

    z: Tensor
    """(B, n) float32: what is given, 0 elsewhere and where a picture says it; (B, L) bits of parity."""
    is_input: Tensor
    """(B, n) bool; of parity (B, 1), nothing."""
    label: Tensor
    """(B, n) float32; of parity (B, 1)."""
    images: Tensor
    """(G, 28, 28) uint8: a picture for each given cell, in order; none where nothing is seen."""
    shown: Tensor | None = None
    """(B, n) bool: the bits whose labels the loss may count; None: all."""


@dataclass(frozen=True)
class Split:
    """Problems of one split."""

    z: Tensor
    is_input: Tensor
    label: Tensor
    pictures: Tensor | None = None
    """(N, cells) int64: the digit seen in each cell, -1 for an empty one."""
    digits: Tensor | None = None
    """(D, 28, 28) uint8: the digits of this split."""
    shown: Tensor | None = None
    """(N, n) bool: the bits whose labels the loss may count; None: all."""

    def __len__(self) -> int:
        return len(self.z)

    def take(self, rows: Tensor) -> Batch:
        """The problems of some rows."""
        images = torch.empty(0, 28, 28, dtype=torch.uint8)
        if self.pictures is not None and self.digits is not None:
            seen = self.pictures[rows]
            images = self.digits[seen[seen >= 0]]
        shown = None if self.shown is None else self.shown[rows]
        return Batch(self.z[rows], self.is_input[rows], self.label[rows], images, shown)

    def fingerprint(self) -> str:
        """SHA-256 of everything in it."""
        digest = hashlib.sha256()
        for part in (self.z, self.is_input, self.label, self.pictures, self.digits, self.shown):
            if part is not None:
                digest.update(str(tuple(part.shape)).encode())
                digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Problems:
    """Both splits of a task."""

    train: Split
    test: Split
    order: Tensor | None = None
    """(n,) int64: bit `i` of a permuted board is bit `order[i]` of the board."""
    source: str = ""
    """Where they are from, for the report."""
