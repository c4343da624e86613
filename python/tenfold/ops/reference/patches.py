"""The patches family in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def random_keep_ids(batch: int, tokens: int, keep: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Uniform draw without replacement, the way of MAE (He et al., 2022): sort random numbers.

    The same distribution as tenfold.ops.patches.random_keep_ids, other numbers. Returns keep_ids (B, K) and
    restore_ids (B, N), both int64.
    """
    shuffled = torch.rand(batch, tokens, generator=generator).argsort(dim=1)
    return shuffled[:, :keep], shuffled.argsort(dim=1)


def philox_keep_ids(batch: int, tokens: int, keep: int, seed: int, offset: int = 0) -> tuple[Tensor, Tensor]:
    """The numbers of tenfold.ops.patches.random_keep_ids(ordered=False), one at a time in Python."""
    keep_ids = torch.empty(batch, keep, dtype=torch.int64)
    restore_ids = torch.empty(batch, tokens, dtype=torch.int64)
    key = (seed % 2**32, seed >> 32)
    for b in range(batch):
        sample = offset + b
        ids = list(range(tokens))
        for k in range(keep):
            word = philox4x32((k // 4, 0, sample % 2**32, sample >> 32), key)[k % 4]
            other = k + (word * (tokens - k) >> 32)
            ids[k], ids[other] = ids[other], ids[k]
        keep_ids[b] = torch.tensor(ids[:keep], dtype=torch.int64)
        restore_ids[b, torch.tensor(ids, dtype=torch.int64)] = torch.arange(tokens)
    return keep_ids, restore_ids


def philox4x32(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """One block of Philox4x32-10 (Salmon et al., SC 2011, section 3.3): four words of 32 bits."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ k0, right % 2**32, (left >> 32) ^ d ^ k1, left % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return a, b, c, d


def gather_patches(x: Tensor, keep_ids: Tensor) -> Tensor:
    """``out[b, k] = x[b, keep_ids[b, k]]``; x (B, N, ...), keep_ids (B, K)."""
    samples = torch.arange(len(x))[:, None]
    return x[samples, keep_ids.long()]


def restore_patches(y: Tensor, keep_ids: Tensor, tokens: int, mask_token: Tensor | None = None) -> Tensor:
    """``out[b, keep_ids[b, k]] = y[b, k]``, all other rows mask_token or zero; y (B, K, ...)."""
    fill = y.new_zeros(y.shape[2:]) if mask_token is None else mask_token
    samples = torch.arange(len(y))[:, None]
    out = fill.expand(len(y), tokens, *y.shape[2:]).clone()
    return out.index_put((samples, keep_ids.long()), y)


def restore_patches_from_ranks(y: Tensor, restore_ids: Tensor, mask_token: Tensor | None = None) -> Tensor:
    """MAE's way: append mask tokens, then gather by restore_ids (B, N)."""
    fill = y.new_zeros(y.shape[2:]) if mask_token is None else mask_token
    missing = restore_ids.shape[1] - y.shape[1]
    padded = torch.cat([y, fill.expand(len(y), missing, *y.shape[2:])], dim=1)
    return gather_patches(padded, restore_ids)


def dropped_sum(x: Tensor, keep_ids: Tensor) -> Tensor:
    """Sum of the rows that keep_ids does not name, in float64: the gradient of mask_token."""
    dropped = torch.ones(x.shape[:2], dtype=torch.bool)
    dropped.scatter_(1, keep_ids.long(), False)
    return x[dropped].double().sum(dim=0)
