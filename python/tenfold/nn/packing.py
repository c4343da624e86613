"""Variable-length sequences without padding: linear layers see real tokens only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PackedTokens:
    """Where the tokens of a padded (N, L) batch lie in its packed (M,) form.

    Captions of icons have 4 tokens on average and 12 at most, so a padded batch is two thirds padding:
    every layer runs on the packed form.
    """

    rows: Tensor  # (M,) int64: position of each packed token in the flattened (N*L) batch
    slots: Tensor  # (N*L,) int64: packed row of each position; padding points at row 0 and is masked
    key_mask: Tensor  # (N, 1, 1, L) bool: True at real tokens
    offsets: Tensor  # (N + 1,) int32: where each sequence begins, and the last one ends

    @staticmethod
    def from_mask(mask: Tensor) -> PackedTokens:
        """Build from a boolean mask (N, L), True at real tokens; every row needs at least one."""
        flat = mask.flatten()
        rows = flat.nonzero().squeeze(1)
        slots = (flat.cumsum(0) - 1).clamp_(min=0) * flat
        ends = mask.sum(dim=1).cumsum(0)
        offsets = F.pad(ends, (1, 0)).int()
        return PackedTokens(rows, slots, mask[:, None, None, :], offsets)

    def pack(self, x: Tensor) -> Tensor:
        """(N, L, ...) -> (M, ...)."""
        return x.flatten(0, 1).index_select(0, self.rows)

    def pad(self, x: Tensor) -> Tensor:
        """(M, ...) -> (N, L, ...); padding holds copies of row 0."""
        n, _, _, length = self.key_mask.shape
        return x.index_select(0, self.slots).reshape(n, length, *x.shape[1:])

    def mean(self, x: Tensor) -> Tensor:
        """Mean over each sequence's real tokens: (M, D) -> (N, D)."""
        n, _, _, length = self.key_mask.shape
        samples = torch.div(self.rows, length, rounding_mode="floor")
        sums = x.new_zeros(n, x.shape[1]).index_add_(0, samples, x)
        counts = self.key_mask.sum(dim=(1, 2, 3)).unsqueeze(1)
        return sums / counts
