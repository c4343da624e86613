"""Feed-forward layers of several experts, in place of one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.ops import moe


class _Experts(nn.Module):
    """A router without bias, in float32, and the experts' weights: w_in (E, D, I), w_out (E, H, D)."""

    def __init__(
        self, width: int, hidden: int, experts: int, activation: moe.Activation, gated: bool
    ) -> None:
        super().__init__()
        self.activation: moe.Activation = activation
        self.gated = gated
        self.router = nn.Linear(width, experts, bias=False)
        self.w_in = nn.Parameter(torch.empty(experts, width, 2 * hidden if gated else hidden))
        self.w_out = nn.Parameter(torch.empty(experts, hidden, width))
        nn.init.normal_(self.router.weight, std=0.02)
        nn.init.trunc_normal_(self.w_in, std=width**-0.5)
        nn.init.trunc_normal_(self.w_out, std=hidden**-0.5)

    def logits(self, x: Tensor) -> Tensor:
        """Router logits (..., E) of x (..., D), in float32 under autocast too."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.router.weight.float())

    def run(self, x: Tensor, routing: moe.Routing) -> Tensor:
        """Each expert on its tokens of x (T, D), added up: (T, D)."""
        out: Tensor = moe.expert_ffn(x, routing, self.w_in, self.w_out, self.activation, gated=self.gated)
        return out


class ExpertChoiceFFN(_Experts):
    """x (B, N, D) -> (B, N, D), each expert taking the tokens of a sample that it likes best.

    Zhou et al., 2022, "Mixture-of-Experts with Expert Choice Routing": an expert takes capacity * N / E
    tokens of each sample, so none is over- or underfull and no auxiliary loss is needed. A token that no
    expert took gets zero: use the layer inside a residual branch. Which tokens are taken depends on all
    tokens of a sample, so it is no layer for causal models.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        capacity: float = 2.0,
        activation: moe.Activation = "gelu",
        gated: bool = False,
    ) -> None:
        super().__init__(width, hidden, experts, activation, gated)
        self.capacity = capacity

    def forward(self, x: Tensor) -> Tensor:
        """Route, run each expert on its tokens, add up."""
        batch, tokens, width = x.shape
        logits = self.logits(x)
        taken = moe.expert_capacity(tokens, logits.shape[-1], self.capacity)
        routing = moe.route_expert_choice(logits, taken)
        return self.run(x.reshape(-1, width), routing).view(batch, tokens, -1)


class TopKFFN(_Experts):
    """x (..., D) -> (..., D), each token going to its k best experts, as in Mixtral (Jiang et al., 2024).

    The gates are the softmax over the k chosen. In training, `balance_loss` and `z_loss` are those of the
    last call (tenfold.ops.moe): add small multiples of them to the loss, for nothing else keeps the experts
    evenly used.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        k: int = 2,
        activation: moe.Activation = "silu",
        gated: bool = True,
    ) -> None:
        super().__init__(width, hidden, experts, activation, gated)
        self.k = k
        self.balance_loss: Tensor | None = None
        self.z_loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Route, run each expert on its tokens, add up."""
        rows = x.reshape(-1, x.shape[-1])
        logits = self.logits(rows)
        routing = moe.route_topk(logits, self.k, renormalize=True)
        if self.training:
            self.balance_loss, self.z_loss = moe.balance_loss(logits, routing), moe.z_loss(logits)
        return self.run(rows, routing).view(x.shape)
