"""The symmetry class of a complete board, by the least board of its class.

Two boards are of one class when renaming the numbers, reordering bands, stacks, rows within a band and
columns within a stack, and transposition turn one into the other: 2 * 6**8 * 9! symmetries for size 9. The
least board's first line is 1, 2, 3, ..., so that of all symmetries only those are tried that can make the
second line least: which they are depends on two lines of a band alone, and is looked up.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenfold.data.sudoku.board import box_side, is_valid, size_of

_CHUNK = 1000  # boards at a time: a board has some hundred candidates of size * size bytes


def canonical(boards: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The least board of each board's class: (N, size * size) in, the same out.

    Errors: ValueError for a board that is not complete and valid.
    """
    size = size_of(boards)
    if not (valid := is_valid(boards)).all():
        raise ValueError(f"boards[{int(np.argmin(valid))}] is not a complete and valid board")
    parts = [_least(boards[at : at + _CHUNK], size) for at in range(0, len(boards), _CHUNK)]
    return np.concatenate(parts) if parts else np.empty((0, size * size), np.uint8)


def count_classes(boards: NDArray[np.integer]) -> int:
    """Into how many symmetry classes complete boards fall."""
    return len(set(map(bytes, canonical(boards))))


@dataclass(frozen=True)
class _SecondLines:
    """What a second line can be, seen as the permutation: column -> column of the first line with its number.

    Reordering the columns conjugates it. A second line has a place in the order of all: ``least[place]`` is
    the place of the least line that it can be made, by the reorderings ``order[start[place] : stop[place]]``
    (new column -> old).
    """

    codes: NDArray[np.int64]  # of the second lines, in order
    least: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    order: NDArray[np.int64]

    def place(self, lines: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the order of all second lines ``lines`` (..., size) are."""
        return np.searchsorted(self.codes, _code(lines))


@functools.cache
def _second_lines(size: int) -> _SecondLines:
    orders = _column_orders(size)
    back = np.argsort(orders, axis=1)
    lines = np.array(list(itertools.permutations(range(size))))
    lines = lines[(lines // box_side(size) != np.arange(size) // box_side(size)).all(axis=1)]
    codes = _code(lines)
    least, start, stop = (np.full(len(lines), -1, np.int64) for _ in range(3))
    found: list[NDArray[np.int64]] = []
    used = 0
    for line in range(len(lines)):  # in order, so that one that is not reached yet is the least of its kind
        if least[line] >= 0:
            continue
        # New column k shows old column o = orders[k], whose number stands in the first line at old line[o].
        images = np.take_along_axis(back, lines[line][orders], axis=1)
        places = np.searchsorted(codes, _code(images))
        for image in np.unique(places):
            ways = back[places == image]  # the other way: what makes the least line of the image
            found.append(ways)
            least[image], start[image], stop[image] = line, used, used + len(ways)
            used += len(ways)
    return _SecondLines(codes, least, start, stop, np.concatenate(found))


def _code(lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each permutation, in lexicographic order; the last entry follows from the others."""
    size = lines.shape[-1]
    code: NDArray[np.int64] = lines[..., :-1] @ size ** np.arange(size - 2, -1, -1)
    return code


@functools.cache
def _column_orders(size: int) -> NDArray[np.int64]:
    """Every reordering of stacks and of the columns within them: (1296, 9) or (8, 4), new column -> old."""
    side = box_side(size)
    within = list(itertools.permutations(range(side)))
    return np.array(
        [
            [stack * side + column for stack, inner in zip(stacks, inners, strict=True) for column in inner]
            for stacks in within
            for inners in itertools.product(within, repeat=side)
        ]
    )


def _line_orders(size: int) -> NDArray[np.int64]:
    """Each choice of first and second line, with the rest of their band behind them, then the other bands."""
    side, lines = box_side(size), range(size)
    found = []
    for first, second in itertools.permutations(lines, 2):
        if first // side == second // side:
            band = [line for line in lines if line // side == first // side and line not in (first, second)]
            rest = [line for line in lines if line // side != first // side]
            found.append([first, second, *band, *rest])
    return np.array(found)


def _least(boards: NDArray[np.integer], size: int) -> NDArray[np.uint8]:
    table, line_orders = _second_lines(size), _line_orders(size)
    square = boards.reshape(-1, size, size).astype(np.int64) - 1
    both = np.stack([square, square.swapaxes(1, 2)], axis=1)
    turned = both[:, :, line_orders].reshape(len(boards), -1, size, size)  # (N, ways, size, size)
    column_of = np.argsort(turned[:, :, 0], axis=2)  # number -> its column in the first line
    place = table.place(np.take_along_axis(column_of, turned[:, :, 1], axis=2))
    least = table.least[place]
    board, way = np.nonzero(least == least.min(axis=1, keepdims=True))
    start, stop = table.start[place[board, way]], table.stop[place[board, way]]
    times = stop - start
    which = np.repeat(np.arange(len(times)), times)  # a candidate's row in board and way
    order = table.order[np.arange(times.sum()) - np.repeat(np.cumsum(times) - times - start, times)]
    candidates = np.take_along_axis(turned[board[which], way[which]], order[:, None, :], axis=2)
    names = np.argsort(candidates[:, 0], axis=1) + 1  # old number -> new
    named = np.take_along_axis(names[:, None, :], candidates, axis=2).astype(np.uint8)
    sorted_lines = _sort_lines(named, size).reshape(len(which), size * size)
    return _first_of_each(sorted_lines, board[which])


def _sort_lines(boards: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Put the third line and the other bands into the least order; lines begin with different numbers."""
    side = box_side(size)
    order = np.tile(np.arange(size), (len(boards), 1))
    start = boards[:, :, 0].astype(np.int64)
    for band in range(side):
        lines = slice(2 if band == 0 else band * side, (band + 1) * side)
        inner = np.argsort(start[:, lines], axis=1)
        order[:, lines] = np.take_along_axis(order[:, lines], inner, axis=1)
    start = np.take_along_axis(start, order, axis=1)
    bands = np.argsort(start[:, side::side], axis=1) + 1
    bands = np.concatenate([np.zeros((len(boards), 1), np.int64), bands], axis=1)
    order = np.take_along_axis(order.reshape(-1, side, side), bands[:, :, None], axis=1).reshape(-1, size)
    return np.take_along_axis(boards, order[:, :, None], axis=1)


def _first_of_each(candidates: NDArray[np.uint8], owner: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The least row of each owner; owners are 0, 1, 2, ... in order."""
    text = np.ascontiguousarray(candidates).view(f"S{candidates.shape[1]}")[:, 0]  # no entry is 0
    order = np.lexsort((text, owner))
    _, first = np.unique(owner[order], return_index=True)
    return candidates[order[first]]
