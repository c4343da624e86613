"""What the op families share: how the core learns about torch, and how a call reaches autograd."""

from __future__ import annotations

import functools
import sys
from typing import Any, TypeAlias

from tenfold import _core

Array: TypeAlias = Any
"""A numpy array or a torch tensor. An op returns the kind that it was given."""


def is_torch(array: object) -> bool:
    """Whether `array` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


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
