"""The problems of a run: made from its seeds and kept in the cache, or read from the user's files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.data.cache import cache_folder, make_folder
from tenfold.data.parity import parity
from tenfold.data.sudoku import (
    Puzzles,
    Sudoku,
    SudokuSettings,
    bit_permutation,
    canonical,
    generate,
    is_input,
    one_hot,
    read_puzzles,
)
from tenfold.data.sudoku.generator import VERSION
from tenfold.engine.atomic import atomic_write
from tenfold.engine.config import config_hash
from tenfold.engine.schedule import generator
from tenfold.errors import UserError
from tenfold.methods.satnet.config import SATNetConfig
from tenfold.methods.satnet.problems import Problems, Split

MNIST = "mnist"
TEST_SHARE = 0.1  # of a user's puzzles
_LABELS = 20  # purpose of the random stream that chooses which labels are given
_SLOW = 1000  # puzzles; more take longer than a second or two to make

Say = Callable[[str], None]


def _quiet(text: str) -> None:
    pass


def prepare(config: SATNetConfig, say: Say = _quiet) -> Problems:
    """Make or read the problems of `config`; UserError names the file or option that does not fit."""
    if config.task == "parity":
        return _parity(config)
    if config.task == "mapping":
        return _mapping(config)
    boards, source = _boards(config, say)
    if config.task in ("visual", "visual-ungrounded"):
        return _visual(config, boards, source)
    order, share = bit_order(config), config.data.from_labels
    train, test = (_numbers(puzzles, order) for puzzles in (boards.train, boards.test))
    if share:
        train = _of_labels(train, boards.train, share, order, config.data.puzzle_seed)
    return Problems(train, test, order, source)


def anchored(config: SATNetConfig) -> SATNetConfig:
    """Return the config with the user's files as absolute paths: a run is opened from anywhere."""
    data = config.data
    if data.puzzles:
        data = replace(data, puzzles=str(Path(data.puzzles).absolute()))
    if data.digits != MNIST:
        data = replace(data, digits=str(Path(data.digits).absolute()))
    initial = str(Path(config.initial).absolute()) if config.initial else ""
    return replace(config, data=data, initial=initial)


def bit_order(config: SATNetConfig) -> Tensor | None:
    """Of permuted Sudoku: bit `i` of a permuted board is bit `order[i]` of the board."""
    if config.task != "permuted":
        return None
    return torch.from_numpy(bit_permutation(config.data.size, config.data.puzzle_seed))


def _numbers(puzzles: Puzzles, order: Tensor | None) -> Split:
    z, given, label = (
        torch.from_numpy(part)
        for part in (
            one_hot(puzzles.puzzles),
            is_input(puzzles.puzzles),
            one_hot(puzzles.solutions),
        )
    )
    if order is not None:
        z, given, label = z[:, order], given[:, order], label[:, order]
    return Split(z, given, label)


def _parity(config: SATNetConfig) -> Problems:
    data = config.data
    found = parity(data.length, data.train, data.test, data.puzzle_seed)

    def split(bits: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Split:
        label = torch.from_numpy(labels[:, -1:].astype(np.float32))
        return Split(torch.from_numpy(bits.astype(np.float32)), torch.zeros_like(label).bool(), label)

    train, test = split(found.train_bits, found.train_labels), split(found.test_bits, found.test_labels)
    return Problems(train, test, source=f"random strings of {data.length} bits, all different")


def _of_labels(split: Split, puzzles: Puzzles, share: float, order: Tensor | None, seed: int) -> Split:
    """Problems of the cells that puzzles leave unknown: a share of them given, the others inputs for."""
    unknown = torch.from_numpy(puzzles.puzzles == 0)
    size = split.z.shape[1] // unknown.shape[1]
    place = torch.rand(unknown.shape, generator=generator(seed, _LABELS)).minputs_fill(~unknown, 2.0)
    given = place.argsort(dim=1).argsort(dim=1) < (share * unknown.sum(dim=1, keepdim=True)).round()

    def bits(cells: Tensor) -> Tensor:
        spread = cells.repeat_interleave(size, dim=1)
        return spread if order is None else spread[:, order]

    inputs = bits(given)
    return Split(split.label * inputs, inputs, split.label, shown=bits(unknown))


def _boards(config: SATNetConfig, say: Say) -> tuple[Sudoku, str]:
    data = config.data
    if data.puzzles:
        return _own_boards(config), f"puzzles of {data.puzzles}"
    settings = SudokuSettings(
        size=data.size,
        train=data.train,
        test=data.test,
        seed=data.puzzle_seed,
        givens=data.givens,
        mean_givens=data.mean_givens,
        split="grid" if data.size == 4 else "class",
    )
    apart = "solution grid" if data.size == 4 else "symmetry class of solutions"
    source = (
        f"generated puzzles with one solution, {data.givens[0]} to {data.givens[1]} givens, mean "
        f"{data.mean_givens:g}; no {apart} is in both splits"
    )
    return _cached(settings, say), source


def _cached(settings: SudokuSettings, say: Say) -> Sudoku:
    """The puzzles of `settings`, made at most once."""
    path = cache_folder() / "sudoku" / f"v{VERSION}-{config_hash(settings)}.npy"
    wanted = (settings.train + settings.test, 2, settings.size**2)
    if path.exists():
        kept = np.load(path, allow_pickle=False)
        if kept.shape != wanted or kept.dtype != np.uint8:
            raise UserError(f"{path}: is no file of {wanted[0]} puzzles; delete it, and it is made again")
    else:
        if wanted[0] >= _SLOW and settings.size == 9:
            say(f"making {wanted[0]} puzzles, once: about {wanted[0] * 0.011 / _processes():.0f} s")
        made = generate(settings, _processes() if settings.size == 9 else 1)
        kept = np.stack(
            [np.concatenate([getattr(part, name) for part in (made.train, made.test)])
             for name in ("puzzles", "solutions")],
            axis=1,
        )  # fmt: skip
        make_folder(path.parent)
        with atomic_write(path, "wb") as sink:
            np.save(sink, kept, allow_pickle=False)
    parts = kept[: settings.train], kept[settings.train :]
    train, test = (Puzzles(*(np.ascontiguousarray(part[:, side]) for side in (0, 1))) for part in parts)
    return Sudoku(train, test)


def _processes() -> int:
    return os.cpu_count() or 1


def _own_boards(config: SATNetConfig) -> Sudoku:
    """The user's puzzles, the last ones for the test, unless training has their solution."""
    path = config.data.puzzles
    everything = read_puzzles(Path(path))
    if everything.puzzles.shape[1] != config.data.size**2:
        raise UserError(
            f"{path}: puzzles of {everything.puzzles.shape[1]} cells, wanted {config.data.size**2}; "
            "see --task and --size"
        )
    count = min(config.data.test, max(1, round(TEST_SHARE * len(everything))))
    known = everything.solutions if config.data.size == 4 else canonical(everything.solutions)
    classes = [bytes(board) for board in known]
    first = set(classes[: len(everything) - count])
    is_test = np.array([at >= len(classes) - count and one not in first for at, one in enumerate(classes)])
    if not is_test.any() or is_test.all():
        raise UserError(
            f"{path}: no puzzle is left to test on whose solution differs from those trained on; add others"
        )
    train, test = (
        Puzzles(everything.puzzles[rows], everything.solutions[rows])
        for rows in (np.flatnonzero(~is_test)[: config.data.train], np.flatnonzero(is_test))
    )
    return Sudoku(train, test)
