"""The mixing method in numpy and float64, one variable after the other, as the formulas are written."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

KEYS = (0x9E3779B9, 0xBB67AE85)
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
LEAST_SINE = 1e-6  # of a free output's angle; nearer to 0 or 1 it has no gradient worth the name
LEAST_SQUARE = np.finfo(np.float32).tiny  # a squared norm below is taken as zero


def philox(counter: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Philox4x32-10: counter (..., 4) -> four random words (..., 4)."""
    low = np.uint64(0xFFFFFFFF)
    words = [counter[..., i] & low for i in range(4)]
    keys = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        a, b = np.uint64(MULTIPLIERS[0]) * words[0], np.uint64(MULTIPLIERS[1]) * words[2]
        first = (b >> np.uint64(32)) ^ words[1] ^ np.uint64(keys[0])
        third = (a >> np.uint64(32)) ^ words[3] ^ np.uint64(keys[1])
        words = [first, b & low, third, a & low]
        keys = [(key + step) & 0xFFFFFFFF for key, step in zip(keys, KEYS, strict=True)]
    return np.stack(words, axis=-1)


def _words(seed: int, purpose: int, samples: Any, variables: int, blocks: int) -> NDArray[np.uint64]:
    """(samples, variables, blocks, 4) random words."""
    s, v, q = np.meshgrid(samples, np.arange(variables), np.arange(blocks), indexing="ij")
    counter = np.stack([v, q, s, np.full_like(v, purpose)], axis=-1).astype(np.uint64)
    return philox(counter, seed)


