"""Read a user's file of puzzles: a line each, 81 (or 16) characters, 0 or . for a blank cell."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold.data.sudoku.board import units
from tenfold.data.sudoku.search import SearchLimitError, solve
from tenfold.errors import UserError

_SIZE_OF_LENGTH = {16: 4, 81: 9}
_TRIES = 50_000  # some seconds; six puzzles that are known as hard took at most 678
_UNIT_NAMES = ("row", "column", "box")


@dataclass(frozen=True)
class Puzzles:
    """N puzzles and their only solutions: (N, size**2), numbers 1 to size, 0 in a puzzle for a blank."""

    puzzles: NDArray[np.uint8]
    solutions: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.puzzles)


def read_puzzles(path: Path) -> Puzzles:
    """Every puzzle of ``path``, solved; empty lines and lines that begin with # are passed over.

    Errors: UserError with file and line for a wrong length, a wrong character, givens that contradict each
    other, and a puzzle with no solution or several.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    boards: list[list[int]] = []
    solutions: list[list[int]] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        where = f"{path}, line {number}"
        board = _parse(text, where)
        if boards and len(board) != len(boards[0]):
            raise UserError(
                f"{where}: has {len(board)} cells, wanted {len(boards[0])} as in the lines before"
            )
        boards.append(board)
        solutions.append(_only_solution(board, where))
    if not boards:
        raise UserError(f"{path}: no puzzles in it; wanted lines of 81 or 16 characters, 0 or . for a blank")
    return Puzzles(np.array(boards, np.uint8), np.array(solutions, np.uint8))


def _parse(text: str, where: str) -> list[int]:
    if len(text) not in _SIZE_OF_LENGTH:
        raise UserError(f"{where}: has {len(text)} characters, wanted 81 (or 16 for puzzles of size 4)")
    size = _SIZE_OF_LENGTH[len(text)]
    wanted = ".0123456789"[: size + 2]
    for place, character in enumerate(text, start=1):
        if character not in wanted:
            raise UserError(
                f"{where}: character {place} is {character!r}, wanted 1 to {size}, or 0 or . for a blank"
            )
    return [0 if character == "." else int(character) for character in text]


def _only_solution(board: list[int], where: str) -> list[int]:
    size = _SIZE_OF_LENGTH[len(board)]
    for index, unit in enumerate(units(size).tolist()):
        given = [board[cell] for cell in unit if board[cell]]
        twice = next((number for number in given if given.count(number) > 1), None)
        if twice is not None:
            name = f"{_UNIT_NAMES[index // size]} {index % size + 1}"
            raise UserError(f"{where}: {name} has the given {twice} twice, wanted each number at most once")
    try:
        found = solve(size, board, tries=_TRIES)
    except SearchLimitError as error:
        raise UserError(
            f"{where}: the puzzle has no solution that {_TRIES} tries could find, wanted exactly one"
        ) from error
    if not found:
        raise UserError(f"{where}: the puzzle has no solution, wanted exactly one")
    if len(found) > 1:
        cell = next(cell for cell, (a, b) in enumerate(zip(*found, strict=True)) if a != b)
        raise UserError(
            f"{where}: the puzzle has several solutions, wanted exactly one; row {cell // size + 1}, column "
            f"{cell % size + 1} can be {found[0][cell]} or {found[1][cell]}"
        )
    return found[0]
