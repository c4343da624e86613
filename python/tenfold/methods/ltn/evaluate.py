"""`tenfold evaluate ltn`: what a run reaches, and how its formulas are computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tenfold.engine import checkpoint
from tenfold.engine.figures import loss_curve
from tenfold.engine.metrics import read_metrics
from tenfold.engine.options import parse
from tenfold.engine.run import RunDirectory
from tenfold.errors import UserError
from tenfold.methods.ltn.tasks import Task, make_task

# Of the paper's public code, in its notebooks' outputs; its one run for each.
REFERENCES = {
    "smokes": {"sat": 0.846, "cancer means smoking": 0.942, "the sick are befriended": 0.218},
    "clustering": {"sat": 0.854},
    "addition": {},
}


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure a run's newest checkpoint and write report.md."""

    run: Path
    """The run directory."""


def main(argv: list[str]) -> int:
    """Run `tenfold evaluate ltn`."""
    run = RunDirectory.open(parse(EvaluateOptions, argv, "tenfold evaluate ltn").run)
    evaluate(run, *trained(run))
    print(run.path / "report.md")
    return 0


def trained(run: RunDirectory) -> tuple[Task, int]:
    """The task of a run with the weights of its newest checkpoint, and the steps it has taken."""
    from tenfold.methods.ltn.train import read_config

    config, _ = read_config(run)
    newest = checkpoint.latest(run.checkpoints)
    if newest is None:
        raise UserError(f"{run.path} has no checkpoint yet; go on with --resume {run.path}")
    task, loaded = make_task(config), checkpoint.load(newest, ["weights"])
    checkpoint.load_module(task.network, loaded.tensors["weights"], newest)
    return task, loaded.step


def evaluate(run: RunDirectory, task: Task, step: int) -> dict[str, float]:
    """Measure the network as it is; write evaluation.json, the loss curve and report.md."""
    found = task.measure(step)
    run.write_json("evaluation.json", found)
    loss_curve(read_metrics(run.metrics), run.figures / "loss.png")
    last = max(0, step - 1)
    result = task.theory(step=last // task.steps_per_epoch, **task.groundings(last))
    plan = task.theory.explain(step=last // task.steps_per_epoch, **task.groundings(last))
    lines = [
        f"# ltn run: {task.config.task}",
        "",
        f"{step} of {task.steps} steps, seed {task.config.seed}.",
        "",
    ]
    if step < task.steps:
        lines += ["The run is UNFINISHED.", ""]
    lines += ["| measure | here | the paper's code |", "| --- | --- | --- |"]
    wanted = REFERENCES[task.config.task]
    for name, value in found.items():
        lines.append(f"| {name} | {value:.3f} | {f'{wanted[name]:.3f}' if name in wanted else ''} |")
    lines += ["", "## Axioms", "", "| axiom | degree |", "| --- | --- |"]
    lines += [f"| {name} | {degree.item():.3f} |" for name, degree in result.axioms.items()]
    lines += [
        "",
        "## How they are computed",
        "",
        "```",
        str(plan),
        "```",
        "",
        "![loss](figures/loss.png)",
        "",
    ]
    run.write_text("report.md", "\n".join(lines))
    return found
