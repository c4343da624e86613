"""The configuration of a SATNet run and its presets for each task."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from tenfold.data.sudoku.generator import GIVENS_OF_SINGLES, Deduction
from tenfold.engine.config import added

Task = Literal["sudoku4", "sudoku", "permuted", "visual", "visual-ungrounded", "parity", "mapping"]
TASKS: tuple[Task, ...] = get_args(Task)
BOARD_TASKS = ("sudoku4", "sudoku", "permuted", "visual", "visual-ungrounded")
READING_TASKS = ("sudoku4", "sudoku", "permuted")  # boards given as numbers
SEEING_TASKS = ("visual", "visual-ungrounded", "mapping")  # those with a network that reads pictures
PUBLISHED_K = 32
LARGEST_BATCH = 2**16


@dataclass(frozen=True)
class LayerConfig:
    """The SATNet layer."""

    m: int = 600
    """Number of clauses: the rank of the learnt matrix."""
    aux: int = 300
    """Auxiliary variables, which are neither given nor returned."""
    k: int | None = PUBLISHED_K
    """Width of the relaxation's unit vectors: 32 as in the published code; none takes the theory's bound."""
    max_iter: int = 40
    """Largest number of sweeps of the solver."""
    eps: float = 1e-4
    """A sample stops when a sweep improves it by less than this share of the first one."""
    prox_lam: float = 1e-2
    """Damping of the backward solve; smaller is more exact."""
    gradient: Literal["correct", "official"] = "correct"
    """Gradient to the layer's inputs: correct, or official as in the published code, wrong as it is."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be solved with."""
        if self.m < 1:
            raise ValueError(f"m: wanted at least 1, got {self.m}")
        if self.aux < 0:
            raise ValueError(f"aux: wanted 0 or more, got {self.aux}")
        if self.k is not None and self.k < 2:
            raise ValueError(f"k: wanted at least 2, or none for the bound, got {self.k}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter: wanted at least 1, got {self.max_iter}")
        if self.eps < 0:
            raise ValueError(f"eps: wanted 0 or more, got {self.eps}")
        if self.prox_lam <= 0:
            raise ValueError(f"prox_lam: wanted a positive number, got {self.prox_lam}")


