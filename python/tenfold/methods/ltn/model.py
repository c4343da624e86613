"""The networks that ground the predicates: ELU multilayer perceptrons and the digits' convolutions."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


def glorot(network: nn.Module) -> None:
    """Weights as Keras draws them, whose networks the paper's figures are from; biases are zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class MLP(nn.Module):
    """Linear layers with ELU between them; several arguments are one row after the other."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, *rows: Tensor) -> Tensor:
        """Map (rows, features) of each argument to (rows, outputs)."""
        logits: Tensor = self.layers(torch.cat(rows, dim=-1))
        return logits


class DigitNetwork(nn.Module):
    """Logits of ten digits: two 5x5 convolutions of 6 and 16 channels, then 100, 84 and 10."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.ELU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ELU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(256, 100), nn.ELU(), nn.Linear(100, 84), nn.ELU(), nn.Linear(84, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Map (rows, 1, 28, 28) to (rows, 10)."""
        logits: Tensor = self.layers(images)
        return logits


class Smokes(nn.Module):
    """An embedding of each person, and what S, F and C say of it."""

    def __init__(self, people: int, width: int = 10, hidden: int = 16) -> None:
        super().__init__()
        self.people = nn.Parameter(torch.rand(people, width))
        self.S, self.C = MLP(width, hidden, hidden, 1), MLP(width, hidden, hidden, 1)
        self.F = MLP(2 * width, hidden, hidden, 1)
