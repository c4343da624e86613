"""`tenfold train satnet`: from problems to a run directory."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from tenfold import __version__
from tenfold.engine import checkpoint
from tenfold.engine.config import to_dict
from tenfold.engine.interrupt import INTERRUPTED, Interrupt
from tenfold.engine.memory import peak_rss_bytes
from tenfold.engine.metrics import MetricsLog, read_metrics, require_tensorboard
from tenfold.engine.options import Parser, parse
from tenfold.engine.progress import progress
from tenfold.engine.run import RunDirectory, default_path, refuse_used
from tenfold.errors import UserError
from tenfold.methods.satnet.config import SEEING_TASKS, TASKS, SATNetConfig, Task, laptop, presets
from tenfold.methods.satnet.data import anchored, prepare
from tenfold.methods.satnet.evaluate import evaluate
from tenfold.methods.satnet.model import DivergenceError
from tenfold.methods.satnet.problems import Problems
from tenfold.methods.satnet.run import Facts, reopen
from tenfold.methods.satnet.scores import Scores, evaluate_split
from tenfold.methods.satnet.step import TrainingState, TrainingStep

LOG_EVERY = 10
PATIENCE_GAIN = 0.01  # share by which a pass must lower the loss to count against `patience`
MAIN_SCORE = ("valid_boards", "accuracy")  # the first that a task has is shown beside the loss


@dataclass(frozen=True)
class TrainOptions:
    """Train a SATNet layer to solve problems from examples; no rule is given."""

    config: SATNetConfig = field(default_factory=laptop)
    out: Path | None = None
    """The run directory to make (default: runs/satnet-DATE-TIME)."""
    resume: Path | None = None
    """Go on with this run directory exactly where its last checkpoint stands; --puzzles and --digits say
    where its data is now, if that was moved."""
    tensorboard: bool = False
    """Write TensorBoard event files too."""


def main(argv: list[str]) -> int:
    """Run `tenfold train satnet`."""
    named = {name: TrainOptions(config=config) for name, config in presets(_task(argv)).items()}
    options = parse(TrainOptions, argv, "tenfold train satnet", presets=named)
    if options.resume is None:
        return start(options)
    # Whatever else is given would be ignored.
    plain = next(iter(named.values()))
    data = replace(options.config.data, puzzles="", digits=plain.config.data.digits)
    config = replace(options.config, data=data)
    if replace(options, config=config, resume=None, tensorboard=False) != TrainOptions():
        raise UserError("--resume takes the run's own configuration; leave the other options out")
    moved = options.config.data
    digits = moved.digits if moved.digits != plain.config.data.digits else ""
    return resume(options.resume, options.tensorboard, moved.puzzles, digits)


def _task(argv: Sequence[str]) -> Task:
    """The task on the command line, which chooses the presets; a wrong one is refused with the options."""
    parser = Parser("tenfold train satnet", add_help=False)
    parser.add_argument("--task", default=TASKS[0])
    given = parser.parse_known_args(list(argv))[0].task
    return next((task for task in TASKS if task == given), TASKS[0])


def start(options: TrainOptions) -> int:
    """Begin a run: make or read the problems, then train."""
    config, path = anchored(options.config), options.out or default_path("satnet")
    refuse_used(path)
    if options.tensorboard:
        require_tensorboard()
    problems = prepare(config, _say)
    _say(f"{len(problems.train)} problems to train on, {len(problems.test)} to test on: {problems.source}")
    state = TrainingState.fresh(config)
    facts = Facts(
        method="satnet",
        version=__version__,
        train_sha256=problems.train.fingerprint(),
        test_sha256=problems.test.fingerprint(),
        train_problems=len(problems.train),
        test_problems=len(problems.test),
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        threads=torch.get_num_threads(),
    )
    run = RunDirectory.create(path, to_dict(config) | to_dict(facts))
    _say(f"{facts.parameters / 1e6:.3g} M parameters; run directory: {run.path}")
    return _train(run, config, problems, state, options.tensorboard)


def resume(path: Path, tensorboard: bool, puzzles: str = "", digits: str = "") -> int:
    """Go on with a run from its newest checkpoint; the data must be what it was, wherever it is now."""
    run = RunDirectory.open(path)
    config, facts, problems = reopen(run, puzzles, digits)
    if torch.get_num_threads() != facts.threads:
        _say(f"set to the run's {facts.threads} threads, so that the result is the same to the bit")
        torch.set_num_threads(facts.threads)
    newest = checkpoint.latest(run.checkpoints)
    state = TrainingState.load(config, newest) if newest else TrainingState.fresh(config)
    _say(f"going on with {run.path} at step {state.step} of {config.steps}")
    return _train(run, config, problems, state, tensorboard)


def _train(
    run: RunDirectory, config: SATNetConfig, problems: Problems, state: TrainingState, tensorboard: bool
) -> int:
    try:
        return _loop(run, config, problems, state, tensorboard)
    except DivergenceError as error:
        raise UserError(_diverged(run, config, state.step + 1)) from error


def _loop(
    run: RunDirectory, config: SATNetConfig, problems: Problems, state: TrainingState, tensorboard: bool
) -> int:
    step, every = TrainingStep(config, problems), config.checkpoint_every or config.steps_per_epoch
    seconds = _seconds_so_far(run, state.step)
    shown: dict[str, float] = {}
    if config.minutes:
        _say(f"ends with the pass in which {config.minutes:g} minutes are over, whatever the time to the end")
    with (
        run.lock(),
        Interrupt() as interrupt,
        MetricsLog(run.metrics, state.step or -1, tensorboard) as metrics,  # step 0 is logged anew
        progress(config.steps, state.step, "training") as bar,
    ):
        if state.step == 0:
            metrics.log(0, epoch=0, seconds=0.0, **_test(state, config, problems))
        while state.step < config.steps and not state.stopped and not interrupt.requested:
            began = time.perf_counter()
            loss = step(state)
            seconds += time.perf_counter() - began
            bar.update(state.step, loss=loss, **shown)
            if state.step % config.steps_per_epoch == 0:
                row = _end_epoch(state, config, problems, seconds)
                shown = {name: row[name] for name in MAIN_SCORE if name in row}
                metrics.log(state.step, **row)
            elif state.step % LOG_EVERY == 0:
                metrics.log(state.step, loss=loss, seconds=seconds)
            if state.step % every == 0 or state.step == config.steps or state.stopped:
                state.save(run.checkpoints)
        finished = state.step == config.steps or bool(state.stopped)
        if not finished:
            state.save(run.checkpoints)
            _say(f"stopped at step {state.step}; go on with: tenfold train satnet --resume {run.path}")
            return INTERRUPTED
    if state.stopped:
        _say(f"ended at step {state.step} of {config.steps}: {state.stopped}")
    _say(f"peak memory {peak_rss_bytes() / 2**30:.2f} GiB")
    evaluate(run, problems, state)
    _say(f"done: {run.path / 'report.md'}")
    return 0


def _test(state: TrainingState, config: SATNetConfig, problems: Problems) -> dict[str, float]:
    found = evaluate_split(state.model, config, problems, problems.test)
    return {("test_loss" if name == "loss" else name): value for name, value in found.items()}


def _end_epoch(
    state: TrainingState, config: SATNetConfig, problems: Problems, seconds: float
) -> dict[str, float]:
    """Close a pass: its means, the scores on the test split, and whether training ends here."""
    trained = {f"train_{name}": value for name, value in Scores(state.counts).shares().items()}
    state.counts = {}
    state.epoch_losses.append(trained["train_loss"])
    state.stopped = stop_reason(config, state.epoch_losses, seconds)
    tested = _test(state, config, problems)
    return {"epoch": len(state.epoch_losses), "seconds": seconds, **trained, **tested}


def stop_reason(config: SATNetConfig, losses: Sequence[float], seconds: float) -> str:
    """Why training ends after the passes with these mean losses, or an empty text."""
    if config.minutes and seconds >= 60.0 * config.minutes:
        return f"{config.minutes:g} minutes have passed"
    if config.patience and len(losses) > config.patience:
        before, since = min(losses[: -config.patience]), min(losses[-config.patience :])
        if since > (1.0 - PATIENCE_GAIN) * before:
            return f"the training loss has not fallen by 1 % for {config.patience} passes"
    return ""


def _diverged(run: RunDirectory, config: SATNetConfig, step: int) -> str:
    kept = checkpoint.latest(run.checkpoints)
    rates = f"--lr than {config.lr:g}"
    if config.task in SEEING_TASKS:
        rates += f" or --backbone-lr than {config.backbone_lr:g}"
    return (
        f"training has diverged in step {step}: weights are too large to compute with; start again, in a new "
        f"--out, with a lower {rates}" + (f" ({kept} is the last checkpoint before it)" if kept else "")
    )


def _seconds_so_far(run: RunDirectory, step: int) -> float:
    rows = read_metrics(run.metrics) if run.metrics.exists() else []
    return max((row.get("seconds", 0.0) for row in rows if row["step"] <= step), default=0.0)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
