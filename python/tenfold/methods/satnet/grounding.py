"""The self-supervised route to grounded digits: no step sees the label of a given cell.

Pictures are told apart without labels; a layer that has learnt the rules from the cells that puzzles leave
unknown says what their given cells hold; the clusters get the digits that agree most.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tenfold.engine.atomic import atomic_write
from tenfold.methods.satnet.cluster import CLOSED, best_assignment, cluster
from tenfold.methods.satnet.config import SATNetConfig
from tenfold.methods.satnet.model import Model, Perception
from tenfold.methods.satnet.problems import Split

AGREEMENT_PUZZLES = 1000
BATCH = 100


def clusters(path: Path, split: Split, config: SATNetConfig) -> Perception:
    """The network that tells the pictures of training puzzles apart, from its file where that exists."""
    reader = Perception(config.symbols, config.output)
    if not path.exists():
        assert split.pictures is not None and split.digits is not None
        seen = split.pictures[split.pictures >= 0].unique()
        found = cluster(split.digits[seen], config.symbols, config.seed)
        write_weights(path, found.state_dict())
    reader.load_state_dict(load_file(path))
    return reader


def write_weights(path: Path, named: dict[str, Tensor]) -> None:
    """A safetensors file, whole or not at all."""
    with atomic_write(path, "wb") as sink:
        sink.write(save({name: value.contiguous() for name, value in named.items()}))


@torch.no_grad()
def match(model: Model, reader: Perception, split: Split, config: SATNetConfig) -> list[int]:
    """The digit of each cluster: from the labelled cells the rules say what the given cells hold."""
    assert model.layer is not None
    size = config.symbols
    model.eval()
    agreement = torch.zeros(size, size)
    for first in range(0, min(AGREEMENT_PUZZLES, len(split)), BATCH):
        batch = split.take(torch.arange(first, min(first + BATCH, len(split))))
        hidden = batch.is_input  # of these cells no label is seen
        solved = model.layer((~hidden) * batch.label, ~hidden)
        clusters = reader.logits(batch.images)[:, :size].argmax(dim=1)
        digits = solved[hidden].view(-1, size)
        agreement.index_add_(0, clusters, digits)
    return best_assignment(agreement)


@torch.no_grad()
def relabel(reader: Perception, assignment: list[int]) -> None:
    """Reorder the outputs so that each cluster answers with its digit, and close those that have none."""
    last = reader.body[-1]
    assert isinstance(last, nn.Linear)
    weight, bias = last.weight.clone(), last.bias.clone()
    last.weight.zero_()
    last.bias.fill_(CLOSED)
    for found, digit in enumerate(assignment):
        last.weight[digit], last.bias[digit] = weight[found], bias[found]
