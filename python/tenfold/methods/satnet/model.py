"""The layer with what stands before it: nothing, a network that reads digits, or itself in a chain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tenfold.data.mapping import SYMBOLS
from tenfold.methods.satnet.config import SEEING_TASKS, LayerConfig, SATNetConfig
from tenfold.methods.satnet.problems import Batch
from tenfold.nn.satnet import SATNet

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081  # of the training pixels, scaled to [0, 1]
CLAMP = 1e-6  # outputs reach 0 and 1, whose logarithms do not


class DivergenceError(ArithmeticError):
    """Weights, or what the network that reads pictures says, are no finite numbers any more."""


def make_layer(n: int, config: LayerConfig) -> SATNet:
    """The layer of a configuration over `n` variables."""
    return SATNet(
        n, config.m, config.aux, config.max_iter, config.eps, config.prox_lam, k=config.k,
        compat="official" if config.gradient == "official" else None,
    )  # fmt: skip


def sweeps_of(layer: SATNet) -> Tensor:
    """(B,) int64: sweeps of the last call; the report counts one less where a sample ended early."""
    if layer.report is None:
        raise ValueError("the layer has not been called")
    last = torch.as_tensor(layer.report.niter).long()
    return torch.where(last < layer.max_iter, last + 1, last)


def scaled(images: Tensor) -> Tensor:
    """(G, 28, 28) uint8 -> (G, 1, 28, 28) with mean 0 and spread 1 on MNIST."""
    return (images[:, None].float() / 255.0 - MNIST_MEAN) / MNIST_STD


class Perception(nn.Module):
    """The published network: two convolutions and two layers, from 28x28 pixels to a digit's probabilities.

    It has ten outputs, of which a board of 9 or 4 digits uses the first ones.
    """

    def __init__(self, symbols: int, output: str, margin: float = 0.0) -> None:
        super().__init__()
        self.symbols, self.output, self.margin = symbols, output, margin
        self.body = nn.Sequential(
            nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
            nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
        )  # fmt: skip
        # The layout in memory that a CPU's convolutions are fastest with.
        self.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def logits(self, images: Tensor) -> Tensor:
        """(G, 28, 28) uint8 -> (G, 10)."""
        result: Tensor = self.body(scaled(images))
        return result

    def forward(self, images: Tensor) -> Tensor:
        """(G, 28, 28) uint8 -> (G, symbols) in [margin, 1 - margin]."""
        logits = self.logits(images)
        said = logits.softmax(dim=1) if self.output == "softmax" else logits.sigmoid()
        return said[:, : self.symbols] * (1.0 - 2.0 * self.margin) + self.margin


def _identity(n: int) -> nn.Linear:
    linear = nn.Linear(n, n, bias=False)
    nn.init.eye_(linear.weight)
    return linear


def _want_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise DivergenceError


class Model(nn.Module):
    """From a batch of problems to its outputs, in the shape of its labels."""

    def __init__(self, config: SATNetConfig) -> None:
        super().__init__()
        self.chained = config.task == "parity"
        self.perception = (
            Perception(config.symbols, config.output, config.input_margin)
            if config.task in SEEING_TASKS
            else None
        )
        self.proofreader = _identity(config.n) if config.proofreader else None
        self.layer = make_layer(config.n, config.layer) if config.head == "satnet" else None
        self.linear = nn.Linear(SYMBOLS, SYMBOLS) if config.head == "linear" else None

    def draw_from(self, source: torch.Generator) -> None:
        """Take the solver's random vectors in training from `source`."""
        if self.layer is not None:
            self.layer.generator = source

    def want_finite(self) -> None:
        """Raise DivergenceError where weights have grown so large that their products are no numbers."""
        for parameter in self.parameters():
            _want_finite(parameter.detach().square().sum())

    def forward(self, batch: Batch) -> Tensor:
        """Return probabilities, given bits as they came in; raise DivergenceError where there are none."""
        if self.chained:
            return self._chain(batch.z)
        if self.linear is not None:
            return self._linear(self.linear, batch)
        z = batch.z if self.perception is None else self._see(self.perception, batch)
        if self.proofreader is not None:
            proofread: Tensor = self.proofreader(z)
            z = proofread.clamp(0.0, 1.0) * batch.is_input
        _want_finite(z)
        assert self.layer is not None
        solved: Tensor = self.layer(z, batch.is_input)
        return solved

    def _linear(self, linear: nn.Linear, batch: Batch) -> Tensor:
        """The control: a linear layer on what the network says before its last function."""
        assert self.perception is not None
        logits = self.perception.logits(batch.images)
        _want_finite(logits)
        return torch.cat([logits.detach().sigmoid(), linear(logits).sigmoid()], dim=1)

    def _chain(self, bits: Tensor) -> Tensor:
        """(B, L) bits -> (B, 1): the parity so far and the next bit give the parity with it, link by link.

        Between links it is rounded, which stops the gradient: only the last link learns.
        """
        assert self.layer is not None
        is_input = torch.tensor([True, True, False]).expand(len(bits), 3)
        so_far = bits[:, 0]
        for place in range(1, bits.shape[1]):
            with torch.set_grad_enabled(torch.is_grad_enabled() and place == bits.shape[1] - 1):
                z = torch.stack([so_far, bits[:, place], torch.zeros_like(so_far)], dim=1)
                answer: Tensor = self.layer(z, is_input)[:, 2]
            so_far = (answer > 0.5).float()
        return answer[:, None]

    def _see(self, perception: Perception, batch: Batch) -> Tensor:
        """Write what the network says of each picture into the input bits of its cell, in order."""
        said: Tensor = perception(batch.images)
        return torch.zeros_like(batch.z).masked_scatter(batch.is_input, said)


def loss_of(output: Tensor, batch: Batch, mask: str, scale: float) -> Tensor:
    """Binary cross-entropy, mean over all bits or over those that were not given, times `scale`."""
    wanted = output.clamp(CLAMP, 1.0 - CLAMP)
    counted = ~batch.is_input if mask == "unknown" else None
    if batch.shown is not None:
        counted = batch.shown if counted is None else counted & batch.shown
    if counted is None:
        return scale * nn.functional.binary_cross_entropy(wanted, batch.label)
    return scale * nn.functional.binary_cross_entropy(wanted[counted], batch.label[counted])
