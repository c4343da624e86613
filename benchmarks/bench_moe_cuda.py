"""The moe family on a GPU, against torch on that GPU: `tenfold bench moe --device cuda`.

64 samples of 256 tokens, 8 experts (routing: 64 too), two experts' worth of rows per token; on_gpu.py says
how they are timed, and bench_experts_cuda.py has expert_ffn. "copy_" copies as many bytes as the op must read
and write, once; with backward, as many as both passes must. Errors are relative to the largest value.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import on_gpu
from on_gpu import TYPES, passes, types
from tenfold.ops import moe
from tenfold.ops.moe import Routing
from tenfold.ops.reference import moe as reference

BATCH, LENGTH, EXPERTS, MANY_EXPERTS, K = 64, 256, 8, 64, 2
TOKENS = BATCH * LENGTH
ROWS = TOKENS * K
WIDTHS = [1024, 1152]
COMPILED = (WIDTHS[0], "bf16")  # of combine

pytestmark = on_gpu.needs_gpu
widths = pytest.mark.parametrize("width", WIDTHS)
experts_of = pytest.mark.parametrize("experts", [EXPERTS, MANY_EXPERTS])


# ---- routing ----


def sorted_by_expert(logits: Tensor) -> tuple[Tensor, ...]:
    """As Hugging Face's grouped experts: softmax, topk, sort, ends, inverse permutation."""
    gates, ids = logits.softmax(dim=-1, dtype=torch.float32).topk(K)
    chosen = ids.flatten()
    order = chosen.argsort(stable=True)
    numbers = torch.arange(logits.shape[-1], device="cuda")
    ends = (chosen[:, None] == numbers).sum(dim=0).cumsum(0).int()
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device="cuda"))
    return gates.flatten().index_select(0, order), order // K, ends, inverse


@passes
@types
@experts_of
def test_route_topk(benchmark: Any, experts: int, dtype: str, backward: bool) -> None:
    def gates(logits: Tensor) -> Tensor:
        return moe.route_topk(logits, K).gates  # type: ignore[no-any-return]

    def exact(logits: Tensor) -> Tensor:
        return reference.route_topk(logits.cpu(), K).gates.cuda()  # type: ignore[no-any-return]

    def make(_: int) -> on_gpu.Problem:
        return on_gpu.problem_of(gates, (on_gpu.randn(TOKENS, experts, dtype=dtype),), backward=backward)

    # Only the gates have a gradient.
    forms = {"tenfold": gates, "torch, inverse too": lambda logits: sorted_by_expert(logits)[0]}
    if not backward:
        forms = {
            "tenfold": lambda logits: tuple(moe.route_topk(logits, K)),
            "torch, inverse too": sorted_by_expert,
            "softmax+topk": lambda logits: logits.softmax(dim=-1, dtype=torch.float32).topk(K),
        }
    read, written = TOKENS * experts * TYPES[dtype].itemsize, 12 * ROWS + 4 * (TOKENS + experts)
    moved = read + written + (2 * read + written if backward else 0)
    on_gpu.compare(
        benchmark,
        make,
        {name: on_gpu.calling(form, backward) for name, form in forms.items()},
        on_gpu.against(gates, exact, backward),
        on_gpu.sets_for(moved),
        limits=on_gpu.copy_of(moved),
        op="route_topk" + (" and backward" if backward else ""),
        shape=f"{TOKENS}x{experts}, k {K}",
        dtype=dtype,
    )


