"""`tenfold bench`: run a checkout's benchmarks, print a table of ratios, write JSON, Markdown and a plot.

The benchmarks themselves live in benchmarks/ of a checkout, not in the installed package. Every row of the
table is one operation on one shape: tenfold's time, its error against the reference, and the ratio of each
alternative's time to tenfold's (above 1: tenfold is faster). Rows that tenfold loses stay in.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenfold.engine.atomic import atomic_write, refuse_unwritable
from tenfold.engine.options import Parser
from tenfold.errors import UserError

CHECKOUT = "the benchmarks are in tenfold's source tree: clone it and run tenfold bench there, or give --dir"
TENFOLD = "tenfold"
MARK = "<!-- Everything below is written by tenfold bench; text above is kept. -->"
LIMIT = "seconds"  # the alternative's name where a target is a time, not a ratio


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tenfold bench`; returns the exit status of the benchmarks."""
    options = _parser().parse_args(argv)
    if options.json:
        _refuse_target(Path(options.json))
    files = _files(Path(options.dir), options.families, options.device)
    if options.device == "cuda" and not options.read:
        _refuse_without_gpu()
    if options.read:
        report = _read(Path(options.read))
        status = 0
    else:
        status, report = _run(files, Path(options.dir), options.select)
    if not report.get("benchmarks"):
        raise UserError("no benchmark produced a row; see the messages above")
    rows, machine = _rows(report), report["machine_info"]
    print(render(rows, machine))
    if options.json:
        _write(Path(options.json), report, rows, machine)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="tenfold bench", description=__doc__)
    parser.add_argument(
        "families", nargs="*", metavar="FAMILY", help="such as patches; all where none is named"
    )
    parser.add_argument("--dir", default=".", help="the checkout (default: here)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the report, and beside it the table (.md) and a plot (.png)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="measure on the processor, or on a GPU"
    )
    parser.add_argument("--select", metavar="WORDS", help="only rows whose test matches, as pytest -k")
    parser.add_argument("--read", metavar="FILE", help="show an earlier report instead of running anything")
    return parser


def _refuse_without_gpu() -> None:
    import torch

    from tenfold.info import why_no_gpu

    if why_no_gpu():
        raise UserError(f"--device cuda: no GPU for tenfold: {why_no_gpu()}")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: this torch finds no GPU; install a build of it with CUDA")


def _refuse_target(path: Path) -> None:
    """UserError before minutes of measuring if the report cannot be written there."""
    if path.suffix != ".json":
        raise UserError(f"--json {path}: wanted a name that ends in .json; the table and plot go beside it")
    refuse_unwritable(path.parent, "--json")


def _files(checkout: Path, families: list[str], device: str) -> list[Path]:
    """The benchmarks of `families`: bench_<family>.py, bench_<family>_cuda.py, bench_method_<name>.py."""
    folder = checkout / "benchmarks"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; {CHECKOUT}")
    ending = "_cuda" if device == "cuda" else ""
    found = {
        path.stem.removeprefix("bench_").removeprefix("method_").removesuffix("_cuda"): path
        for path in sorted(folder.glob("bench_*.py"))
        if path.stem.endswith("_cuda") == bool(ending)
    }
    for family in families:
        if family not in found:
            known = ", ".join(found) or "none"
            raise UserError(f"no benchmark of family {family!r} in {folder} for {device}; there are: {known}")
    return [found[family] for family in families] if families else list(found.values())


def _run(files: list[Path], checkout: Path, select: str | None) -> tuple[int, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "--no-header", "--import-mode=importlib"]
        command += ["-p", "no:cacheprovider", "-o", "pythonpath=benchmarks", "--benchmark-quiet"]
        command += [f"--benchmark-json={output}", *(["-k", select] if select else [])]
        command += [str(file.relative_to(checkout)) for file in files]
        status = subprocess.run(command, cwd=checkout).returncode
        return status, _read(output) if output.is_file() and output.stat().st_size else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        _rows(report), report["machine_info"]["versions"]  # what is shown of it
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a benchmark report ({type(error).__name__}: {error})") from error
    return report


# ---- rows ----


@dataclass(frozen=True)
class Row:
    """One operation on one shape; `seconds` maps each alternative, tenfold too, to its fastest time.

    `mib`, where it was measured, maps them to the memory that a call holds at most beyond its inputs.
    """

    op: str
    shape: str
    dtype: str
    regime: str
    threads: int
    error: float
    seconds: dict[str, float]
    targets: dict[str, tuple[str, float]]
    mib: dict[str, float] = field(default_factory=dict)

    def ratios(self) -> dict[str, float]:
        """Time of each alternative over tenfold's."""
        mine = self.seconds[TENFOLD]
        return {name: theirs / mine for name, theirs in self.seconds.items() if name != TENFOLD}


def _rows(report: dict[str, Any]) -> list[Row]:
    rows = []
    for entry in report["benchmarks"]:
        if "seconds" in entry["extra_info"]:
            info = entry["extra_info"]
            rows.append(Row(**{name: info[name] for name in Row.__dataclass_fields__ if name in info}))
    return rows


@dataclass(frozen=True)
class Target:
    """A wanted ratio (or time), and what the geometric mean over its rows came to."""

    title: str
    wanted: str
    measured: str
    met: bool


def targets(rows: list[Row]) -> list[Target]:
    """Every target that a row names, over all rows that name it."""
    found: dict[tuple[str, str, float], list[float]] = {}
    for row in rows:
        for name, (title, limit) in row.targets.items():
            value = row.seconds[TENFOLD] if name == LIMIT else row.ratios()[name]
            found.setdefault((title, name, limit), []).append(value)
    return [_target(*key, values) for key, values in found.items()]


