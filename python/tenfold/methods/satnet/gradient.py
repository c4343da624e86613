"""The gradient to an input of the layer: ours and the published code's, against finite differences.

A small random problem, solved to convergence: a truth variable, 5 inputs and 6 free variables. One input
moves through [0, 1] while the random vectors, signs and order stay as they are. The finite differences are
those of the float64 reference; the gradients are those of the float32 op.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold.ops.mixing import mixing
from tenfold.ops.reference.mixing import mixing_forward

INPUTS, FREE, CLAUSES, WIDTH = 5, 6, 16, 32
SPREAD = 0.3  # of the entries of S
SWEEPS = 4000
DAMPING = 1e-6  # prox_lam: large ones bias the gradient
STEP = 1e-4  # of the central differences, in float64
POINTS = 41  # of the input that moves, both ends among them


def measure(seed: int, points: int = POINTS) -> dict[str, list[float]]:
    """Values of the input that moves, and the derivatives by it of a random linear loss of the outputs."""
    draw = np.random.default_rng(seed)
    S = SPREAD * draw.standard_normal((1 + INPUTS + FREE, CLAUSES))
    z = np.concatenate([draw.uniform(0.1, 0.9, INPUTS), np.zeros(FREE)])
    weights = np.concatenate([np.zeros(INPUTS), draw.standard_normal(FREE)])
    values = np.linspace(0.0, 1.0, points)
    return {
        "z": values.tolist(),
        "finite_difference": [_difference(S, z, weights, value, seed) for value in values],
        "correct": [_gradient(S, z, weights, value, seed, None) for value in values],
        "official": [_gradient(S, z, weights, value, seed, "official") for value in values],
    }


def _is_input() -> NDArray[np.bool_]:
    return np.arange(INPUTS + FREE) < INPUTS


def _difference(
    S: NDArray[np.float64], z: NDArray[np.float64], weights: NDArray[np.float64], value: float, seed: int
) -> float:
    """Central inside; at the ends one-sided, of second order."""

    def loss(at: float) -> float:
        moved = z.copy()
        moved[0] = at
        # No early stop in the plain sense: sweeps end when nothing changes any more.
        solution = mixing_forward(
            S, moved[None], _is_input()[None], k=WIDTH, max_iter=SWEEPS, eps=1e-22, seed=seed
        )
        return float(solution.z[0] @ weights)

    if value < STEP:
        return (-3 * loss(value) + 4 * loss(value + STEP) - loss(value + 2 * STEP)) / (2 * STEP)
    if value > 1 - STEP:
        return (3 * loss(value) - 4 * loss(value - STEP) + loss(value - 2 * STEP)) / (2 * STEP)
    return (loss(value + STEP) - loss(value - STEP)) / (2 * STEP)


def _gradient(
    S: NDArray[np.float64],
    z: NDArray[np.float64],
    weights: NDArray[np.float64],
    value: float,
    seed: int,
    compat: Any,
) -> float:
    moved = torch.tensor(z[None], dtype=torch.float32)
    moved[0, 0] = value
    moved.requires_grad_()
    out, _ = mixing(
        torch.tensor(S, dtype=torch.float32),
        moved,
        torch.from_numpy(_is_input()[None]),
        k=WIDTH,
        max_iter=SWEEPS,
        eps=0.0,
        prox_lam=DAMPING,
        compat=compat,
        seed=seed,
    )
    (out[0] @ torch.tensor(weights, dtype=torch.float32)).backward()
    assert moved.grad is not None
    return float(moved.grad[0, 0])


def largest_error(found: dict[str, list[float]], name: str) -> float:
    """The largest distance of a gradient from the finite differences, over the largest of these."""
    wanted, got = np.array(found["finite_difference"]), np.array(found[name])
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
