"""The problems of a run: made from its seeds and kept in the cache, or read from the user's files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.data import mnist
from tenfold.data.cache import cache_folder, make_folder, one_at_a_time
from tenfold.data.mapping import SYMBOLS, mapping
from tenfold.data.parity import parity
from tenfold.data.sudoku import (
    Puzzles,
    Sudoku,
    SudokuSettings,
    bit_permutation,
    is_input,
    load,
    one_hot,
    prepare_file,
)
from tenfold.data.sudoku import prepare as prepare_sudoku
from tenfold.data.sudoku.generator import VERSION
from tenfold.data.visual_sudoku import visual_sudoku
from tenfold.engine.atomic import remove_leftovers
from tenfold.engine.config import config_hash
from tenfold.engine.schedule import generator
from tenfold.errors import UserError
from tenfold.methods.satnet.config import SATNetConfig
from tenfold.methods.satnet.problems import Problems, Split

MNIST = "mnist"
_LABELS = 20  # purpose of the random stream that chooses which labels are given
_SLOW = 1000  # puzzles; more take longer than some seconds to make
_PUZZLE_SECONDS = 0.011  # of one processor, for a puzzle of size 9

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
    """Problems of the cells that puzzles leave unknown: a share of them given, the others asked for."""
    unknown = torch.from_numpy(puzzles.puzzles == 0)
    size = split.z.shape[1] // unknown.shape[1]
    place = torch.rand(unknown.shape, generator=generator(seed, _LABELS)).masked_fill(~unknown, 2.0)
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
        deduction=data.deduction,
    )
    apart = "solution grid" if data.size == 4 else "symmetry class of solutions"
    source = (
        f"generated puzzles with one solution (by {data.deduction}), {data.givens[0]} to {data.givens[1]} "
        f"givens, mean {data.mean_givens:g}; no {apart} is in both splits"
    )
    return _generated(settings, say), source


def _generated(settings: SudokuSettings, say: Say) -> Sudoku:
    """The puzzles of `settings`, made at most once."""
    count = settings.train + settings.test
    many = settings.size == 9 and count >= _SLOW

    def make(folder: Path) -> None:
        if many:
            say(f"making {count} puzzles, once: about {count * _PUZZLE_SECONDS / _processes():.0f} s")
        prepare_sudoku(folder, settings, _processes() if many else 1)

    return load(_kept(f"v{VERSION}-{config_hash(settings)}", make))


def _kept(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of this name in the cache; one process makes it, and others that want it wait."""
    cache = make_folder(cache_folder() / "sudoku")
    folder = cache / name
    if not folder.exists():
        with one_at_a_time(cache):
            if not folder.exists():
                remove_leftovers(cache)
                make(folder)
    return folder


def _processes() -> int:
    return os.cpu_count() or 1


def _own_boards(config: SATNetConfig) -> Sudoku:
    """The user's puzzles: a folder of `tenfold data sudoku`, or a file, split and kept in the cache."""
    path = Path(config.data.puzzles)
    folder = path
    if not path.is_dir():
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); see --puzzles") from error
        folder = _kept(f"own-{digest}", lambda made: prepare_file(made, path))
    boards = load(folder)
    cells = boards.train.puzzles.shape[1]
    if cells != config.data.size**2:
        raise UserError(
            f"{path}: puzzles of {cells} cells, wanted {config.data.size**2}; see --task and --size"
        )
    if not len(boards.test):
        raise UserError(f"{path}: no puzzle is left to test on that is unlike those trained on; add others")
    return boards


def _digits(config: SATNetConfig) -> mnist.Digits:
    return mnist.load(None if config.data.digits == MNIST else Path(config.data.digits))


def _visual(config: SATNetConfig, boards: Sudoku, source: str) -> Problems:
    """Boards whose given cells are pictures; training puzzles show training pictures, test puzzles others."""
    digits = _digits(config)
    drawn = visual_sudoku(boards, digits, config.data.puzzle_seed)

    def split(puzzles: Puzzles, rows: NDArray[np.int32], images: NDArray[np.uint8]) -> Split:
        numbers = _numbers(puzzles, None)
        pictures = torch.from_numpy(rows.astype(np.int64))
        return replace(
            numbers, z=torch.zeros_like(numbers.z), pictures=pictures, digits=torch.from_numpy(images)
        )

    train = split(boards.train, drawn.train_rows, digits.train_images)
    test = split(boards.test, drawn.test_rows, digits.test_images)
    return Problems(train, test, source=f"{source}; given cells are pictures, other ones in the test")


def _mapping(config: SATNetConfig) -> Problems:
    """One picture and the symbol that its digit stands for: the first bits are inputs, the others outputs."""
    found = mapping(_digits(config), config.data.puzzle_seed)

    def split(images: NDArray[np.uint8], symbols: NDArray[np.float32], count: int) -> Split:
        chosen, count = torch.from_numpy(symbols[:count]), min(count, len(symbols))
        label = torch.cat([torch.zeros(count, SYMBOLS), chosen], dim=1)
        is_given = (torch.arange(2 * SYMBOLS) < SYMBOLS).expand(count, -1)
        pictures = torch.arange(count)[:, None]
        return Split(torch.zeros_like(label), is_given, label, pictures, torch.from_numpy(images[:count]))

    train = split(found.train_images, found.train_labels, config.data.train)
    test = split(found.test_images, found.test_labels, config.data.test)
    return Problems(train, test, source="pictures of digits, each digit standing for another symbol")