def _target(title: str, name: str, limit: float, values: list[float]) -> Target:
    mean = math.exp(sum(map(math.log, values)) / len(values))
    spread = "" if len(values) == 1 else f" ({', '.join(f'{value:.2f}' for value in values)})"
    if name == LIMIT:
        shown = ", ".join(f"{value * 1e6:.2f}" for value in values)
        return Target(title, f"at most {limit * 1e6:g} us", f"{shown} us", max(values) <= limit)
    if limit < 0:  # tenfold's time over the alternative's
        shown = "" if len(values) == 1 else f" ({', '.join(f'{1 / value:.2f}' for value in values)})"
        return Target(
            title, f"at most {-limit:g}x {name}'s time", f"{1 / mean:.2f}x{shown}", 1 / mean <= -limit
        )
    return Target(title, f"{limit:g}x faster than {name}", f"{mean:.2f}x{spread}", mean >= limit)


# ---- text ----


def render(rows: list[Row], machine: dict[str, Any]) -> str:
    """The tables as Markdown, readable in a terminal."""
    parts = [_machine_text(machine)]
    if any(row.targets for row in rows):
        parts.append(_table(*_target_table(rows)))
    for op in dict.fromkeys(row.op for row in rows):
        mine = [row for row in rows if row.op == op]
        parts.append(f"### {op}\n\n{_table(*_op_table(mine))}")
        if any(row.mib for row in mine):
            title = "Memory that a call holds at most, beyond its inputs, in MiB:"
            parts.append(f"{title}\n\n{_table(*_memory_table(mine))}")
    return "\n\n".join(parts)


def _machine_text(machine: dict[str, Any]) -> str:
    copies = ", ".join(f"{rate:.0f} GB/s at {size}" for size, rate in machine["copy_gb_per_s"].items())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f"GPU: {machine['gpu']}.\n" if machine.get("gpu") else ""
    return (
        f"{gpu}{machine['processor']}, last-level cache {machine['last_level_cache_mib']:.0f} MiB, ISA level "
        f"{machine['isa']}; {versions}; {machine['compiler']}.\n"
        f"Copy bandwidth on one thread, read plus write: {copies}.\n"
        "Each cell is the alternative's time over tenfold's (above 1: tenfold is faster); fastest of "
        "interleaved rounds in one process."
    )


def _target_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    threads = {row.threads for row in rows if row.targets}
    ran = {1: ", 1 thread", 2: ", 2 threads"}.get(threads.pop(), "") if len(threads) == 1 else ""
    head = [f"target (geometric mean{ran})", "wanted", "measured", "met"]
    return head, [[t.title, t.wanted, t.measured, "yes" if t.met else "NO"] for t in targets(rows)]


def _op_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for row in rows for name in row.ratios()))
    head = ["shape", "type", "outputs", "threads", TENFOLD, "error", *names]
    body = []
    for row in rows:
        ratios = row.ratios()
        cells = [f"{ratios[name]:.2f}" if name in ratios else "" for name in names]
        start = [row.shape, row.dtype, row.regime, str(row.threads)]
        body.append([*start, _time(row.seconds[TENFOLD]), f"{row.error:.1g}", *cells])
    return head, body


def _memory_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for row in rows for name in row.mib))
    body = []
    for row in rows:
        if row.mib:
            cells = [f"{row.mib[name]:.1f}" if name in row.mib else "" for name in names]
            body.append([row.shape, row.dtype, str(row.threads), *cells])
    return ["shape", "type", "threads", *names], body


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.2f} us"


def _table(head: list[str], body: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


# ---- files ----


def _write(path: Path, report: dict[str, Any], rows: list[Row], machine: dict[str, Any]) -> None:
    kept = {
        "machine_info": machine,
        "benchmarks": [{"extra_info": b["extra_info"]} for b in report["benchmarks"]],
    }
    with atomic_write(path, "w") as file:
        json.dump(kept, file, indent=1)
    notes = path.with_suffix(".md")
    before = notes.read_text().partition(MARK)[0] if notes.is_file() and MARK in notes.read_text() else ""
    with atomic_write(notes, "w") as file:
        file.write(f"{before}{MARK}\n\n{render(rows, machine)}\n")
    plot = _plot(rows)
    if plot is None:
        print("no plot: no rows, or no matplotlib (pip install 'tenfold[bench]')", file=sys.stderr)
        return
    with atomic_write(path.with_suffix(".png"), "wb") as file:
        file.write(plot)


def _plot(rows: list[Row]) -> bytes | None:
    """Bars of the ratios on the fewest threads, an operation per panel; None without matplotlib or rows."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    import io

    fewest = min((row.threads for row in rows), default=0)
    single = [row for row in rows if row.threads == fewest]
    if not single:
        return None
    ops = list(dict.fromkeys(f"{row.op}, {row.regime}" for row in single))
    figure = Figure(figsize=(11, 2.6 * len(ops)), layout="constrained")
    panels = figure.subplots(len(ops), 1, squeeze=False)[:, 0]
    for panel, op in zip(panels, ops, strict=True):
        mine = [row for row in single if f"{row.op}, {row.regime}" == op]
        names = list(dict.fromkeys(name for row in mine for name in row.ratios()))
        for i, name in enumerate(names):
            places = [j + (i + 0.5) / len(names) * 0.8 - 0.4 for j in range(len(mine))]
            panel.bar(
                places, [row.ratios().get(name, math.nan) for row in mine], 0.8 / len(names), label=name
            )
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_yscale("log")
        panel.set_xticks(range(len(mine)), [f"{row.shape}\n{row.dtype}" for row in mine], fontsize=7)
        panel.set_ylabel("time / tenfold's")
        panel.set_title(op, fontsize=9)
        panel.legend(fontsize=7, ncols=len(names))
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()
