"""One training step of MicroDiT's transformer, whole and by part, against the same network in eager torch.

The configuration is the one that our targets are set for: 32x32 latents of 4 channels, patch 2 (256
tokens), width 384, 12 backbone blocks of which 5 have 8 experts, 4 mixer blocks of which 2 have, captions
of 77 tokens, batch 16, 75 % of the patches masked after the mixer. The loss is a plain mean of squares.
"products alone" are the products of all linear layers and experts, forward and both backward ones, on
tensors that lie ready; "one large product" is a product of 2048 x 2048 matrices, as often as the step's
operations fill: its column is the step's share of the peak.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import plain_dit
from tenfold.diffusion import dit
from tenfold.diffusion.dit import NORM_EPS, DiT, DiTConfig
from tenfold.nn.attention import CrossAttention, SelfAttention
from tenfold.nn.moe import ExpertChoiceFFN
from tenfold.nn.packing import PackedTokens

Compare = Callable[..., None]  # the fixture of conftest.py

BATCH, TOKENS, KEPT, CAPTION, WIDTH = 16, 256, 64, 77, 384
CONFIG = DiTConfig(
    image_size=32,
    channels=4,
    patch_size=2,
    width=WIDTH,
    depth=12,
    mixer_width=WIDTH,
    mixer_depth=4,
    experts=8,
)
THREADS = 2
SHAPE = f"batch {BATCH}, {TOKENS} tokens, {KEPT} kept"
TARGETS = {"fp32": 1.6, "bf16": 1.4}

types = pytest.mark.parametrize("dtype", ["fp32", "bf16"])


def precision(dtype: str) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16")


def largest_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


class Step:
    """The network with every layer at work, and a batch."""

    def __init__(self, dtype: str) -> None:
        torch.manual_seed(0)
        self.dtype, self.model = dtype, DiT(CONFIG)
        for name, parameter in self.model.named_parameters():
            if "modulation" in name or "final" in name:  # these begin with zeros
                nn.init.normal_(parameter, std=0.02)
        values = CONFIG.patch_size**2 * CONFIG.channels
        keep = torch.stack([torch.randperm(TOKENS)[:KEPT] for _ in range(BATCH)])
        mask = torch.ones(BATCH, CAPTION, dtype=torch.bool)
        captions = torch.randn(BATCH, CAPTION, CONFIG.text_width)
        self.batch = (torch.randn(BATCH, TOKENS, values), torch.randn(BATCH), captions, mask, keep)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.compiled = torch.compile(self.model, dynamic=False)
        self.wrong = self.error()

    def gradients(self, model: Callable[..., Tensor] | None = None) -> None:
        self.optimizer.zero_grad()
        with precision(self.dtype):
            out = (self.model if model is None else model)(*self.batch)
        out.float().square().mean().backward()

    def calls(self, update: bool) -> dict[str, Callable[[], None]]:
        def run(form: str | None, model: Callable[..., Tensor] | None = None) -> None:
            with nullcontext() if form is None else plain_dit.swapped(form):
                self.gradients(model)
            if update:
                self.optimizer.step()

        return {
            "tenfold": lambda: run(None),
            "torch, best form": lambda: run("best"),
            "torch, published form": lambda: run("published"),
            "torch.compile": lambda: run("best", self.compiled),
        }

    def error(self) -> float:
        """Of all gradients, against the best plain form in float32: as a length, relative to its own."""

        def flat() -> Tensor:
            return torch.cat(
                [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
            ).double()

        self.gradients()
        mine = flat()
        self.optimizer.zero_grad()
        with plain_dit.swapped("best"):
            self.model(*self.batch).square().mean().backward()
        want = flat()
        return float((mine - want).norm() / want.norm())

    def operations(self) -> int:
        """Floating-point operations of the products, attention's left out where a kernel hides them."""
        with FlopCounterMode(display=False) as counter, plain_dit.swapped("best"):
            self.gradients()
        return counter.get_total_flops()

    def products_alone(self) -> Callable[[], None]:
        shapes = _linear_shapes(self.model, self.batch)
        dtype = torch.bfloat16 if self.dtype == "bf16" else torch.float32
        data = [
            (torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype), torch.randn(m, n).to(dtype), count)
            for (m, n, k), count in shapes.items()
        ]

        def run() -> None:
            for x, w, grad, count in data:
                for _ in range(count):
                    x @ w.t()
                    grad @ w
                    grad.t() @ x

        return run

    def one_large_product(self) -> Callable[[], None]:
        size = 2048
        dtype = torch.bfloat16 if self.dtype == "bf16" else torch.float32
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        times = max(1, round(self.operations() / (2 * size**3)))

        def run() -> None:
            for _ in range(times):
                a @ b

        return run


@functools.lru_cache(maxsize=1)
def step_of(dtype: str) -> Step:
    """One for all its rows: compiling the network takes minutes. Only one at a time: it is large."""
    return Step(dtype)


