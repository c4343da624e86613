"""Puzzles on disk: two text files for each side of the split, and a manifest that is checked before use."""

import dataclasses
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.data import splits
from tenfold.data.manifest import ManifestFile
from tenfold.data.sudoku.board import is_valid, size_of
from tenfold.data.sudoku.classes import canonical
from tenfold.data.sudoku.generator import VERSION, Progress, Sudoku, SudokuSettings, generate
from tenfold.data.sudoku.independent import check_unique, solver_name
from tenfold.data.sudoku.reader import Puzzles, read_puzzles
from tenfold.engine.atomic import atomic_directory
from tenfold.errors import UserError

MANIFEST = "manifest.json"
_PARTS = ("train", "test")
_PROSE = {"source", "licence", "settings", "checked_by"}


@dataclass(frozen=True)
class SudokuManifest(ManifestFile):
    """Counts, checksums, and what train and test have in common."""

    source: str
    licence: str
    settings: dict[str, Any] | None  # of the generator; None for a user's puzzles
    checked_by: str | None  # the independent solver that confirmed each solution to be the only one
    size: int
    train: int
    test: int
    givens: dict[str, int]  # number of givens -> puzzles that have it
    mean_givens: float
    grids: int  # different solutions
    classes: int  # different symmetry classes of solutions
    shared_grids: int  # on both sides of the split
    shared_classes: int
    train_sha256: str
    test_sha256: str

    @classmethod
    def of(
        cls,
        data: Sudoku,
        source: str = "",
        licence: str = "",
        settings: SudokuSettings | None = None,
        checked_by: str | None = None,
    ) -> "SudokuManifest":
        """Count and checksum ``data``; a tenth of a millisecond for each puzzle, for its symmetry class."""
        parts = (data.train, data.test)
        grids = [set(map(bytes, part.solutions)) for part in parts]
        classes = [set(map(bytes, canonical(part.solutions))) for part in parts]
        givens = np.concatenate([(part.puzzles > 0).sum(axis=1) for part in parts])
        return cls(
            source=source,
            licence=licence,
            settings=_plain(settings),
            checked_by=checked_by,
            size=size_of(data.train.puzzles),
            train=len(data.train),
            test=len(data.test),
            givens={str(count): times for count, times in sorted(Counter(givens.tolist()).items())},
            mean_givens=round(float(givens.mean()), 4),
            grids=len(grids[0] | grids[1]),
            classes=len(classes[0] | classes[1]),
            shared_grids=len(grids[0] & grids[1]),
            shared_classes=len(classes[0] & classes[1]),
            train_sha256=_sha256(data.train),
            test_sha256=_sha256(data.test),
        )

    def verify(self, data: Sudoku, where: Path) -> None:
        """Count and checksum again. Errors: UserError naming ``where`` and the first field that differs."""
        difference = self.first_difference(SudokuManifest.of(data), _PROSE)
        if difference is not None:
            name, got, wanted = difference
            raise UserError(
                f"{where}: not the puzzles of {MANIFEST}: {name} is {got!r}, wanted {wanted!r}; "
                "prepare them again with `tenfold data sudoku`"
            )


def prepare(
    folder: Path,
    settings: SudokuSettings,
    processes: int = 1,
    check: bool = False,
    progress: Progress | None = None,
) -> SudokuManifest:
    """Generate puzzles into the new ``folder``; with ``check`` python-sat confirms each to be unique first.

    Errors: UserError when ``folder`` is there already or cannot be written, or as ``generate``.
    """
    _refuse_existing(folder)
    checker = solver_name() if check else None  # before the work, if it is missing
    data = generate(settings, processes, progress)
    licence = "none needed: generated numbers"
    return _write(folder, data, f"tenfold's generator, version {VERSION}", licence, settings, checker)


