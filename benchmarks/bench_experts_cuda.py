"""moe.expert_ffn on a GPU, against torch on that GPU: `tenfold bench experts --device cuda`.

64 samples of 256 tokens, top 2 of 8 experts; on_gpu.py says how they are timed: without a graph, for
expert_ffn waits for the offsets. So does "expert loop". "index+bmm, padded" gives every expert as many rows
as the one that has most, found beforehand; F.grouped_mm, in bfloat16 and where torch has it, needs no
padding. "products alone" is the limit: the two products (with backward: and the four of the gradients) on
even groups of rows that lie ready. Errors are relative to the largest value of the result and of each
gradient, against float64.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import on_gpu
from on_gpu import TYPES, Call, Make, passes, types
from tenfold.ops import moe
from tenfold.ops.moe import Routing
from tenfold.ops.reference import moe as reference

TOKENS, EXPERTS, K, WIDTH, HIDDEN = 64 * 256, 8, 2, 1024, 4096
ROWS = TOKENS * K
SETS = 2  # the products count, not the cache

pytestmark = on_gpu.needs_gpu


def tenfold(x: Tensor, w_in: Tensor, w_out: Tensor, routing: Routing, *_: Tensor) -> Tensor:
    return moe.expert_ffn(x, routing, w_in, w_out)  # type: ignore[no-any-return]


def exact(x: Tensor, w_in: Tensor, w_out: Tensor, routing: Routing, *_: Tensor) -> Tensor:
    return reference.expert_ffn(x, routing, w_in, w_out)


def loop(x: Tensor, w_in: Tensor, w_out: Tensor, routing: Routing, *_: Tensor) -> Tensor:
    """An expert at a time."""
    ids = routing.token_ids.long()
    parts = []
    for expert, (begin, end) in enumerate(pairwise([0, *routing.offsets.tolist()])):
        hidden = F.gelu(x.index_select(0, ids[begin:end]) @ w_in[expert])
        parts.append(hidden @ w_out[expert])
    weighted = torch.cat(parts) * routing.gates.to(x.dtype)[:, None]
    return torch.zeros_like(x).index_add_(0, ids, weighted)


def padded(
    x: Tensor, w_in: Tensor, w_out: Tensor, routing: Routing, ids: Tensor, gates: Tensor, numbers: Tensor
) -> Tensor:
    """All experts in one batched product; ids and gates (E, C) with gates of 0 where an expert has no row."""
    rows = x.index_select(0, ids.flatten()).view(EXPERTS, -1, WIDTH)
    done = torch.bmm(F.gelu(torch.bmm(rows, w_in)), w_out).flatten(0, 1)
    return torch.zeros_like(x).index_add_(0, ids.flatten(), done * gates.flatten().to(x.dtype)[:, None])


def grouped(
    x: Tensor, w_in: Tensor, w_out: Tensor, routing: Routing, ids: Tensor, gates: Tensor, numbers: Tensor
) -> Tensor:
    """As Hugging Face's and torchtitan's experts."""
    hidden = F.gelu(F.grouped_mm(x.index_select(0, numbers), w_in, offs=routing.offsets))
    weighted = F.grouped_mm(hidden, w_out, offs=routing.offsets) * routing.gates.to(x.dtype)[:, None]
    return torch.zeros_like(x).index_add_(0, numbers, weighted)


def padded_rows(routing: Routing) -> tuple[Tensor, Tensor]:
    """Token and gate (E, C) of each expert's rows, and of as many as the largest has: token 0 with gate 0."""
    ends = [0, *routing.offsets.tolist()]
    most = max(end - begin for begin, end in pairwise(ends))
    ids = torch.zeros(EXPERTS, most, dtype=torch.int64, device="cuda")
    gates = torch.zeros(EXPERTS, most, device="cuda")
    for expert, (begin, end) in enumerate(pairwise(ends)):
        ids[expert, : end - begin] = routing.token_ids[begin:end]
        gates[expert, : end - begin] = routing.gates[begin:end]
    return ids, gates


def weights(dtype: str) -> tuple[Tensor, Tensor]:
    w_in = on_gpu.randn(EXPERTS, WIDTH, HIDDEN) * WIDTH**-0.5
    w_out = on_gpu.randn(EXPERTS, HIDDEN, WIDTH) * HIDDEN**-0.5
    return w_in.to(TYPES[dtype]), w_out.to(TYPES[dtype])


def products_alone(dtype: str, backward: bool) -> dict[str, tuple[Call, Make]]:
    def make(_: int) -> tuple[Tensor, ...]:
        rows, grad = (on_gpu.randn(EXPERTS, ROWS // EXPERTS, WIDTH, dtype=dtype) for _ in range(2))
        return rows, grad, *weights(dtype)

    def call(arrays: tuple[Tensor, ...]) -> list[Tensor]:
        rows, grad, w_in, w_out = arrays
        hidden = torch.bmm(rows, w_in)
        results = [torch.bmm(hidden, w_out)]
        if backward:
            back = torch.bmm(grad, w_out.mT)
            results += [torch.bmm(hidden.mT, grad), torch.bmm(back, w_in.mT), torch.bmm(rows.mT, back)]
        return results

    return {"products alone": (call, make)}


@passes
@types
def test_expert_ffn(benchmark: Any, dtype: str, backward: bool) -> None:
    def make(_: int) -> on_gpu.Problem:
        routing = moe.route_topk(on_gpu.randn(TOKENS, EXPERTS), K)
        leaves = (on_gpu.randn(TOKENS, WIDTH, dtype=dtype), *weights(dtype))
        others = (routing, *padded_rows(routing), routing.token_ids.long())
        return on_gpu.problem_of(tenfold, leaves, *others, backward=backward)

    forms = {"tenfold": tenfold, "expert loop": loop, "index+bmm, padded": padded}
    # Its gradient would read rows that begin anywhere, for which torch promises nothing.
    by_groups = dtype == "bf16" and not backward
    on_gpu.compare(
        benchmark,
        make,
        {name: on_gpu.calling(form, backward) for name, form in forms.items()},
        on_gpu.against(tenfold, exact, backward),
        SETS,
        optional={"grouped_mm": on_gpu.calling(grouped, backward)} if by_groups else None,
        limits=products_alone(dtype, backward),
        in_graphs=False,
        op="expert_ffn" + (" and backward" if backward else ""),
        shape=f"{TOKENS}x{WIDTH}, {EXPERTS} experts of {HIDDEN}, k {K}",
        dtype=dtype,
    )
