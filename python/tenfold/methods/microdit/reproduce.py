"""`tenfold reproduce microdit`: the cells of docs/plans/microdit.md, a result file each, and their table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tenfold.diffusion.dit import DiTConfig
from tenfold.diffusion.edm import EDMConfig
from tenfold.engine.cells import Job, chosen, result_file, run_jobs, run_named
from tenfold.engine.config import config_hash, to_dict
from tenfold.engine.machine import processor
from tenfold.engine.metrics import read_metrics
from tenfold.engine.options import parse
from tenfold.engine.results import write_result
from tenfold.engine.run import RunDirectory
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
    cells: tuple[str, ...] = ()
    """Run the cells of these names in this process (used by the command itself)."""


def main(argv: list[str]) -> int:
    """Run `tenfold reproduce microdit`."""
    options = parse(ReproduceOptions, argv, "tenfold reproduce microdit")
    cells = list(laptop_cells() if options.laptop else plan_cells())
    if options.cells:
        return run_named(cells, options, lambda cell, target: _run_cell(cell, options, target))
    wanted = chosen(cells, options.only)
    missing = [cell for cell in wanted if not result_file(options.results, cell).exists()]
    jobs = (Job((cell.name,), cell.threads, cell.seconds / MINUTE) for cell in missing)
    run_jobs("microdit", jobs, options, CORES)
    if options.laptop:  # no part of the plan's document
        print(table_text(options.results, cells))
    else:
        write_tables(options.results, options.table, cells)
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


def _run_cell(cell: Cell, options: ReproduceOptions, target: Path) -> int:
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
    write_result(target, result)
    return 0


def _curve(run: RunDirectory, points: int = 40) -> list[list[float]]:
    """(step, training loss) at about `points` evenly spaced lines of the metrics and at the last."""
    rows = [row for row in read_metrics(run.metrics) if "loss" in row]
    chosen = rows[:: max(1, len(rows) // points)]
    if chosen[-1] is not rows[-1]:
        chosen.append(rows[-1])
    return [[row["step"], round(row["loss"], 5)] for row in chosen]