@types
@experts_of
def test_route_expert_choice(benchmark: Any, experts: int, dtype: str) -> None:
    taken = LENGTH * K // experts
    first = torch.arange(BATCH, device="cuda")[:, None, None] * LENGTH
    ones = torch.ones(ROWS, dtype=torch.int32, device="cuda")

    def plain(logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits.softmax(dim=-1, dtype=torch.float32).transpose(1, 2).topk(taken)  # type: ignore[return-value]

    def everything(logits: Tensor) -> tuple[Tensor, ...]:
        """With the inverse map of every token, which combine needs."""
        gates, ids = plain(logits)
        flat = (ids + first).transpose(0, 1).flatten()
        ends = torch.zeros(TOKENS, dtype=torch.int32, device="cuda").index_add_(0, flat, ones).cumsum(0)
        return gates, flat, ends, flat.argsort(stable=True)

    def check(p: on_gpu.Problem) -> float:
        """In order of size: which of two equal weights is the larger one is a matter of rounding."""
        (logits,) = p.leaves
        got = moe.route_expert_choice(logits, taken).gates.cpu()
        want = reference.route_expert_choice(logits.cpu(), taken).gates
        shape = (experts * BATCH, taken)
        return on_gpu.error([got.view(shape).sort().values], [want.view(shape).sort().values])

    moved = TOKENS * experts * TYPES[dtype].itemsize + 12 * ROWS + 4 * (TOKENS + experts)
    on_gpu.compare(
        benchmark,
        lambda _: on_gpu.Problem((on_gpu.randn(BATCH, LENGTH, experts, dtype=dtype),), (), []),
        {
            "tenfold": lambda p: moe.route_expert_choice(*p.leaves, taken),
            "softmax+topk": lambda p: plain(*p.leaves),
            "torch, inverse too": lambda p: everything(*p.leaves),
        },
        check,
        on_gpu.sets_for(moved),
        limits=on_gpu.copy_of(moved),
        op="route_expert_choice",
        shape=f"{BATCH}x{LENGTH}x{experts}, capacity {taken}",
        dtype=dtype,
    )


# ---- rows there and back ----


def routed() -> tuple[Routing, Tensor, Tensor]:
    """A top-2 routing, and what torch indexes with: the token of each row, the rows in the tokens' order."""
    routing = moe.route_topk(torch.randn(TOKENS, EXPERTS, device="cuda"), K)
    return routing, routing.token_ids.long(), routing.rows.long()


def combine(y: Tensor, gates: Tensor, routing: Routing, *_: Tensor) -> Tensor:
    return moe.combine(y, routing._replace(gates=gates))  # type: ignore[no-any-return]


def exact_combine(y: Tensor, gates: Tensor, routing: Routing, *_: Tensor) -> Tensor:
    return reference.combine(y, routing._replace(gates=gates))


def index_add(y: Tensor, gates: Tensor, routing: Routing, ids: Tensor, inverse: Tensor) -> Tensor:
    return y.new_zeros(TOKENS, y.shape[1]).index_add_(0, ids, y * gates.to(y.dtype)[:, None])


def inverse_sum(y: Tensor, gates: Tensor, routing: Routing, ids: Tensor, inverse: Tensor) -> Tensor:
    """As Hugging Face's: rows back in the order of the tokens, then a sum over the two."""
    weighted = y * gates.to(y.dtype)[:, None]
    return weighted.index_select(0, inverse).view(TOKENS, K, -1).sum(dim=1)


@passes
@types
@widths
@pytest.mark.parametrize("op", ["dispatch", "combine"])
def test_rows(benchmark: Any, op: str, width: int, dtype: str, backward: bool) -> None:
    forms = {"tenfold": combine, "index_add_": index_add, "inverse+sum": inverse_sum}
    exact, elements = exact_combine, ROWS + TOKENS + (2 * ROWS + TOKENS if backward else 0)
    if op == "dispatch":
        forms = {
            "tenfold": lambda x, routing, *_: moe.dispatch(x, routing),
            "index_select": lambda x, routing, ids, *_: x.index_select(0, ids),
        }
        if not backward:
            forms["x[ids]"] = lambda x, routing, ids, *_: x[ids]
        exact, elements = (
            lambda x, routing, *_: reference.dispatch(x, routing),
            (ROWS + TOKENS) * (1 + backward),
        )

    def make(_: int) -> on_gpu.Problem:
        routing, ids, inverse = routed()
        x = on_gpu.randn(TOKENS if op == "dispatch" else ROWS, width, dtype=dtype)
        leaves = (x,) if op == "dispatch" else (x, routing.gates)
        return on_gpu.problem_of(forms["tenfold"], leaves, routing, ids, inverse, backward=backward)

    compiled = op == "combine" and (width, dtype) == COMPILED
    moved = elements * width * TYPES[dtype].itemsize
    on_gpu.compare(
        benchmark,
        make,
        {name: on_gpu.calling(form, backward) for name, form in forms.items()},
        on_gpu.against(forms["tenfold"], exact, backward),
        on_gpu.sets_for(moved),
        optional=on_gpu.compiled(inverse_sum, backward) if compiled else None,
        limits=on_gpu.copy_of(moved),
        op=op + (" and backward" if backward else ""),
        shape=f"{TOKENS}x{width}, {ROWS} rows",
        dtype=dtype,
    )
