"""Activation functions: the elementwise half of a feed-forward layer.

    h = activate(x @ w_in, "gelu_tanh")                  # an MLP
    h = gated_activation(x @ w_gate_and_up, "silu")      # SwiGLU

The activations are gelu (exact, with the normal distribution function) and gelu_tanh (its form with tanh;
both Hendrycks and Gimpel, 2016, arXiv 1606.08415), silu (x times the logistic function of x) and relu. numpy
arrays and torch tensors in CPU memory, and on a GPU torch tensors and cupy arrays.

Types: float32, bfloat16 (torch) and float64. Everything is computed in float32 (float64 for float64) and
rounded once; float32 results and slopes are within 3e-7 of the exact ones, or of their value where that is
above 1. NaN and infinities give what torch's functions give in float64. Results and gradients are the same
bits for any number of threads. For torch each op has a first gradient, computed again from x, also under
torch.func.grad and vmap; differentiating it again raises NotImplementedError, as forward-mode
differentiation does. Autocast changes no type.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from tenfold import _core
from tenfold.ops._arrays import Array, allocate, contiguous_rows, is_torch, module_of

__all__ = ["activate", "gated_activation"]

Activation: TypeAlias = Literal["gelu", "gelu_tanh", "silu", "relu"]


def _torch_half() -> Any:
    """tenfold.ops._activation_torch; loaded for the first torch tensor."""
    from tenfold.ops import _activation_torch

    return _activation_torch


def activate(x: Array, activation: Activation = "gelu", *, out: Array | None = None) -> Array:
    """Apply the function to each element.

    Args:
        x: (..., D) float32, bfloat16 or float64, rows of any strides; copied first where the elements of a
            row do not lie side by side.
        activation: gelu, gelu_tanh, silu or relu.
        out: the result's memory, of x's shape and type; may be x itself. No gradient passes through it.

    Returns:
        An array of x's shape, type and library.

    Raises:
        ValueError: activation is another one, out has another shape or overlaps x, a gradient is wanted
            through out.
        TypeError: another type, out of another type, library or device.

    O(size), with one pass over memory, and one for the gradient. The backward pass keeps x.
    """
    if is_torch(x):
        return _torch_half().activate(x, activation, out)
    return _run(x, activation, out, gated=False)


def gated_activation(x: Array, activation: Activation = "silu", *, out: Array | None = None) -> Array:
    """Apply the function to the first half of each row, and multiply with the second half.

    ``activate(x[..., :H]) * x[..., H:]``; Shazeer, 2020, "GLU Variants Improve Transformer": SwiGLU with
    silu, GEGLU with gelu, ReGLU with relu.

    Args:
        x: (..., 2 H) float32, bfloat16 or float64, rows of any strides; copied first where the elements of a
            row do not lie side by side.
        activation: gelu, gelu_tanh, silu or relu.
        out: the result's memory, (..., H) of x's type; may be ``x[..., :H]``. No gradient passes through it.

    Returns:
        (..., H), an array of x's type and library.

    Raises:
        ValueError: the last dimension is odd or missing, activation is another one, out has another shape
            or overlaps x otherwise, a gradient is wanted through out.
        TypeError: another type, out of another type, library or device.

    O(size), with one pass over memory, and one for the gradient, an array of x's shape. The backward pass
    keeps x.
    """
    if is_torch(x):
        return _torch_half().gated_activation(x, activation, out)
    return _run(x, activation, out, gated=True)


def halved(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Half as wide; ValueError where that is no whole number."""
    if len(shape) == 0 or shape[-1] % 2:
        raise ValueError(
            f"x has shape {tuple(shape)}, want an even last dimension: values, then their factors"
        )
    return (*shape[:-1], shape[-1] // 2)


def _run(x: Array, activation: str, out: Array | None, gated: bool) -> Array:
    if not hasattr(x, "dtype"):
        raise TypeError(f"x is a {type(x).__name__}, want a numpy array or a torch tensor")
    if out is None:
        out = allocate(x, halved(x.shape) if gated else x.shape, x.dtype)
    _core.activate(_rows(x), out, activation, gated)
    return out


def _rows(x: Array) -> Array:
    """The array itself where the kernel can walk through its rows, else a copy."""
    if len(x.shape) > 4:
        return module_of(x).ascontiguousarray(x)  # x itself where it is contiguous
    return contiguous_rows(x)
