"""The pairwise family against what a user of torch would write instead.

What a predicate of two arguments costs that a perceptron on pairs of points grounds, of n points each: with
layers of 16 and 1 units, and of 16, 16 and 1, and elu. "eager" concatenates the points of each pair, "split"
adds a product for each side instead; tenfold.ops.pairwise has neither array. forms.py says how forms are
compared.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from forms import Compare, Form, passes, race, threads
from tenfold.ops.pairwise import pair_mlp

# Scores of all pairs, of points x and y, the first layer's weights and bias, and pair_mlp's other arguments.
POINT_FEATURES, UNITS = 2, 16


def perceptron_tables(layers: str, n: int) -> list[Tensor]:
    points = (n, POINT_FEATURES)
    shapes = [points, points, (UNITS, 2 * POINT_FEATURES), (UNITS,), (UNITS,), ()]
    if layers == "16-16-1":
        shapes += [(UNITS, UNITS), (UNITS,)]
    return [torch.randn(shape) / (math.sqrt(shape[-1]) if len(shape) == 2 else 1.0) for shape in shapes]


def perceptron(x: Tensor, y: Tensor, first: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
    w_x, w_y = first.split(POINT_FEATURES, dim=1)
    return pair_mlp(x @ w_x.T, y @ w_y.T + bias, *rest)


def perceptron_eager(x: Tensor, y: Tensor, first: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
    shape = (len(x), len(y), POINT_FEATURES)
    pairs = torch.cat([x[:, None].expand(shape), y.expand(shape)], dim=-1)
    return _later_layers(torch.nn.functional.linear(pairs, first, bias), *rest)


def perceptron_split(x: Tensor, y: Tensor, first: Tensor, bias: Tensor, *rest: Tensor) -> Tensor:
    w_x, w_y = first.split(POINT_FEATURES, dim=1)
    return _later_layers((x @ w_x.T)[:, None] + (y @ w_y.T + bias), *rest)


def _later_layers(z: Tensor, w: Tensor, b: Tensor, *hidden: Tensor) -> Tensor:
    elu = torch.nn.functional.elu
    z = elu(z)
    if hidden:
        z = elu(torch.nn.functional.linear(z, *hidden))
    return z @ w + b


PERCEPTRONS: dict[str, Form] = {
    "tenfold": perceptron, "eager": perceptron_eager, "split": perceptron_split,
}  # fmt: skip


@threads
@passes
@pytest.mark.parametrize("n", [200, 1000])
@pytest.mark.parametrize("layers", ["16-1", "16-16-1"])
def test_pair_perceptron(compare: Compare, layers: str, n: int, backward: bool, threads: int) -> None:
    weights = torch.randn(n, n)

    def weighed(form: Form) -> Form:
        return lambda *tables: (form(*tables) * weights.to(tables[0].dtype)).sum()

    forms = {name: weighed(form) for name, form in PERCEPTRONS.items()}
    eager, tables = forms["eager"], perceptron_tables(layers, n)
    race(compare, f"pair perceptron {layers}", f"{n}x{n}", tables, forms, backward, threads, eager, {}, eager)
