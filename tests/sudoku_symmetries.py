"""Symmetries of boards, written apart from the code under test."""

import itertools

import numpy as np


def every_symmetry_of_size_4(board):
    """All 2 * 8 * 8 rearrangements of a 4x4 board, numbers as they are."""
    pairs = [[0, 1], [1, 0]]
    orders = [
        [2 * band + line for band, lines in zip(bands, inner, strict=True) for line in lines]
        for bands in pairs
        for inner in itertools.product(pairs, repeat=2)
    ]
    square = np.reshape(board, (4, 4))
    return [one[np.ix_(rows, columns)] for one in (square, square.T) for rows in orders for columns in orders]


def renamed(board):
    """Numbers in the order of their first appearance."""
    flat = np.ravel(board).tolist()
    names = {number: place for place, number in enumerate(dict.fromkeys(flat), start=1)}
    return [names[number] for number in flat]


def random_symmetry(board, rng, names=True):
    """A random member of the board's class; without ``names``, its numbers are as they were."""
    size = int(np.sqrt(len(board)))
    side = int(np.sqrt(size))

    def order():
        return np.concatenate([side * band + rng.permutation(side) for band in rng.permutation(side)])

    square = np.reshape(board, (size, size))[np.ix_(order(), order())]
    square = square.T if rng.random() < 0.5 else square
    return ((rng.permutation(size) + 1)[square - 1] if names else square).ravel()
