"""Groups of near-twins, and a held-out split that never parts a group."""

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# Two pictures are near-twins when the root of the mean squared difference of their TWIN_SIZE x TWIN_SIZE
# thumbnails is below TWIN_RMS of 255 levels. Of 1,918 OpenMoji icons, 287 then have a near-twin: every clock,
# faces that differ in the mouth, persons that differ in the hair, flags of one pattern. At 11 levels: 155.
TWIN_SIZE = 32
TWIN_RMS = 16
HELDOUT_SHARE = 0.05
_BLOCK = 512  # rows of the distance matrix at a time: 8 bytes * 512 * N


def group(thumbnails: NDArray[np.uint8], keys: Iterable[Sequence[Hashable]] = ()) -> NDArray[np.int64]:
    """(N,) group numbers, from 0 in order of first appearance.

    Joined are near-twins, which are found in ``thumbnails`` (N, TWIN_SIZE, TWIN_SIZE, 3), and rows that agree
    in one of ``keys`` (each of length N); joining is transitive. Distances are sums of whole numbers in
    float64, so the groups are the same on every machine. O(N^2) time, 25 kB per picture.
    """
    labels = np.arange(len(thumbnails), dtype=np.int64)
    for column in keys:
        first: dict[Hashable, int] = {}
        for row, value in enumerate(column):
            _join(labels, np.array([first.setdefault(value, row), row]))
    flat = thumbnails.reshape(len(thumbnails), TWIN_SIZE * TWIN_SIZE * 3).astype(np.float64)
    squares = np.einsum("nd,nd->n", flat, flat)
    limit = TWIN_RMS**2 * flat.shape[1]
    for start in range(0, len(flat), _BLOCK):
        block, rest = flat[start : start + _BLOCK], flat[start:]
        distances = squares[start : start + len(block), None] + squares[start:] - 2 * (block @ rest.T)
        close = distances < limit
        for row in np.flatnonzero(close.sum(axis=1) > 1).tolist():  # each row is close to itself
            _join(labels, start + np.flatnonzero(close[row]))
    _, first_rows, numbers = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_rows))[numbers].astype(np.int64)


def _join(labels: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
    """Give the groups of all ``rows`` one label, in place."""
    found = np.unique(labels[rows])
    if len(found) > 1:
        labels[np.isin(labels, found)] = found[0]


def split(
    groups: NDArray[np.int64], names: Sequence[str], share: float = HELDOUT_SHARE
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers (train, heldout), sorted: whole groups, at most ``round(share * N)`` rows held out.

    Groups are drawn in the order of the SHA-256 of their first name, so the split depends on the pictures and
    their names alone: not on a seed, the machine or the order of a folder. A group that would overshoot is
    passed over.
    """
    wanted = round(share * len(names))
    members: dict[int, list[int]] = {}
    for row, label in enumerate(groups.tolist()):
        members.setdefault(label, []).append(row)
    heldout: list[int] = []
    for rows in sorted(members.values(), key=lambda rows: _digest(min(names[row] for row in rows))):
        if len(heldout) + len(rows) <= wanted:
            heldout.extend(rows)
    held = np.array(sorted(heldout), dtype=np.int64)
    return np.setdiff1d(np.arange(len(names), dtype=np.int64), held), held


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