def draw_start(seed: int, samples: Any, variables: int, k: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Standard normal starts (B, N, k) by Box and Muller, and the signs (B, N) of their second components."""
    words = _words(seed, 0, samples, variables, -(-k // 4))
    uniform = ((words >> np.uint64(9)) + 0.5) * 2.0**-23
    radius = np.sqrt(-2 * np.log(uniform[..., 0::2]))
    angle = 2 * np.pi * uniform[..., 1::2]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    negative = (words[:, :, 0, 1] >> np.uint64(31)).astype(bool)
    return normal.reshape(*normal.shape[:2], -1)[..., :k], negative


def draw_order(seed: int, variables: int) -> NDArray[np.int32]:
    """A permutation of 1 ... N - 1: the variables sorted by a random word each."""
    words = _words(seed, 1, [0], variables, 1)[0, :, 0, 0]
    return (np.argsort(words[1:], kind="stable") + 1).astype(np.int32)


class Solution(NamedTuple):
    """As tenfold.ops.mixing.Solution, in float64."""

    z: Floats
    V: Floats
    norms: Floats
    negative: NDArray[np.bool_]
    order: NDArray[np.int32]
    niter: NDArray[np.int32]
    zero_norms: NDArray[np.int32]
    saturated: NDArray[np.int32]


def bound(variables: int) -> int:
    """The width k at which the relaxation has no local optima but the global one, almost surely."""
    return int(np.ceil(np.sqrt(2 * variables))) + 1


def _sequential(C: Floats, x: Floats, order: Any, bias: Floats, step: Any) -> None:
    """One sweep: x_i = step(i, sum_j C_ij x_j + bias_i) for each i of `order` in turn, j != i."""
    for i in order:
        g = C[i] @ x - C[i, i] * x[i] + bias[i]
        x[i] = step(i, g)


def mixing_forward(
    S: Any,
    z: Any,
    is_input: Any,
    *,
    k: int | None = None,
    max_iter: int = 40,
    eps: float = 1e-4,
    seed: int = 0,
    offset: int = 0,
    order: Any = None,
    V0: Any = None,
) -> Solution:
    """See tenfold.ops.mixing.mixing_forward."""
    S, z = np.asarray(S, np.float64), np.asarray(z, np.float64)
    (B, n), N = z.shape, len(S)
    k = bound(N) if k is None else k
    C = S @ S.T
    order = draw_order(seed, N) if order is None else np.asarray(order)
    V, negative = draw_start(seed, np.arange(offset, offset + B), N, k)
    if V0 is not None:
        V = np.array(V0, np.float64)
        negative = np.signbit(V[..., 1])
    given = np.zeros((B, N), bool)
    given[:, 0], given[:, 1 : n + 1] = True, is_input
    norms, out = np.zeros((B, N)), z.copy()
    niter, zero_norms, saturated = (np.zeros(B, np.int32) for _ in range(3))
    negative[:, 0] = False
    negative &= given
    for b in range(B):
        angle = np.pi * np.concatenate([[1.0], z[b], np.zeros(N - n - 1)])
        inputs = np.zeros((N, k))
        inputs[:, 0] = -np.cos(angle)
        inputs[:, 1] = np.where(negative[b], -1, 1) * np.abs(np.sin(angle))
        length = np.linalg.norm(V[b], axis=1, keepdims=True)
        start = np.where(length > 0, V[b] / np.where(length > 0, length, 1), np.eye(1, k))
        V[b] = np.where(given[b][:, None], inputs, start)
        free = order[~given[b][order]]
        delta = first = 0.0

        def step(i: int, g: Floats, b: int = b) -> Floats:
            nonlocal delta
            square = g @ g
            norms[b, i] = np.sqrt(square) if square >= LEAST_SQUARE else 0
            new: Floats = -g / norms[b, i] if norms[b, i] else V[b, i].copy()
            delta += norms[b, i] * np.sum((new - V[b, i]) ** 2)
            return new

        for t in range(max_iter):
            delta = 0.0
            _sequential(C, V[b], free, np.zeros((N, k)), step)
            first = delta if t == 0 else first
            niter[b] = max_iter
            if t and delta < eps * first:
                niter[b] = t
                break
        sine = np.linalg.norm(V[b][:, 1:], axis=1)
        answers = ~given[b][1 : n + 1]
        out[b, answers] = (np.arctan2(sine, -V[b][:, 0]) / np.pi)[1 : n + 1][answers]
        zero_norms[b] = np.sum(norms[b, free] == 0) if max_iter else 0
        saturated[b] = np.sum(sine[1 : n + 1][answers] < LEAST_SINE)
    return Solution(out, V, norms, negative, order, niter, zero_norms, saturated)


def mixing_backward(
    S: Any,
    z: Any,
    is_input: Any,
    solution: Solution,
    z_grad: Any,
    *,
    prox_lam: float = 1e-2,
    sweeps: int | None = None,
    compat: str | None = None,
) -> tuple[Floats, Floats]:
    """See tenfold.ops.mixing.mixing_backward."""
    S, z, z_grad = (np.asarray(x, np.float64) for x in (S, z, z_grad))
    V, norms, negative, order = solution.V, solution.norms, solution.negative, solution.order
    (B, n), (N, k) = z.shape, V.shape[1:]
    C = S @ S.T
    given = np.zeros((B, N), bool)
    given[:, 0], given[:, 1 : n + 1] = True, is_input
    M, to_z = np.zeros((N, N)), np.zeros((B, n))
    for b in range(B):
        free, v, answers = order[~given[b][order]], V[b], ~given[b][1 : n + 1]
        sine = np.linalg.norm(v[:, 1:], axis=1)
        if compat == "official" and (np.any(norms[b, free] == 0) or np.any(sine[free] < LEAST_SINE)):
            continue
        slope = np.zeros(N)
        slope[1 : n + 1][answers] = (z_grad[b] / np.maximum(sine[1 : n + 1], LEAST_SINE) / np.pi)[answers]
        bias = -(slope * v[:, 0])[:, None] * v
        bias[:, 0] = slope * sine**2  # (I - v v^T) e0 dv, without the cancellation of 1 - v_0^2
        u = np.zeros((N, k))

        def step(i: int, g: Floats, b: int = b, v: Floats = v) -> Floats:
            if norms[b, i] == 0:
                return np.zeros(k)
            new: Floats = -(g - (g @ v[i]) * v[i]) / (norms[b, i] + prox_lam)
            return new

        for _ in range(solution.niter[b] if sweeps is None else sweeps):
            _sequential(C, u, free, bias, step)
        M += u @ v.T
        phi, angle = (C @ u)[1 : n + 1], np.pi * z[b]
        sign = np.where(negative[b, 1 : n + 1], -1, 1)
        if compat == "official":
            mine = (z_grad[b] + phi[:, 0]) * np.pi * np.sin(angle)
            mine += phi[:, 1] * sign * np.abs(np.pi * np.cos(angle)) * np.pi
        else:
            mine = z_grad[b] + np.pi * (phi[:, 0] * np.sin(angle) + phi[:, 1] * sign * np.cos(angle))
        to_z[b] = np.where(answers, 0, mine)
    return (M + M.T) @ S, to_z
