"""How right outputs are: cells that were given and cells that were not, apart, and whole boards."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tenfold.data.mapping import SYMBOLS
from tenfold.data.sudoku import decode, is_valid
from tenfold.methods.satnet.config import BOARD_TASKS, SEEING_TASKS, SATNetConfig
from tenfold.methods.satnet.model import Model, loss_of, sweeps_of
from tenfold.methods.satnet.problems import Batch, Problems, Split

EVALUATION_BATCH = 100


@dataclass
class Scores:
    """Counts, summed over batches; `shares` are what is reported."""

    counts: dict[str, float] = field(default_factory=dict)
    confusion: Tensor | None = None
    """(symbols, symbols) int64: how often the network that reads pictures said column where row was true."""

    def add(self, **counts: float) -> None:
        """Add to the counts."""
        for name, value in counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + float(value)

    def shares(self) -> dict[str, float]:
        """Loss and accuracies; a share of nothing is NaN."""
        of = self.counts.get
        found = {"loss": _share(of("loss", 0.0), of("problems", 0.0))}
        for name, total in _SHARES.items():
            if total in self.counts:
                found[name] = _share(of(f"{name}_right", 0.0), of(total, 0.0))
        if self.confusion is not None:
            most = self.confusion.max(dim=0).values.sum()
            found["input_purity"] = _share(float(most), float(self.confusion.sum()))
        return found


# Each share and the count that it is a share of.
_SHARES = {
    "accuracy": "answers",
    "given_accuracy": "given",
    "unknown_accuracy": "unknown",
    "valid_boards": "boards",
    "exact_boards": "boards",
    "input_accuracy": "seen",
}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def score(scores: Scores, output: Tensor, batch: Batch, config: SATNetConfig, order: Tensor | None) -> None:
    """Count what is right in one batch."""
    scores.add(problems=len(output))
    if config.task in BOARD_TASKS:
        _score_boards(scores, output, batch, config.data.size, order)
    elif config.task == "mapping":
        right = output[:, SYMBOLS:].argmax(dim=1) == batch.label[:, SYMBOLS:].argmax(dim=1)
        scores.add(answers=len(right), accuracy_right=int(right.sum()))
    else:
        right = (output > 0.5) == (batch.label > 0.5)
        scores.add(answers=len(right), accuracy_right=int(right.sum()))
    if config.task in SEEING_TASKS:
        _score_inputs(scores, output, batch, config)


def _score_boards(scores: Scores, output: Tensor, batch: Batch, size: int, order: Tensor | None) -> None:
    bits, label, given_bits = output, batch.label, batch.is_input
    if order is not None:
        back = torch.argsort(order)
        bits, label, given_bits = bits[:, back], label[:, back], given_bits[:, back]
    boards, solutions = decode(bits.numpy()), decode(label.numpy())
    given = given_bits.numpy()[:, ::size]
    right = boards == solutions
    scores.add(
        boards=len(boards),
        given=given.sum(),
        unknown=(~given).sum(),
        given_accuracy_right=right[given].sum(),
        unknown_accuracy_right=right[~given].sum(),
        valid_boards_right=is_valid(boards).sum(),
        exact_boards_right=right.all(axis=1).sum(),
    )


def _score_inputs(scores: Scores, output: Tensor, batch: Batch, config: SATNetConfig) -> None:
    """What the network that reads pictures says, against the labels that it may not have been shown."""
    symbols = config.symbols
    said = output[batch.is_input].view(-1, symbols).argmax(dim=1)
    if config.task == "mapping":
        true = batch.label[:, SYMBOLS:].argmax(dim=1)
    else:
        true = batch.label[batch.is_input].view(-1, symbols).argmax(dim=1)
    counts = torch.bincount(true * symbols + said, minlength=symbols**2).view(symbols, symbols)
    scores.confusion = counts if scores.confusion is None else scores.confusion + counts
    if config.task != "mapping":  # whose digits stand for other symbols
        scores.add(seen=len(said), input_accuracy_right=int((said == true).sum()))


@torch.no_grad()
def evaluate_split(model: Model, config: SATNetConfig, problems: Problems, split: Split) -> dict[str, float]:
    """Scores of a model on one split, and how many sweeps the solver took; the same at every call."""
    scores, sweeps, events = Scores(), 0.0, 0
    model.eval()
    for start in range(0, len(split), EVALUATION_BATCH):
        batch = split.take(torch.arange(start, min(start + EVALUATION_BATCH, len(split))))
        output = model(batch)
        loss = loss_of(output, batch, config.loss_mask, config.loss_scale)
        scores.add(loss=float(loss) * len(output))
        score(scores, output, batch, config, problems.order)
        if model.layer is not None and model.layer.report is not None:
            sweeps += float(sweeps_of(model.layer).sum())
            events += int(torch.as_tensor(model.layer.report.zero_norms).sum())
    model.train()
    found = scores.shares()
    if model.layer is not None:
        found |= {"iterations": sweeps / len(split), "zero_norms": float(events)}
    return found
