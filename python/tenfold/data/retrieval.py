"""How near samples come to the pictures they were asked for, and the controls to print beside it.

All functions take rows of features: pixels (`pixels`) or those of features.ImageFeatures. Distances are
Euclidean.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

_BLOCK = 1024  # gallery rows at a time: 50 MB of differences for pictures of 64x64


def pixels(images: NDArray[np.uint8]) -> Floats:
    """(N, H, W, 3) as rows (N, H*W*3) in 0..255."""
    return images.reshape(len(images), -1).astype(np.float32)


def nearest(samples: Floats, gallery: Floats, k: int) -> Rows:
    """(M, k) rows of ``gallery`` (N, D) nearest to each of ``samples`` (M, D), nearest first."""
    found = [np.argsort(_distances(sample, gallery), kind="stable")[:k] for sample in samples]
    return np.array(found, dtype=np.int64).reshape(len(samples), min(k, len(gallery)))


def own_ranks(samples: Floats, gallery: Floats, own: ArrayLike) -> Rows:
    """(M,) how many rows of ``gallery`` are nearer to sample i than its own row ``own[i]``; 0 is best.

    Exact copies of the own picture in the gallery do not count against a sample.
    """
    ranks = []
    for sample, row in zip(samples, np.asarray(own), strict=True):
        distances = _distances(sample, gallery)
        ranks.append(int((distances < distances[row]).sum()))
    return np.array(ranks, dtype=np.int64)


def own_image_share(samples: Floats, gallery: Floats, own: ArrayLike, k: int = 10) -> float:
    """Share of samples with their own picture among the ``k`` nearest of the gallery; see `chance`."""
    return float(np.mean(own_ranks(samples, gallery, own) < k))


def chance(count: int, k: int = 10) -> float:
    """Expected own_image_share of samples that know nothing of their captions: k / N."""
    return min(k / count, 1.0)


def nearest_caption(queries: Floats, candidates: Floats, exclude: ArrayLike | None = None) -> Rows:
    """(M,) row of ``candidates`` (N, D) whose caption vector has the largest cosine with each query (M, D).

    The baseline that only copies: take the training picture of this row as the sample. ``exclude`` (M,) are
    rows that a query may not take, such as its own.
    """
    cosines = _unit(queries) @ _unit(candidates).T
    if exclude is not None:
        cosines[np.arange(len(queries)), np.asarray(exclude)] = -np.inf
    best: Rows = np.argmax(cosines, axis=1)
    return best


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation over subsets; the mean may be negative, for the estimate is unbiased."""

    mean: float
    spread: float
    subsets: int
    subset_size: int


def kernel_distance(
    x: Floats, y: Floats, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> KernelDistance:
    """Squared maximum mean discrepancy of x (M, D) and y (N, D) with the kernel (a.b / D + 1)^3, unbiased.

    The kernel inception distance of Binkowski et al. (arXiv 1801.01401, section 4), in whatever features are
    given: comparable only between sets scored with the same features and reference set (the kernel wants
    features of order one: those of features.ImageFeatures, or pixels divided by 255). Each subset draws
    ``subset_size`` rows of both without replacement (default: half of the smaller set, at most 1000).

    Errors: ValueError when the widths differ, or a set has fewer rows than ``subset_size`` or than 2.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x is {x.shape}, y is {y.shape}; wanted (M, D) and (N, D)")
    size = min(1000, min(len(x), len(y)) // 2) if subset_size is None else subset_size
    if not 2 <= size <= min(len(x), len(y)):
        raise ValueError(
            f"subset_size is {size}, wanted 2 to {min(len(x), len(y))}, the rows of the smaller set"
        )
    draw = np.random.default_rng(seed)
    estimates = []
    for _ in range(subsets):
        a = x[draw.choice(len(x), size, replace=False)].astype(np.float64)
        b = y[draw.choice(len(y), size, replace=False)].astype(np.float64)
        estimates.append(_unbiased_mmd2(a, b))
    return KernelDistance(float(np.mean(estimates)), float(np.std(estimates)), subsets, size)


def _unbiased_mmd2(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    count, width = a.shape
    within = [(rows @ rows.T / width + 1) ** 3 for rows in (a, b)]
    off_diagonal: float = sum(float(np.sum(k) - np.trace(k)) for k in within) / (count * (count - 1))
    return off_diagonal - 2 * float(np.mean((a @ b.T / width + 1) ** 3))


def _distances(sample: Floats, gallery: Floats) -> NDArray[np.float64]:
    """Squared distances (N,); summed row by row, so that equal rows have equal distances to the last bit."""
    distances = np.empty(len(gallery), dtype=np.float64)
    for start in range(0, len(gallery), _BLOCK):
        block = slice(start, start + _BLOCK)
        distances[block] = np.sum(np.square(gallery[block] - sample), axis=1, dtype=np.float64)
    return distances


def _unit(rows: Floats) -> Floats:
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    unit: Floats = rows / np.maximum(norms, np.float32(1e-12))[:, None]
    return unit
