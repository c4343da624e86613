"""`tenfold reproduce ltn`: the cells of docs/plans/ltn.md, a result file each, and their table."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tenfold.engine.atomic import atomic_write
from tenfold.engine.config import config_hash, to_dict
from tenfold.engine.machine import processor
from tenfold.engine.metrics import read_metrics
from tenfold.engine.options import parse
from tenfold.engine.run import RunDirectory
from tenfold.errors import UserError
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
    results: Path = Path("docs/results/ltn")
    """Folder of the result files, one per cell."""
    runs: Path = Path("runs/reproduce-ltn")
    """Folder of the run directories, which let a killed cell go on."""
    table: Path = Path("docs/ltn.md")
    """The document made from the results."""
    cell: str = ""
    """Run the cell of this name in this process (used by the command itself)."""


def main(argv: list[str]) -> int:
    """Run `tenfold reproduce ltn`."""
    options = parse(ReproduceOptions, argv, "tenfold reproduce ltn")
    for arm in options.only:
        if arm not in PRESETS:
            raise UserError(f"--only {arm}: no such arm; the plan has {', '.join(PRESETS)}")
    wanted = options.only or (LAPTOP_PRESETS if options.laptop else tuple(PRESETS))
    cells = [cell for cell in plan_cells() if cell.arm in wanted]
    if options.cell:
        named = [cell for cell in plan_cells() if cell.name == options.cell]
        if not named:
            raise UserError(f"--cell {options.cell}: no such cell in the plan")
        return _run_cell(named[0], options)
    missing = [cell for cell in cells if not _result(options, cell).exists()]
    with ThreadPoolExecutor(CORES) as pool:
        codes = list(pool.map(lambda cell: _in_process(cell, options), missing))
    for cell, code in zip(missing, codes, strict=True):
        if code:
            raise UserError(f"cell {cell.name} failed with status {code}; see {options.runs / cell.name}.log")
    lines = table_lines(options)
    if options.laptop:  # no part of the plan's document
        print("\n".join(lines))
        return 0
    options.table.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.table) as sink:
        sink.write("\n".join(lines) + "\n")
    print(options.table)
    return 0


def plan_cells() -> Iterator[Cell]:
    """Every cell of the plan."""
    for arm, make in PRESETS.items():
        for seed in SEEDS:
            yield Cell(arm, replace(make(), seed=seed, backend=BACKEND))


def _in_process(cell: Cell, options: ReproduceOptions) -> int:
    command = [sys.executable, "-m", "tenfold", "reproduce", "ltn", "--cell", cell.name]
    command += ["--results", str(options.results), "--runs", str(options.runs)]
    options.runs.mkdir(parents=True, exist_ok=True)
    print(f"{time.strftime('%H:%M:%S')} {cell.name}", flush=True)
    with (options.runs / f"{cell.name}.log").open("ab") as sink:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, stdout=sink, stderr=sink, env=environment, check=False).returncode


def _run_cell(cell: Cell, options: ReproduceOptions) -> int:
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
    target = _result(options, cell)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as sink:
        json.dump(result, sink, indent=1)
        sink.write("\n")
    return 0


def table_lines(options: ReproduceOptions) -> list[str]:
    """docs/ltn.md, made from the result files and nothing else."""
    lines = [
        "# LTN: what three of its tasks reach",
        "",
        "Made by `tenfold reproduce ltn` from the files in [results/ltn](results/ltn); the plan is",
        "[plans/ltn.md](plans/ltn.md). Mean ± standard deviation over seeds, at the end of training;",
        "beside it what the paper's public code prints, one run for each. `laptop` and `paper` are the",
        "addition of two digits with 3,000 and 30,000 pairs. By the plan's rules a satisfaction is",
        f"reached from {SHORTFALL} below the paper's code's, on average over seeds, and an addition below",
        f"{FAILED:.0%} has failed.",
        "",
        "| arm | seeds | measure | here | single runs | the paper's code | by the rules |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    machines: set[str] = set()
    missing: list[str] = []
    for arm in PRESETS:
        cells = [cell for cell in plan_cells() if cell.arm == arm]
        found = [
            json.loads(p.read_text(encoding="utf-8"))
            for p in (_result(options, c) for c in cells)
            if p.exists()
        ]
        missing += [f"{arm} seed {c.config.seed}" for c in cells if not _result(options, c).exists()]
        machines |= {result["machine"] for result in found}
        for name in found[0]["evaluation"] if found else ():
            values = [result["evaluation"][name] for result in found]
            wanted = REFERENCES[found[0]["config"]["task"]].get(name)
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            singles = " ".join(f"{value:.3f}" for value in values)
            paper = "" if wanted is None else f"{wanted:.3f}"
            mean = f"{statistics.mean(values):.3f}{spread}"
            verdict = _verdict(name, values, wanted)
            lines.append(f"| {arm} | {len(found)} | {name} | {mean} | {singles} | {paper} | {verdict} |")
    lines += ["", f"Machines: {'; '.join(sorted(machines)) or 'none'}. One thread a cell."]
    if missing:
        lines += ["", "Planned and not run yet: " + ", ".join(missing) + "."]
    return lines


def _verdict(name: str, values: list[float], wanted: float | None) -> str:
    """What the plan's rules say of a measure, where they say something."""
    if name == "accuracy":
        return f"{sum(value < FAILED for value in values)} of {len(values)} failed"
    if name == "sat" and wanted is not None:
        return "reached" if statistics.mean(values) >= wanted - SHORTFALL else "not reached"
    return ""


def _result(options: ReproduceOptions, cell: Cell) -> Path:
    return options.results / f"{cell.name}.json"
