"""SATNet: a layer that completes assignments by rules it learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tenfold.ops import mixing as ops


class SATNet(nn.Module):
    """z (B, n) in [0, 1] and is_input (B, n) or (n) boolean -> z with the free variables filled in.

    Wang, Donti, Wilder and Kolter, ICML 2019. The rules are the parameter S (1 + n + aux, m): m clauses over
    the true variable, the n of the user and `aux` auxiliary ones. `tenfold.ops.mixing` is the solver. After a
    call `report` says how many sweeps each sample took, and where there was no gradient.

    Args:
        n: variables.
        m: clauses.
        aux: auxiliary variables.
        max_iter: sweeps at most.
        eps: a sample ends when a sweep improves its objective by less than eps times the first one.
        prox_lam: added to the diagonal of the gradient's system.
        weight_normalize: scale S by sqrt(0.5 / (1 + n + aux + m)) when it is drawn.
        k: width of the vectors; None: the bound of theory (`tenfold.ops.mixing.bound`), 32: the public code.
        compat: "official": the public code's gradient of inputs, errors included (and k = 32 where None).
        eval_seed: seed of starts and order in eval mode, where the same input gives the same output; None:
            drawn as in training. In training every call draws a seed from `generator`.
        generator: of torch, in CPU memory; None: the default one.
    """

    def __init__(
        self,
        n: int,
        m: int,
        aux: int = 0,
        max_iter: int = 40,
        eps: float = 1e-4,
        prox_lam: float = 1e-2,
        *,
        weight_normalize: bool = True,
        k: int | None = None,
        compat: ops.Compat = None,
        eval_seed: int | None = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("n", n, 1), ("m", m, 1), ("aux", aux, 0), ("max_iter", max_iter, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}, want {least} or more")
        if k is not None and k < 2:
            raise ValueError(f"k is {k}, want 2 or more, or None")
        if compat not in (None, "official"):
            raise ValueError(f"compat is {compat!r}, want None or 'official'")
        if not prox_lam > 0:
            raise ValueError(f"prox_lam is {prox_lam}, want a positive number")
        if not eps >= 0:
            raise ValueError(f"eps is {eps}, want 0 or a positive number")
        self.n, self.m, self.aux = n, m, aux
        self.max_iter, self.eps, self.prox_lam = max_iter, eps, prox_lam
        variables = 1 + n + aux
        self.k = k if k is not None else _OFFICIAL_K if compat else ops.bound(variables)
        self.compat, self.eval_seed, self.generator = compat, eval_seed, generator
        scale = (0.5 / (variables + m)) ** 0.5 if weight_normalize else 1.0
        self.S = nn.Parameter(torch.randn(variables, m, generator=generator) * scale)
        self.report: ops.Report | None = None

    def forward(self, z: Tensor, is_input: Tensor) -> Tensor:
        """Fill in what is not given."""
        if z.shape[-1] != self.n:
            raise ValueError(f"z has shape {tuple(z.shape)}, want (samples, {self.n})")
        out, self.report = ops.mixing(
            self.S,
            z,
            is_input,
            k=self.k,
            max_iter=self.max_iter,
            eps=self.eps,
            prox_lam=self.prox_lam,
            compat=self.compat,
            seed=self._seed(),
        )
        filled: Tensor = out
        return filled

    def _seed(self) -> int | Tensor:
        if self.training or self.eval_seed is None:
            return torch.randint(_SEEDS, (), generator=self.generator, device="cpu")
        return self.eval_seed

    def extra_repr(self) -> str:
        """The sizes."""
        return f"n={self.n}, m={self.m}, aux={self.aux}, k={self.k}"


_SEEDS = 2**63 - 1
_OFFICIAL_K = 32  # whatever the size
