"""Make puzzles with exactly one solution, reproducibly at any number of processes."""

import functools
import random
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tenfold.data.sudoku.board import box_side
from tenfold.data.sudoku.classes import canonical
from tenfold.data.sudoku.reader import Puzzles
from tenfold.data.sudoku.search import all_boards, is_forced, is_possible, random_board, rules, shuffled
from tenfold.engine.config import added
from tenfold.errors import UserError

VERSION = 1  # raise it when the same settings come to make other puzzles

# The fewest givens asked for. Removing cells ended at 21 to 28 of 81 in 400 tries, half of them with no more
# than 24; and at 4 to 6 of 16 in 4000 tries, two in three of them with 4.
FEWEST_GIVENS = {4: 4, 9: 24}
GIVENS_OF_SINGLES = (34, 40)  # of size 9, by singles_puzzle
TEST_SHARE_OF_GRIDS = 0.2  # of the 288 grids of size 4, when the split is by grid
_ATTEMPTS = 1000  # draws until a puzzle has few enough givens: far more than it ever takes
_DRAWS = 20  # draws for each puzzle that must differ from the others; beyond, there are too few
_TASK = 50  # puzzles a process makes at a time: half a second

Deduction = Literal["search", "singles"]
Progress = Callable[[int, int], None]  # puzzles made, puzzles wanted


@dataclass(frozen=True)
class SudokuSettings:
    """What to make. The number of givens is low + Binomial(high - low), with the mean ``mean_givens``.

    Size 9: the grids of all puzzles, train and test together, are of different symmetry classes. Size 4 has
    288 grids in two classes: puzzles differ, and train and test have no grid, or (``split="class"``) no class
    in common.
    """

    size: int = 9
    train: int = 9000
    test: int = 1000
    seed: int = 0
    givens: tuple[int, int] = (24, 40)
    mean_givens: float = 36.2  # the mean of the published puzzles
    split: Literal["class", "grid"] = "class"
    # "singles": every blank is the only place for its number in its row, column or box once those that were
    # removed after it are filled in, as in the published puzzles; "search": whatever has one solution, which
    # takes more steps (4.8 rounds of filling in such places instead of 2.9, at 36 givens).
    deduction: Deduction = added("search")  # noqa: RUF009

    def __post_init__(self) -> None:
        box_side(self.size)
        low, high = self.givens
        fewest, most = FEWEST_GIVENS[self.size], self.size**2 - 1
        if self.train < 1 or self.test < 0:
            raise UserError(
                f"train and test are {self.train} and {self.test}, wanted 1 or more and 0 or more"
            )
        if not fewest <= low <= high <= most:
            raise UserError(f"givens are {low} to {high}, wanted a range within {fewest} to {most}")
        if not low <= self.mean_givens <= high:
            raise UserError(f"the mean of givens is {self.mean_givens}, wanted one within {low} to {high}")
        if self.split == "grid" and self.size != 4:
            raise UserError("split is 'grid', wanted 'class': puzzles of size 9 differ in their class")


SIZE_4 = SudokuSettings(size=4, train=2000, test=400, givens=(5, 8), mean_givens=6.5, split="grid")
SIZE_9 = SudokuSettings()


@dataclass(frozen=True)
class Sudoku:
    """Puzzles to train on and puzzles to test on."""

    train: Puzzles
    test: Puzzles


def generate(settings: SudokuSettings, processes: int = 1, progress: Progress | None = None) -> Sudoku:
    """The puzzles of ``settings``: the same for every number of processes. About 11 ms a puzzle of size 9.

    Errors: UserError when size 4 has too few puzzles of this kind that differ.
    """
    parts: list[Puzzles] = []
    seen: set[bytes] = set()
    total = settings.train + settings.test
    pools = _pools_of_size_4(settings) if settings.size == 4 else (None, None)
    with _Workers(processes) as workers:
        for part, count, pool in zip(("train", "test"), (settings.train, settings.test), pools, strict=True):
            done = len(parts[0]) if parts else 0

            def report(before: int, made: int, done: int = done) -> None:
                if progress is not None:
                    progress(done + before + made, total)

            draw = functools.partial(_draw, settings, part, pool)
            parts.append(_distinct(settings, workers, draw, count, seen, report))
    return Sudoku(*parts)


def minimal_puzzle(size: int, solution: Sequence[int], rng: random.Random) -> list[int]:
    """``solution`` without the cells, tried in random order, that it stays the only solution without."""
    game, puzzle = rules(size), list(solution)
    for cell in shuffled(range(size**2), rng):
        puzzle[cell] = 0
        possible = game.start(puzzle)
        if is_forced(game, possible, cell, solution[cell]):
            continue
        if is_possible(game, possible & ~game.literal(cell, solution[cell])):
            puzzle[cell] = solution[cell]
    return puzzle


