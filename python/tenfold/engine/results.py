"""Result files of cells, and the documents made from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tenfold.engine.atomic import atomic_write
from tenfold.engine.cells import Cell, result_file
from tenfold.errors import UserError

Result = dict[str, Any]


def write_result(target: Path, result: Mapping[str, Any]) -> None:
    """Write a cell's result file whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as sink:
        json.dump(result, sink, indent=1)
        sink.write("\n")


def read_result(path: Path, wanted: Sequence[str]) -> Result:
    """What a cell wrote; UserError where the file holds something else, or not all of the wanted entries."""
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, and its cell runs again") from error
    missing = [key for key in wanted if not isinstance(result, dict) or key not in result]
    if missing:
        raise UserError(
            f"{path}: is no result, {missing[0]!r} is missing; delete it, and its cell runs again"
        )
    return result


def read_arms(results: Path, planned: Iterable[Cell], wanted: Sequence[str]) -> dict[str, list[Result]]:
    """The results of the planned cells that have run, by arm; files of other plans are left out."""
    arms: dict[str, list[Result]] = {}
    for cell in planned:
        path = result_file(results, cell)
        if path.exists():
            arms.setdefault(cell.arm, []).append(read_result(path, wanted))
    return arms


def write_document(target: Path, method: str, title: str, lines: Iterable[str]) -> None:
    """Write `lines` into the document below a mark; what stands above the mark there is kept.

    A document without the mark is written anew under the title.
    """
    mark = f"<!-- Everything below is written by tenfold reproduce {method}; text above is kept. -->"
    text = target.read_text(encoding="utf-8") if target.exists() else ""
    above = text.partition(mark)[0].rstrip() + "\n" if mark in text else f"# {title}\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as sink:
        sink.write("\n".join([above, mark, "", *lines]) + "\n")


def table_line(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
