"""`tenfold train ltn`: from a theory and its data to a run directory."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from tenfold import __version__
from tenfold.engine import checkpoint
from tenfold.engine.config import from_dict, to_dict
from tenfold.engine.interrupt import INTERRUPTED, Interrupt
from tenfold.engine.metrics import MetricsLog
from tenfold.engine.options import Parser, parse
from tenfold.engine.progress import progress
from tenfold.engine.run import RunDirectory, default_path, refuse_used
from tenfold.errors import UserError
from tenfold.methods.ltn.config import PRESETS, LTNConfig, smokes
from tenfold.methods.ltn.evaluate import evaluate
from tenfold.methods.ltn.tasks import Task, make_task

CHECKPOINTS = 10
LOGS = 50  # lines of metrics.jsonl in a run


@dataclass(frozen=True)
class TrainOptions:
    """Train Logic Tensor Networks on one of the paper's tasks."""

    config: LTNConfig = field(default_factory=smokes)
    out: Path | None = None
    """The run directory to make (default: runs/ltn-DATE-TIME)."""
    resume: Path | None = None
    """Go on with this run directory exactly where its last checkpoint stands."""


@dataclass(frozen=True)
class Facts:
    """What config.json holds beside the configuration."""

    method: str
    version: str
    threads: int


def main(argv: list[str]) -> int:
    """Run `tenfold train ltn`."""
    presets = {name: TrainOptions(config=config) for name, config in _presets(argv).items()}
    options = parse(TrainOptions, argv, "tenfold train ltn", presets=presets)
    if options.resume is None:
        return start(options)
    if replace(options, resume=None) != TrainOptions():
        raise UserError("--resume takes the run's own configuration; leave the other options out")
    return resume(options.resume)


def _presets(argv: Sequence[str]) -> dict[str, LTNConfig]:
    """Those of the task on the command line, or all; a wrong task is refused with the options."""
    parser = Parser("tenfold train ltn", add_help=False)
    parser.add_argument("--task", default="")
    task = parser.parse_known_args(list(argv))[0].task
    made = {name: make() for name, make in PRESETS.items()}
    return {name: config for name, config in made.items() if config.task == task} or made


def start(options: TrainOptions) -> int:
    """Begin a run."""
    path = options.out or default_path("ltn")
    refuse_used(path)
    task = make_task(options.config)
    facts = Facts("ltn", __version__, torch.get_num_threads())
    run = RunDirectory.create(path, to_dict(options.config) | to_dict(facts))
    _say(f"run directory: {run.path}")
    return _train(run, task, _optimizer(task), 0)


def resume(path: Path) -> int:
    """Go on with a run from its newest checkpoint."""
    run = RunDirectory.open(path)
    config, facts = read_config(run)
    torch.set_num_threads(facts.threads)  # the same bits
    task = make_task(config)
    optimizer, newest = _optimizer(task), checkpoint.latest(run.checkpoints)
    step = 0
    if newest is not None:
        loaded = checkpoint.load(newest)
        checkpoint.load_module(task.network, loaded.tensors["weights"], newest)
        checkpoint.optimizer_from_tensors(optimizer, loaded.tensors["optimizer"], newest)
        step = loaded.step
    _say(f"going on with {run.path} at step {step} of {task.steps}")
    return _train(run, task, optimizer, step)


def read_config(run: RunDirectory) -> tuple[LTNConfig, Facts]:
    """Split a run's config.json into its two parts; UserError names an unknown or ill-typed key."""
    source = str(run.path / "config.json")
    if run.config_dict.get("method") != "ltn":
        raise UserError(f"{source}: not an ltn run")
    own = {item.name for item in fields(Facts)}
    facts = {key: value for key, value in run.config_dict.items() if key in own}
    config = {key: value for key, value in run.config_dict.items() if key not in own}
    return from_dict(LTNConfig, config, source), from_dict(Facts, facts, source)


def _optimizer(task: Task) -> torch.optim.Adam:
    return torch.optim.Adam(task.network.parameters(), lr=task.config.lr)


def _train(run: RunDirectory, task: Task, optimizer: torch.optim.Adam, step: int) -> int:
    log_every, save_every = max(1, task.steps // LOGS), max(1, task.steps // CHECKPOINTS)
    began, first = time.perf_counter(), step
    with (
        run.lock(),
        Interrupt() as interrupt,
        MetricsLog(run.metrics, step) as metrics,
        progress(task.steps, step, f"training {task.config.task}") as bar,
    ):
        while step < task.steps and not interrupt.requested:
            optimizer.zero_grad()
            loss = task.loss(step)
            loss.backward()
            optimizer.step()
            step += 1
            value = float(loss.detach())
            if not math.isfinite(value):
                raise UserError(f"the loss is not a number at step {step}: start again with a lower --lr")
            bar.update(step, loss=value)
            if step % log_every == 0 or step == task.steps:
                speed = (time.perf_counter() - began) / (step - first)
                metrics.log(step, loss=value, seconds_per_step=speed, **task.measure(step))
            if step % save_every == 0 or step == task.steps:
                _save(run, task, optimizer, step)
        if step < task.steps:
            _save(run, task, optimizer, step)
            _say(f"stopped at step {step}; go on with: tenfold train ltn --resume {run.path}")
            return INTERRUPTED
    evaluate(run, task, step)
    _say(f"done: {run.path / 'report.md'}")
    return 0


def _save(run: RunDirectory, task: Task, optimizer: torch.optim.Adam, step: int) -> None:
    tensors = {
        "weights": task.network.state_dict(),
        "optimizer": checkpoint.optimizer_to_tensors(optimizer),
    }
    checkpoint.save(run.checkpoints, step, tensors, {})


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