def prepare_file(
    folder: Path, file: Path, test_share: float = 0.1, check: bool = False, licence: str = ""
) -> SudokuManifest:
    """Read a user's puzzles into the new ``folder``, at most ``test_share`` of them for the test.

    Puzzles of one symmetry class (size 4: of one grid) stay on one side; the split depends on the puzzles
    alone.
    Errors: UserError as ``read_puzzles`` and ``prepare``.
    """
    if not 0 <= test_share < 1:
        raise UserError(f"the share of test puzzles is {test_share}, wanted 0 or more and below 1")
    _refuse_existing(folder)
    checker = solver_name() if check else None
    both = read_puzzles(file)
    size = size_of(both.puzzles)
    keys = canonical(both.solutions) if size == 9 else both.solutions
    _, groups = np.unique(keys, axis=0, return_inverse=True)
    train, test = splits.split(
        groups.reshape(-1), ["".join(map(str, row)) for row in both.puzzles], test_share
    )
    if not len(train):
        raise UserError(f"{file}: no puzzle is left to train on; add some or lower the share of test puzzles")
    data = Sudoku(*(Puzzles(both.puzzles[rows], both.solutions[rows]) for rows in (train, test)))
    return _write(folder, data, file.name, licence or "not stated", None, checker)


def load(folder: Path) -> Sudoku:
    """The puzzles in ``folder``, checked against its manifest, rules and givens.

    Errors: UserError naming the file when something is missing or is not what the manifest says.
    """
    manifest = SudokuManifest.read(folder / MANIFEST)
    parts = []
    for part in _PARTS:
        puzzles = _read(folder / f"{part}.txt", manifest.size)
        solutions = _read(folder / f"{part}_solutions.txt", manifest.size)
        if len(puzzles) != len(solutions):
            raise UserError(f"{folder}: {len(puzzles)} {part} puzzles, but {len(solutions)} solutions")
        fits = is_valid(solutions) & ((puzzles == 0) | (puzzles == solutions)).all(axis=1)
        if not fits.all():
            row = int(np.argmin(fits)) + 1
            raise UserError(
                f"{folder / part}_solutions.txt, line {row}: no solution of the puzzle in that line"
            )
        parts.append(Puzzles(puzzles, solutions))
    data = Sudoku(*parts)
    manifest.verify(data, folder)
    return data


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise UserError(f"{folder} exists already; give another folder, or remove it")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"{folder.absolute().parent}: no such folder to make {folder.name} in")


def _write(
    folder: Path,
    data: Sudoku,
    source: str,
    licence: str,
    settings: SudokuSettings | None,
    checker: str | None,
) -> SudokuManifest:
    if checker is not None:
        for part in (data.train, data.test):
            check_unique(part.puzzles, part.solutions)
    manifest = SudokuManifest.of(data, source, licence, settings, checker)
    with atomic_directory(folder) as aside:
        for name, part in zip(_PARTS, (data.train, data.test), strict=True):
            (aside / f"{name}.txt").write_bytes(_lines(part.puzzles))
            (aside / f"{name}_solutions.txt").write_bytes(_lines(part.solutions))
        (aside / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _lines(boards: NDArray[np.uint8]) -> bytes:
    """A line of digits each."""
    ends = np.full((len(boards), 1), ord("\n"), np.uint8)
    return np.concatenate([boards + ord("0"), ends], axis=1).astype(np.uint8).tobytes()


def _read(path: Path, size: int) -> NDArray[np.uint8]:
    """What ``_lines`` wrote."""
    try:
        text = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if text.size % (size**2 + 1):
        raise UserError(f"{path}: wanted lines of {size**2} digits")
    lines = text.reshape(-1, size**2 + 1)
    boards = lines[:, :-1] - np.uint8(ord("0"))  # what is below "0" wraps round to more than 9
    if (boards > size).any() or (lines[:, -1] != ord("\n")).any():
        raise UserError(f"{path}: wanted lines of {size**2} digits from 0 to {size}")
    return boards


def _plain(settings: SudokuSettings | None) -> dict[str, Any] | None:
    """As JSON gives it back: lists for tuples."""
    if settings is None:
        return None
    return dataclasses.asdict(settings) | {"givens": list(settings.givens)}


def _sha256(part: Puzzles) -> str:
    return hashlib.sha256(_lines(part.puzzles) + _lines(part.solutions)).hexdigest()
