"""docs/microdit.md, made from the result files and nothing else."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tenfold.engine.atomic import atomic_write
from tenfold.engine.figures import curves

Result = dict[str, Any]

FIGURE = "microdit_loss.png"
_TIME = "Losses of different predictions or noise levels have different units; compare shares, not losses."

_HEAD = """# MicroDiT: what it reaches on two CPU cores

Made by `tenfold reproduce microdit` from the files in [results/microdit](results/microdit); the plan, with
arms, seeds, machine and stop rules, is [plans/microdit.md](plans/microdit.md). Shares are of samples that
have the picture of their own caption among the 10 nearest pictures; 'copy' is the share that copying the
training picture with the nearest other caption reaches without training.
"""


def write_tables(results: Path, target: Path, planned: Iterable[str]) -> None:
    """Write the document at `target` from the JSON files in `results`; `planned` names all cells."""
    arms: dict[tuple[str, float], list[Result]] = defaultdict(list)
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        arms[result["arm"], result["budget_seconds"] * result["facts"]["threads"]].append(result)
    everything = [result for found in arms.values() for result in found]
    chances = {f"{100 * _share(result, 'seen', 'pixels', 'chance'):.2f} %" for result in everything}
    lines = [
        _HEAD,
        "| arm | core-minutes | seeds | steps | images/s | training loss | seen, pixels | seen, features |"
        " held out, pixels | copy, held out, pixels |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(arm, seconds, found) for (arm, seconds), found in arms.items()),
        "",
        f"Chance is 10 in the number of pictures, {', '.join(sorted(chances))} for captions seen. Figures of "
        "several seeds are mean ± standard deviation.",
    ]
    missing = [name for name in planned if not (results / f"{name}.json").exists()]
    if missing:
        lines += ["", "Planned and not run yet: " + ", ".join(_short(name) for name in missing) + "."]
    lines += ["", f"![training loss]({FIGURE})", "", f"Training loss over the steps. {_TIME}"]
    target.parent.mkdir(parents=True, exist_ok=True)
    named = {f"{result['arm']}-seed{result['seed']}": result["curve"] for result in everything}
    curves(named, target.parent / FIGURE, "step", "training loss")
    with atomic_write(target) as sink:
        sink.write("\n".join(lines) + "\n")


def _short(name: str) -> str:
    """A cell's name without the hash of its config."""
    return name.rpartition("-")[0]


def _row(arm: str, core_seconds: float, found: list[Result]) -> str:
    speed = [r["config"]["batch"] / r["facts"]["seconds_per_step"] for r in found]
    cells = [
        arm,
        f"{core_seconds / 60:g}",
        str(len(found)),
        _spread([r["config"]["steps"] for r in found], "{:.0f}"),
        _spread(speed, "{:.0f}"),
        _spread([r["curve"][-1][1] for r in found], "{:.3f}"),
        *(
            _spread([100 * _share(r, captions, space, kind) for r in found], "{:.1f}")
            for captions, space, kind in (
                ("seen", "pixels", "samples"),
                ("seen", "features", "samples"),
                ("heldout", "pixels", "samples"),
                ("heldout", "pixels", "nearest_caption"),
            )
        ),
    ]
    return "| " + " | ".join(cells) + " |"


def _share(result: Result, captions: str, space: str, kind: str) -> float:
    return float(result["evaluation"][captions][space]["top10"][kind])


def _spread(values: list[float], form: str) -> str:
    mean = form.format(statistics.fmean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean
