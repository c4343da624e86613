"""The attention family on a GPU, against torch on that GPU: `tenfold bench attention --device cuda`.

Queries, keys and values are slices of one projection (self-attention) or two (cross-attention), and the
gradient is that of the projections; on_gpu.py says how they are timed. SDPA is
F.scaled_dot_product_attention, which in bfloat16 uses tensor cores; ours never does. Sequences behind one
another are padded for it, and packed again ("SDPA, padded"), and go to torch's varlen_attn as they are where
torch has it (bfloat16). "products alone" does both matrix products (with backward: and the four of the
gradients), by torch.bmm on arrays that lie ready, masked keys included; of sequences behind one another, as
many products of one length. Errors are relative to the largest value of the result and of each gradient,
against float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import on_gpu
from on_gpu import Form, passes, types
from plain_dit import products, sdpa
from tenfold.ops.attention import attention_kvpacked, attention_qkvpacked
from tenfold.ops.reference import attention as reference

SETS = 4  # the products count, not the cache
CASES = {  # samples, queries, keys (of a context, or None), heads, width; padding mask
    "self 64x64": (64, 64, None, 16, 64, False),
    "self 64x256": (64, 256, None, 16, 64, False),
    "self 64x256, mask": (64, 256, None, 16, 64, True),
    "self 16x1024": (16, 1024, None, 16, 72, False),
    "cross 64x256x77, mask": (64, 256, 77, 16, 64, True),
}
PACKED = (64, 256, 16, 64)  # samples of 16 to 256 tokens, heads, width

pytestmark = on_gpu.needs_gpu


def split(leaves: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    if len(leaves) == 1:
        return leaves[0].unbind(2)  # type: ignore[return-value]
    return leaves[0], *leaves[1].unbind(2)  # type: ignore[return-value]


def tenfold(*arrays: Any) -> Tensor:
    *leaves, mask = arrays
    if len(leaves) == 1:
        return attention_qkvpacked(leaves[0], key_mask=mask)
    return attention_kvpacked(*leaves, key_mask=mask)


def exact(*arrays: Any) -> Tensor:
    *leaves, mask = arrays
    return reference.attention(*split(leaves), mask)


def plain(function: Form) -> Form:
    def form(*arrays: Any) -> Any:
        *leaves, mask = arrays
        return function(*split(leaves), None if mask is None else mask[:, None, None, :])

    return form


def products_alone(
    batch: int, queries: int, keys: int, width: int, dtype: str, backward: bool
) -> dict[str, Any]:
    def make(_: int) -> list[Tensor]:
        rows = (queries, keys, keys, queries)
        return [on_gpu.randn(batch, tokens, width, dtype=dtype) for tokens in rows]

    def call(arrays: list[Tensor]) -> list[Tensor]:
        q, k, v, out_grad = arrays
        weights = torch.bmm(q, k.mT)
        results = [torch.bmm(weights, v)]
        if backward:
            grad = torch.bmm(out_grad, v.mT)
            results += [torch.bmm(weights.mT, out_grad), torch.bmm(grad, k), torch.bmm(grad.mT, q)]
        return results

    return {"products alone": (call, make)}


@passes
@types
@pytest.mark.parametrize("case", list(CASES))
def test_attention(benchmark: Any, case: str, dtype: str, backward: bool) -> None:
    samples, queries, context, heads, width, masked = CASES[case]
    keys = context or queries

    def make(_: int) -> on_gpu.Problem:
        shapes = [(queries, 3)] if context is None else [(queries,), (keys, 2)]
        leaves = tuple(on_gpu.randn(samples, *shape, heads, width, dtype=dtype) for shape in shapes)
        lengths = torch.randint(1, keys + 1, (samples, 1), device="cuda")
        mask = torch.arange(keys, device="cuda") < lengths if masked else None
        return on_gpu.problem_of(tenfold, leaves, mask, backward=backward)

    forms = {"tenfold": tenfold, "SDPA": plain(sdpa), "matmul-softmax-matmul": plain(products)}
    on_gpu.compare(
        benchmark,
        make,
        {name: on_gpu.calling(form, backward) for name, form in forms.items()},
        on_gpu.against(tenfold, exact, backward),
        SETS,
        limits=products_alone(samples * heads, queries, keys, width, dtype, backward),
        op="attention" + (" and backward" if backward else ""),
        shape=f"{case}, {heads}x{width}",
        dtype=dtype,
    )


def tenfold_packed(qkv: Tensor, offsets: Tensor, *_: Any) -> Tensor:
    return attention_qkvpacked(qkv, offsets=offsets)


def exact_packed(qkv: Tensor, offsets: Tensor, *_: Any) -> Tensor:
    ends = offsets.cpu()
    return reference.packed(*qkv.unbind(1), ends, ends)


def padded_sdpa(qkv: Tensor, offsets: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
    """`slots` (M): where each row lies among those of padded samples."""
    samples, longest = mask.shape
    padded = qkv.new_zeros(samples * longest, *qkv.shape[1:]).index_copy(0, slots, qkv)
    q, k, v = padded.view(samples, longest, *qkv.shape[1:]).unbind(2)
    return sdpa(q, k, v, mask[:, None, None, :]).flatten(0, 1).index_select(0, slots)


def varlen(qkv: Tensor, offsets: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = mask.shape[1]
    return varlen_attn(*qkv.unbind(1), offsets, offsets, longest, longest)  # type: ignore[return-value]


@passes
@types
def test_packed(benchmark: Any, dtype: str, backward: bool) -> None:
    samples, longest, heads, width = PACKED
    lengths = torch.randint(16, longest + 1, (samples,), generator=torch.Generator().manual_seed(0))
    offsets = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int().cuda()
    mask = (torch.arange(longest) < lengths[:, None]).cuda()
    slots = mask.flatten().nonzero()[:, 0]
    rows = int(lengths.sum())

    def make(_: int) -> on_gpu.Problem:
        leaves = (on_gpu.randn(rows, 3, heads, width, dtype=dtype),)
        return on_gpu.problem_of(tenfold_packed, leaves, offsets, slots, mask, backward=backward)

    forms = {"tenfold": tenfold_packed, "SDPA, padded": padded_sdpa}
    # Tensor cores like a multiple of 8.
    length = int(lengths.double().square().mean().sqrt() / 8 + 0.5) * 8
    on_gpu.compare(
        benchmark,
        make,
        {name: on_gpu.calling(form, backward) for name, form in forms.items()},
        on_gpu.against(tenfold_packed, exact_packed, backward),
        SETS,
        optional={"varlen_attn": on_gpu.calling(varlen, backward)} if dtype == "bf16" else None,
        limits=products_alone(samples * heads, length, length, width, dtype, backward),
        op="attention" + (" and backward" if backward else ""),
        shape=f"packed {samples}x16-{longest}, {heads}x{width}",
        dtype=dtype,
    )
