"""`tenfold reproduce satnet`: the cells of docs/plans/satnet.md, a result file each, and their tables."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tenfold.engine.options import parse
from tenfold.errors import UserError
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
        return _run_here(cells, options)
    chosen = _chosen(cells, options.only)
    if not options.table_only:
        _run_groups(_groups([cell for cell in chosen if not _result(options, cell).exists()]), options, cells)
    from tenfold.methods.satnet.tables import table_text, write_tables

    if options.laptop:  # no part of the plan's document
        print(table_text(options.results, cells))
    else:
        write_tables(options.results, options.table, cells)
        print(options.table)
    return 0


def _chosen(cells: list[Cell], only: tuple[str, ...]) -> list[Cell]:
    arms = {cell.arm for cell in cells}
    wanted: set[str] = set()
    for name in only:
        found = {arm for arm in arms if arm == name or (name.endswith("-") and arm.startswith(name))}
        if not found:
            raise UserError(f"--only {name}: no such arm; the plan has {', '.join(sorted(arms))}")
        wanted |= found
    return [cell for cell in cells if not only or cell.arm in wanted]


def _groups(cells: list[Cell]) -> list[list[Cell]]:
    """Cells that one process computes one after the other: short ones together, long ones alone."""
    groups: list[list[Cell]] = []
    for cell in cells:
        joins = groups and cell.kind == "mapping" == groups[-1][0].kind and len(groups[-1]) < GROUP
        if joins:
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return groups


def _run_groups(groups: list[list[Cell]], options: ReproduceOptions, planned: list[Cell]) -> None:
    """As many processes as there are cores, each with one thread; failures are named when all are done."""

    def run(group: list[Cell]) -> int:
        if _spent(options, planned) < CORE_SECONDS:
            return _run_in_process(group, options)
        print(f"{group[0].name}: left out, the plan's hours are over", flush=True)
        return 0

    with ThreadPoolExecutor(CORES) as pool:
        codes = list(pool.map(run, groups))
    failed = [(_log(options, group[0]), code) for group, code in zip(groups, codes, strict=True) if code]
    if failed:
        logs = ", ".join(f"{log} (status {code})" for log, code in failed)
        raise UserError(
            f"some cells failed; see the end of {logs}; the same command runs again what is missing"
        )


def _spent(options: ReproduceOptions, planned: list[Cell]) -> float:
    """Core-seconds of the cells that have a result."""
    from tenfold.methods.satnet.tables import read_result

    files = (_result(options, cell) for cell in planned)
    return sum(float(read_result(file)["seconds"]) for file in files if file.exists())


def _run_in_process(group: list[Cell], options: ReproduceOptions) -> int:
    command = [sys.executable, "-m", "tenfold", "reproduce", "satnet"]
    command += ["--results", str(options.results), "--runs", str(options.runs)]
    command += ["--laptop"] if options.laptop else []
    command += ["--cells", *(cell.name for cell in group)]
    log = _log(options, group[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    minutes = sum(cell.seconds for cell in group) / 60
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    print(f"{time.strftime('%H:%M:%S')} {group[0].name}{more}: about {minutes:.0f} minutes", flush=True)
    with log.open("ab") as sink:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, stdout=sink, stderr=sink, env=environment, check=False).returncode


def _run_here(cells: list[Cell], options: ReproduceOptions) -> int:
    from tenfold.methods.satnet.cells import run_cell
    from tenfold.methods.satnet.train import INTERRUPTED

    known = {cell.name: cell for cell in cells}
    for name in options.cells:
        if name not in known:
            raise UserError(f"--cells {name}: no such cell in the plan")
    status = 0
    for name in options.cells:
        target = _result(options, known[name])
        if target.exists():
            continue
        try:
            code = run_cell(known[name], options.runs, target)
        except Exception:  # the others of the group are not to wait for it
            traceback.print_exc()
            code = 1
        if code == INTERRUPTED:
            return code
        status = status or code
    return status


def _result(options: ReproduceOptions, cell: Cell) -> Path:
    return options.results / f"{cell.name}.json"


def _log(options: ReproduceOptions, cell: Cell) -> Path:
    return options.runs / f"{cell.name}.log"
