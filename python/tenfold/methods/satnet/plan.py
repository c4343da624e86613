"""The cells of docs/plans/satnet.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tenfold.engine.config import config_hash
from tenfold.methods.satnet.config import DataConfig, LayerConfig, SATNetConfig, paper

Kind = Literal["run", "mapping", "grounding", "gradient"]

MAPPING_SEEDS = 10
MAPPING_STEPS = 800
MAPPING_BATCH = 100
MAPPING_TEST = 2000  # pictures of the test split
GRADIENTS: tuple[Literal["correct", "official"], ...] = ("correct", "official")
PARITY_ARMS: dict[str, tuple[int, Literal["sgd", "adam"], int]] = {
    "parity20": (20, "sgd", 3), "parity40": (40, "sgd", 3),
    "parity20-adam": (20, "adam", 10), "parity40-adam": (40, "adam", 10),
}  # fmt: skip
"""Bits of a string, optimiser and number of seeds."""
BOARD_TASKS: tuple[Literal["sudoku", "permuted"], ...] = ("sudoku", "permuted")
ANCHORS = ("naive", "tuned")
LINEAR = "linear"


@dataclass(frozen=True)
class Cell:
    """One result file of the plan."""

    arm: str
    """Name of the arm in the plan."""
    config: SATNetConfig
    """Its configuration, seed included."""
    kind: Kind = "run"
    """What is run: a training run, a short one in memory, the clustering route, or the gradient figure."""
    seconds: float = 60.0
    """About how long it takes on one thread."""

    @property
    def name(self) -> str:
        """File name of the result: arm, seed and a hash of everything that determines it."""
        return f"{self.arm}-seed{self.config.seed}-{config_hash(self.config)}"


def plan_cells() -> Iterator[Cell]:
    """Every cell of the plan, the short ones first; neighbours run side by side."""
    yield from gradient_cells()
    yield from parity_cells()
    yield from mapping_cells(range(MAPPING_SEEDS))
    yield from board_cells()
    yield from visual_cells()
    yield from grounding_cells()
    yield from harder_board_cells()


def laptop_cells() -> Iterator[Cell]:
    """The primary contrast at the tuned anchor with three seeds, and the short experiments."""
    yield from gradient_cells()
    yield Cell("sudoku4", small_boards(), seconds=20)
    yield next(cell for cell in parity_cells() if cell.config.optimizer == "adam")
    for cell in mapping_cells(range(3)):
        if cell.arm in ("tuned-correct", "tuned-official", LINEAR):
            yield cell


def gradient_cells() -> Iterator[Cell]:
    """The gradient figure, for three random problems; their configuration is its seed."""
    for seed in range(3):
        yield Cell("gradient", SATNetConfig(seed=seed), "gradient", seconds=30)


def small_boards() -> SATNetConfig:
    """4x4 Sudoku as the laptop preset was when the plan was written."""
    data = DataConfig(train=2000, test=400, size=4, givens=(5, 8), mean_givens=6.5)
    return SATNetConfig("sudoku4", LayerConfig(m=80, aux=32), data, lr=1e-2, epochs=6)


def parity_cells() -> Iterator[Cell]:
    """Both lengths: published settings with three seeds, then Adam at the same rate with ten."""
    for arm, (length, optimizer, seeds) in PARITY_ARMS.items():
        base = replace(paper("parity"), optimizer=optimizer, shuffle=True)
        for seed in range(seeds):
            config = replace(base, data=replace(base.data, length=length), seed=seed)
            yield Cell(arm, config, seconds=length * 2)


def board_cells() -> Iterator[Cell]:
    """9x9 and permuted Sudoku at the published setting, an hour of one core each, side by side."""
    for task in BOARD_TASKS:
        yield Cell(f"{task}-singles", replace(paper(task), shuffle=True, minutes=45.0), seconds=3000)


def harder_board_cells() -> Iterator[Cell]:
    """The same with puzzles that have one solution, but not by one simple step after the other."""
    for task in BOARD_TASKS:
        config = replace(paper(task), data=DataConfig(), shuffle=True, minutes=45.0)
        yield Cell(task, config, seconds=3000)


def visual_cells() -> Iterator[Cell]:
    """Visual Sudoku with the labels of given cells in the loss and without, two seeds side by side."""
    for seed in (0, 1):
        config = replace(paper("visual"), shuffle=True, seed=seed, minutes=45.0)
        yield Cell("visual-leaky", config, seconds=3000)
    for seed in (0, 1):
        config = replace(paper("visual-ungrounded"), shuffle=True, seed=seed, minutes=22.0, patience=3)
        yield Cell("visual-ungrounded", config, seconds=1500)
    for seed in (0, 1):
        config = replace(paper("visual-ungrounded"), shuffle=True, seed=seed, minutes=22.0, patience=3)
        config = replace(config, output="sigmoid", backbone_lr=3e-4)
        yield Cell("visual-ungrounded-tuned", config, seconds=1500)


def grounding_cells() -> Iterator[Cell]:
    """The self-supervised route, two seeds side by side."""
    for seed in (0, 1):
        config = replace(paper("visual-ungrounded"), shuffle=True, seed=seed, minutes=20.0)
        yield Cell("self-supervised", replace(config, proofreader=True), "grounding", seconds=3000)


def mapping_cells(seeds: range) -> Iterator[Cell]:
    """Every setting of the mapping test with both gradients, and the linear control."""
    for name, config in mapping_settings().items():
        for gradient in GRADIENTS:
            for seed in seeds:
                layer = replace(config.layer, gradient=gradient)
                yield Cell(
                    f"{name}-{gradient}", replace(config, layer=layer, seed=seed), "mapping", seconds=28
                )
    for seed in seeds:
        control = replace(mapping_settings()["tuned"], head="linear", seed=seed)
        yield Cell(LINEAR, control, "mapping", seconds=25)


def mapping_settings() -> dict[str, SATNetConfig]:
    """Two anchors and changes of one factor from each.

    `naive` has the settings of the released visual Sudoku, its clauses and auxiliary variables in
    proportion to 20 variables instead of 729.
    """
    data = DataConfig(train=MAPPING_STEPS * MAPPING_BATCH, test=MAPPING_TEST)
    naive = SATNetConfig(
        "mapping", LayerConfig(m=16, aux=8), data, output="softmax", lr=2e-3, backbone_lr=1e-5,
        loss_mask="unknown", batch=MAPPING_BATCH, epochs=1,
    )  # fmt: skip
    tuned = replace(naive, layer=LayerConfig(m=32, aux=4), output="sigmoid", lr=5e-2, backbone_lr=3e-4)
    settings = {}
    for anchor, config in (("naive", naive), ("tuned", tuned)):
        settings[anchor] = config
        output: Literal["softmax", "sigmoid"] = "sigmoid" if anchor == "naive" else "softmax"
        rate = 3e-4 if anchor == "naive" else 1e-5
        settings |= {
            f"{anchor}-aux0": replace(config, layer=replace(config.layer, aux=0)),
            f"{anchor}-aux100": replace(config, layer=replace(config.layer, aux=100)),
            f"{anchor}-m200": replace(config, layer=replace(config.layer, m=200)),
            f"{anchor}-sgd": replace(config, optimizer="sgd", lr=1e-1, backbone_lr=1e-2),
            f"{anchor}-rate{rate:g}": replace(config, backbone_lr=rate),
            f"{anchor}-{output}": replace(config, output=output),
        }
    return settings