@dataclass(frozen=True)
class DataConfig:
    """The problems."""

    train: int = 9000
    """Problems to train on."""
    test: int = 1000
    """Problems to test on, of other solution grids, digits and bit strings."""
    size: Literal[4, 9] = 9
    """Side of the board, of the visual tasks and permuted Sudoku; sudoku4 has 4, sudoku has 9."""
    givens: tuple[int, int] = (24, 40)
    """Fewest and most given cells of a puzzle."""
    mean_givens: float = 36.2
    """Mean of the number of given cells; 36.2 is that of the published puzzles."""
    puzzle_seed: int = 0
    """Seed of the puzzles, bit strings and choice of digits, so that runs of several seeds share them."""
    puzzles: str = ""
    """Puzzles to take instead of generating them: a folder that `tenfold data sudoku` made, or a file (81 or
    16 characters a line, 0 or . for blank), of which up to a tenth is the test."""
    from_labels: float = 0.0
    """Train on the cells alone that puzzles leave unknown: give this share of them, ask for the others, and
    show nothing of the given cells; 0 takes puzzles as they are."""
    length: int = 20
    """Bits of a parity problem."""
    deduction: Deduction = added("search")  # noqa: RUF009
    """`singles`: puzzles as the published ones, whose blanks follow one by one, each the only place for its
    number in its row, column or box; `search`: any with one solution, which take more steps."""
    digits: str = "mnist"
    """`mnist`, or a folder with the four IDX files of digits like MNIST's."""

    def __post_init__(self) -> None:
        """Refuse values that no data has."""
        for name, least in (("train", 1), ("test", 1), ("length", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: wanted at least {least}, got {getattr(self, name)}")
        low, high = self.givens
        if not 1 <= low <= high <= self.size**2 - 1:
            wanted = f"two counts from 1 to {self.size**2 - 1}, the smaller first"
            raise ValueError(f"givens: wanted {wanted}, got {low} {high}")
        if not low <= self.mean_givens <= high:
            raise ValueError(f"mean_givens: wanted {low} to {high}, got {self.mean_givens}")
        if not 0 <= self.from_labels < 1:
            raise ValueError(f"from_labels: wanted 0 to below 1, got {self.from_labels}")
        if self.puzzle_seed < 0:
            raise ValueError(f"puzzle_seed: wanted 0 or more, got {self.puzzle_seed}")


@dataclass(frozen=True)
class SATNetConfig:
    """What a run is: with the data, it determines every weight."""

    task: Task = "sudoku"
    """What to learn; it chooses the defaults of the other options."""
    layer: LayerConfig = field(default_factory=LayerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    head: Literal["satnet", "linear"] = "satnet"
    """What follows the network that reads pictures; linear, of the mapping test only, is its control."""
    output: Literal["softmax", "sigmoid"] = "softmax"
    """Last function of the network that reads pictures: one digit in all, or each digit by itself."""
    input_margin: float = 0.0
    """Squeeze what the network says into [margin, 1 - margin], away from the ends where the layer's sign is
    random."""
    proofreader: bool = False
    """A linear layer before SATNet that may correct what the network says; it begins as the identity."""
    initial: str = ""
    """A safetensors file of weights to begin with, instead of random ones."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or gradient descent without momentum."""
    lr: float = 2e-3
    """Learning rate of the layer."""
    backbone_lr: float = 1e-3
    """Learning rate of the network that reads pictures."""
    loss_mask: Literal["all", "unknown"] = "all"
    """Cells that the loss counts: all, as published, which shows the given cells' labels to the network that
    reads pictures, or unknown alone."""
    loss_scale: float = 1.0
    """Factor of the loss."""
    batch: int = 40
    """Problems of one optimiser step."""
    epochs: int = 100
    """Passes over the training problems."""
    shuffle: bool = True
    """Whether each pass has an order of its own."""
    seed: int = 0
    """Seed of weights, order and the solver's random vectors."""
    minutes: float = 0.0
    """Stop at the end of the first pass after so many minutes of training; 0 trains every epoch."""
    patience: int = 0
    """Stop when the training loss has not fallen by 1 % for so many passes; 0 never."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 makes one after each pass."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train or contradict the task."""
        for name in ("batch", "epochs", "lr", "backbone_lr", "loss_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: wanted a positive number, got {getattr(self, name)}")
        if self.batch > LARGEST_BATCH:
            raise ValueError(f"batch: wanted at most {LARGEST_BATCH}, got {self.batch}")
        for name in ("minutes", "patience", "checkpoint_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: wanted 0 or more, got {getattr(self, name)}")
        if self.seed >= 2**63:
            raise ValueError(f"seed: wanted less than 2**63, got {self.seed}")
        if not 0 <= self.input_margin < 0.5:
            raise ValueError(f"input_margin: wanted 0 to below 0.5, got {self.input_margin}")
        self._refuse_other_tasks()

    def _refuse_other_tasks(self) -> None:
        """Refuse options that belong to another task."""
        only = {"sudoku4": 4, "sudoku": 9}.get(self.task)
        if only is not None and self.data.size != only:
            raise ValueError(f"size: the boards of {self.task} have {only}, got {self.data.size}")
        if self.task in ("visual-ungrounded", "mapping") and self.loss_mask == "all":
            raise ValueError(
                f"loss_mask: {self.task} hides the labels of what is given: wanted unknown, got all"
            )
        if self.head == "linear" and self.task != "mapping":
            raise ValueError(f"head: linear is a control of mapping, got task {self.task}")
        if self.proofreader and (self.task not in SEEING_TASKS or self.head == "linear"):
            raise ValueError(f"proofreader: it stands between pictures and layer, got task {self.task}")
        if self.data.from_labels and self.task not in READING_TASKS:
            raise ValueError(f"from_labels: wanted a task of {', '.join(READING_TASKS)}, got {self.task}")
        if self.data.puzzles and self.task not in BOARD_TASKS:
            raise ValueError(f"puzzles: {self.task} takes no puzzle file, got {self.data.puzzles}")

    @property
    def n(self) -> int:
        """Variables of the layer."""
        return {"parity": 3, "mapping": 20}.get(self.task, self.data.size**3)

    @property
    def symbols(self) -> int:
        """Digits that the network that reads pictures tells apart."""
        return 10 if self.task == "mapping" else self.data.size

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass."""
        return max(1, round(self.data.train / self.batch))

    @property
    def steps(self) -> int:
        """Optimiser steps of all epochs."""
        return self.epochs * self.steps_per_epoch


_BOARDS4 = DataConfig(train=2000, test=400, size=4, givens=(5, 8), mean_givens=6.5)
_BOARDS9 = DataConfig(givens=GIVENS_OF_SINGLES, deduction="singles")  # as the published puzzles were made
_HOUR = 60.0


def laptop(task: Task = "sudoku4") -> SATNetConfig:
    """Two CPU cores: seconds to minutes, an hour for the 9x9 boards; what it reaches is in docs/satnet.md."""
    if task == "sudoku4":
        layer = LayerConfig(m=80, aux=32)
        return SATNetConfig(task, layer, _BOARDS4, lr=1e-2, epochs=6)
    if task == "mapping":
        layer = LayerConfig(m=32, aux=0)
        data = DataConfig(train=60_000, test=10_000)
        return SATNetConfig(task, layer, data, output="sigmoid", loss_mask="unknown", batch=100, epochs=2)
    if task == "parity":
        return replace(paper(task), shuffle=True, optimizer="adam")
    minutes = replace(paper(task), shuffle=True, minutes=_HOUR)
    return replace(minutes, backbone_lr=1e-3) if task == "visual-ungrounded" else minutes


def paper(task: Task = "sudoku") -> SATNetConfig:
    """The settings of the published experiment scripts, on problems of our own generator.

    Published for parity: m, aux, prox_lam, optimiser, rate, batch, counts; for Sudoku the same and 100
    epochs, which are taken over for visual Sudoku. The epochs of parity are ours. Ungrounded visual Sudoku
    and the mapping test have the settings of the released visual Sudoku, with the labels of what is given
    hidden: those of the assessment itself have not been read. Puzzles have 36 given cells on average and
    are made by the published rule, which makes easy ones.
    """
    if task == "sudoku4":
        raise ValueError("task: sudoku4 has no published settings; use the preset laptop")
    boards = SATNetConfig(task if task in ("sudoku", "permuted") else "sudoku", data=_BOARDS9, shuffle=False)
    if task in ("sudoku", "permuted"):
        return boards
    if task == "parity":
        layer = LayerConfig(m=4, aux=4, prox_lam=1e-1)
        boards = replace(boards, data=DataConfig())
        return replace(boards, task=task, layer=layer, optimizer="sgd", lr=1e-1, batch=100, epochs=20)
    seeing = replace(boards, batch=50, backbone_lr=1e-5)
    if task == "visual":
        return replace(seeing, task=task)
    if task == "visual-ungrounded":
        return replace(seeing, task=task, loss_mask="unknown")
    data = DataConfig(train=60_000, test=10_000)
    return replace(seeing, task=task, data=data, loss_mask="unknown", epochs=2)


def presets(task: Task) -> dict[str, SATNetConfig]:
    """The presets that `task` has, by name."""
    found = {"laptop": laptop(task)}
    return found if task == "sudoku4" else found | {"paper": paper(task)}
