"""The torch half of tenfold.ops.attention: gradients, transforms and torch.compile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from tenfold import _core
from tenfold.ops._torch import apply, define, one_by_one
from tenfold.ops.attention import split

Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""out, statistics; normalised q and k and what they were multiplied with: empty without a norm."""


# ---- registered operators ----


def _contiguous_last(x: Tensor) -> Tensor:
    return x if x.dim() == 0 or x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def _rows(x: Tensor) -> Tensor:
    """(..., H, d) -> (rows, H d), a view where heads lie side by side."""
    return x.reshape(x.shape[:-2].numel(), x.shape[-2] * x.shape[-1])


def _empty(q: Tensor, k: Tensor, eps: float | None) -> Forward:
    double = q.dtype == torch.float64
    heads = q.shape[-2] if q.dim() > 1 else 0
    rows, k_rows = q.shape[:-2].numel(), k.shape[:-2].numel()

    def numbers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64 if double else torch.float32, device=q.device)

    def like(x: Tensor) -> Tensor:
        return torch.empty(x.shape if eps is not None else (0,), dtype=x.dtype, device=x.device)

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, numbers(2, heads, rows), like(q), like(k), numbers(rows + k_rows if eps is not None else 0)


def _forward_kernel(
    sources: list[Tensor],
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
    eps: float | None,
) -> Forward:
    q, k, v = map(_contiguous_last, split(tuple(sources)))
    result = _empty(q, k, eps)
    out, statistics, q_normal, k_normal, inverse = result
    if eps is not None:
        for x, normal, part in _norms(q, k, q_normal, k_normal, inverse):
            _core.norm_rows(x, normal, part, eps)
        q, k = q_normal, k_normal
    if q.dtype == torch.float64:
        _forward_double(q, k, v, q_offsets, k_offsets, key_mask, scale, out, statistics)
    else:
        _core.attention_forward(q, k, v, q_offsets, k_offsets, key_mask, scale, out, statistics)
    return result


