"""An expert-choice mixture-of-experts layer in plain torch.

Zhou et al., 2022, "Mixture-of-Experts with Expert Choice Routing": each expert takes the tokens that it likes
best, so no expert is ever over- or underfull.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def expert_capacity(tokens: int, experts: int, capacity: float) -> int:
    """Tokens that one expert takes from one sample: int(capacity * tokens / experts), from 1 to tokens."""
    return min(tokens, max(1, int(capacity * tokens / experts)))


def route_expert_choice(logits: Tensor, taken: int) -> tuple[Tensor, Tensor]:
    """Each expert's `taken` best tokens of each sample; logits (B, N, E).

    Returns token_ids (B, E, taken) int64 and gates (B, E, taken): the softmax over experts at those tokens.
    Ties go to the lower token id.
    """
    scores = logits.float().softmax(dim=-1).transpose(1, 2)
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :taken]
    return order, scores.gather(-1, order)


class ExpertChoiceFFN(nn.Module):
    """x (B, N, D) -> (B, N, D): out[t] = sum over experts e that chose t of gate[e, t] * ffn_e(x[t]).

    A token that no expert chose gets zero, so use it inside a residual branch. Routing runs in float32.
    """

    def __init__(self, width: int, hidden: int, experts: int, capacity: float = 2.0) -> None:
        super().__init__()
        self.experts, self.capacity = experts, capacity
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, width, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))
        nn.init.normal_(self.router.weight, std=0.02)
        nn.init.trunc_normal_(self.up, std=width**-0.5)
        nn.init.trunc_normal_(self.down, std=hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Route, run each expert on its tokens, add up."""
        batch, tokens, width = x.shape
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.router.weight.float())
        taken = expert_capacity(tokens, self.experts, self.capacity)
        token_ids, gates = route_expert_choice(logits, taken)
        first = torch.arange(batch, device=x.device)[:, None, None] * tokens
        rows = (token_ids + first).transpose(0, 1).reshape(self.experts, -1)
        chosen = x.reshape(-1, width)[rows]
        done = torch.bmm(F.gelu(torch.bmm(chosen, self.up)), self.down)
        weighted = done * gates.transpose(0, 1).reshape(self.experts, -1, 1).to(done.dtype)
        out = weighted.new_zeros(batch * tokens, width)
        return out.index_add(0, rows.flatten(), weighted.flatten(0, 1)).view(batch, tokens, width)
