"""The mixing family on a GPU: `tenfold bench mixing --device cuda`.

Sudoku 9x9 and 4x4 as in bench_mixing.py, at the width of SATNet's public code, 32, and at the default one;
on_gpu.py says how they are timed: without a graph, for a call takes long. "torch by variable" does the same
updates in torch, one variable of all samples after the other (mixing_by_variable.py): one sweep in a CUDA
graph, its time multiplied by the sweeps of the sample that takes most; the products before and after the
sweeps are left out, in its favour. "our CPU kernel" is tenfold on the processor of the same machine. "matrix
product" does as many float32 multiplications as the sweeps need, in one torch.mm. The error is that of z, and
of the gradient of S relative to its largest number, of one sample after 5 sweeps against the double-precision
reference.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import on_gpu
from bench_mixing import OFFICIAL_K, sudoku
from mixing_by_variable import adjoint_terms, backward_sweep, forward_sweep, gram, is_free
from on_gpu import passes
from tenfold.nn.satnet import SATNet
from tenfold.ops import mixing as ops
from tenfold.ops.reference import mixing as reference

SIZES = {9: (729, 600, 300, 36), 4: (64, 80, 32, 6)}  # n, m, aux and givens, as in bench_mixing.py
MAX_ITER, PROX_LAM = 40, 1e-2
FEW = {"max_iter": 5, "eps": 0.0}  # sweeps in which rounding does not yet change the path

pytestmark = on_gpu.needs_gpu
cases = pytest.mark.parametrize("case", [(9, 40), (9, 264), (4, 40)], ids=lambda case: "{}, {}".format(*case))
widths = pytest.mark.parametrize("k", [OFFICIAL_K, None], ids=["k 32", "default k"])


class Problem:
    """One size of problem on the GPU and in CPU memory, solved."""

    def __init__(self, side: int, batch: int, k: int | None) -> None:
        n, m, aux, givens = SIZES[side]
        torch.manual_seed(0)
        layer = SATNet(n, m, aux, k=k)
        z, is_input = sudoku(side, givens, batch)
        grad = torch.cos(torch.arange(z.numel(), dtype=torch.float32)).view(z.shape)
        self.k = layer.k
        self.here: tuple[Tensor, ...] = (layer.S.detach(), z, is_input)
        self.there = tuple(x.cuda() for x in self.here)
        self.grads = (grad, grad.cuda())
        there = ops.mixing_forward(*self.there, k=self.k)
        self.solutions = (ops.Solution(*(x.cpu() for x in there)), there)
        self.shape = f"Sudoku {side}x{side}: {batch}x{n}, aux {aux}, m {m}, k {self.k}"

    def sweeps(self, backward: bool) -> Tensor:
        """Of each sample; the backward pass makes one fewer where the forward pass ended early."""
        niter = self.solutions[0].report.niter
        return niter if backward else (niter + 1).clamp(max=MAX_ITER)

    def multiplications(self, backward: bool) -> int:
        S, _, is_input = self.here
        free = len(S) - 1 - is_input.sum(1).double()
        return int((self.sweeps(backward) * free * free * self.k).sum())

    def run(self, backward: bool, there: bool) -> Any:
        arrays = self.there if there else self.here
        if not backward:
            return ops.mixing_forward(*arrays, k=self.k)
        return ops.mixing_backward(*arrays, self.solutions[there], self.grads[there], prox_lam=PROX_LAM)

    def one_sweep(self, backward: bool) -> torch.cuda.CUDAGraph:
        """Of the torch form."""
        S, _, is_input = self.there
        solution = self.solutions[1]
        C, free, order = gram(S), is_free(S, is_input), solution.order.tolist()
        V, bias, factor = adjoint_terms(solution, self.grads[1], free, PROX_LAM)
        U = torch.zeros_like(V)

        def sweep(_: object) -> None:
            if backward:
                backward_sweep(C, order, V, bias, factor, U)
            else:
                forward_sweep(C, free, order, V)

        self.kept = sweep  # whose arrays the graph reads
        return on_gpu.captured(sweep, [None])

    def error(self) -> float:
        """Of z and the gradient of S, of one sample after few sweeps."""
        S, z, is_input = (x if i == 0 else x[:1] for i, x in enumerate(self.there))
        grad = self.grads[1][:1]
        got = ops.mixing_forward(S, z, is_input, k=self.k, **FEW)
        S_grad, _ = ops.mixing_backward(S, z, is_input, got, grad, prox_lam=PROX_LAM)
        exact = [x.cpu().numpy() for x in (S, z, is_input, grad)]
        want = reference.mixing_forward(*exact[:3], k=self.k, **FEW)
        exact_grad, _ = reference.mixing_backward(*exact[:3], want, exact[3], prox_lam=PROX_LAM)
        return on_gpu.error(
            [got.z.cpu(), S_grad.cpu()], [torch.from_numpy(want.z), torch.from_numpy(exact_grad)]
        )


def product_of(multiplications: int) -> dict[str, tuple[on_gpu.Call, on_gpu.Make]]:
    """One float32 matrix product of as many multiplications, the limit of the device's arithmetic."""
    side = max(1, round(multiplications ** (1 / 3)))

    def make(_: int) -> tuple[Tensor, Tensor]:
        return on_gpu.randn(side, side), on_gpu.randn(side, side)

    return {"matrix product": (lambda pair: torch.mm(*pair), make)}


@passes
@widths
@cases
def test_mixing(benchmark: Any, case: tuple[int, int], k: int | None, backward: bool) -> None:
    p = Problem(*case, k)
    graph = p.one_sweep(backward)
    on_gpu.compare(
        benchmark,
        lambda _: p,
        {
            "tenfold": lambda p: p.run(backward, there=True),
            "torch by variable": lambda _: graph.replay(),
            f"our CPU kernel, {torch.get_num_threads()} threads": lambda p: p.run(backward, there=False),
        },
        lambda p: p.error(),
        1,
        limits=product_of(p.multiplications(backward)),
        scales={"torch by variable": int(p.sweeps(backward).max())},
        in_graphs=False,
        op="mixing backward" if backward else "mixing",
        shape=p.shape,
        dtype="fp32",
    )
