"""Experiments in cells: each leaves a result file, from a process of its own, and is then not run again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tenfold.engine.interrupt import INTERRUPTED
from tenfold.errors import UserError


class Cell(Protocol):
    """One run of a plan."""

    @property
    def arm(self) -> str:
        """Name of the arm in the plan."""

    @property
    def name(self) -> str:
        """File name of the result: arm, seed and a hash of everything that determines it."""


class CellOptions(Protocol):
    """What the options of each `tenfold reproduce` have in common."""

    @property
    def laptop(self) -> bool:
        """Run a cut of the plan."""

    @property
    def results(self) -> Path:
        """Folder of the result files, one per cell."""

    @property
    def runs(self) -> Path:
        """Folder of the run directories and logs."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Run the cells of these names in this process."""


C = TypeVar("C", bound=Cell)

LIMIT = "the plan's hours are over"


@dataclass(frozen=True)
class Job:
    """Cells that one process computes one after the other."""

    names: tuple[str, ...]
    threads: int = 1
    minutes: float | None = None
    """About how long it takes."""


def chosen(cells: Sequence[C], only: Sequence[str]) -> list[C]:
    """The cells of the arms in `only`, or all; an arm ending with a dash stands for all that begin so."""
    arms = {cell.arm for cell in cells}
    wanted: set[str] = set()
    for name in only:
        found = {arm for arm in arms if arm == name or (name.endswith("-") and arm.startswith(name))}
        if not found:
            raise UserError(f"--only {name}: no such arm; the plan has {', '.join(sorted(arms))}")
        wanted |= found
    return [cell for cell in cells if not only or cell.arm in wanted]


def result_file(results: Path, cell: Cell) -> Path:
    """Where a cell leaves its result."""
    return results / f"{cell.name}.json"


def run_jobs(
    method: str,
    jobs: Iterable[Job],
    options: CellOptions,
    cores: int,
    more: Callable[[], bool] = lambda: True,
) -> None:
    """Run the jobs in their order, as many side by side as their threads fit on the cores.

    No job begins once `more()` is false, or after one that Ctrl-C has interrupted. Those that fail are named
    in a UserError when all are done.
    """
    free = threading.Semaphore(cores)
    codes: dict[Job, int] = {}

    def run(job: Job, threads: int) -> None:
        try:
            codes[job] = _run_in_process(method, job, options)
        finally:
            free.release(threads)

    with ThreadPoolExecutor(cores) as pool:
        running = []
        for job in jobs:
            threads = min(job.threads, cores)
            for _ in range(threads):
                free.acquire()
            interrupted = INTERRUPTED in codes.values()
            if interrupted or not more():
                free.release(threads)
                print(f"{job.names[0]}: left out, {'interrupted' if interrupted else LIMIT}", flush=True)
                continue
            running.append(pool.submit(run, job, threads))
        for future in running:
            future.result()
    failed = [f"{_log(options, job)} (status {code})" for job, code in codes.items() if code]
    if failed:
        raise UserError(
            f"some cells failed; see the end of {', '.join(failed)}; "
            "the same command runs again what is missing"
        )


def run_named(cells: Iterable[C], options: CellOptions, run: Callable[[C, Path], int]) -> int:
    """Compute the cells named in the options in this process by `run(cell, result file)`; the exit status.

    A cell that fails does not keep the others from running; an interrupted one does.
    """
    known = {cell.name: cell for cell in cells}
    for name in options.cells:
        if name not in known:
            raise UserError(f"--cells {name}: no such cell in the plan")
    status = 0
    for name in options.cells:
        target = result_file(options.results, known[name])
        if target.exists():
            continue
        try:
            code = run(known[name], target)
        except Exception:
            traceback.print_exc()
            code = 1
        if code == INTERRUPTED:
            return code
        status = status or code
    return status


def _run_in_process(method: str, job: Job, options: CellOptions) -> int:
    command = [sys.executable, "-m", "tenfold", "reproduce", method]
    command += ["--results", str(options.results), "--runs", str(options.runs)]
    command += ["--laptop"] if options.laptop else []
    command += ["--cells", *job.names]
    log = _log(options, job)
    log.parent.mkdir(parents=True, exist_ok=True)
    others = f" and {len(job.names) - 1} more" if len(job.names) > 1 else ""
    about = f": about {job.minutes:.0f} minutes" if job.minutes else ""
    print(f"{time.strftime('%H:%M:%S')} {job.names[0]}{others}{about}", flush=True)
    with log.open("ab") as sink:
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
        return subprocess.run(command, stdout=sink, stderr=sink, env=environment, check=False).returncode


def _log(options: CellOptions, job: Job) -> Path:
    return options.runs / f"{job.names[0]}.log"
