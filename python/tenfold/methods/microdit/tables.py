"""docs/microdit.md, made from the result files and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tenfold.engine.cells import Cell, result_file
from tenfold.engine.figures import curves
from tenfold.engine.results import Result, read_arms, table_line, write_document
from tenfold.methods.microdit.findings import findings, share

FIGURE = "microdit_loss.png"
_TITLE = "MicroDiT: what it reaches on two CPU cores"
_INTRODUCTION = """\
Made by `tenfold reproduce microdit` from the files in [results/microdit](results/microdit); the plan,
with arms, seeds, machine and stop rules, is [plans/microdit.md](plans/microdit.md). Shares are of
samples, in per cent, that have the picture of their own caption among the 10 nearest pictures: of the
training set for 100 captions seen, of the whole set for captions held out. 'Copying' gives the training
picture with the nearest other caption and needs no training. Figures of several seeds are mean ± standard
deviation."""
_LOSSES = "Losses of different predictions or noise levels have different units; compare shares, not losses."

_SHARES = tuple((captions, space) for captions in ("seen", "heldout") for space in ("pixels", "features"))
_COLUMNS = (
    "arm", "core-minutes", "seeds", "steps", "images/s", "training loss",
    "seen, pixels", "seen, features", "held out, pixels", "held out, features",
)  # fmt: skip


def write_tables(results: Path, target: Path, planned: Sequence[Cell]) -> None:
    """Write the document at `target` from the JSON files in `results`; text above the mark stays.

    Files of other plans are left out.
    """
    arms = _arms(results, planned)
    missing = [cell.name.rpartition("-")[0] for cell in planned if not result_file(results, cell).exists()]
    everything = [result for found in arms.values() for result in found]
    lines = [_INTRODUCTION, "", *_table(arms)]
    lines += ["", f"Machines: {'; '.join(_machines(arms))}."]
    if missing:
        lines += ["", "Planned and not run yet: " + ", ".join(missing) + "."]
    lines += ["", "## What held and what did not", "", *(f"- {text}" for text in findings(arms, missing))]
    lines += ["", "## Training loss", "", f"![training loss]({FIGURE})", "", _LOSSES]
    named = {f"{result['arm']}-seed{result['seed']}": result["curve"] for result in everything}
    target.parent.mkdir(parents=True, exist_ok=True)
    curves(named, target.parent / FIGURE, "step", "training loss")
    write_document(target, "microdit", _TITLE, lines)


def table_text(results: Path, planned: Sequence[Cell]) -> str:
    """Return the table alone, of the planned cells that have run."""
    return "\n".join(_table(_arms(results, planned)))


def _arms(results: Path, planned: Iterable[Cell]) -> dict[str, list[Result]]:
    wanted = ("arm", "seed", "budget_seconds", "machine", "config", "facts", "evaluation", "curve")
    return read_arms(results, planned, wanted)


def _table(arms: Mapping[str, list[Result]]) -> list[str]:
    """One line for each arm, then the controls of each size of pictures."""
    everything = [result for found in arms.values() for result in found]
    lines = [table_line(_COLUMNS), table_line(["---"] * len(_COLUMNS))]
    lines += [_row(arm, found) for arm, found in arms.items()]
    for size in sorted({result["config"]["model"]["image_size"] for result in everything}):
        lines += _controls([r for r in everything if r["config"]["model"]["image_size"] == size], size)
    return lines


def _row(arm: str, found: list[Result]) -> str:
    speed = [r["config"]["batch"] / r["facts"]["seconds_per_step"] for r in found]
    minutes = {r["budget_seconds"] * r["facts"]["threads"] / 60 for r in found}
    cells = [
        arm,
        ", ".join(f"{value:g}" for value in sorted(minutes)),
        str(len(found)),
        _spread([r["config"]["steps"] for r in found], "{:.0f}"),
        _spread(speed, "{:.0f}"),
        _spread([r["curve"][-1][1] for r in found], "{:.3f}"),
        *(_spread([share(r, *which, "samples") for r in found], "{:.1f}") for which in _SHARES),
    ]
    return table_line(cells)


def _controls(found: list[Result], size: int) -> list[str]:
    """The rows that no training is needed for; they depend on the pictures alone."""
    rows = []
    for title, kind, form in (
        (f"copying, {size}x{size}", "nearest_caption", "{:.1f}"),
        (f"chance, {size}x{size}", "chance", "{:.2f}"),
    ):
        values = [
            sorted({form.format(share(result, *which, kind)) for result in found}, key=float)
            for which in _SHARES
        ]
        rows.append(table_line([title, "0", *[""] * 4, *(" to ".join(value) for value in values)]))
    return rows


def _machines(arms: Mapping[str, list[Result]]) -> list[str]:
    places: dict[str, list[str]] = {}
    for arm, found in arms.items():
        for machine in {result["machine"] for result in found}:
            places.setdefault(machine, []).append(arm)
    return [f"{machine} ({', '.join(names)})" for machine, names in places.items()]


def _spread(values: list[float], form: str) -> str:
    mean = form.format(statistics.fmean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean
