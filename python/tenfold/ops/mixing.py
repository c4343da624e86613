"""The mixing method: SATNet's solver of relaxed MAXSAT problems, and its gradient.

    z, report = mixing(S, z, is_input)                        # (B, n) of them free -> all (B, n) filled in
    solution = mixing_forward(S, z, is_input)                 # the same with all that the gradient needs
    S_grad, z_grad = mixing_backward(S, z, is_input, solution, out_grad)

Variable 0 is true, variables 1 ... n are the user's, and the remaining rows of S are auxiliary: N = 1 + n +
aux rows s_i of m clauses. A variable is a unit vector v_i of width k; the probability z_i of an input stands
for v_i = (-cos(pi z_i), sigma_i |sin(pi z_i)|, 0, ...) with a random sign sigma_i. The free vectors minimise
the sum of s_i . s_j v_i . v_j over all pairs, by coordinate descent from random starts: in a random order,
v_i = -g_i / |g_i| with g_i the sum of s_i . s_j v_j over the others, sweep after sweep. Then
z_i = 1 - acos(v_i . v_0) / pi. The layer, and its gradient but for that of inputs (see `mixing_backward`),
are those of Wang, Donti, Wilder and Kolter, "SATNet: Bridging deep learning and logical reasoning using a
differentiable satisfiability solver", ICML 2019.

float32 numpy arrays and torch tensors in CPU memory, and on a GPU torch tensors and cupy arrays. Sums are of
another order than one variable at a time would have, and the iterates otherwise the same. Each sample is
computed for itself: results are the same bits for any number of threads and in any batch, for the same seed
and sample number. Random numbers are those of Philox (core/philox.h), the same on every device.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from tenfold import _core
from tenfold.ops._arrays import Array, allocate, is_torch, module_of, number, whole

__all__ = ["Report", "Solution", "bound", "mixing", "mixing_backward", "mixing_forward"]

Compat: TypeAlias = Literal["official"] | None


class Report(NamedTuple):
    """What happened in each sample: three int32 arrays (B)."""

    niter: Array
    """Number of the last sweep, from 0, where the sample ended early; max_iter where it did not. So does the
    public code count, whose backward pass makes as many sweeps."""
    zero_norms: Array
    """Free variables with g_i = 0 in the last sweep, such as those with a row of zeros in S: they stay where
    they were and have no gradient."""
    saturated: Array
    """Free outputs within 3e-7 of 0 or 1, where z has no finite derivative: their gradient fades to 0."""


class Solution(NamedTuple):
    """What `mixing_forward` returns: arrays of one library. `report` explains the counts."""

    z: Array
    """(B, n) float32: inputs as given, free variables filled in."""
    V: Array
    """(B, N, k) float32, unit vectors."""
    norms: Array
    """(B, N) float32: |g_i| of the last sweep, 0 for inputs."""
    negative: Array
    """(B, N) bool: the sign sigma_i of an input is -1."""
    order: Array
    """(N - 1) int32: the order of the visits."""
    counts: Array
    """(3, B) int32."""

    @property
    def report(self) -> Report:
        """The counts by name."""
        return Report(self.counts[0], self.counts[1], self.counts[2])


def bound(variables: int) -> int:
    """Return sqrt(2 N) rounded up, plus 1, for N variables, the true one and auxiliary ones counted.

    From there on the relaxation has no other local optima, almost surely (Wang, Chang and Kolter, 2017).
    """
    return math.ceil(math.sqrt(2 * variables)) + 1


def mixing(
    S: Array,
    z: Array,
    is_input: Array,
    *,
    k: int | None = None,
    max_iter: int = 40,
    eps: float = 1e-4,
    prox_lam: float = 1e-2,
    compat: Compat = None,
    seed: int | Array = 0,
    offset: int = 0,
    order: Array | None = None,
    V0: Array | None = None,
) -> tuple[Array, Report]:
    """Fill in the free variables of z; for torch with gradients of S and z.

    `mixing_forward` explains the arguments, `mixing_backward` those of the gradient: prox_lam and compat.
    Where no gradient is wanted V is not kept. Under torch.autocast a z or S of lower precision is cast to
    float32.

    Returns:
        (B, n) float32, and the report.
    """
    eps, prox_lam = number("eps", eps), number("prox_lam", prox_lam)
    if is_torch(S):
        from tenfold.ops import _mixing_torch

        return _mixing_torch.mixing(
            S, z, is_input, k, max_iter, eps, prox_lam, compat, seed, offset, order, V0
        )
    _check_compat(compat)
    solution = _run(S, z, is_input, k, max_iter, eps, seed, offset, order, V0, keep=False)
    return solution.z, solution.report


def mixing_forward(
    S: Array,
    z: Array,
    is_input: Array,
    *,
    k: int | None = None,
    max_iter: int = 40,
    eps: float = 1e-4,
    seed: int | Array = 0,
    offset: int = 0,
    order: Array | None = None,
    V0: Array | None = None,
) -> Solution:
    """Solve; no gradient is recorded.

    Args:
        S: (N, m) float32 with N > n rows: the true variable, the user's n, auxiliary ones.
        z: (B, n) float32 from 0 to 1, in free places too, where it does not matter what stands there.
        is_input: (B, n) boolean, or (n) for all samples: which are given. Not all of a sample.
        k: width of the vectors, 2 or more; None: `bound` of N. The public code has 32, whatever N.
        max_iter: sweeps at most, 1 or more.
        eps: a sample ends after the sweep that improves its objective by less than eps times the first one.
        seed: of the starts, signs and order: a whole number, or one int64 in CPU memory.
        offset: sample b draws what sample offset + b of a larger batch would.
        order: (N - 1) int32, a permutation of 1 ... N - 1; None: drawn, one for all samples.
        V0: (B, N, k) float32: where free variables start, for a warm start; inputs take their sign from the
            second component. None: drawn.

    Returns:
        The solution.

    Raises:
        ValueError: shapes do not fit, S or V0 not finite, z outside 0 to 1 or NaN, a sample without a free
            variable, k, max_iter or eps out of range, order no permutation.
        TypeError: another type, or arrays of different libraries or devices.

    On a GPU wrong values are raised later (`tenfold.ops.synchronize`), and such a sample's z is NaN until
    then; an order that holds a variable twice, and a V0 that is not finite, are not found there.

    With n_f free variables a sweep takes min(n_f^2, 2 n_f m) k multiplications a sample. Memory beside the
    result: N^2 floats for S S^T, and per thread n_f max(min(n_f, 2 m), m); no array of B N m.
    """
    eps = number("eps", eps)
    if is_torch(S):
        from tenfold.ops import _mixing_torch

        return _mixing_torch.mixing_forward(S, z, is_input, k, max_iter, eps, seed, offset, order, V0)
    return _run(S, z, is_input, k, max_iter, eps, seed, offset, order, V0, keep=True)


def mixing_backward(
    S: Array,
    z: Array,
    is_input: Array,
    solution: Solution,
    out_grad: Array,
    *,
    prox_lam: float = 1e-2,
    sweeps: int | None = None,
    compat: Compat = None,
) -> tuple[Array, Array]:
    """Return the gradients of S and z, given that of the solution's z.

    The adjoint U solves, by the same coordinate descent from 0,
    ``(C + diag(|g| + prox_lam) - diag(C)) u = -e0 dv`` in the spaces orthogonal to each v_i, C = S S^T. Then
    the gradient of S is ``(M + M^T) S``, M the sum of U V^T over samples, and that of an input
    ``out_grad_i + pi sin(pi z_i) phi_i0 + sigma_i pi cos(pi z_i) phi_i1`` with ``phi = C U``: the derivative
    of v_i, as finite differences confirm. They are exact where the forward pass has converged, prox_lam is
    small and sweeps are many.

    Args:
        S, z, is_input: as for `mixing_forward`.
        solution: its result.
        out_grad: (B, n) float32.
        prox_lam: a positive number that keeps the system well conditioned, and biases the result.
        sweeps: None for as many as the forward pass made (Report.niter).
        compat: "official" for the public code's gradient of inputs,
            ``(out_grad_i + phi_i0) pi sin(pi z_i) + sigma_i |pi cos(pi z_i)| pi phi_i1``, which is wrong by
            factors and, above 1/2, in sign; a sample with a zero norm or a saturated free variable then has
            no gradient at all, as there. For comparison with published results.

    Returns:
        (N, m) and (B, n) float32; free variables of z have gradient 0.

    Raises:
        ValueError, TypeError: as `mixing_forward`; prox_lam not positive, sweeps negative, unknown compat.
    """
    official, prox_lam = _check_compat(compat), number("prox_lam", prox_lam)
    if is_torch(S):
        from tenfold.ops import _mixing_torch

        return _mixing_torch.mixing_backward(S, z, is_input, solution, out_grad, prox_lam, sweeps, official)
    S, z, is_input = _dense("S", S), _dense("z", z), _dense("is_input", is_input)
    out_grad = _dense("out_grad", out_grad)
    S_grad, z_grad = (allocate(x, x.shape, np.float32) for x in (S, z))
    _core.mixing_backward(
        S, z, is_input, tuple(solution), out_grad, prox_lam, sweeps_of(sweeps), official, S_grad, z_grad
    )
    return S_grad, z_grad


def _check_compat(compat: Compat) -> bool:
    if compat not in (None, "official"):
        raise ValueError(f"compat is {compat!r}, want None or 'official'")
    return compat is not None


def sweeps_of(sweeps: int | None) -> int:
    """The number of sweeps as the kernel takes it, where -1 is as many as the forward pass made."""
    if sweeps is None:
        return -1
    if whole("sweeps", sweeps) < 0:
        raise ValueError(f"sweeps is {sweeps}, want 0 or more")
    return sweeps


def shapes(S: Array, z: Array, k: int | None) -> tuple[int, int, int, int]:
    """B, n, N and k; the kernel says what is wrong with S and z."""
    variables = S.shape[0] if len(S.shape) == 2 else 1
    samples, user = z.shape if len(z.shape) == 2 else (0, 0)
    k = bound(variables) if k is None else whole("k", k)
    if k < 2:
        raise ValueError(f"k is {k}, want 2 or more")
    return samples, user, max(1, variables), k


def seed_of(seed: int | Array) -> int | Array:
    """The seed as the kernel takes it: a whole number of any type, or an array that holds one."""
    return seed if is_torch(seed) or isinstance(seed, (int, np.ndarray)) else whole("seed", seed)


def _dense(name: str, x: Array) -> Array:
    """The array of numpy or cupy itself where it is dense in memory, else a copy; TypeError for another."""
    if is_torch(x):
        raise TypeError(f"{name} is a torch.Tensor and S is a numpy array, want arrays of one library")
    if not hasattr(x, "strides"):
        raise TypeError(f"{name} is a {type(x).__name__}, want a numpy array or a torch tensor")
    step = x.dtype.itemsize
    for size, stride in zip(reversed(x.shape), reversed(x.strides), strict=True):
        if size > 1 and stride != step:
            return module_of(x).ascontiguousarray(x)
        step *= size
    return x


def _run(
    S: Array,
    z: Array,
    is_input: Array,
    k: int | None,
    max_iter: int,
    eps: float,
    seed: int | Array,
    offset: int,
    order: Array | None,
    V0: Array | None,
    keep: bool,
) -> Solution:
    S, z, is_input = _dense("S", S), _dense("z", z), _dense("is_input", is_input)
    samples, user, variables, width = shapes(S, z, k)
    state = (samples, variables) if keep else (0,)
    solution = Solution(
        allocate(S, (samples, user), np.float32),
        allocate(S, (samples, variables, width) if keep else (0,), np.float32),
        allocate(S, state, np.float32),
        allocate(S, state, np.bool_),
        allocate(S, (variables - 1,), np.int32) if order is None else _dense("order", order),
        allocate(S, (3, samples), np.int32),
    )
    V0 = None if V0 is None else _dense("V0", V0)
    max_iter, offset = whole("max_iter", max_iter), whole("offset", offset)
    _core.mixing_forward(
        S, z, is_input, V0, seed_of(seed), offset, width, max_iter, eps, order is None, solution
    )
    return solution
