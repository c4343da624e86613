"""`tenfold sample satnet`: complete the puzzles of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold.data.sudoku import Puzzles, decode, is_input, is_valid, one_hot, read_puzzles
from tenfold.data.sudoku.board import box_side
from tenfold.engine import checkpoint
from tenfold.engine.options import parse
from tenfold.engine.run import RunDirectory
from tenfold.errors import UserError
from tenfold.methods.satnet.config import READING_TASKS, SATNetConfig
from tenfold.methods.satnet.data import bit_order
from tenfold.methods.satnet.model import sweeps_of
from tenfold.methods.satnet.run import read_config
from tenfold.methods.satnet.step import TrainingState


@dataclass(frozen=True)
class SampleOptions:
    """Complete each puzzle of a file with the rules that a run has learnt."""

    run: Path
    """The run directory."""
    puzzles: Path
    """A file with a puzzle on each line: 81 characters (16 for 4x4 boards), 0 or . for a blank."""
    seed: int = 0
    """Seed of the solver's random vectors; a board that comes out wrong may come out right with another."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be drawn."""
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must be from 0 to below 2**63, got {self.seed}")


def main(argv: list[str]) -> int:
    """Run `tenfold sample satnet`."""
    options = parse(SampleOptions, argv, "tenfold sample satnet")
    run = RunDirectory.open(options.run)
    config, _ = read_config(run)
    if config.task not in READING_TASKS:
        raise UserError(
            f"{options.run} was trained on {config.task}; sample wants a run of {', '.join(READING_TASKS)}"
        )
    puzzles = read_puzzles(options.puzzles)
    cells = config.data.size**2
    if puzzles.puzzles.shape[1] != cells:
        raise UserError(
            f"{options.puzzles}: puzzles of {puzzles.puzzles.shape[1]} cells, but {options.run} was trained "
            f"on boards of {cells}"
        )
    full = np.flatnonzero((puzzles.puzzles != 0).all(axis=1))
    if len(full):
        raise UserError(
            f"{options.puzzles}: puzzle {full[0] + 1} has no blank cell; there is nothing to solve"
        )
    boards, iterations = solve(run, config, puzzles.puzzles, options.seed)
    _show(puzzles, boards, iterations)
    return 0


def solve(
    run: RunDirectory, config: SATNetConfig, puzzles: NDArray[np.uint8], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Boards (N, cells) that the newest weights of a run make of puzzles, and the solver's sweeps (N)."""
    newest = checkpoint.latest(run.checkpoints)
    if newest is None:
        raise UserError(f"{run.path} has no checkpoint yet; train it first")
    layer = TrainingState.load(config, newest).model.layer
    assert layer is not None
    layer.eval()
    layer.eval_seed = seed
    order = bit_order(config)
    z, given = torch.from_numpy(one_hot(puzzles)), torch.from_numpy(is_input(puzzles))
    if order is not None:
        z, given = z[:, order], given[:, order]
    with torch.no_grad():
        out = layer(z, given)
    bits = out if order is None else out[:, torch.argsort(order)]
    return decode(bits.numpy()), sweeps_of(layer).numpy()


def _show(puzzles: Puzzles, boards: NDArray[np.uint8], iterations: NDArray[np.int64]) -> None:
    for board, solution, sweeps, valid in zip(
        boards, puzzles.solutions, iterations, is_valid(boards), strict=True
    ):
        right = int((board == solution).sum())
        print(_lines(board))
        verdict = "valid" if valid else "NOT valid"
        print(f"{verdict}, {right} of {len(board)} cells right, {sweeps} iterations\n")


def _lines(board: NDArray[np.uint8]) -> str:
    """The board with its boxes set apart."""
    size = int(len(board) ** 0.5)
    side = box_side(size)
    rows = []
    for index, row in enumerate(board.reshape(size, size).tolist()):
        if index and index % side == 0:
            rows.append("")
        parts = [" ".join(map(str, row[at : at + side])) for at in range(0, size, side)]
        rows.append("  ".join(parts))
    return "\n".join(rows)
