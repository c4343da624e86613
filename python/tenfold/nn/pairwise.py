"""Perceptrons on pairs."""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.ops.pairwise import MOST_WIDTH, Activation, pair_mlp
from tenfold.ops.reference.pairwise import ACTIVATIONS


class PairMLP(nn.Module):
    """A perceptron on concatenated features [x; y] with one output, for single pairs or for all of two lists.

    `forward` takes pairs row by row. `pairs` gives the same for every x with every y, and makes no array of
    all pairs' features or units (`tenfold.ops.pairwise.pair_mlp`). Parameters are those of torch.nn.Linear
    layers on the concatenated features, initialised as theirs: ``first``, ``second`` (None for one hidden
    layer) and ``last``. `pairs` reads them and does not call the layers: parametrizations work, hooks of a
    layer do not run.

    Args:
        in_x: features of x.
        in_y: features of y.
        hidden: one or two widths, from 1 to 64.
        activation: elu, relu, silu, gelu, gelu_tanh, tanh or sigmoid; not after the last layer.
        bias: whether the layers have biases.

    Raises:
        ValueError: another number of widths, a width or a number of features out of range, an unknown
            activation.
    """

    def __init__(
        self,
        in_x: int,
        in_y: int,
        hidden: tuple[int, ...] = (16, 16),
        activation: Activation = "elu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if len(hidden) not in (1, 2) or not all(1 <= width <= MOST_WIDTH for width in hidden):
            raise ValueError(f"hidden is {hidden}, want one or two widths from 1 to {MOST_WIDTH}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}, want one of {', '.join(get_args(Activation))}")
        for name, count in (("in_x", in_x), ("in_y", in_y)):
            if count < 1:
                raise ValueError(f"{name} is {count}, want at least 1")
        self.in_x, self.in_y = in_x, in_y
        self.activation: Activation = activation
        self.first = nn.Linear(in_x + in_y, hidden[0], bias)
        self.second = nn.Linear(*hidden, bias) if len(hidden) == 2 else None
        self.last = nn.Linear(hidden[-1], 1, bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores (...) of pairs: x (..., in_x), y (..., in_y)."""
        f = ACTIVATIONS[self.activation]
        z = f(self.first(torch.cat([x, y], dim=-1)))
        if self.second is not None:
            z = f(self.second(z))
        scores: Tensor = self.last(z).squeeze(-1)
        return scores

    def pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores (n, m) of all pairs: x (n, in_x), y (m, in_y)."""
        w_x, w_y = self.first.weight.split([self.in_x, self.in_y], dim=1)
        u, v = F.linear(x, w_x), F.linear(y, w_y, self.first.bias)

        # Under autocast u has another type than the parameters. The kernels have no float16.
        dtype = torch.float32 if u.dtype == torch.float16 else u.dtype
        w = self.last.weight[0].to(dtype)
        b = None if self.last.bias is None else self.last.bias[0].to(dtype)
        hidden = hidden_bias = None
        if self.second is not None:
            hidden = self.second.weight.to(dtype)
            hidden_bias = None if self.second.bias is None else self.second.bias.to(dtype)
        scores: Tensor = pair_mlp(u.to(dtype), v.to(dtype), w, b, hidden, hidden_bias, self.activation)
        return scores.to(u.dtype)

    def extra_repr(self) -> str:
        """What the layers do not say."""
        return f"in_x={self.in_x}, in_y={self.in_y}, activation={self.activation!r}"
