"""One optimiser step: what it draws, computes and changes depends on the config and its number alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from tenfold.diffusion.dit import DiT, kept_tokens
from tenfold.diffusion.edm import column, training_target, weighted_loss
from tenfold.diffusion.guidance import drop_captions
from tenfold.diffusion.precision import autocast
from tenfold.diffusion.text import TextStates
from tenfold.engine import checkpoint
from tenfold.engine.ema import EMA
from tenfold.engine.schedule import Shuffle, generator, warmup_cosine
from tenfold.methods.microdit.config import MicroDiTConfig
from tenfold.methods.microdit.data import rows_of, trim
from tenfold.ops.patches import gather_patches, random_keep_ids

# Purposes of the random streams, the second key of each.
_WEIGHTS, _ORDER, _NOISE = range(3)


@dataclass
class TrainingState:
    """Everything that a step changes."""

    model: DiT
    optimizer: torch.optim.AdamW
    ema: EMA
    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last line of the metrics, so that means are the same after a resume."""

    @staticmethod
    def fresh(config: MicroDiTConfig) -> TrainingState:
        """Initialise from the seed; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator(config.seed, _WEIGHTS).get_state())
            model = DiT(config.model)
        return TrainingState(model, _adamw(model, config), EMA(model, config.ema))

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the state into `folder`."""
        tensors = {
            "weights": self.model.state_dict(),
            "ema": self.ema.tensors(),
            "optimizer": checkpoint.optimizer_to_tensors(self.optimizer),
        }
        own = {"threads": torch.get_num_threads(), "losses": self.losses}
        checkpoint.save(folder, self.step, tensors, own)

    @staticmethod
    def load(config: MicroDiTConfig, path: Path) -> TrainingState:
        """Read what `save` wrote; UserError when the file is damaged or does not fit."""
        state = TrainingState.fresh(config)
        loaded = checkpoint.load(path)
        checkpoint.load_module(state.model, loaded.tensors["weights"], path)
        checkpoint.optimizer_from_tensors(state.optimizer, loaded.tensors["optimizer"], path)
        state.ema.load(loaded.tensors["ema"])
        state.step, state.losses = loaded.step, list(loaded.state.get("losses", []))
        return state


def _adamw(model: nn.Module, config: MicroDiTConfig) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


class TrainingStep:
    """Callable that moves a `TrainingState` one step on."""

    def __init__(self, config: MicroDiTConfig, patches: Tensor, text: TextStates, rows: Tensor) -> None:
        """`patches` (N, T, P) and `text` hold the whole set, `rows` the training part of it."""
        self.config, self.steps, self.rows = config, config.steps, rows
        self.patches, self.text = patches, text
        self.order = Shuffle(len(rows), config.batch, config.seed, _ORDER)
        self.keep = kept_tokens(config.model.tokens, config.mask_ratio)
        self.masked_steps = round(self.steps * (1.0 - config.unmasked_share)) if config.mask_ratio else 0

    def __call__(self, state: TrainingState) -> tuple[float, float]:
        """Take one step and return its loss and the gradient's norm before clipping."""
        loss = self.loss(state.model, state.step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.config.clip)
        factor = warmup_cosine(state.step, self.steps, self.config.warmup)
        for group in state.optimizer.param_groups:
            group["lr"] = self.config.lr * factor
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.ema.update(state.step)
        state.step += 1
        return float(loss.detach()), float(norm)

    def loss(self, model: DiT, step: int) -> Tensor:
        """Return the EDM loss of the batch of `step`, on the kept patches."""
        config = self.config
        rows = self.rows[self.order.batch(step)]
        draws = generator(config.seed, _NOISE, step)
        dropped = torch.rand(len(rows), generator=draws) < config.caption_dropout
        states, mask = trim(*drop_captions(*rows_of(self.text, rows), dropped))
        sigma = config.noise.training_sigmas(len(rows), draws)
        scale = config.noise.scalings(sigma)
        clean = self.patches.index_select(0, rows)
        noisy = clean + column(sigma, clean) * torch.randn(clean.shape, generator=draws)
        target = training_target(clean, noisy, scale)
        keep_ids = self._keep_ids(step)
        if keep_ids is not None:
            target = gather_patches(target, keep_ids)
        with autocast(config.bf16):
            raw = model(column(scale.input, noisy) * noisy, scale.noise, states, mask, keep_ids)
        return weighted_loss(raw.float(), target, scale)

    def _keep_ids(self, step: int) -> Tensor | None:
        if step >= self.masked_steps:
            return None
        # The offset keeps the samples of different steps on different streams.
        tokens, batch = self.config.model.tokens, self.config.batch
        ids, _ = random_keep_ids(batch, tokens, self.keep, seed=self.config.seed, offset=step * batch)
        return torch.as_tensor(ids)
