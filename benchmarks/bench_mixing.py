"""SATNet's layer against one variable after the other, as its public code works (mixing_sequential.cpp).

Sudoku 9x9 and 4x4 with the published sizes, and chains of exclusive-or (parity): untrained S, as many givens
as the published puzzles have on average, each fixing all bits of its cell. The baseline is ours, of that
code's order of work; it is compared at that code's width of vectors, 32, and the default width, the bound of
theory, stands beside it. "FMA peak" does the multiplications of the sweeps as fast as the machine can: its
column is the share of the peak that was reached. The error is that of z, and of the gradient of S relative to
its largest number, against the double-precision reference (Sudoku 9x9: of one sample).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compiled import multiply_adds
from mixing_sequential import SequentialSATNet
from tenfold.nn.satnet import SATNet
from tenfold.ops import mixing as ops
from tenfold.ops.reference import mixing as reference

Compare = Callable[..., None]  # the fixture of conftest.py

OFFICIAL_K = 32
SPEED_UP = {1: (16.0, "16x at 1 thread"), 2: (25.0, "25x at 2 threads")}
SHARE = 0.55  # of the peak, 9x9
STEP = 40.0  # a training step of a small problem

threads = pytest.mark.parametrize("threads", [1, 2])
widths = pytest.mark.parametrize("k", [OFFICIAL_K, None], ids=["k 32", "default k"])


def sudoku(side: int, givens: int, batch: int) -> tuple[Tensor, Tensor]:
    """Random bits (batch, side^3), one hot per cell, and which cells are given."""
    generator = torch.Generator().manual_seed(0)
    digits = torch.randint(side, (batch, side * side), generator=generator)
    z = torch.nn.functional.one_hot(digits, side).float().flatten(1)
    cells = torch.rand(batch, side * side, generator=generator).argsort(1) < givens
    return z, cells.repeat_interleave(side, dim=1)


class Problem:
    """One size of problem, ours and the baseline."""

    def __init__(
        self, name: str, n: int, m: int, aux: int, z: Tensor, is_input: Tensor, k: int | None, prox_lam: float
    ) -> None:
        torch.manual_seed(0)
        self.layer = SATNet(n, m, aux, prox_lam=prox_lam, k=k)
        self.other = SequentialSATNet(self.layer.S, n, OFFICIAL_K, 40, 1e-4, prox_lam)
        self.z, self.is_input, self.ints = z, is_input, is_input.int()
        self.target = (torch.rand(len(z), n, generator=torch.Generator().manual_seed(1)) < 0.5).float()
        self.row = {
            "shape": f"{name}: {len(z)}x{n}, aux {aux}, m {m}, k {self.layer.k}", "dtype": "fp32",
            "regime": "fresh",
        }  # fmt: skip

    def multiplications(self, backward: bool) -> int:
        """Of the sweeps of a pass; after an early end the backward pass makes one fewer."""
        _, report = ops.mixing(self.layer.S.detach(), self.z, self.is_input, k=self.layer.k)
        niter = report.niter.double()
        sweeps = niter if backward else (niter + 1).clamp(max=self.layer.max_iter)
        free = len(self.layer.S) - 1 - self.is_input.sum(1).double()
        return int((sweeps * free * free * self.layer.k).sum())

    def error(self, samples: int | None = None) -> float:
        S, z, is_input = (
            self.layer.S.detach().numpy(),
            self.z[:samples].numpy(),
            self.is_input[:samples].numpy(),
        )
        options: dict[str, Any] = {"k": self.layer.k, "max_iter": 5, "eps": 0.0}
        want = reference.mixing_forward(S, z, is_input, **options)
        got = ops.mixing_forward(S, z, is_input, **options)
        grad = np.cos(np.arange(z.size, dtype=np.float32)).reshape(z.shape)
        mine = ops.mixing_backward(S, z, is_input, got, grad)[0]
        other = reference.mixing_backward(S, z, is_input, want, grad)[0]
        return max(np.abs(got.z - want.z).max(), np.abs(mine - other).max() / np.abs(other).max())

    def ours(self) -> Tensor:
        out: Tensor = self.layer(self.z, self.is_input)
        return out

    def baseline(self) -> Tensor:
        out: Tensor = self.other(self.z, self.ints)
        return out


def sudoku_9x9(k: int | None) -> Problem:
    return Problem("Sudoku 9x9", 729, 600, 300, *sudoku(9, 36, 40), k, 1e-2)


def sudoku_4x4(k: int | None) -> Problem:
    return Problem("Sudoku 4x4", 64, 80, 32, *sudoku(4, 6, 40), k, 1e-2)


@threads
@widths
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_sudoku_9x9(compare: Compare, backward: bool, k: int | None, threads: int) -> None:
    p = sudoku_9x9(k)
    peak = p.multiplications(backward)
    if backward:
        outs = [(p.ours(), p.layer.S), (p.baseline(), p.other.S)]
        forms = [lambda out=out, S=S: torch.autograd.grad(out.sum(), S, retain_graph=True) for out, S in outs]
    else:
        forms = [p.ours, p.baseline]
    calls: dict[str, Callable[[], Any]] = {"tenfold": forms[0], "FMA peak": lambda: multiply_adds(peak)}
    name = f"9x9 {'backward' if backward else 'forward'}, {threads} thread{'s' if threads > 1 else ''}"
    targets = {}
    if k is not None:
        calls["sequential"] = forms[1]
        targets = {"sequential": (name, SPEED_UP[threads][0]), "FMA peak": (f"{name}, share of peak", SHARE)}
    op = "backward" if backward else "forward"
    compare(calls, threads, p.error(1), op=op, targets=targets, **p.row)


def step(layer: torch.nn.Module, target: Tensor, rate: float) -> Callable[[Callable[[], Tensor]], None]:
    """A training step of Adam on binary cross-entropy."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=rate)

    def run(forward: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        out = forward().clamp(1e-6, 1 - 1e-6)
        torch.nn.functional.binary_cross_entropy(out, target).backward()
        optimizer.step()

    return run


@threads
@widths
def test_sudoku_4x4(compare: Compare, k: int | None, threads: int) -> None:
    p = sudoku_4x4(k)
    ours, theirs = step(p.layer, p.target, 0.0), step(p.other, p.target, 0.0)
    calls: dict[str, Callable[[], Any]] = {
        "tenfold": lambda: ours(p.ours),
        "sequential (k 32)": lambda: theirs(p.baseline),
    }
    targets = {"sequential (k 32)": ("4x4 training step", STEP)} if k is not None and threads == 1 else {}
    compare(calls, threads, p.error(), op="training step", targets=targets, **p.row)


LENGTH = 20  # of a chain


def chain(layer: torch.nn.Module, bits: Tensor, is_input: Tensor, keep_graph: bool) -> Tensor:
    """The parity of each row of bits, one bit at a time; no gradient passes through a threshold."""
    state = bits[:, 0]
    free = torch.zeros_like(state)
    for i in range(1, bits.shape[1]):
        last = i == bits.shape[1] - 1
        with torch.set_grad_enabled(keep_graph or last):
            out = layer(torch.stack([state, bits[:, i], free], dim=1), is_input)[:, 2]
        if not last:
            state = ((out - 0.5).sign() + 1) / 2
    return out


@threads
@widths
def test_parity(compare: Compare, k: int | None, threads: int) -> None:
    bits = (torch.rand(100, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    is_input = torch.tensor([True, True, False]).expand(100, 3).contiguous()
    p = Problem(f"parity of {LENGTH} bits", 3, 4, 4, bits[:, :3].contiguous(), is_input, k, 1e-1)
    target = bits.sum(1) % 2
    ours, theirs = step(p.layer, target, 0.0), step(p.other, target, 0.0)
    calls: dict[str, Callable[[], Any]] = {
        "tenfold": lambda: ours(lambda: chain(p.layer, bits, is_input, keep_graph=False)),
        "sequential (k 32)": lambda: theirs(lambda: chain(p.other, bits, is_input.int(), keep_graph=False)),
    }
    targets = {"sequential (k 32)": ("parity training step", STEP)} if k is not None and threads == 1 else {}
    compare(calls, threads, p.error(), op="training step", targets=targets, **p.row)
