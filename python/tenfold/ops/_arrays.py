"""What the op families share: how the core learns about torch, and how a call reaches autograd."""

from __future__ import annotations

import functools
import operator
import sys
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from tenfold import _core

Array: TypeAlias = Any
"""A numpy array, a torch tensor or a cupy array. An op returns the kind that it was given."""


def is_torch(array: object) -> bool:
    """Whether `array` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def module_of(array: object) -> Any:
    """Return the module that makes arrays such as `array`: cupy for its own, numpy for everything else."""
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else np


def contiguous_rows(x: Array) -> Array:
    """The array of numpy or cupy itself where the elements of a row lie side by side, else a copy."""
    if len(x.shape) == 0 or x.shape[-1] <= 1 or x.strides[-1] == x.dtype.itemsize:
        return x
    return module_of(x).ascontiguousarray(x)


def whole(name: str, value: Any) -> int:
    """Return `value` as an int; TypeError that names it where it is no whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, want a whole number") from None


def number(name: str, value: Any) -> float:
    """Return `value` as a float; TypeError that names it where it is no real number."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}, want a number")
    return float(value)


def allocate(like: object, shape: int | tuple[int, ...], dtype: Any) -> Any:
    """Uninitialised memory in the library of `like` and on its device; numpy for everything but cupy."""
    library = module_of(like)
    if library is np:
        return np.empty(shape, dtype)
    with like.device:  # type: ignore[attr-defined]
        return library.empty(shape, dtype)


@functools.cache
def register_torch() -> None:
    """Tell the core, once, how to ask torch whether anything watches a call."""
    import torch
    import torch.utils._python_dispatch as dispatch
    from torch.autograd import forward_ad

    _core.register_torch(
        torch.Tensor,
        torch.nn.Parameter,
        torch.is_grad_enabled,
        torch._C._increment_version,
        vars(forward_ad),
        vars(dispatch),
    )
