"""Solve boards by exact cover on bits: every literal "this number in this cell" is one bit of one integer.

A board has 4 * size * size constraints: each cell holds a number, and each row, column and box holds each
number. Of the literals of a constraint exactly one is true. A constraint that has one literal left forces
it, one that has none left is a contradiction; shifting the whole board adds up all constraints of a kind at
once. What remains open is tried, literal by literal, in the cell that has fewest.
"""

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tenfold.data.sudoku.board import box_side


@dataclass(frozen=True)
class _Kind:
    """All constraints of a kind, each named by the first of its literals, its base.

    Its other literals are at base + i + j with i and j of the two tuples ``strides`` or 0: a board has as
    many numbers as the square of a box's side, so two short steps add up what one long one would.
    """

    bases: int
    strides: tuple[tuple[int, ...], tuple[int, ...]]

    def counts(self, possible: int) -> tuple[int, int]:
        """At each base: whether the constraint has a literal, and whether it has two or more."""
        once, twice = possible, 0
        for strides in self.strides:
            one, two = once, twice
            for stride in strides:
                shifted = one >> stride
                twice |= two >> stride | once & shifted
                once |= shifted
        return once & self.bases, twice & self.bases

    def literals(self, bases: int) -> int:
        """All literals of the constraints at ``bases``."""
        for strides in self.strides:
            first = bases
            for stride in strides:
                bases |= first << stride
        return bases


@dataclass(frozen=True)
class Rules:
    """The bits of a board: number v (from 1) in a cell is bit (v - 1) * size * size + cell."""

    size: int
    everything: int
    kinds: tuple[_Kind, ...]
    keep: dict[int, int]  # literal -> the literals that may be true beside it, itself included
    constraints: dict[int, tuple[int, ...]]  # literal -> all literals of each of its four constraints
    of_cell: tuple[int, ...]  # cell -> its literals

    def literal(self, cell: int, number: int) -> int:
        """The bit that says that ``cell`` holds ``number``."""
        return 1 << ((number - 1) * self.size**2 + cell)

    def start(self, board: Sequence[int]) -> int:
        """The literals that the filled cells of ``board`` leave possible."""
        possible = self.everything
        for cell, number in enumerate(board):
            if number:
                # A literal that an earlier given excludes stays excluded: its cell is then a contradiction.
                possible &= self.keep[self.literal(cell, number)]
        return possible

    def numbers(self, solved: int) -> list[int]:
        """The board of a set of literals with one for each cell."""
        board = [0] * self.size**2
        for bit in _bits(solved):
            number, cell = divmod(bit.bit_length() - 1, self.size**2)
            board[cell] = number + 1
        return board


@functools.cache
def rules(size: int) -> Rules:
    """The rules of boards with ``size`` numbers."""
    side, cells = box_side(size), size * size
    corners = [size * side * i + side * j for i in range(side) for j in range(side)]

    def kind(bases: Sequence[int], near: int, far: int, every_number: bool) -> _Kind:
        numbers = range(size) if every_number else range(1)
        bits = sum(1 << (number * cells + cell) for number in numbers for cell in bases)
        steps = range(1, side)
        return _Kind(bits, (tuple(near * i for i in steps), tuple(far * i for i in steps)))

    kinds = (
        kind(range(cells), cells, side * cells, every_number=False),  # a number for each cell
        kind(range(0, cells, size), 1, side, every_number=True),  # each row
        kind(range(size), size, side * size, every_number=True),  # each column
        kind(corners, 1, size, every_number=True),  # each box
    )
    everything = (1 << (size * cells)) - 1
    constraints: dict[int, tuple[int, ...]] = dict.fromkeys(_bits(everything), ())
    for one in kinds:
        for base in _bits(one.bases):
            for bit in _bits(one.literals(base)):
                constraints[bit] += (one.literals(base),)
    keep = {
        bit: everything & ~functools.reduce(int.__or__, rivals) | bit for bit, rivals in constraints.items()
    }
    of_cell = tuple(sum(1 << (number * cells + cell) for number in range(size)) for cell in range(cells))
    return Rules(size, everything, kinds, keep, constraints, of_cell)


