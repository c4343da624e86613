"""`tenfold evaluate satnet`: the scores of a run on problems it has not seen, and the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.engine import checkpoint
from tenfold.engine.figures import loss_curve
from tenfold.engine.metrics import read_metrics
from tenfold.engine.options import parse
from tenfold.engine.run import RunDirectory
from tenfold.errors import UserError
from tenfold.methods.satnet.config import SATNetConfig
from tenfold.methods.satnet.decode import rules_text
from tenfold.methods.satnet.problems import Problems
from tenfold.methods.satnet.run import read_config, reopen
from tenfold.methods.satnet.scores import evaluate_split
from tenfold.methods.satnet.step import TrainingState

_TITLES = {
    "accuracy": "right answers",
    "valid_boards": "boards whose rows, columns and boxes are right",
    "exact_boards": "boards equal to the solution",
    "unknown_accuracy": "unknown cells right",
    "given_accuracy": "given cells right",
    "input_accuracy": "pictures read as their own digit",
    "input_purity": "pictures read as the digit most often behind that answer",
}
_PARITY_NAMES = ("so_far", "next", "parity")


@dataclass(frozen=True)
class EvaluateOptions:
    """Test the newest weights of a run and write evaluation.json and report.md."""

    run: Path
    """The run directory."""
    puzzles: str = ""
    """Where its file of puzzles is now, if that was moved."""
    digits: str = ""
    """Where its folder of digits is now, if that was moved."""


def main(argv: list[str]) -> int:
    """Run `tenfold evaluate satnet`."""
    options = parse(EvaluateOptions, argv, "tenfold evaluate satnet")
    run = RunDirectory.open(options.run)
    config, _, problems = reopen(run, options.puzzles, options.digits)
    newest = checkpoint.latest(run.checkpoints)
    if newest is None:
        raise UserError(
            f"{run.path} has no checkpoint yet; go on with: tenfold train satnet --resume {run.path}"
        )
    evaluate(run, problems, TrainingState.load(config, newest))
    print(run.path / "report.md")
    return 0


def evaluate(run: RunDirectory, problems: Problems, state: TrainingState) -> dict[str, Any]:
    """Score the test split; write evaluation.json, figures and report.md."""
    config, facts = read_config(run)
    scores = evaluate_split(state.model, config, problems, problems.test)
    rows = read_metrics(run.metrics)
    results = {
        "step": state.step,
        "epochs": len(state.epoch_losses),
        "stopped": state.stopped,
        "seconds": max((row.get("seconds", 0.0) for row in rows), default=0.0),
        "threads": facts.threads,
        "test": {name: None if math.isnan(value) else value for name, value in scores.items()},
    }
    run.write_json("evaluation.json", results)
    loss_curve(rows, run.figures / "loss.png")
    run.write_text("report.md", _report(config, problems, state, results))
    return results


def _report(config: SATNetConfig, problems: Problems, state: TrainingState, results: dict[str, Any]) -> str:
    layer = config.layer
    unfinished = state.step < config.steps and not state.stopped
    lines = [
        f"# SATNet run: {config.task}",
        "",
        f"- {len(problems.train)} problems to train on, {len(problems.test)} to test on: {problems.source}.",
        f"- {config.n} variables, {layer.aux} auxiliary ones, {layer.m} clauses; {layer.gradient} gradient "
        "of the inputs.",
        f"- {state.step} steps of {config.batch} problems, {results['epochs']} passes, "
        f"{results['seconds'] / 60:.1f} minutes on {results['threads']} threads, seed {config.seed}.",
    ]
    if state.stopped:
        lines.append(f"- Ended early: {state.stopped}.")
    if unfinished:
        lines.append(f"- The run is UNFINISHED: {config.steps} steps were planned.")
    lines += ["", "## Test", "", "| share of the test problems | % |", "| --- | --- |"]
    scores = results["test"]
    for name, title in _TITLES.items():
        if scores.get(name) is not None:
            lines.append(f"| {title} | {100 * scores[name]:.2f} |")
    if "iterations" in scores:
        lines += ["", f"{scores['iterations']:.1f} sweeps of the solver a problem, at most {layer.max_iter}."]
    if state.model.layer is not None and config.task == "parity":
        lines += ["", "## Rules", "", rules_text(state.model.layer.S, _PARITY_NAMES)]
    lines += ["", "## Training", "", "![loss](figures/loss.png)"]
    return "\n".join(lines) + "\n"
