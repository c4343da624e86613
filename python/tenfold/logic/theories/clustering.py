"""Clustering from constraints alone: near points share a cluster, far ones do not (LTN, section 4.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from tenfold.logic.groundings import distance
from tenfold.logic.knowledge import KnowledgeBase
from tenfold.logic.syntax import Named, Pred

CLUSTERS = 4
POINTS = 50  # of each cluster
DEVIATION = 0.1
MARGIN = 0.2  # of the means from the borders of their quadrants
NEAR, FAR = 0.2, 1.0

AXIOMS = {
    "every point has a cluster": "forall x: exists c: C(x, c)",
    "no cluster is empty": "forall c: exists x: C(x, c)",
    "near points share one": f"forall c, x, y where distance(x, y) < {NEAR}: C(x, c) <-> C(y, c)",
    "far points do not": f"forall c, x, y where distance(x, y) > {FAR}: ~(C(x, c) & C(y, c))",
}


def knowledge() -> KnowledgeBase:
    """The theory about the clusters C of points x and y, whose logits a network gives."""
    symbols: list[Named] = [Pred("C", 2, gives="softmax"), distance]
    return KnowledgeBase(**AXIOMS, symbols=symbols)


def gaussians(draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (200, 2) of four Gaussians, one in each quadrant of [-1, 1]^2, and which is whose (200,)."""
    corners = torch.tensor([[-1.0, -1.0], [0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]])
    means = corners + MARGIN + (1 - 2 * MARGIN) * torch.rand(CLUSTERS, 2, generator=draws)
    noise = DEVIATION * torch.randn(CLUSTERS, POINTS, 2, generator=draws)
    return (means[:, None] + noise).reshape(-1, 2), torch.arange(CLUSTERS).repeat_interleave(POINTS)
