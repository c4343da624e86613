"""Calls of tenfold.ops.fuzzy on named tensors, or of its twin in plain torch, and a record of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold.logic.groundings import Axes, Compared, Guard, Values, aligned, union
from tenfold.ops import fuzzy
from tenfold.ops.reference import fuzzy as reference


@dataclass(frozen=True)
class Done:
    """One thing that a call computed: for ``explain``."""

    step: str
    rule: str
    axes: tuple[tuple[str, int], ...]
    moved: int
    """Bytes of the operands and of the result."""
    kept: int
    """Bytes of the result, which stays for the backward pass."""
    scratch: int
    """Bytes besides, while it is computed."""


@dataclass
class Kernels:
    """The ops of one call, fused or plain, and what they did."""

    fused: bool
    record: list[Done] | None = None

    @property
    def ops(self) -> Any:
        """The module of ops."""
        return fuzzy if self.fused else reference

    def log_quantify(
        self,
        step: object,
        rule: str,
        parts: Sequence[Values],
        over: Axes,
        guard: Guard,
        **how: Any,
    ) -> Values:
        """ops.log_quantify of ``parts`` over the axes ``over``."""
        if how.get("log_weights") is None:
            how.pop("log_weights", None)
        return self._call("log_quantify", step, rule, parts, over, guard, how)

    def fuzzy_quantify(
        self,
        step: object,
        rule: str,
        parts: Sequence[Values],
        over: Axes,
        guard: Guard,
        **how: Any,
    ) -> Values:
        """ops.fuzzy_quantify of ``parts`` over the axes ``over``."""
        return self._call("fuzzy_quantify", step, rule, parts, over, guard, how)

    def _call(
        self,
        name: str,
        step: object,
        rule: str,
        parts: Sequence[Values],
        over: Axes,
        guard: Guard,
        how: dict[str, Any],
    ) -> Values:
        everything = union([*(part.axes for part in parts), *([guard.axes] if guard is not None else [])])
        fits = (
            self.fused
            and len(everything) <= fuzzy.MOST_AXES
            and len(parts) <= fuzzy.MOST_OPERANDS
            and len(str(how.get("formula", "")).split()) <= fuzzy.MOST_STEPS
        )
        module = fuzzy if fits else reference
        tensors = [part.tensor for part in parts]
        arrays: list[Tensor] = []
        masked: Any = None
        if isinstance(guard, Compared) and fits:
            masked = guard.arguments
            arrays = [part for part in guard.arguments if isinstance(part, Tensor)]
        elif guard is not None:
            masked, arrays = (guard.tensor, guard.axes), [guard.tensor]
        made = getattr(module, name)(tensors, [part.axes for part in parts], over, guard=masked, **how)
        axes = tuple(axis for axis in everything if axis not in over)
        if self.record is not None:
            inputs = tensors + arrays
            sizes = _sizes(parts)
            if guard is not None:
                sizes = dict(zip(guard.axes, guard.tensor.shape, strict=True)) | sizes
            # Plain torch keeps a broadcast tensor per operand and about two per connective for its gradient.
            whole = math.prod(sizes.values()) * made.element_size()
            scratch = 0 if fits else whole * (len(parts) + 2)
            self.note(step, rule if fits else f"{rule}, plain torch", sizes, inputs, made, scratch)
        return Values(made, axes)

    def note(
        self,
        step: object,
        rule: str,
        sizes: dict[str, int],
        inputs: Sequence[Tensor],
        made: Tensor,
        scratch: int = 0,
    ) -> None:
        """Put what was computed on the record."""
        if self.record is None:
            return
        moved = sum(tensor.nbytes for tensor in inputs) + made.nbytes
        self.record.append(Done(str(step), rule, tuple(sizes.items()), moved, made.nbytes, scratch))

    def logmatmul(self, step: object, left: Values, right: Values, axis: str, alpha: float) -> Values:
        """LogMeanExp over ``axis`` of the sum of two operands: a matrix product of exponentials."""
        batch = tuple(a for a in left.axes if a in right.axes and a != axis)
        rows = tuple(a for a in left.axes if a not in right.axes)
        columns = tuple(a for a in right.axes if a not in left.axes)
        sizes = _sizes([left, right])
        a = _flat(left, (batch, rows, (axis,)), sizes)
        b = _flat(right, (batch, (axis,), columns), sizes)
        made = self.ops.logmatmul(a, b, alpha, True)
        axes = batch + rows + columns
        out = made.reshape([sizes[name] for name in axes])
        scratch = 0 if self.fused else out.numel() * sizes[axis] * out.element_size()
        self.note(
            step, "R3: matrix product of exponentials", sizes, [a, b], out, scratch or a.nbytes + b.nbytes
        )
        return Values(out, axes)


def _sizes(parts: Sequence[Values]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in parts:
        for axis, size in zip(part.axes, part.tensor.shape, strict=True):
            sizes[axis] = size if sizes.get(axis, 1) == 1 else sizes[axis]
    return sizes


def _flat(part: Values, groups: tuple[Axes, ...], sizes: dict[str, int]) -> Tensor:
    """``part`` with one dimension for each group of axes."""
    order = tuple(axis for group in groups for axis in group)
    tensor = aligned(part.tensor, part.axes, order)
    return tensor.reshape([math.prod(sizes[axis] for axis in group) for group in groups])


def elementwise_max(parts: Sequence[Values]) -> Values:
    """The largest of the operands, broadcast."""
    axes = union(part.axes for part in parts)
    most = aligned(*parts[0], axes)
    for part in parts[1:]:
        most = torch.maximum(most, aligned(*part, axes))
    return Values(most, axes)
