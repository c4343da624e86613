"""`tenfold train microdit`: from captioned pictures to a run directory."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from torch.utils.flop_counter import FlopCounterMode

from tenfold import __version__
from tenfold.diffusion.dit import DiT
from tenfold.diffusion.pixels import PixelScaling
from tenfold.engine import checkpoint
from tenfold.engine.budget import calibrate, parse_duration, steps_within
from tenfold.engine.config import to_dict
from tenfold.engine.interrupt import INTERRUPTED, Interrupt
from tenfold.engine.memory import peak_rss_bytes
from tenfold.engine.metrics import MetricsLog, read_metrics, require_tensorboard
from tenfold.engine.options import parse
from tenfold.engine.progress import progress
from tenfold.engine.run import RunDirectory, default_path, refuse_used
from tenfold.errors import UserError
from tenfold.methods.microdit.config import PRESETS, MicroDiTConfig, laptop
from tenfold.methods.microdit.data import Prepared, anchored, patches_of, prepare, tensor
from tenfold.methods.microdit.evaluate import evaluate, heldout_loss
from tenfold.methods.microdit.run import Facts, reopen
from tenfold.methods.microdit.step import TrainingState, TrainingStep

CHECKPOINTS = 12
LOG_EVERY = 10
BUDGET = 600.0  # seconds
BYTES_PER_PARAMETER = 20  # float32 weights, gradients, two moments of AdamW, and the average


@dataclass(frozen=True)
class TrainOptions:
    """Train a text-to-image diffusion transformer from scratch on captioned pictures."""

    config: MicroDiTConfig = field(default_factory=laptop)
    budget: Annotated[float, parse_duration] | None = None
    """Training time on this machine, like 90s, 10m or 1h (default: 10m); fixed as a number of steps before
    the first one."""
    out: Path | None = None
    """The run directory to make (default: runs/microdit-DATE-TIME)."""
    resume: Path | None = None
    """Go on with this run directory exactly where its last checkpoint stands; --data says where its folder
    of pictures is now, if that was moved."""
    tensorboard: bool = False
    """Write TensorBoard event files too."""


def main(argv: list[str]) -> int:
    """Run `tenfold train microdit`."""
    presets = {name: TrainOptions(config=make()) for name, make in PRESETS.items()}
    options = parse(TrainOptions, argv, "tenfold train microdit", presets=presets)
    if options.resume is None:
        return start(options)
    # Whatever else is given would be ignored, the budget too: the number of steps is fixed.
    plain = next(iter(presets.values()))
    config = replace(options.config, data=plain.config.data)
    if replace(options, config=config, resume=None, tensorboard=False) == plain:
        moved = options.config.data if options.config.data != plain.config.data else None
        return resume(options.resume, options.tensorboard, moved)
    raise UserError("--resume takes the run's own configuration; leave the other options out")


def start(options: TrainOptions) -> int:
    """Begin a run: fix the number of steps and the data, then train."""
    config, path = anchored(options.config), options.out or default_path("microdit")
    if options.budget is not None and config.steps:
        raise UserError(
            f"--budget: the number of steps is {config.steps}, which fixes the length; give --steps 0 or no "
            "--budget"
        )
    refuse_used(path)
    if options.tensorboard:
        require_tensorboard()
    prepared = prepare(config)
    _say(f"{len(prepared.images.train)} pictures to train on, {len(prepared.images.heldout)} held out")
    _say(f"licence of the pictures: {prepared.images.licence}. {prepared.images.attribution}".strip())
    pixels = PixelScaling.fit(prepared.images.images[prepared.images.train])
    config, facts = _measure(config, options.budget or BUDGET, prepared, pixels)
    run = RunDirectory.create(path, to_dict(config) | to_dict(facts))
    _say(f"run directory: {run.path}")
    return _train(run, config, facts, prepared, TrainingState.fresh(config), options.tensorboard)


def resume(path: Path, tensorboard: bool, data: str | None = None) -> int:
    """Go on with a run from its newest checkpoint; the data must be what it was, wherever it is now."""
    run = RunDirectory.open(path)
    config, facts, prepared = reopen(run, data)
    if torch.get_num_threads() != facts.threads:
        _say(f"set to the run's {facts.threads} threads, so that the result is the same to the bit")
        torch.set_num_threads(facts.threads)
    newest = checkpoint.latest(run.checkpoints)
    state = TrainingState.load(config, newest) if newest else TrainingState.fresh(config)
    _say(f"going on with {run.path} at step {state.step} of {config.steps}")
    return _train(run, config, facts, prepared, state, tensorboard)


def _train(
    run: RunDirectory,
    config: MicroDiTConfig,
    facts: Facts,
    prepared: Prepared,
    state: TrainingState,
    tensorboard: bool,
) -> int:
    step = _training_step(config, prepared, facts.pixels)
    every = _steps_between_checkpoints(config)
    seconds, losses = _seconds_so_far(run, state.step), state.losses
    with (
        run.lock(),
        Interrupt() as interrupt,
        MetricsLog(run.metrics, state.step, tensorboard) as metrics,
        progress(config.steps, state.step, "training") as bar,
    ):
        while state.step < config.steps and not interrupt.requested:
            began = time.perf_counter()
            loss, norm = step(state)
            took = time.perf_counter() - began
            seconds += took
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise UserError(_diverged(run, config, state.step))
            losses.append(loss)
            speed = config.batch / took
            bar.update(state.step, loss=loss, images_per_s=round(speed))
            if state.step % LOG_EVERY == 0 or state.step == config.steps:
                mean = sum(losses) / len(losses)
                metrics.log(state.step, loss=mean, gradient_norm=norm, images_per_s=speed, seconds=seconds)
                losses.clear()
            if state.step % every == 0 or state.step == config.steps:
                metrics.log(state.step, heldout_loss=_heldout_loss(state, step, prepared))
                state.save(run.checkpoints)
        if state.step < config.steps:
            state.save(run.checkpoints)
            _say(f"stopped at step {state.step}; go on with: tenfold train microdit --resume {run.path}")
            return INTERRUPTED
    _say(f"peak memory {peak_rss_bytes() / 2**30:.2f} GiB")
    _say("drawing samples and comparing them with the pictures")
    try:
        evaluate(run, prepared)
    except KeyboardInterrupt:
        _say(f"trained, but no report yet; make it with: tenfold evaluate microdit {run.path}")
        return INTERRUPTED
    _say(f"done: {run.path / 'report.md'}")
    return 0


def _diverged(run: RunDirectory, config: MicroDiTConfig, step: int) -> str:
    kept = checkpoint.latest(run.checkpoints)
    return (
        f"the loss or its gradient is not a number at step {step}: training has diverged; start again, in a "
        f"new --out, with a lower --lr than {config.lr:g}"
        + (f" ({kept} is the last checkpoint before it)" if kept else "")
    )


def _steps_between_checkpoints(config: MicroDiTConfig) -> int:
    """A multiple of LOG_EVERY, so that the means in metrics.jsonl are the same after a resume."""
    spread = config.steps // (CHECKPOINTS * LOG_EVERY) * LOG_EVERY
    return config.checkpoint_every or max(3 * LOG_EVERY, spread)


def _seconds_so_far(run: RunDirectory, step: int) -> float:
    rows = read_metrics(run.metrics) if run.metrics.exists() else []
    return max((row.get("seconds", 0.0) for row in rows if row["step"] <= step), default=0.0)


def _training_step(config: MicroDiTConfig, prepared: Prepared, pixels: PixelScaling) -> TrainingStep:
    patches = patches_of(config, prepared, pixels)
    return TrainingStep(config, patches, prepared.text, tensor(prepared.images.train))


def _measure(
    config: MicroDiTConfig, budget: float, prepared: Prepared, pixels: PixelScaling
) -> tuple[MicroDiTConfig, Facts]:
    """Take a few steps on a state that is thrown away; return the config with its number of steps."""
    trial = TrainingState.fresh(config)
    parameters = sum(p.numel() for p in trial.model.parameters())
    _say(f"{parameters / 1e6:.1f} M parameters, {parameters * BYTES_PER_PARAMETER / 2**20:.0f} MiB of state")
    # As many steps as there are to come in any case, so that the masked phase is the masked one.
    step = _training_step(replace(config, steps=config.steps or 1_000_000), prepared, pixels)
    with FlopCounterMode(display=False) as counter:
        step(trial)
    seconds = _seconds_per_step(step, trial)
    steps = config.steps or steps_within(budget, seconds)
    _say(f"{seconds:.3f} s and {counter.get_total_flops() / 1e9:.1f} GFLOP a step; {steps} steps")
    facts = Facts(
        method="microdit",
        version=__version__,
        pixels=pixels,
        manifest=prepared.manifest,
        parameters=parameters,
        flops_per_step=counter.get_total_flops(),
        seconds_per_step=seconds,
        threads=torch.get_num_threads(),
    )
    return replace(config, steps=steps), facts


def _seconds_per_step(step: TrainingStep, trial: TrainingState) -> float:
    """Mean over the masked and the unmasked part of a run, each weighted with its share of the steps."""
    seconds = calibrate(lambda: step(trial))
    if not step.masked_steps:
        return seconds
    share = step.masked_steps / step.steps
    trial.step = step.masked_steps
    return share * seconds + (1.0 - share) * calibrate(lambda: step(trial))


def _heldout_loss(state: TrainingState, step: TrainingStep, prepared: Prepared) -> float:
    """The averaged weights' loss on the held-out pictures."""
    averaged = DiT(step.config.model)
    averaged.load_state_dict(state.ema.tensors())
    return heldout_loss(averaged, step.config, step.patches, step.text, tensor(prepared.images.heldout))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
