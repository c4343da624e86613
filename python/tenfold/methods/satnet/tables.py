"""docs/satnet.md, made from the result files and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from tenfold.engine.cells import result_file
from tenfold.engine.figures import curves
from tenfold.engine.results import Result, read_arms, table_line, write_document
from tenfold.methods.satnet.findings import (
    SUCCESS,
    Arms,
    accuracy,
    failures,
    findings,
    mcnemar,
    pairs,
)
from tenfold.methods.satnet.plan import LINEAR, PARITY_ARMS, Cell, mapping_settings

GRADIENT_FIGURE, BOARD_FIGURE = "satnet_gradient.png", "satnet_boards.png"
_GRADIENTS = {
    "finite_difference": "finite differences", "correct": "ours", "official": "the published code's",
}  # fmt: skip
_TITLE = "SATNet and symbol grounding: what they reach on two CPU cores"
_INTRODUCTION = """\
Made by `tenfold reproduce satnet` from the files in [results/satnet](results/satnet); the plan, with arms,
seeds and stop rules, is [plans/satnet.md](plans/satnet.md). Every cell runs on one thread, two side by side.
Shares are of test problems, in per cent."""
_BOARD_ARMS = (
    "sudoku4", "sudoku-singles", "permuted-singles", "sudoku", "permuted", "visual-leaky",
    "visual-ungrounded", "visual-ungrounded-tuned", "self-supervised",
)  # fmt: skip
_BOARD_COLUMNS = ("arm", "seed", "passes", "minutes", "valid boards", "exact boards", "unknown cells",
                  "given cells", "digits read", "purity", "sweeps")  # fmt: skip
_ROUTE = (
    " Of the self-supervised route, 'rules' solves boards given as numbers after training on the cells that "
    "puzzles leave unknown, 'matched' boards of pictures with these rules and the clusters, each taken for a "
    "digit; the last row is after the joint training."
)
_BOARD_SCORES = ("valid_boards", "exact_boards", "unknown_accuracy", "given_accuracy", "input_accuracy",
                 "input_purity")  # fmt: skip


def write_tables(results: Path, target: Path, planned: Sequence[Cell]) -> None:
    """Write the document at `target` from the JSON files in `results`; text above the mark stays.

    Files of other plans are left out.
    """
    arms = arms_of(results, planned)
    target.parent.mkdir(parents=True, exist_ok=True)  # figures are the first to come
    lines = [_INTRODUCTION, "", "## What held and what did not", ""]
    lines += [f"- {text}" for text in findings(arms)]
    lines += _sections(arms, target.parent)
    everything = [result for found in arms.values() for result in found]
    hours = sum(result["seconds"] for result in everything) / 3600
    machines = sorted({result["machine"] for result in everything})
    lines += ["", "## Cost", "", f"{len(everything)} cells, {hours:.2f} core-hours. {'; '.join(machines)}."]
    missing = sorted({cell.arm for cell in planned if not result_file(results, cell).exists()})
    if missing:
        lines += ["", "Planned and not run, or not for every seed: " + ", ".join(missing) + "."]
    write_document(target, "satnet", _TITLE, lines)


def table_text(results: Path, planned: Sequence[Cell]) -> str:
    """Return findings and tables alone, of the planned cells that have run."""
    arms = arms_of(results, planned)
    return "\n".join([*(f"- {text}" for text in findings(arms)), *_sections(arms, None)])


def arms_of(results: Path, planned: Iterable[Cell]) -> Arms:
    """The results of the planned cells that have run, by arm."""
    return read_arms(results, planned, ("arm", "seed", "machine", "seconds", "config"))


def _sections(arms: Arms, figures: Path | None) -> list[str]:
    """One section for each experiment that has results; figures go to the folder, if there is one."""
    lines: list[str] = []
    for make in (_gradient, _boards, _parity, _mapping):
        lines += make(arms, figures)
    return lines


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["", table_line(columns), table_line(["---"] * len(columns)), *(table_line(row) for row in rows)]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _gradient(arms: Arms, figures: Path | None) -> list[str]:
    if "gradient" not in arms:
        return []
    lines = ["", "## The gradient to an input", ""]
    if figures is not None:
        found = arms["gradient"][0]["curves"]
        named = {title: list(zip(found["z"], found[name], strict=True)) for name, title in _GRADIENTS.items()}
        curves(
            named, figures / GRADIENT_FIGURE, "input z", "derivative of the loss", logarithmic=False,
            dots=(_GRADIENTS["finite_difference"],),
        )  # fmt: skip
        lines += [f"![finite differences, ours and the published code's, over z]({GRADIENT_FIGURE})", ""]
    lines += [
        "The derivative of a random linear loss by one input, a small problem solved to convergence: finite "
        "differences (float64 reference), our gradient and the published code's (float32 op)."
    ]
    rows = [
        [str(result["seed"]), *(f"{result['largest_error'][name]:.1e}" for name in ("correct", "official"))]
        for result in arms["gradient"]
    ]
    return lines + _table(("problem", "largest error of ours", "of the published code's"), rows)


def _boards(arms: Arms, figures: Path | None) -> list[str]:
    present = [arm for arm in _BOARD_ARMS if arm in arms]
    if not present:
        return []
    lines = ["", "## Sudoku", ""]
    if figures is not None:
        named = {
            f"{arm}-seed{result['seed']}": [
                (row["seconds"] / 60, 100 * row["valid_boards"]) for row in result["curve"]
            ]
            for arm in present
            for result in arms[arm]
        }
        curves(named, figures / BOARD_FIGURE, "minutes of training", "% valid test boards", logarithmic=False)
        lines += [f"![valid test boards over minutes of training]({BOARD_FIGURE})", ""]
    lines += [
        "Valid boards have right rows, columns and boxes; exact ones equal the solution. 'Digits read': "
        "pictures that the network reads as the digit they show; 'purity': as the digit that is "
        "most often behind the answer."
    ]
    if "self-supervised" in present:
        lines[-1] += _ROUTE
    rows = [row for arm in present for result in arms[arm] for row in _board_rows(arm, result)]
    return lines + _table(_BOARD_COLUMNS, rows)


def _board_rows(arm: str, result: Result) -> list[list[str]]:
    """One row; of the self-supervised route one for each part of it."""
    parts = [(arm, result, result["test"])]
    if "matched" in result:
        rules = result["rules"]
        parts = [(f"{arm}, rules", rules, rules["test"]), (f"{arm}, matched", {}, result["matched"]), *parts]
    return [_board_row(name, result["seed"], training, scores) for name, training, scores in parts]


def _board_row(name: str, seed: int, training: Result, scores: Result) -> list[str]:
    cost = ["", ""]
    if training:
        cost = [str(training["epochs"]), f"{training['training_seconds'] / 60:.1f}"]
    shares = [_percent(scores.get(share)) for share in _BOARD_SCORES]
    return [name, str(seed), *cost, *shares, f"{scores['iterations']:.1f}"]


def _parity(arms: Arms, figures: Path | None) -> list[str]:
    present = [arm for arm in PARITY_ARMS if arm in arms]
    if not present:
        return []
    columns = ("arm", "seed", "after 1 pass", "5", "10", "20", "minutes")
    rows = []
    for arm in present:
        for result in arms[arm]:
            by_pass = {int(row["epoch"]): row["accuracy"] for row in result["curve"]}
            shares = [_percent(by_pass.get(passes)) for passes in (1, 5, 10, 20)]
            rows.append([arm, str(result["seed"]), *shares, f"{result['training_seconds'] / 60:.1f}"])
    return [
        "",
        "## Parity",
        "",
        "Right answers on test strings after so many passes.",
        *_table(columns, rows),
    ]


def _mapping(arms: Arms, figures: Path | None) -> list[str]:
    settings = [name for name in mapping_settings() if pairs(arms, name)]
    if not settings and LINEAR not in arms:
        return []
    columns = ("setting", "correct: failed", "mean (range)", "official: failed", "mean (range)",
               "only correct / only official failed", "p")  # fmt: skip
    rows = []
    for name in settings:
        correct, official, p = mcnemar(pairs(arms, name))
        cells = [text for gradient in ("correct", "official") for text in _runs(arms[f"{name}-{gradient}"])]
        rows.append([name, *cells, f"{correct} / {official}", f"{p:.2g}"])
    if LINEAR in arms:
        rows.append([LINEAR, *_runs(arms[LINEAR]), "", "", "", ""])
    lines = [
        "",
        "## MNIST mapping test",
        "",
        f"Runs fail below {100 * SUCCESS:g} % of the test pictures. `{LINEAR}` is the same network with a "
        "linear layer instead of SATNet.",
        *_table(columns, rows),
        "",
        "Accuracy of every seed:",
    ]
    every = [(arm, found) for arm, found in arms.items() if found[0]["config"]["task"] == "mapping"]
    seeds = sorted({result["seed"] for _, found in every for result in found})
    header = ("arm", *(f"seed {seed}" for seed in seeds))
    return lines + _table(header, ([arm, *_by_seed(found, seeds)] for arm, found in every))


def _runs(found: Sequence[Result]) -> list[str]:
    values = [100 * accuracy(result) for result in found]
    return [
        f"{failures(found)} of {len(found)}",
        f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})",
    ]


def _by_seed(found: Sequence[Result], seeds: Sequence[int]) -> list[str]:
    values = {result["seed"]: accuracy(result) for result in found}
    return [_percent(values.get(seed)) for seed in seeds]
