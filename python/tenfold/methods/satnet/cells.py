"""What a cell of the plan computes, and the result file it leaves."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tenfold.engine import checkpoint
from tenfold.engine.config import to_dict
from tenfold.engine.machine import processor
from tenfold.engine.metrics import read_metrics
from tenfold.engine.results import write_result
from tenfold.engine.run import RunDirectory
from tenfold.methods.satnet import gradient, grounding, train
from tenfold.methods.satnet.config import SATNetConfig, paper
from tenfold.methods.satnet.data import prepare
from tenfold.methods.satnet.model import DivergenceError
from tenfold.methods.satnet.plan import Cell
from tenfold.methods.satnet.problems import Problems
from tenfold.methods.satnet.run import read_config
from tenfold.methods.satnet.scores import evaluate_split
from tenfold.methods.satnet.step import TrainingState, TrainingStep

RULES_MINUTES = 22.0  # of training on the cells that puzzles leave unknown
LABELS_GIVEN = 0.8
FINE_RATE = 1e-4  # of the network that reads pictures, in the joint training
_CURVE = (
    "epoch", "seconds", "train_loss", "test_loss", "valid_boards", "exact_boards", "unknown_accuracy",
    "given_accuracy", "input_accuracy", "input_purity", "accuracy", "iterations",
)  # fmt: skip


def run_cell(cell: Cell, runs: Path, target: Path) -> int:
    """Compute one cell and write its file; the exit status of training where that was interrupted.

    Its seconds are the processor's, of its one thread: cells that share a core with others wait.
    """
    began = time.process_time()
    kinds: dict[str, Callable[[Cell, Path], dict[str, Any] | int]] = {
        "run": _run,
        "mapping": _mapping,
        "grounding": _grounding,
        "gradient": _gradient,
    }
    found = kinds[cell.kind](cell, runs)
    if isinstance(found, int):
        return found
    trained = found.get("training_seconds", 0.0) + found.get("rules", {}).get("training_seconds", 0.0)
    seconds = max(time.process_time() - began, trained)  # a cell that goes on has been trained before
    result = {
        "arm": cell.arm,
        "seed": cell.config.seed,
        "machine": processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "config": to_dict(replace(cell.config, initial="")),
        **found,
    }
    write_result(target, result)
    return 0


def _run(cell: Cell, runs: Path) -> dict[str, Any] | int:
    return _train_run(cell.config, runs / cell.name)


def _train_run(config: SATNetConfig, path: Path) -> dict[str, Any] | int:
    """Train (or go on with) a run; its evaluation and the rows of its metrics at the end of each pass."""
    if not (path / "evaluation.json").exists():
        if (path / "config.json").exists():
            code = train.resume(path, tensorboard=False)
        else:
            code = train.start(train.TrainOptions(config=config, out=path))
        if code:
            return code
    run = RunDirectory.open(path)
    evaluation = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    rows = [row for row in read_metrics(run.metrics) if "epoch" in row]
    evaluation["training_seconds"] = evaluation.pop("seconds")  # over all starts of the run
    evaluation.pop("threads")
    return {**evaluation, "curve": [_rounded(row) for row in rows]}


def _rounded(row: dict[str, Any]) -> dict[str, float]:
    return {name: round(row[name], 5) for name in _CURVE if name in row and math.isfinite(row[name])}


_prepared: dict[str, Problems] = {}


def _mapping(cell: Cell, runs: Path) -> dict[str, Any]:
    """A short training in memory; many of these run one after the other in one process."""
    key = str(cell.config.data)
    if key not in _prepared:
        _prepared[key] = prepare(cell.config)
    problems = _prepared[key]
    step, state = TrainingStep(cell.config, problems), TrainingState.fresh(cell.config)
    began, losses = time.process_time(), []
    try:
        while state.step < cell.config.steps:
            losses.append(step(state))
        seconds = time.process_time() - began
        scores = evaluate_split(state.model, cell.config, problems, problems.test)
    except DivergenceError:  # by the plan such a run has failed, with no answer right
        return {"test": {"accuracy": 0.0}, "diverged": state.step, "training_seconds": 0.0}
    last = losses[-max(1, len(losses) // 10) :]
    return {
        "test": scores,
        "training_seconds": round(seconds, 2),
        "steps": state.step,
        "last_loss": sum(last) / len(last),
    }


def _gradient(cell: Cell, runs: Path) -> dict[str, Any]:
    found = gradient.measure(cell.config.seed)
    errors = {name: gradient.largest_error(found, name) for name in ("correct", "official")}
    return {"curves": found, "largest_error": errors}


def _grounding(cell: Cell, runs: Path) -> dict[str, Any] | int:
    """Cluster digits, learn the rules from labelled cells, match clusters to digits, and train jointly.

    No step sees the label of a given cell. Each leaves a file, so that a killed cell goes on.
    """
    folder, config = runs / cell.name, cell.config
    folder.mkdir(parents=True, exist_ok=True)
    problems = prepare(config)
    reader = grounding.clusters(folder / "clusters.safetensors", problems.train, config)
    rules = _train_run(rules_config(config.seed), folder / "rules")
    if isinstance(rules, int):
        return rules
    model = _newest(folder / "rules").model
    assignment = grounding.match(model, reader, problems.train, config)
    grounding.relabel(reader, assignment)
    start = folder / "initial.safetensors"
    assert model.layer is not None
    weights = {f"layer.{name}": value for name, value in model.layer.state_dict().items()}
    weights |= {f"perception.{name}": value for name, value in reader.state_dict().items()}
    grounding.write_weights(start, weights)
    joint_config = replace(config, initial=str(start), backbone_lr=FINE_RATE)
    matched = evaluate_split(TrainingState.fresh(joint_config).model, config, problems, problems.test)
    joint = _train_run(joint_config, folder / "joint")
    if isinstance(joint, int):
        return joint
    return {
        **joint,
        "rules": {name: rules[name] for name in ("test", "epochs", "training_seconds")},
        "matched": matched,
        "assignment": assignment,
    }


def rules_config(seed: int) -> SATNetConfig:
    """The training on the cells that puzzles leave unknown."""
    base = paper("sudoku")
    data = replace(base.data, from_labels=LABELS_GIVEN)
    return replace(base, data=data, shuffle=True, seed=seed, minutes=RULES_MINUTES)


def _newest(path: Path) -> TrainingState:
    run = RunDirectory.open(path)
    newest = checkpoint.latest(run.checkpoints)
    assert newest is not None
    return TrainingState.load(read_config(run)[0], newest)
