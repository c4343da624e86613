"""`tenfold reproduce microdit`: the cells of docs/plans/microdit.md, a result file each, and their table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tenfold.diffusion.dit import DiTConfig
from tenfold.diffusion.edm import EDMConfig
from tenfold.engine.atomic import atomic_write
from tenfold.engine.config import config_hash, to_dict
from tenfold.engine.machine import processor
from tenfold.engine.metrics import read_metrics
from tenfold.engine.options import parse
from tenfold.engine.run import RunDirectory
from tenfold.errors import UserError
from tenfold.methods.microdit.config import MicroDiTConfig, laptop, laptop64
from tenfold.methods.microdit.run import read_config
from tenfold.methods.microdit.tables import table_text, write_tables

CORES = 2
MINUTE = 60.0
PRIMARY_CONTRAST = ("p4", "p4-mask75")  # deferred masking at equal time, where there are patches to mask
# Steps of ten minutes on one core, measured once on the machine that the plan names.
STEPS = {
    "p8": 1640,
    "p8-edm": 1640,
    "p8-edm-paper-noise": 1640,
    "p8-batch32": 2530,
    "p8-lr3e-3": 1640,
    "p8-uniform": 1800,
    "p8-wide": 1510,
    "p4": 730,
    "p4-mask50": 970,
    "p4-mask75": 1110,
}


@dataclass(frozen=True)
class Cell:
    """One training run of the plan."""

    arm: str
    """Name of the arm in the plan."""
    config: MicroDiTConfig
    """Its configuration, seed included; 0 steps means as many as the budget holds."""
    seconds: float
    """Wall-clock budget of the training."""
    threads: int
    """Threads; single-thread cells run side by side."""

    @property
    def name(self) -> str:
        """File name of the result: arm, seed and a hash of everything that determines it."""
        return f"{self.arm}-seed{self.config.seed}-{config_hash(self)}"


@dataclass(frozen=True)
class ReproduceOptions:
    """Run the plan of docs/plans/microdit.md cell by cell; finished cells are not run again."""

    laptop: bool = False
    """Only a cut of the plan that takes less than 20 minutes on two cores."""
    only: tuple[str, ...] = ()
    """Run these arms alone."""
    results: Path = Path("docs/results/microdit")
    """Folder of the result files, one per cell."""
    runs: Path = Path("runs/reproduce-microdit")
    """Folder of the run directories, which let a killed cell go on."""
    table: Path = Path("docs/microdit.md")
    """The document made from the results."""
    cell: str = ""
    """Run the cell of this name in this process (used by the command itself)."""


def main(argv: list[str]) -> int:
    """Run `tenfold reproduce microdit`."""
    options = parse(ReproduceOptions, argv, "tenfold reproduce microdit")
    cells = list(laptop_cells() if options.laptop else plan_cells())
    arms = {cell.arm for cell in cells}
    for arm in options.only:
        if arm not in arms:
            raise UserError(f"--only {arm}: no such arm; the plan has {', '.join(sorted(arms))}")
    if options.cell:
        named = [cell for cell in cells if cell.name == options.cell]
        if not named:
            raise UserError(f"--cell {options.cell}: no such cell in the plan")
        return _run_cell(named[0], options)
    wanted = [cell for cell in cells if not options.only or cell.arm in options.only]
    for batch in _batches([cell for cell in wanted if not _result(options, cell).exists()]):
        _run_together(batch, options)
    planned = {cell.name: cell.arm for cell in cells}
    if options.laptop:  # no part of the plan's document
        print(table_text(options.results, planned))
    else:
        write_tables(options.results, options.table, planned)
        print(options.table)
    return 0


def plan_cells() -> Iterator[Cell]:
    """Every cell of the plan, the comparison of presets first."""
    for arm, config in comparison_arms().items():
        for seed in (0, 1) if arm in PRIMARY_CONTRAST else (0,):
            yield Cell(arm, replace(config, seed=seed), 10 * MINUTE, threads=1)
    for seed in (0, 1, 2):
        yield Cell("laptop", replace(laptop(), seed=seed), 10 * MINUTE, threads=CORES)
    yield Cell("laptop64", laptop64(), 60 * MINUTE, threads=CORES)


def laptop_cells() -> Iterator[Cell]:
    """The primary contrast, one seed, half of the steps."""
    for arm, config in comparison_arms().items():
        if arm in PRIMARY_CONTRAST:
            yield Cell(arm, replace(config, steps=config.steps // 2), 5 * MINUTE, threads=1)


def comparison_arms() -> dict[str, MicroDiTConfig]:
    """The arms that choose the default, each with the steps that one core took in ten minutes (the plan).

    They are written out and not derived from the presets, which may change after them.
    """
    model = DiTConfig(image_size=32, patch_size=8, width=256, depth=6, mixer_width=256, mixer_depth=2)
    noise = EDMConfig(p_mean=1.0, p_std=1.2, prediction="clean", sigma_min=0.8)
    edm = replace(noise, prediction="edm", sigma_min=0.01)
    base = MicroDiTConfig(model=model, noise=noise, batch=64, lr=1.5e-3)
    p4 = replace(base, model=replace(model, patch_size=4, width=192, mixer_width=192))
    uniform = replace(model, depth=4, qkv_ratios=(1.0, 1.0), ffn_ratios=(4.0, 4.0))
    wide = replace(model, width=384, mixer_width=384, depth=3, mixer_depth=1)
    arms = {
        "p8": base,
        "p8-edm": replace(base, noise=edm),
        "p8-edm-paper-noise": replace(base, noise=replace(edm, p_mean=-0.6)),
        "p8-batch32": replace(base, batch=32),
        "p8-lr3e-3": replace(base, lr=3e-3),
        "p8-uniform": replace(base, model=uniform),
        "p8-wide": replace(base, model=wide),
        "p4": p4,
        "p4-mask50": replace(p4, mask_ratio=0.5),
        "p4-mask75": replace(p4, mask_ratio=0.75),
    }
    return {arm: replace(config, steps=STEPS[arm]) for arm, config in arms.items()}


def _batches(cells: Iterable[Cell]) -> Iterator[list[Cell]]:
    """Cells that run side by side: as many as there are cores for their threads."""
    batch: list[Cell] = []
    for cell in cells:
        if sum(other.threads for other in batch) + cell.threads > CORES:
            yield batch
            batch = []
        batch.append(cell)
    if batch:
        yield batch


def _run_together(cells: list[Cell], options: ReproduceOptions) -> None:
    with ThreadPoolExecutor(len(cells)) as pool:
        codes = list(pool.map(lambda cell: _run_in_process(cell, options), cells))
    for cell, code in zip(cells, codes, strict=True):
        if code:
            raise UserError(
                f"cell {cell.name} failed with status {code}; its output is in {_log(options, cell)}"
            )


def _run_in_process(cell: Cell, options: ReproduceOptions) -> int:
    command = [sys.executable, "-m", "tenfold", "reproduce", "microdit", "--cell", cell.name]
    command += ["--results", str(options.results), "--runs", str(options.runs)]
    command += ["--laptop"] if options.laptop else []
    log = _log(options, cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{time.strftime('%H:%M:%S')} {cell.name}: {cell.seconds / MINUTE:g} minutes", flush=True)
    with log.open("ab") as sink:
        environment = os.environ | {"OMP_NUM_THREADS": str(cell.threads)}
        return subprocess.run(command, stdout=sink, stderr=sink, env=environment, check=False).returncode


def _run_cell(cell: Cell, options: ReproduceOptions) -> int:
    """Train (or go on with) the run of a cell and write its result file."""
    from tenfold.methods.microdit import train

    path = options.runs / cell.name
    if (path / "config.json").exists():
        code = train.resume(path, tensorboard=False)
    else:
        budget = None if cell.config.steps else cell.seconds
        code = train.start(train.TrainOptions(config=cell.config, budget=budget, out=path))
    if code:
        return code
    run = RunDirectory.open(path)
    config, facts = read_config(run)
    result: dict[str, Any] = {
        "arm": cell.arm,
        "seed": config.seed,
        "budget_seconds": cell.seconds,
        "seconds": max(row.get("seconds", 0.0) for row in read_metrics(run.metrics)),
        "machine": processor(),
        "config": to_dict(config),
        "facts": to_dict(facts),
        "evaluation": json.loads((path / "evaluation.json").read_text(encoding="utf-8")),
        "curve": _curve(run),
    }
    target = _result(options, cell)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as sink:
        json.dump(result, sink, indent=1)
        sink.write("\n")
    return 0


def _curve(run: RunDirectory, points: int = 40) -> list[list[float]]:
    """(step, training loss) at about `points` evenly spaced lines of the metrics and at the last."""
    rows = [row for row in read_metrics(run.metrics) if "loss" in row]
    chosen = rows[:: max(1, len(rows) // points)]
    if chosen[-1] is not rows[-1]:
        chosen.append(rows[-1])
    return [[row["step"], round(row["loss"], 5)] for row in chosen]


def _result(options: ReproduceOptions, cell: Cell) -> Path:
    return options.results / f"{cell.name}.json"


def _log(options: ReproduceOptions, cell: Cell) -> Path:
    return options.runs / f"{cell.name}.log"
