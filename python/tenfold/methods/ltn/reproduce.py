"""`tenfold reproduce ltn`: the cells of docs/plans/ltn.md, a result file each, and their table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tenfold.engine.cells import Job, chosen, result_file, run_jobs, run_named
from tenfold.engine.config import config_hash, to_dict
from tenfold.engine.machine import processor
from tenfold.engine.metrics import read_metrics
from tenfold.engine.options import parse
from tenfold.engine.results import Result, read_arms, table_line, write_document, write_result
from tenfold.engine.run import RunDirectory
from tenfold.methods.ltn.config import PRESETS, LTNConfig
from tenfold.methods.ltn.evaluate import REFERENCES

CORES = 2  # cells side by side, a thread each
SEEDS = range(5)
LAPTOP_PRESETS = ("smokes", "clustering")
# Of the committed results: the compiler's plan, computed by plain torch.
BACKEND: Literal["torch"] = "torch"
# The plan's rules: a satisfaction this far below the paper's code's, on average, counts as reached, and a run
# of addition below this accuracy as failed.
SHORTFALL, FAILED = 0.02, 0.5
_TITLE = "LTN: what three of its tasks reach"
_INTRODUCTION = f"""\
Made by `tenfold reproduce ltn` from the files in [results/ltn](results/ltn); the plan is
[plans/ltn.md](plans/ltn.md). Mean ± standard deviation over seeds, at the end of training; beside it what
the paper's public code prints, one run for each. `laptop` and `paper` are the addition of two digits with
3,000 and 30,000 pairs. By the plan's rules a satisfaction is reached from {SHORTFALL} below the paper's
code's, on average over seeds, and an addition below {FAILED:.0%} has failed."""


@dataclass(frozen=True)
class Cell:
    """One training run of the plan."""

    arm: str
    """Name of the preset."""
    config: LTNConfig
    """Its configuration, seed included."""

    @property
    def name(self) -> str:
        """File name of the result: arm, seed and a hash of everything that determines it."""
        return f"{self.arm}-seed{self.config.seed}-{config_hash(self)}"


@dataclass(frozen=True)
class ReproduceOptions:
    """Run the plan of docs/plans/ltn.md cell by cell; finished cells are not run again."""

    laptop: bool = False
    """Only smokes and clustering: some minutes on two cores."""
    only: tuple[str, ...] = ()
    """Run these arms alone."""
    table_only: bool = False
    """Run nothing; write the document from the results there are."""
    results: Path = Path("docs/results/ltn")
    """Folder of the result files, one per cell."""
    runs: Path = Path("runs/reproduce-ltn")
    """Folder of the run directories, which let a killed cell go on."""
    table: Path = Path("docs/ltn.md")
    """The document made from the results."""
    cells: tuple[str, ...] = ()
    """Run the cells of these names in this process (used by the command itself)."""


def main(argv: list[str]) -> int:
    """Run `tenfold reproduce ltn`."""
    options = parse(ReproduceOptions, argv, "tenfold reproduce ltn")
    cells = list(laptop_cells() if options.laptop else plan_cells())
    if options.cells:
        return run_named(cells, options, lambda cell, target: _run_cell(cell, options, target))
    if not options.table_only:
        wanted = chosen(cells, options.only)
        missing = [cell for cell in wanted if not result_file(options.results, cell).exists()]
        run_jobs("ltn", (Job((cell.name,)) for cell in missing), options, CORES)
    if options.laptop:  # no part of the plan's document
        print("\n".join(table_lines(options.results, cells)))
    else:
        write_document(options.table, "ltn", _TITLE, [_INTRODUCTION, *table_lines(options.results, cells)])
        print(options.table)
    return 0


def plan_cells() -> Iterator[Cell]:
    """Every cell of the plan."""
    for arm, make in PRESETS.items():
        for seed in SEEDS:
            yield Cell(arm, replace(make(), seed=seed, backend=BACKEND))


def laptop_cells() -> Iterator[Cell]:
    """The cells that take some minutes."""
    for cell in plan_cells():
        if cell.arm in LAPTOP_PRESETS:
            yield cell


def _run_cell(cell: Cell, options: ReproduceOptions, target: Path) -> int:
    """Train (or go on with) the run of a cell and write its result file."""
    from tenfold.methods.ltn import train

    path = options.runs / cell.name
    if (path / "config.json").exists():
        code = train.resume(path)
    else:
        code = train.start(train.TrainOptions(config=cell.config, out=path))
    if code:
        return code
    run = RunDirectory.open(path)
    rows = read_metrics(run.metrics)
    result: dict[str, Any] = {
        "arm": cell.arm,
        "seed": cell.config.seed,
        "machine": processor(),
        "config": to_dict(cell.config),
        "seconds_per_step": rows[-1]["seconds_per_step"],
        "steps": rows[-1]["step"],
        "evaluation": json.loads((path / "evaluation.json").read_text(encoding="utf-8")),
        "curve": [{key: row[key] for key in row if key != "seconds_per_step"} for row in rows],
    }
    write_result(target, result)
    return 0


def table_lines(results: Path, planned: Sequence[Cell]) -> list[str]:
    """The table of the planned cells that have run, the machines, and what is missing."""
    columns = ("arm", "seeds", "measure", "here", "single runs", "the paper's code", "by the rules")
    lines = ["", table_line(columns), table_line(["---"] * len(columns))]
    arms = read_arms(results, planned, ("arm", "seed", "machine", "config", "evaluation"))
    for arm, found in arms.items():
        lines += [table_line(_row(arm, name, found)) for name in found[0]["evaluation"]]
    machines = {result["machine"] for found in arms.values() for result in found}
    lines += ["", f"Machines: {'; '.join(sorted(machines)) or 'none'}. One thread a cell."]
    missing = [cell for cell in planned if not result_file(results, cell).exists()]
    if missing:
        names = ", ".join(f"{cell.arm} seed {cell.config.seed}" for cell in missing)
        lines += ["", f"Planned and not run yet: {names}."]
    return lines


def _row(arm: str, measure: str, found: list[Result]) -> Iterator[str]:
    values = [result["evaluation"][measure] for result in found]
    wanted = REFERENCES[found[0]["config"]["task"]].get(measure)
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    yield from (arm, str(len(found)), measure, f"{statistics.mean(values):.3f}{spread}")
    yield " ".join(f"{value:.3f}" for value in values)
    yield "" if wanted is None else f"{wanted:.3f}"
    yield _verdict(measure, values, wanted)


def _verdict(name: str, values: list[float], wanted: float | None) -> str:
    """What the plan's rules say of a measure, where they say something."""
    if name == "accuracy":
        return f"{sum(value < FAILED for value in values)} of {len(values)} failed"
    if name == "sat" and wanted is not None:
        return "reached" if statistics.mean(values) >= wanted - SHORTFALL else "not reached"
    return ""
