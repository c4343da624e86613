"""SATNet's layer in the order of work of its public code: the torch half of mixing_sequential.cpp."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from compiled import library


def _call(name: str, *args: int | float | Tensor) -> None:
    def converted(arg: int | float | Tensor) -> Any:
        if isinstance(arg, Tensor):
            return ctypes.c_void_p(arg.data_ptr())
        return ctypes.c_float(arg) if isinstance(arg, float) else ctypes.c_int(arg)

    getattr(library("mixing_sequential", "-O3", "-msse4.1"), name)(*map(converted, args))


class Sequential(torch.autograd.Function):
    """S (N, m), z and is_input (B, N) with true and auxiliary variables -> z (B, N)."""

    @staticmethod
    def forward(
        ctx: Any, S: Tensor, z: Tensor, is_input: Tensor, k: int, max_iter: int, eps: float, prox_lam: float
    ) -> Tensor:
        (B, N), m = z.shape, S.shape[1]
        permutation = torch.randperm(N - 1, dtype=torch.int32) + 1
        order, V = torch.empty(B, N, dtype=torch.int32), torch.empty(B, N, k).normal_()
        _call("sequential_start", B, N, k, permutation, is_input, z, order, V)
        W = torch.empty(B, k, m)
        for b in range(B):
            torch.mm(V[b].t(), S, out=W[b])
        norms, niter, out = torch.zeros(B, N), torch.zeros(B, dtype=torch.int32), z.clone()
        squares = S.square().sum(1)
        _call("sequential_forward", B, N, m, k, max_iter, eps, S, squares, order, V, W, norms, niter, out)
        ctx.save_for_backward(S, z, is_input)
        ctx.kept = (out, V, W, norms, niter, order, squares)
        ctx.prox_lam = prox_lam
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        S, z, is_input = ctx.saved_tensors
        out, V, W, norms, niter, order, squares = ctx.kept
        (B, N, k), m = V.shape, S.shape[1]
        U, Phi, S_grad = torch.zeros(B, N, k), torch.zeros(B, k, m), torch.empty(B, N, m)
        z_grad = torch.zeros(B, N)
        _call(
            "sequential_backward", B, N, m, k, ctx.prox_lam, S, squares, order, is_input, z, out, V, W, norms,
            niter, grad.contiguous(), U, Phi, S_grad, z_grad,
        )  # fmt: skip
        return S_grad.sum(0), z_grad, None, None, None, None, None


class SequentialSATNet(nn.Module):
    """The layer: is_input is int32 here."""

    def __init__(self, S: Tensor, n: int, k: int, max_iter: int, eps: float, prox_lam: float) -> None:
        super().__init__()
        self.S = nn.Parameter(S.detach().clone())
        self.n, self.aux = n, len(S) - 1 - n
        self.options = (k, max_iter, eps, prox_lam)

    def forward(self, z: Tensor, is_input: Tensor) -> Tensor:
        B = len(z)
        ones, zeros = torch.ones(B, 1), torch.zeros(B, self.aux)
        is_input = torch.cat([ones.int(), is_input, zeros.int()], dim=1)
        out: Tensor = Sequential.apply(self.S, torch.cat([ones, z, zeros], dim=1), is_input, *self.options)
        return out[:, 1 : self.n + 1]
