"""A small perceptron on all pairs of two lists, without an array of all pairs' features.

    # MLP([x_i; y_j]) for all i and j: the first layer is one matrix product for each side
    u, v = x @ w_x.T, y @ w_y.T + bias                    # (n, H), (m, H)
    scores = pair_mlp(u, v, w, b, hidden, hidden_bias)    # (n, m)

A perceptron on concatenated features [x_i; y_j] has a first layer that is a sum, ``u[i] + v[j]``. What comes
after it is computed here for a tile of pairs at a time, in the forward pass and again in the backward pass:
nothing of the size n m H is ever in memory. numpy arrays and torch tensors in CPU memory, and on a GPU torch
tensors and cupy arrays. `tenfold.nn.pairwise.PairMLP` is the layer.

Types: float32, bfloat16 (torch; computed in float32 and rounded once) and float64, one for all arrays. Sums
over pairs for gradients of weights are kept in float64. NaN goes through. Results and gradients are the same
bits for any number of threads. For torch there is a first gradient, also under torch.func.grad, vmap (one
element after the other) and torch.compile; differentiating it again raises NotImplementedError, as
forward-mode differentiation does. Autocast changes no type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from tenfold import _core
from tenfold.ops._arrays import Array, allocate, is_torch

__all__ = ["pair_mlp"]

Activation: TypeAlias = Literal["elu", "relu", "silu", "gelu", "gelu_tanh", "tanh", "sigmoid"]

MOST_WIDTH = 64
"""Units of a layer that a kernel takes: csrc/pairwise/pairwise.h."""


def _torch_half() -> Any:
    """tenfold.ops._pairwise_torch; loaded for the first torch tensor."""
    from tenfold.ops import _pairwise_torch

    return _pairwise_torch


def pair_mlp(
    u: Array,
    v: Array,
    w: Array,
    b: Array | None = None,
    hidden: Array | None = None,
    hidden_bias: Array | None = None,
    activation: Activation = "elu",
) -> Array:
    """Score all pairs of rows by a perceptron whose first layer is ``u[i] + v[j]``.

    ``scores[i, j] = b + w . f(hidden f(u[i] + v[j]) + hidden_bias)``, and without a hidden layer
    ``b + w . f(u[i] + v[j])``.

    Args:
        u: (n, H) the first layer's part of each row of one side; H from 1 to 64.
        v: (m, H) that of the other side, with the layer's bias.
        w: (K,) weights of the last layer; (H,) without a hidden layer.
        b: () its bias; none by default.
        hidden: (K, H) weights of a second layer, K from 1 to 64; none by default.
        hidden_bias: (K,) its bias; none by default.
        activation: the function f: elu, relu, silu, gelu, gelu_tanh, tanh or sigmoid.

    Returns:
        (n, m) of u's type and library. n or m may be 0.

    Raises:
        ValueError: shapes that do not fit, H or K above 64, hidden_bias without hidden, an unknown
            activation.
        TypeError: another type, arrays of several types, libraries or devices.

    Any strides. O(n m H (K + 1)) time, forward and backward. Scratch memory O(m H) forward; backward at most
    16 times that, once more per thread, and 16 times the weights. The backward pass keeps the arguments only.
    Threads share out the rows of u. In float32, with weights of the order of 1, scores are within 2e-6 of the
    largest or of 1, gradients within 1e-5.
    """
    if is_torch(u):
        return _torch_half().pair_mlp(u, v, w, b, hidden, hidden_bias, activation)
    for name, x in (("u", u), ("v", v)):
        if not hasattr(x, "dtype"):
            raise TypeError(f"{name} is a {type(x).__name__}, want a numpy array or a torch tensor")
    out = allocate(u, scores_shape(u.shape, v.shape), u.dtype)
    _core.pair_mlp(u, v, w, b, hidden, hidden_bias, activation, out)
    return out


def scores_shape(u: Sequence[int], v: Sequence[int]) -> tuple[int, int]:
    """(n, m); ValueError where u or v is no matrix."""
    for name, shape in (("u", u), ("v", v)):
        if len(shape) != 2:
            raise ValueError(f"{name} has shape {tuple(shape)}, want two dimensions: rows, and units")
    return u[0], v[0]
