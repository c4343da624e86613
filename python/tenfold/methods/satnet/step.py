"""One optimiser step: what it draws, computes and changes depends on the config and its number alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tenfold.engine import checkpoint
from tenfold.engine.schedule import Shuffle, generator
from tenfold.errors import UserError
from tenfold.methods.satnet.config import SATNetConfig
from tenfold.methods.satnet.model import Model, loss_of
from tenfold.methods.satnet.problems import Problems
from tenfold.methods.satnet.scores import Scores, score

# Purposes of the random streams, the second key of each.
_WEIGHTS, _ORDER, _SOLVER = range(3)


@dataclass
class TrainingState:
    """Everything that a step changes."""

    model: Model
    optimizer: torch.optim.Optimizer
    step: int = 0
    counts: dict[str, float] = field(default_factory=dict)
    """Of the steps of this pass so far, so that its means are the same after a resume."""
    epoch_losses: list[float] = field(default_factory=list)
    """Mean training loss of each pass."""
    stopped: str = ""
    """Why training ended before its last epoch."""

    @staticmethod
    def fresh(config: SATNetConfig) -> TrainingState:
        """Initialise from the seed; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator(config.seed, _WEIGHTS).get_state())
            model = Model(config)
        if config.initial:
            load_weights(model, Path(config.initial))
        return TrainingState(model, _optimizer(model, config))

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the state into `folder`."""
        tensors = {
            "weights": self.model.state_dict(),
            "optimizer": checkpoint.optimizer_to_tensors(self.optimizer),
        }
        own: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "counts": self.counts,
            "epoch_losses": self.epoch_losses,
            "stopped": self.stopped,
        }
        checkpoint.save(folder, self.step, tensors, own)

    @staticmethod
    def load(config: SATNetConfig, path: Path) -> TrainingState:
        """Read what `save` wrote; UserError when the file is damaged or does not fit."""
        state = TrainingState.fresh(replace(config, initial=""))
        loaded = checkpoint.load(path)
        checkpoint.load_module(state.model, loaded.tensors["weights"], path)
        checkpoint.optimizer_from_tensors(state.optimizer, loaded.tensors["optimizer"], path)
        state.step, state.counts = loaded.step, dict(loaded.state["counts"])
        state.epoch_losses, state.stopped = list(loaded.state["epoch_losses"]), loaded.state["stopped"]
        return state


def load_weights(model: Model, path: Path) -> None:
    """Copy the weights of a file into those of the model's parts that it names; each part whole."""
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as weights ({error}); see --initial") from error
    parts = {name.partition(".")[0] for name in given}
    rest = {name: value for name, value in model.state_dict().items() if name.partition(".")[0] not in parts}
    checkpoint.load_module(model, rest | given, path)


def _optimizer(model: Model, config: SATNetConfig) -> torch.optim.Optimizer:
    """Layer and perception have rates of their own; a linear head has the perception's."""
    layer = list(model.layer.parameters()) if model.layer is not None else []
    known = {id(parameter) for parameter in layer}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [(layer, config.lr), (others, config.backbone_lr)]
    named: list[dict[str, Any]] = [{"params": part, "lr": rate} for part, rate in groups if part]
    return torch.optim.SGD(named) if config.optimizer == "sgd" else torch.optim.Adam(named)


class TrainingStep:
    """Callable that moves a `TrainingState` one step on."""

    def __init__(self, config: SATNetConfig, problems: Problems) -> None:
        self.config, self.problems = config, problems
        self.order = Shuffle(len(problems.train), config.batch, config.seed, _ORDER)

    def rows(self, step: int) -> Tensor:
        """The training problems of `step`: shuffled, or one after the other."""
        if self.config.shuffle:
            return self.order.batch(step)
        return (step * self.config.batch + torch.arange(self.config.batch)) % len(self.problems.train)

    def __call__(self, state: TrainingState) -> float:
        """Take one step and return its loss; DivergenceError leaves the state unfit for another."""
        config = self.config
        batch = self.problems.train.take(self.rows(state.step))
        state.model.draw_from(generator(config.seed, _SOLVER, state.step))
        output = state.model(batch)
        loss = loss_of(output, batch, config.loss_mask, config.loss_scale)
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.model.want_finite()
        state.step += 1
        value = float(loss.detach())
        scores = Scores(state.counts)
        scores.add(loss=value * len(output))
        score(scores, output.detach(), batch, config, self.problems.order)
        return value
