"""Groups of near-twins, and a held-out split that never parts a group."""

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# Two pictures are near-twins when, shrunk to TWIN_SIZE x TWIN_SIZE, the root of their mean squared
# difference is below TWIN_RMS of 255 levels.
TWIN_SIZE = 32
TWIN_RMS = 16.0
HELDOUT_SHARE = 0.05


class UnionFind:
    """Disjoint sets over 0..count-1; the representative of a set is its smallest member."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, item: int) -> int:
        """The smallest member of the set of ``item``."""
        root = item
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[item] != root:
            self._parent[item], item = root, self._parent[item]
        return root

    def union(self, a: int, b: int) -> None:
        """Join the sets of ``a`` and ``b``."""
        low, high = sorted((self.find(a), self.find(b)))
        self._parent[high] = low

    def labels(self) -> NDArray[np.int64]:
        """(count,) group numbers from 0, in order of first appearance."""
        roots = np.array([self.find(item) for item in range(len(self._parent))], dtype=np.int64)
        return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def shrink(images: NDArray[np.uint8], size: int = TWIN_SIZE) -> NDArray[np.float32]:
    """Area-averaged copies: uint8 (N, H, W, 3) to float32 (N, size*size*3) in 0..255."""
    count, height, width, _ = images.shape
    rows = _area_weights(height, size)
    columns = _area_weights(width, size)
    small = np.empty((count, size, size, 3), dtype=np.float32)
    for start in range(0, count, 256):  # 256 pictures of 64x64 make 12 MB of float32
        block = images[start : start + 256].astype(np.float32)
        small[start : start + 256] = np.einsum("ah,bw,nhwc->nabc", rows, columns, block, optimize=True)
    return small.reshape(count, -1)


def _area_weights(length: int, size: int) -> NDArray[np.float32]:
    """(size, length) weights: row i averages the stretch [i, i+1) * length/size of the input."""
    edges = np.linspace(0, length, size + 1)
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.clip(overlap, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def near_twins(images: NDArray[np.uint8], rms: float = TWIN_RMS) -> list[tuple[int, int]]:
    """All pairs (i < j) of pictures that are nearly equal in pixels; O(N^2) products in blocks."""
    small = shrink(images)
    square = np.einsum("nd,nd->n", small, small)
    limit = rms**2 * small.shape[1]
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(small), 1024):
        block = slice(start, start + 1024)
        distance = square[block, None] + square[None, :] - 2 * (small[block] @ small.T)
        for i, j in np.argwhere(distance < limit):
            if start + i < j:
                pairs.append((start + int(i), int(j)))
    return pairs


def group(
    count: int, pairs: Iterable[tuple[int, int]], keys: Iterable[Sequence[Hashable]] = ()
) -> NDArray[np.int64]:
    """(count,) group numbers: joined are the members of each pair, and rows equal in one column of ``keys``."""
    sets = UnionFind(count)
    for a, b in pairs:
        sets.union(a, b)
    for column in keys:
        first: dict[Hashable, int] = {}
        for row, value in enumerate(column):
            sets.union(first.setdefault(value, row), row)
    return sets.labels()


def split(
    groups: NDArray[np.int64], names: Sequence[str], share: float = HELDOUT_SHARE
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers (train, heldout): whole groups, about ``share`` of the rows held out.

    The order in which groups are drawn is the SHA-256 of the first name of each, so it depends on the
    pictures' names alone: not on a seed, the machine or the order of a folder. A group that would overshoot
    is passed over.
    """
    wanted = round(share * len(names))
    members: dict[int, list[int]] = {}
    for row, label in enumerate(groups):
        members.setdefault(int(label), []).append(row)
    drawn = sorted(
        members.values(), key=lambda rows: hashlib.sha256(min(names[r] for r in rows).encode()).digest()
    )
    heldout: list[int] = []
    for rows in drawn:
        if len(heldout) + len(rows) <= wanted:
            heldout.extend(rows)
    held = np.array(sorted(heldout), dtype=np.int64)
    return np.setdiff1d(np.arange(len(names), dtype=np.int64), held), held