def singles_puzzle(size: int, solution: Sequence[int], rng: random.Random) -> list[int]:
    """``solution`` without the cells, tried in random order, whose number has no other place in a unit.

    The rule by which the puzzles of SATNet's experiments were made (its notebook names the generator). Of
    size 9, 32 to 40 givens are left, 35.5 on average (200 tries).
    """
    game, puzzle = rules(size), list(solution)
    for cell in shuffled(range(size**2), rng):
        puzzle[cell] = 0
        possible, literal = game.start(puzzle), game.literal(cell, solution[cell])
        _, *units = game.constraints[literal]  # without that of the cell itself
        if all(possible & unit != literal for unit in units):
            puzzle[cell] = solution[cell]
    return puzzle


Pool = list[list[int]] | None  # the grids to draw from; without, a new grid each time
Draw = Callable[[int, int], NDArray[np.uint8]]  # start, stop -> (stop - start, 2, size**2)


def _draw(settings: SudokuSettings, part: str, pool: Pool, start: int, stop: int) -> NDArray[np.uint8]:
    """The puzzles of these numbers with their solutions; each has a random stream of its own."""
    pairs = []
    for number in range(start, stop):
        rng = random.Random(f"tenfold sudoku {VERSION} {settings.size} {settings.seed} {part} {number}")
        pairs.append(_puzzle(settings, pool, rng))
    return np.array(pairs, np.uint8).reshape(-1, 2, settings.size**2)


def _puzzle(settings: SudokuSettings, pool: Pool, rng: random.Random) -> tuple[list[int], list[int]]:
    low, high = settings.givens
    chance = (settings.mean_givens - low) / max(high - low, 1)
    wanted = low + sum(rng.random() < chance for _ in range(high - low))
    make = minimal_puzzle if settings.deduction == "search" else singles_puzzle
    for _ in range(_ATTEMPTS):
        solution = pool[int(rng.random() * len(pool))] if pool else random_board(settings.size, rng)
        puzzle = make(settings.size, solution, rng)
        blanks = shuffled([cell for cell, number in enumerate(puzzle) if not number], rng)
        missing = wanted - (settings.size**2 - len(blanks))
        if missing >= 0:
            for cell in blanks[:missing]:  # a true cell more leaves the solution the only one
                puzzle[cell] = solution[cell]
            return puzzle, solution
    raise UserError(
        f"no puzzle of size {settings.size} with {wanted} givens in {_ATTEMPTS} attempts; ask for more"
    )


def _distinct(
    settings: SudokuSettings,
    workers: "_Workers",
    draw: Draw,
    count: int,
    seen: set[bytes],
    report: Callable[[int, int], None],
) -> Puzzles:
    """The first ``count`` draws whose class (size 9), or which themselves (size 4), are not in ``seen``."""
    kept: list[NDArray[np.uint8]] = []
    drawn = 0
    while len(kept) < count:
        stop = drawn + count - len(kept)
        if stop > _DRAWS * count:
            low, high = settings.givens
            raise UserError(
                f"found {len(kept)} different puzzles of size {settings.size} with {low} to {high} givens, "
                f"wanted {count}; ask for fewer or for more givens"
            )
        pairs = workers.run(draw, drawn, stop, functools.partial(report, len(kept)))
        keys = canonical(pairs[:, 1]) if settings.size == 9 else pairs[:, 0]
        for pair, key in zip(pairs, map(bytes, keys), strict=True):
            if key not in seen:
                seen.add(key)
                kept.append(pair)
        drawn = stop
    both = np.array(kept, np.uint8).reshape(-1, 2, settings.size**2)
    return Puzzles(np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1]))


def _pools_of_size_4(settings: SudokuSettings) -> tuple[Pool, Pool]:
    """The grids of the training puzzles and those of the test puzzles."""
    boards = all_boards(4)
    if settings.split == "class":
        classes = [bytes(board) for board in canonical(np.array(boards))]
        larger = max(set(classes), key=lambda one: (classes.count(one), one))
        train = [board for board, one in zip(boards, classes, strict=True) if one == larger]
    else:
        rng = random.Random(f"tenfold sudoku {VERSION} grids {settings.seed}")
        order = shuffled(range(len(boards)), rng)
        train = [boards[index] for index in sorted(order[round(TEST_SHARE_OF_GRIDS * len(boards)) :])]
    return train, [board for board in boards if board not in train]


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Workers:
    """Run draws here, or share them out among processes in tasks whose results come back in order."""

    def __init__(self, processes: int) -> None:
        if processes < 1:
            raise UserError(f"processes is {processes}, wanted 1 or more")
        # Spawned, not forked: a fork of a process with threads (torch, OpenMP) may hang.
        self._pool = (
            ProcessPoolExecutor(processes, get_context("spawn"), _leave_interrupts_to_parent)
            if processes > 1
            else None
        )

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, draw: Draw, start: int, stop: int, report: Callable[[int], None]) -> NDArray[np.uint8]:
        """What ``draw`` makes of start..stop; ``report`` is told how many are made."""
        starts = range(start, stop, _TASK)
        stops = [min(begin + _TASK, stop) for begin in starts]
        done: list[NDArray[np.uint8]] = []
        for part in self._pool.map(draw, starts, stops) if self._pool else map(draw, starts, stops):
            done.append(part)
            report(sum(map(len, done)))
        return np.concatenate(done)
