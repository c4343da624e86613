"""Sweeps of the mixing method in torch: a variable of all samples at a time, in the order of the visits.

What someone would write who has no kernel: vectorised over samples, one product of a row of S S^T with all
vectors per variable. Rows of one variable lie together: V and U are (N, B, k).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.ops.mixing import Solution

LEAST_SINE = 1e-6  # nearer to 0 or 1 an output has no gradient worth the name


def gram(S: Tensor) -> Tensor:
    """S S^T without its diagonal: a variable does not act on itself."""
    return (S @ S.T).fill_diagonal_(0.0)


def is_free(S: Tensor, is_input: Tensor) -> Tensor:
    """(N, B, 1): neither the true variable nor given."""
    free = torch.ones(len(S), len(is_input), dtype=torch.bool, device=S.device)
    free[0] = False
    free[1 : 1 + is_input.shape[1]] = ~is_input.T
    return free[..., None]


def forward_sweep(C: Tensor, free: Tensor, order: list[int], V: Tensor) -> None:
    """v_i = -g_i / |g_i| of the free variables, in place."""
    for i in order:
        g = torch.mv(V.flatten(1).T, C[i]).view(V.shape[1:])
        V[i] = torch.where(free[i], -F.normalize(g, dim=1), V[i])


def adjoint_terms(
    solution: Solution, out_grad: Tensor, free: Tensor, prox_lam: float
) -> tuple[Tensor, Tensor, Tensor]:
    """V; what the gradient of z adds to g; and -1 / (|g| + prox_lam), 0 where nothing moves."""
    V, norms = solution.V.transpose(0, 1).contiguous(), solution.norms.T[..., None]
    sine = V[..., 1:].norm(dim=2, keepdim=True)
    slope = torch.zeros_like(sine)
    slope[1 : 1 + out_grad.shape[1], :, 0] = out_grad.T / math.pi
    slope = torch.where(free, slope / sine.clamp_min(LEAST_SINE), 0.0)
    bias = -slope * V[..., :1] * V
    bias[..., :1] = slope * sine.square()
    factor = torch.where(free & (norms > 0), -1.0 / (norms + prox_lam), 0.0)
    return V, bias, factor


def backward_sweep(C: Tensor, order: list[int], V: Tensor, bias: Tensor, factor: Tensor, U: Tensor) -> None:
    """u_i = -(I - v v^T)(g + bias) / (|g_i| + prox_lam) of the free variables, in place."""
    for i in order:
        g = torch.mv(U.flatten(1).T, C[i]).view(U.shape[1:]) + bias[i]
        U[i] = (g - (g * V[i]).sum(dim=1, keepdim=True) * V[i]) * factor[i]
