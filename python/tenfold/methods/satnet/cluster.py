"""Tell digits apart without labels: spectral clustering of some pictures, learnt by a network for all.

Ng, Jordan, Weiss, "On spectral clustering: analysis and an algorithm", NIPS 2001, on the graph of each
picture's nearest neighbours. Slanted digits are made upright first. Clusters come in an arbitrary order.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from tenfold.engine.schedule import Shuffle, generator
from tenfold.methods.satnet.model import Perception, scaled

LANDMARKS = 4000  # pictures that are clustered: a dense eigenvalue problem of so many rows
NEIGHBOURS = 5
STARTS, SWEEPS = 10, 50  # of k-means
PASSES, BATCH, RATE = 10, 100, 1e-3  # of the network, over the landmarks
TURN, SCALE, SHIFT = math.radians(15.0), 0.15, 0.1  # largest distortions; the shift in half pictures
CLOSED = -20.0  # logit of an output that names no cluster
_WEIGHTS, _ORDER, _DISTORTION, _CHOICE = range(30, 34)


def upright(images: Tensor) -> Tensor:
    """Shear and centre each picture (B, 28, 28) uint8 by its moments; float32, 0 to 1."""
    light = images.float() / 255.0
    place = torch.arange(28.0) - 13.5
    mass = light.sum(dim=(1, 2)).clamp(min=1e-6)
    centre_x = (light * place).sum(dim=(1, 2)) / mass
    centre_y = (light * place[:, None]).sum(dim=(1, 2)) / mass
    x, y = place - centre_x[:, None, None], place[:, None] - centre_y[:, None, None]
    shear = (light * x * y).sum(dim=(1, 2)) / (light * y * y).sum(dim=(1, 2)).clamp(min=1e-6)
    ones, zeros = torch.ones_like(shear), torch.zeros_like(shear)
    rows = [torch.stack([ones, shear, centre_x / 14], 1), torch.stack([zeros, ones, centre_y / 14], 1)]
    return _moved(light, torch.stack(rows, dim=1))


def distort(images: Tensor, draws: torch.Generator) -> Tensor:
    """Turn, scale and shift each picture (B, 28, 28) uint8 a little."""
    turn, size, move_x, move_y = (2 * torch.rand(4, len(images), generator=draws) - 1).unbind()
    turn, size = TURN * turn, 1 + SCALE * size
    rows = [
        torch.stack([size * turn.cos(), -turn.sin(), SHIFT * move_x], dim=1),
        torch.stack([turn.sin(), size * turn.cos(), SHIFT * move_y], dim=1),
    ]
    return _moved(images.float(), torch.stack(rows, dim=1)).round().clamp(0, 255).to(torch.uint8)


def _moved(images: Tensor, transforms: Tensor) -> Tensor:
    grid = nn.functional.affine_grid(transforms, [len(images), 1, 28, 28], align_corners=False)
    return nn.functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def spectral(images: Tensor, clusters: int, draws: torch.Generator) -> Tensor:
    """(N,) the cluster of each picture (N, 28, 28) uint8, from 0."""
    soft = nn.functional.avg_pool2d(upright(images)[:, None], 3, 2, 1).flatten(1)
    likeness = nn.functional.normalize(soft) @ nn.functional.normalize(soft).T
    nearest = likeness.fill_diagonal_(-1.0).topk(min(NEIGHBOURS, len(images) - 1), dim=1).indices
    linked = torch.zeros_like(likeness).scatter_(1, nearest, 1.0)
    linked = (linked + linked.T) / 2
    root = linked.sum(dim=1).sqrt()
    vectors = torch.linalg.eigh(linked / root / root[:, None]).eigenvectors[:, -clusters:]
    return _means(nn.functional.normalize(vectors), clusters, draws)


def _means(points: Tensor, clusters: int, draws: torch.Generator) -> Tensor:
    """k-means from several starts, each centre drawn far from those before; the tightest result."""
    best, least = torch.zeros(len(points), dtype=torch.int64), math.inf
    for _ in range(STARTS):
        centres = points[torch.randint(len(points), (1,), generator=draws)]
        while len(centres) < clusters:
            far = torch.cdist(points, centres).min(dim=1).values.square() + 1e-12
            centres = torch.cat([centres, points[torch.multinomial(far, 1, generator=draws)]])
        for _ in range(SWEEPS):
            owner = torch.cdist(points, centres).argmin(dim=1)
            sums = torch.zeros_like(centres).index_add_(0, owner, points)
            counts = torch.bincount(owner, minlength=clusters)[:, None]
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        distance, owner = torch.cdist(points, centres).min(dim=1)
        cost = float(distance.square().sum())
        if cost < least:
            best, least = owner, cost
    return best


def cluster(images: Tensor, clusters: int, seed: int) -> Perception:
    """A network whose first outputs tell pictures (N, 28, 28) uint8 apart; the others are closed."""
    choice = generator(seed, _CHOICE)
    chosen = images[torch.randperm(len(images), generator=choice)[:LANDMARKS]]
    names = spectral(chosen, clusters, choice)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator(seed, _WEIGHTS).get_state())
        network = Perception(clusters, "softmax")
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    order = Shuffle(len(chosen), min(BATCH, len(chosen)), seed, _ORDER)
    for step in range(PASSES * max(1, len(chosen) // BATCH)):
        rows = order.batch(step)
        pictures = distort(chosen[rows], generator(seed, _DISTORTION, step))
        logits = network.body(scaled(pictures))[:, :clusters]
        nn.functional.cross_entropy(logits, names[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    last = network.body[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight[clusters:] = 0.0
        last.bias[clusters:] = CLOSED
    return network


def best_assignment(agreement: Tensor) -> list[int]:
    """The column for each row of a square matrix, all different, with the largest sum; up to 12 rows."""
    size = len(agreement)
    if size > 12:
        raise ValueError(f"agreement: wanted at most 12 rows, got {size}")
    gains = agreement.tolist()
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # by the set of columns used
    for row in range(size):
        following: dict[int, tuple[float, list[int]]] = {}
        for used, column in itertools.product(best, range(size)):
            if used >> column & 1:
                continue
            total = best[used][0] + gains[row][column]
            key = used | 1 << column
            if key not in following or total > following[key][0]:
                following[key] = (total, [*best[used][1], column])
        best = following
    return best[2**size - 1][1]
