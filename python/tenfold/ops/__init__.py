"""Fused ops: arrays in, arrays out, gradients for torch. One module per family."""

from tenfold.ops.device import synchronize

__all__ = ["synchronize"]
