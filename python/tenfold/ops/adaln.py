"""Adaptive layer normalisation: what a diffusion transformer's block does beside its matrix products.

    h = adaln(x, shift, scale)                                        # norm and modulation
    x, h = gated_residual_adaln(x, attention(h), gate, shift, scale)  # a branch's end, and the next norm
    x = gated_residual(x, mlp(h), gate)                               # the last branch's end
    q, k = qk_norm(q, k)

after Peebles and Xie, 2023, "Scalable Diffusion Models with Transformers" (adaLN-Zero). Rows x (N, T, D);
shift, scale and gate are (N, D) or (N, 1, D), with one row per sample: chunks of one projection go in as they
are, without a copy. numpy arrays and torch tensors in CPU memory, and on a GPU torch tensors and cupy arrays.

Types: float32 and bfloat16 (torch) each; float64 only together. Everything is computed in float32 (float64
for float64) and rounded once, statistics in two passes over the row. A row of x with a NaN or an infinite
element gives a row of NaN. Results and gradients are the same bits for any number of threads: no atomics.
For torch each op has a first gradient, also under torch.func.grad and vmap; differentiating it again raises
NotImplementedError, as forward-mode differentiation does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tenfold import _core
from tenfold.ops._arrays import Array, allocate, is_torch, module_of

__all__ = ["adaln", "gated_residual", "gated_residual_adaln", "qk_norm"]


def _torch_half() -> Any:
    """tenfold.ops._adaln_torch; loaded for the first torch tensor."""
    from tenfold.ops import _adaln_torch

    return _adaln_torch


def adaln(
    x: Array,
    shift: Array | None = None,
    scale: Array | None = None,
    *,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-6,
    dtype: Any = None,
    out: Array | None = None,
) -> Array:
    """Normalise each row and modulate it: ``(LN(x) * weight + bias) * (1 + scale) + shift``.

    Args:
        x: (N, T, D) float32, bfloat16 or float64, D >= 1, rows of any strides; any leading dimensions where
            neither shift nor scale is given.
        shift: (N, D) or (N, 1, D), rows of any stride.
        scale: likewise.
        weight: (D,).
        bias: (D,).
        eps: added to the variance, above 0.
        dtype: of the result: float32 or bfloat16 (float64 for float64). x's where None; for torch under
            autocast to bfloat16 that type, so that the matrix product behind it casts nothing.
        out: the result's memory; may be x itself where that has its type. No gradient passes through it.

    Returns:
        An array of x's shape and library.

    Raises:
        ValueError: shapes do not fit, D is 0, eps is not a finite number above 0, a gradient is wanted
            through out.
        TypeError: another type, arrays of different libraries or devices.

    O(N T D), with one pass over memory. The backward pass keeps x, and two numbers per row.
    """
    if is_torch(x):
        return _torch_half().adaln(x, shift, scale, weight, bias, eps, dtype, out)
    x, h = _prepare(x, dtype, out)
    _core.adaln_forward(x, None, None, shift, scale, weight, bias, eps, None, h, None)
    return h


def gated_residual(x: Array, branch: Array, gate: Array | None = None, *, out: Array | None = None) -> Array:
    """End a residual branch: ``x + gate * branch``.

    Args:
        x: (N, T, D) float32, bfloat16 or float64, rows of any strides; any leading dimensions without gate.
        branch: of x's shape, float32 or bfloat16 (float64 for float64).
        gate: (N, D) or (N, 1, D), rows of any stride; ones where None.
        out: the result's memory; may be x itself, or branch where that has x's type. No gradient passes
            through it.

    Returns:
        An array of x's shape, type and library.

    Raises:
        ValueError: shapes do not fit, D is 0, a gradient is wanted through out.
        TypeError: another type, arrays of different libraries or devices.

    O(N T D). The backward pass keeps branch where there is a gate.
    """
    if is_torch(x):
        return _torch_half().gated_residual(x, branch, gate, out)
    x, out = _prepare(x, None, out)
    branch = _contiguous_rows(branch)
    _core.adaln_forward(x, branch, gate, None, None, None, None, 1.0, out, None, None)
    return out


def gated_residual_adaln(
    x: Array,
    branch: Array,
    gate: Array | None = None,
    shift: Array | None = None,
    scale: Array | None = None,
    *,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-6,
    dtype: Any = None,
) -> tuple[Array, Array]:
    """End a residual branch and start the next one: gated_residual, and adaln of what it gives.

    Args:
        x: (N, T, D) float32, bfloat16 or float64, rows of any strides; any leading dimensions where neither
            gate nor shift nor scale is given.
        branch: of x's shape, float32 or bfloat16 (float64 for float64).
        gate: (N, D) or (N, 1, D), as shift and scale; ones where None.
        shift: as for adaln, like scale, weight, bias, eps and dtype.
        scale: see there.
        weight: see there.
        bias: see there.
        eps: see there.
        dtype: of the second result, see there.

    Returns:
        (x + gate * branch, in x's type; its modulated normalisation).

    Raises:
        ValueError, TypeError: as adaln and gated_residual.

    O(N T D). One pass over memory forward, and one over the rows backward. The backward pass keeps the first
    result, two numbers per row, and branch where there is a gate.
    """
    if is_torch(x):
        return _torch_half().gated_residual_adaln(x, branch, gate, shift, scale, weight, bias, eps, dtype)  # type: ignore[no-any-return]
    x, h = _prepare(x, dtype, None)
    branch = _contiguous_rows(branch)
    residual = allocate(x, x.shape, x.dtype)
    _core.adaln_forward(x, branch, gate, shift, scale, weight, bias, eps, residual, h, None)
    return residual, h


def qk_norm(q: Array, k: Array, eps: float = 1e-6) -> tuple[Array, Array]:
    """Normalise queries and keys over their last dimension, without parameters.

    Henry et al., 2020, "Query-Key Normalization for Transformers", with the layer normalisation of Dehghani
    et al., 2023, "Scaling Vision Transformers to 22 Billion Parameters".

    Args:
        q: (..., D) float32, bfloat16 or float64, rows of any strides: a chunk of a projection, or a view of
            its heads.
        k: likewise; its shape may be another one.
        eps: added to the variance, above 0.

    Returns:
        Both as dense arrays of their own types.

    Raises:
        ValueError: D is 0, eps is not a finite number above 0.
        TypeError: another type.

    O(size), with one pass over memory. The backward pass keeps the results and one number per row: for
    bfloat16 the gradient is therefore exact for the rounded results only, to 2^-8 of them.
    """
    if is_torch(q):
        return _torch_half().qk_norm(q, k, eps)  # type: ignore[no-any-return]
    results = []
    for name, rows in (("q", q), ("k", k)):
        _want_array(name, rows)
        rows = _contiguous_rows(rows)
        out = allocate(rows, rows.shape, rows.dtype)
        _core.norm_rows(rows, out, _one_per_row(rows), eps)
        results.append(out)
    return results[0], results[1]


def _want_array(name: str, array: object) -> None:
    if not hasattr(array, "dtype"):
        raise TypeError(f"{name} is a {type(array).__name__}, want a numpy array or a torch tensor")


def _prepare(x: Array, dtype: Any, out: Array | None) -> tuple[Array, Array]:
    """X with contiguous rows, and memory for a result of its shape."""
    _want_array("x", x)
    if out is None:
        out = allocate(x, x.shape, x.dtype if dtype is None else np.dtype(dtype))
    elif dtype is not None and out.dtype != np.dtype(dtype):
        raise TypeError(f"out has type {out.dtype}, want {np.dtype(dtype)} as dtype says")
    return _contiguous_rows(x), out


def _one_per_row(x: Array) -> Array:
    rows = int(np.prod(x.shape[:-1], dtype=np.int64))
    return allocate(x, rows, np.float64 if x.dtype == np.float64 else np.float32)


def _contiguous_rows(x: Array) -> Array:
    """The array itself where the elements of a row lie side by side, in few dimensions, else a copy."""
    if len(x.shape) > 3 or (len(x.shape) > 0 and x.shape[-1] > 1 and x.strides[-1] != x.dtype.itemsize):
        return module_of(x).ascontiguousarray(x)  # x itself where it is contiguous
    return x
