"""`tenfold sample ltn`: ask a trained theory how true formulas are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tenfold.engine.options import parse
from tenfold.engine.run import RunDirectory
from tenfold.errors import UserError
from tenfold.logic.errors import FormulaError
from tenfold.methods.ltn.evaluate import trained
from tenfold.methods.ltn.tasks import Task


@dataclass(frozen=True)
class SampleOptions:
    """Print the degree of truth of a formula about what a run has learnt."""

    run: Path
    """The run directory."""
    formula: str
    """Such as "forall x in people: S(x) -> C(x)"; of a free variable, the degree for each individual."""


def main(argv: list[str]) -> int:
    """Run `tenfold sample ltn`."""
    options = parse(SampleOptions, argv, "tenfold sample ltn")
    task, step = trained(RunDirectory.open(options.run))
    degrees = ask(task, step, options.formula)
    print(np.array2string(degrees.numpy(), precision=3, suppress_small=True))
    return 0


@torch.no_grad()
def ask(task: Task, step: int, formula: str) -> torch.Tensor:
    """The degrees of ``formula`` after ``step`` steps; a UserError says what is wrong with it."""
    last = max(0, step - 1)
    try:
        return task.theory.truth(formula, step=last // task.steps_per_epoch, **task.examples(last))
    except FormulaError as error:
        place = error.text[error.start : error.end]
        where = f" at {place!r}, character {error.start + 1}" if place else ""
        raise UserError(f"{error.reason}{where} in {error.text!r}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{formula!r}: {error}") from error