def _linear_shapes(model: DiT, batch: tuple[Any, ...]) -> dict[tuple[int, int, int], int]:
    """(rows, outputs, inputs) of the products in linear layers and experts, and how often each occurs."""
    found: dict[tuple[int, int, int], int] = {}

    def seen(shape: tuple[int, int, int], count: int = 1) -> None:
        found[shape] = found.get(shape, 0) + count

    def linear(layer: nn.Linear, inputs: tuple[Tensor, ...], _: Any) -> None:
        seen((inputs[0].shape[:-1].numel(), layer.out_features, layer.in_features))

    def experts(layer: ExpertChoiceFFN, inputs: tuple[Tensor, ...], _: Any) -> None:
        rows = int(inputs[0].shape[:-1].numel() * layer.capacity / len(layer.w_in))
        hidden, width = layer.w_out.shape[1:]
        seen((rows, hidden, width), len(layer.w_in))
        seen((rows, width, hidden), len(layer.w_in))

    hooks = [
        module.register_forward_hook(experts if isinstance(module, ExpertChoiceFFN) else linear)
        for module in model.modules()
        if isinstance(module, nn.Linear | ExpertChoiceFFN)
    ]
    with torch.no_grad():
        model(*batch)
    for hook in hooks:
        hook.remove()
    return found


# ---- by part: all calls of a step, forward and backward ----


def part_of(name: str, dtype: str) -> tuple[Callable[[], tuple[Tensor, ...]], list[Tensor], int]:
    """The part's results, the leaves of its gradient, and how often a step has it."""
    torch.manual_seed(0)
    half = torch.bfloat16 if dtype == "bf16" else torch.float32

    def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape).to(dtype).requires_grad_()

    kind, _, place = name.partition(", ")
    tokens, count = (TOKENS, CONFIG.mixer_depth) if place == "mixer" else (KEPT, CONFIG.depth)
    x, weight = leaf(BATCH, tokens, WIDTH), torch.ones(WIDTH, requires_grad=True)
    if kind == "norms and residuals":
        shift, scale, gate = (leaf(BATCH, WIDTH, dtype=half) for _ in range(3))
        branch = leaf(BATCH, tokens, WIDTH, dtype=half)

        def block() -> tuple[Tensor, ...]:
            h = dit.adaln(x, shift, scale, weight=weight, eps=NORM_EPS)
            y, g = dit.gated_residual_adaln(x, branch, gate, weight=weight, eps=NORM_EPS)
            y, f = dit.gated_residual_adaln(y, branch, None, shift, scale, weight=weight, eps=NORM_EPS)
            return h, g, f, dit.gated_residual(y, branch, gate)

        return block, [x, branch, shift, scale, gate, weight], count
    if kind == "self-attention":
        layer: nn.Module = SelfAttention(WIDTH, WIDTH, CONFIG.head_dim)
        return lambda: (layer(x),), [x, *layer.parameters()], count
    if kind == "cross-attention":
        packing = PackedTokens.from_mask(torch.ones(BATCH, CAPTION, dtype=torch.bool))
        layer, captions = CrossAttention(WIDTH, CONFIG.head_dim), leaf(BATCH * CAPTION, WIDTH)
        return lambda: (layer(x, captions, packing),), [x, captions, *layer.parameters()], count
    layer = ExpertChoiceFFN(WIDTH, 4 * WIDTH, CONFIG.experts, CONFIG.capacity)
    return lambda: (layer(x),), [x, *layer.parameters()], 2 if place == "mixer" else 5


PARTS = [
    f"{kind}, {place}"
    for kind in ("norms and residuals", "self-attention", "cross-attention", "experts")
    for place in ("mixer", "backbone")
]


@types
@pytest.mark.parametrize("part", PARTS)
def test_part(compare: Compare, part: str, dtype: str) -> None:
    forward, leaves, count = part_of(part, dtype)
    directions: dict[torch.dtype, Tensor] = {}

    def direction(out: Tensor) -> Tensor:
        """The same for results of either type."""
        if out.dtype not in directions:
            drawn = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
            directions[out.dtype] = drawn.bfloat16().to(out.dtype)
        return directions[out.dtype]

    def run(form: str | None) -> tuple[Tensor, ...]:
        with nullcontext() if form is None else plain_dit.swapped(form), precision(dtype):
            outs = forward()
            return torch.autograd.grad(outs, leaves, [direction(out) for out in outs])

    def repeated(form: str | None) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(count):
                run(form)

        return calls

    wrong = max(map(largest_error, run(None), run("best")))
    calls = {
        "tenfold": repeated(None),
        "torch, best form": repeated("best"),
        "torch, published form": repeated("published"),
    }
    compare(
        calls, THREADS, wrong, op="parts of a step, forward and backward", shape=f"{part}, {count} blocks",
        dtype=dtype, regime="fresh", targets={},
    )  # fmt: skip


# ---- the whole step, after the parts: what it leaves in memory slows them ----


@types
@pytest.mark.parametrize("update", [False, True], ids=["gradients", "step"])
def test_step(compare: Compare, dtype: str, update: bool) -> None:
    step = step_of(dtype)
    calls: dict[str, Callable[[], None]] = step.calls(update)
    calls["products alone"] = step.products_alone()
    calls["one large product"] = step.one_large_product()
    title = f"{'whole step with AdamW' if update else 'forward and backward'} {dtype}, {THREADS} threads"
    targets = {"torch, best form": (title, TARGETS[dtype])}
    operation = "step: gradients and fused AdamW" if update else "step: forward and backward"
    compare(
        calls, THREADS, step.wrong, op=operation, shape=SHAPE, dtype=dtype, regime="fresh", targets=targets
    )
