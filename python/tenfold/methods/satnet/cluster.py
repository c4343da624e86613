"""Tell digits apart without labels: invariant information clustering of pictures.

Ji, Henriques, Vedaldi, "Invariant Information Clustering for Unsupervised Image Classification and
Segmentation", ICCV 2019: the network's answers to a picture and to a distorted copy shall have the largest
mutual information. Its answers then name clusters, in an arbitrary order.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from tenfold.engine.schedule import Shuffle, generator
from tenfold.methods.satnet.model import Perception

BATCH = 500
RATE = 1e-3
TURN, SCALE, SHIFT = (
    math.radians(20.0),
    0.2,
    0.1,
)  # largest distortions; the shift is a share of half a picture
_WEIGHTS, _ORDER, _DISTORTION = range(3)


def mutual_information(first: Tensor, second: Tensor) -> Tensor:
    """Of the answers (B, c) to two views of the same pictures, in nats."""
    joint = first.T @ second / len(first)
    joint = ((joint + joint.T) / 2).clamp(min=1e-8)
    rows, columns = joint.sum(dim=1, keepdim=True), joint.sum(dim=0, keepdim=True)
    return (joint * (joint.log() - rows.log() - columns.log())).sum()


def distort(images: Tensor, draws: torch.Generator) -> Tensor:
    """Turn, scale and shift each picture (B, 28, 28) uint8 a little."""
    count = len(images)
    turn, size_x, size_y, move_x, move_y = (2 * torch.rand(5, count, generator=draws) - 1).unbind()
    turn = TURN * turn
    rows = [
        torch.stack([turn.cos() * (1 + SCALE * size_x), -turn.sin(), SHIFT * move_x], dim=1),
        torch.stack([turn.sin(), turn.cos() * (1 + SCALE * size_y), SHIFT * move_y], dim=1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, dim=1), [count, 1, 28, 28], align_corners=False)
    moved = nn.functional.grid_sample(images[:, None].float(), grid, align_corners=False)
    return moved[:, 0].round().clamp(0, 255).to(torch.uint8)


def cluster(images: Tensor, clusters: int, passes: int, seed: int) -> Perception:
    """A network whose softmax over its first `clusters` outputs tells pictures (N, 28, 28) uint8 apart."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator(seed, _WEIGHTS).get_state())
        network = Perception(clusters, "softmax")
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    order = Shuffle(len(images), min(BATCH, len(images)), seed, _ORDER)
    for step in range(passes * max(1, len(images) // BATCH)):
        pictures = images[order.batch(step)]
        draws = generator(seed, _DISTORTION, step)
        views = (distort(pictures, draws), distort(pictures, draws))
        first, second = (network.logits(view)[:, :clusters].softmax(dim=1) for view in views)
        loss = -mutual_information(first, second)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


def best_assignment(agreement: Tensor) -> list[int]:
    """The column for each row of a square matrix, all different, with the largest sum; up to 12 rows."""
    size = len(agreement)
    if size > 12:
        raise ValueError(f"agreement: wanted at most 12 rows, got {size}")
    gains = agreement.tolist()
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # by the set of columns used, of as many rows
    for row in range(size):
        following: dict[int, tuple[float, list[int]]] = {}
        for used, column in itertools.product(best, range(size)):
            if used >> column & 1:
                continue
            total, taken = best[used]
            candidate = (total + gains[row][column], [*taken, column])
            key = used | 1 << column
            if key not in following or candidate[0] > following[key][0]:
                following[key] = candidate
        best = following
    return best[2**size - 1][1]