class SearchLimitError(Exception):
    """More positions were tried than the caller allows."""


def solve(size: int, board: Sequence[int], limit: int = 2, tries: int | None = None) -> list[list[int]]:
    """Up to ``limit`` solutions of ``board``; none when its numbers contradict each other.

    Errors: SearchLimitError after ``tries`` positions; a tenth of a millisecond each.
    """
    game, found = rules(size), []
    allowed = None if tries is None else iter(range(tries))
    for solved in _search(game, game.start(board), None, allowed):
        found.append(game.numbers(solved))
        if len(found) == limit:
            break
    return found


def is_possible(game: Rules, possible: int) -> bool:
    """Whether a solution can be made of the literals ``possible``."""
    return next(_search(game, possible, None), None) is not None


def is_forced(game: Rules, possible: int, cell: int, number: int) -> bool:
    """Whether one constraint of ``cell`` alone says that it holds ``number``: a quick and partial test."""
    literal = game.literal(cell, number)
    return any(possible & constraint == literal for constraint in game.constraints[literal])


def random_board(size: int, rng: random.Random) -> list[int]:
    """A complete board by search in random order: every board can come, not all equally often."""
    game = rules(size)
    return game.numbers(next(_search(game, game.everything, rng)))


def all_boards(size: int) -> list[list[int]]:
    """Every complete board in the order of their numbers; for size 4 only, which has 288."""
    if size != 4:
        raise ValueError(f"size is {size}, and only the boards of size 4 can be listed")
    return sorted(solve(size, [0] * size**2, limit=1000))


def shuffled(items: Sequence[int], rng: random.Random) -> list[int]:
    """In random order, by rng.random() alone: the one stream that Python promises to keep as it is."""
    return sorted(items, key=lambda _: rng.random())


def _search(
    game: Rules, possible: int, rng: random.Random | None, allowed: Iterator[int] | None = None
) -> Iterator[int]:
    """Every solution within ``possible``; ``rng`` shuffles the order, ``allowed`` is used up by the tries."""
    if allowed is not None and next(allowed, None) is None:
        raise SearchLimitError
    possible = _propagate(game, possible)
    if not possible:
        return
    cell = _fewest(game, possible, rng)
    if cell is None:
        yield possible
        return
    literals = list(_bits(possible & game.of_cell[cell]))
    if rng is not None:
        literals = shuffled(literals, rng)
    for literal in literals:
        yield from _search(game, possible & game.keep[literal], rng, allowed)


def _propagate(game: Rules, possible: int) -> int:
    """Set what is forced until nothing more is; 0 for a contradiction."""
    settled = 0  # forced literals whose rivals are gone
    while True:
        forced = 0
        for kind in game.kinds:
            once, twice = kind.counts(possible)
            if once != kind.bases:
                return 0
            if once != twice:
                forced |= kind.literals(once ^ twice) & possible
        forced &= ~settled
        if not forced:
            return possible
        for literal in _bits(forced):
            possible &= game.keep[literal]
        settled |= forced


def _fewest(game: Rules, possible: int, rng: random.Random | None) -> int | None:
    """The open cell with fewest literals, None when none is open; a random one of several with ``rng``."""
    counts = [(possible & literals).bit_count() for literals in game.of_cell]
    fewest = min((count for count in counts if count > 1), default=0)
    if not fewest:
        return None
    if rng is None:
        return counts.index(fewest)
    cells = [cell for cell, count in enumerate(counts) if count == fewest]
    return cells[int(rng.random() * len(cells))]


def _bits(value: int) -> Iterator[int]:
    while value:
        bit = value & -value
        yield bit
        value ^= bit