def _norms(
    q: Tensor, k: Tensor, q_other: Tensor, k_other: Tensor, inverse: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows of q, rows of the other, and their part of `inverse`; then those of k."""
    rows = q.shape[:-2].numel()
    yield _rows(q), _rows(q_other), inverse[:rows]
    yield _rows(k), _rows(k_other), inverse[rows:]


def _backward_kernel(
    out_grad: Tensor,
    sources: list[Tensor],
    statistics: Tensor,
    q_normal: Tensor,
    k_normal: Tensor,
    inverse: Tensor,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
    eps: float | None,
) -> list[Tensor]:
    q, k, v = map(_contiguous_last, split(tuple(sources)))
    if eps is not None:
        q, k = q_normal, k_normal
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in sources]
    q_grad, k_grad, v_grad = parts = split(tuple(grads))
    out_grad = _contiguous_last(out_grad)
    if q.dtype == torch.float64:
        _backward_double(
            q, k, v, q_offsets, k_offsets, key_mask, scale, statistics, out_grad, q_grad, k_grad, v_grad
        )
    else:
        _core.attention_backward(q, k, v, q_offsets, k_offsets, key_mask, scale, statistics, out_grad, parts)
    if eps is not None:
        for grad, normal, part in _norms(q_grad, k_grad, q_normal, k_normal, inverse):
            _core.norm_rows_backward(grad, normal, part, grad)  # in place
    return grads


# ---- float64: torch's products, for gradient checks ----


def _samples(
    q: Tensor, k: Tensor, q_offsets: Tensor | None, k_offsets: Tensor | None
) -> Iterator[tuple[Any, Any, slice]]:
    """For each sample the index of its queries, that of its keys, and its part of all queries."""
    q_ends = None if q_offsets is None else q_offsets.tolist()
    k_ends = None if k_offsets is None else k_offsets.tolist()
    samples = len(q) if q_ends is None else len(q_ends) - 1
    for n in range(samples):
        rows = slice(q_ends[n], q_ends[n + 1]) if q_ends else slice(n * q.shape[1], (n + 1) * q.shape[1])
        yield (rows if q_ends else n), (slice(k_ends[n], k_ends[n + 1]) if k_ends else n), rows


def _forward_double(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
    out: Tensor,
    statistics: Tensor,
) -> None:
    for n, (mine, keys, rows) in enumerate(_samples(q, k, q_offsets, k_offsets)):
        scores = torch.einsum("thd,shd->hts", q[mine], k[keys])
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[n], float("-inf"))
        largest = scores.amax(-1) if scores.shape[-1] else scores.new_zeros(scores.shape[:-1])
        largest = largest.masked_fill(largest == float("-inf"), 0.0)
        powers = ((scores - largest[..., None]) * scale).exp()
        inverse = 1.0 / powers.sum(-1)
        statistics[0, :, rows] = largest
        statistics[1, :, rows] = inverse.masked_fill(inverse == float("inf"), 0.0)
        out[mine] = torch.einsum("hts,shd->thd", powers * statistics[1, :, rows, None], v[keys])


def _backward_double(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
    statistics: Tensor,
    out_grad: Tensor,
    q_grad: Tensor,
    k_grad: Tensor,
    v_grad: Tensor,
) -> None:
    for n, (mine, keys, rows) in enumerate(_samples(q, k, q_offsets, k_offsets)):
        scores = torch.einsum("thd,shd->hts", q[mine], k[keys])
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[n], float("-inf"))
        largest, inverse = statistics[:, :, rows, None]
        p = ((scores - largest) * scale).exp() * inverse
        p_grad = torch.einsum("thd,shd->hts", out_grad[mine], v[keys])
        grad = p * (p_grad - (p * p_grad).sum(-1, keepdim=True)) * scale
        v_grad[keys] = torch.einsum("hts,thd->shd", p, out_grad[mine])
        q_grad[mine] = torch.einsum("hts,shd->thd", grad, k[keys])
        k_grad[keys] = torch.einsum("hts,thd->shd", grad, q[mine])


# ---- registration ----


def _forward_fake(
    sources: list[Tensor],
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    key_mask: Tensor | None,
    scale: float,
    eps: float | None,
) -> Forward:
    q, k, _ = split(tuple(sources))
    return _empty(q, k, eps)


_forward_op = define(
    "attention(Tensor[] sources, Tensor? q_offsets, Tensor? k_offsets, Tensor? key_mask, float scale,"
    " float? eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_kernel,
    _forward_fake,
)
_backward_op = define(
    "attention_backward(Tensor out_grad, Tensor[] sources, Tensor statistics, Tensor q_normal,"
    " Tensor k_normal, Tensor inverse, Tensor? q_offsets, Tensor? k_offsets, Tensor? key_mask, float scale,"
    " float? eps) -> Tensor[]",
    _backward_kernel,
    lambda out_grad, sources, *rest: [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in sources],
)


# ---- gradients ----


class Attention(Function):
    """One to three sources, the others None; q_offsets, k_offsets, key_mask, scale, eps -> see Forward."""

    @staticmethod
    def forward(
        first: Tensor,
        second: Tensor | None,
        third: Tensor | None,
        q_offsets: Tensor | None,
        k_offsets: Tensor | None,
        key_mask: Tensor | None,
        scale: float,
        eps: float | None,
    ) -> Forward:
        """Attend."""
        result: Forward = _forward_op(
            _given(first, second, third), q_offsets, k_offsets, key_mask, scale, eps
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Forward) -> None:
        """Keep the inputs, the statistics and normalised queries and keys."""
        ctx.save_for_backward(*inputs[:6], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.scale, ctx.eps = inputs[6], inputs[7]

    @staticmethod
    def backward(ctx: Any, out_grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Through both products, the probabilities computed again."""
        grads = apply(AttentionBackward, out_grad, *ctx.saved_tensors, ctx.scale, ctx.eps)
        return *grads, *(None,) * (8 - len(grads))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element, recording gradients."""
        return one_by_one(partial(apply, Attention), info, in_dims, *args)


class AttentionBackward(Function):
    """As the operator attention_backward; has no gradient itself."""

    @staticmethod
    def forward(
        out_grad: Tensor,
        first: Tensor,
        second: Tensor | None,
        third: Tensor | None,
        q_offsets: Tensor | None,
        k_offsets: Tensor | None,
        key_mask: Tensor | None,
        statistics: Tensor,
        q_normal: Tensor,
        k_normal: Tensor,
        inverse: Tensor,
        scale: float,
        eps: float | None,
    ) -> tuple[Tensor, ...]:
        """Gradients of the sources."""
        kept = (statistics, q_normal, k_normal, inverse)
        sources = _given(first, second, third)
        return tuple(_backward_op(out_grad, sources, *kept, q_offsets, k_offsets, key_mask, scale, eps))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        """Not provided."""
        raise NotImplementedError("attention has a first gradient only")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Element by element."""
        return one_by_one(partial(apply, AttentionBackward), info, in_dims, *args)


def _given(first: Tensor, second: Tensor | None, third: Tensor | None) -> list[Tensor]:
    return [x for x in (first, second, third) if x is not None]


# ---- what tenfold.ops.attention calls ----


def attention(
    sources: Sequence[Tensor],
    key_mask: Tensor | None,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    scale: float,
    eps: float | None,
) -> Tensor:
    """See tenfold.ops.attention."""
    for name, x in (*zip("qkv", sources, strict=False), ("key_mask", key_mask), ("q_offsets", q_offsets)):
        if x is not None and not isinstance(x, Tensor):
            raise TypeError(f"{name} is {type(x).__name__}, want a torch.Tensor as the first array")
    device = sources[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        sources = [x.to(dtype) for x in sources]
    three = (*sources, None, None)[:3]
    out: Tensor = apply(Attention, *three, q_offsets, k_offsets, key_mask, scale, eps)[0]
    return out
