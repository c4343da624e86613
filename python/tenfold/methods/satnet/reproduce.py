"""`tenfold reproduce satnet`: the cells of docs/plans/satnet.md, a result file each, and their tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tenfold.engine.cells import Job, chosen, result_file, run_jobs, run_named
from tenfold.engine.options import parse
from tenfold.methods.satnet.plan import Cell, laptop_cells, plan_cells

CORES = 2  # single-thread cells run side by side
GROUP = 10  # short cells that one process computes, so that it reads the digits once
CORE_SECONDS = 5 * 3600.0 * CORES  # of the finished cells, after which no other begins: the plan's limit


@dataclass(frozen=True)
class ReproduceOptions:
    """Run the plan of docs/plans/satnet.md cell by cell; finished cells are not run again."""

    laptop: bool = False
    """Only a cut of the plan that takes less than 20 minutes on two cores."""
    only: tuple[str, ...] = ()
    """Run these arms alone; an arm that ends with a dash stands for all that begin so."""
    table_only: bool = False
    """Run nothing; write the document from the results there are."""
    results: Path = Path("docs/results/satnet")
    """Folder of the result files, one per cell."""
    runs: Path = Path("runs/reproduce-satnet")
    """Folder of the run directories, which let a killed cell go on."""
    table: Path = Path("docs/satnet.md")
    """The document made from the results."""
    cells: tuple[str, ...] = ()
    """Run the cells of these names in this process (used by the command itself)."""


def main(argv: list[str]) -> int:
    """Run `tenfold reproduce satnet`."""
    options = parse(ReproduceOptions, argv, "tenfold reproduce satnet")
    cells = list(laptop_cells() if options.laptop else plan_cells())
    if options.cells:
        return run_named(cells, options, lambda cell, target: _run_cell(cell, options, target))
    wanted = chosen(cells, options.only)
    if not options.table_only:
        missing = [cell for cell in wanted if not result_file(options.results, cell).exists()]
        run_jobs("satnet", _jobs(missing), options, CORES, lambda: _spent(options, cells) < CORE_SECONDS)
    from tenfold.methods.satnet.tables import table_text, write_tables

    if options.laptop:  # no part of the plan's document
        print(table_text(options.results, cells))
    else:
        write_tables(options.results, options.table, cells)
        print(options.table)
    return 0


def _jobs(cells: list[Cell]) -> Iterator[Job]:
    """Short cells together, long ones alone."""
    groups: list[list[Cell]] = []
    for cell in cells:
        joins = groups and cell.kind == "mapping" == groups[-1][0].kind and len(groups[-1]) < GROUP
        if joins:
            groups[-1].append(cell)
        else:
            groups.append([cell])
    for group in groups:
        yield Job(tuple(cell.name for cell in group), minutes=sum(cell.seconds for cell in group) / 60)


def _spent(options: ReproduceOptions, planned: list[Cell]) -> float:
    """Core-seconds of the cells that have a result."""
    from tenfold.methods.satnet.tables import arms_of

    arms = arms_of(options.results, planned)
    return sum(float(result["seconds"]) for found in arms.values() for result in found)


def _run_cell(cell: Cell, options: ReproduceOptions, target: Path) -> int:
    from tenfold.methods.satnet.cells import run_cell

    return run_cell(cell, options.runs, target)
