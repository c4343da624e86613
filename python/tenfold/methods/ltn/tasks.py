"""The three tasks: what grounds the theory at a step, and what is measured at the end."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.data import mnist
from tenfold.engine.schedule import Shuffle, generator
from tenfold.logic.knowledge import CompiledKnowledge, KnowledgeBase
from tenfold.logic.semantics import Fuzzy, StableProduct, Stepwise
from tenfold.logic.theories import addition, clustering, smokes
from tenfold.methods.ltn.config import LTNConfig
from tenfold.methods.ltn.model import MLP, DigitNetwork, Smokes, glorot

# Purposes of the random streams of a run.
_WEIGHTS, _DATA, _ORDER = range(3)
_TEST_BATCH = 500


class Task(ABC):
    """A network, the compiled theory, and the groundings of each step."""

    network: nn.Module
    steps_per_epoch = 1

    def __init__(self, config: LTNConfig, knowledge: KnowledgeBase) -> None:
        self.config = config
        levels = Stepwise(*zip(config.p_starts, config.p_exists, strict=True))
        self.semantics: Fuzzy = StableProduct(config.p_forall, levels, config.eps)
        self.theory: CompiledKnowledge = knowledge.compile(self.semantics, backend=config.backend)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @abstractmethod
    def groundings(self, step: int) -> dict[str, Any]:
        """By name, of the step's examples."""

    @abstractmethod
    def measure(self, step: int) -> dict[str, float]:
        """What the trained network reaches."""

    def examples(self, step: int) -> dict[str, Any]:
        """Groundings to ask about: of individuals that training has not seen, where there are some."""
        return self.groundings(step)

    def loss(self, step: int) -> Tensor:
        """1 - satisfaction of the theory at a step."""
        epoch = step // self.steps_per_epoch
        loss: Tensor = self.theory(step=epoch, **self.groundings(step)).loss
        return loss


def make_task(config: LTNConfig) -> Task:
    """The task with a new network, whose weights the seed determines."""
    with torch.random.fork_rng():
        torch.manual_seed(int(generator(config.seed, _WEIGHTS).initial_seed()))
        task = _TASKS[config.task](config)
        glorot(task.network)
    return task


class SmokesTask(Task):
    """Embeddings of people and three predicates."""

    network: Smokes

    def __init__(self, config: LTNConfig) -> None:
        super().__init__(config, smokes.knowledge())
        self.network = Smokes(len(smokes.PEOPLE))
        self.facts = smokes.facts()

    def groundings(self, step: int) -> dict[str, Any]:
        """The facts, and the embeddings as they are now."""
        return {**self.facts, **self._predicates()}

    def _predicates(self) -> dict[str, Any]:
        net = self.network
        return {"people": net.people, "S": net.S, "F": net.F, "C": net.C}

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """Satisfaction, the two queries, and whether what is known was learnt."""
        epoch = max(0, step - 1)
        found = {"sat": float(self.theory(step=epoch, **self.groundings(step)).total)}
        for name, query in smokes.QUERIES.items():
            found[name] = float(self.theory.truth(query, step=epoch, **self._predicates()))
        return found


class ClusteringTask(Task):
    """Points of four Gaussians and a classifier."""

    def __init__(self, config: LTNConfig) -> None:
        super().__init__(config, clustering.knowledge())
        self.network = MLP(2, 16, 16, 16, clustering.CLUSTERS)
        self.points, self.owners = clustering.gaussians(generator(config.seed, _DATA))

    def groundings(self, step: int) -> dict[str, Any]:
        """All points, every time."""
        return {"x": self.points, "y": self.points, "C": self.network}

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """Satisfaction, and agreement with the Gaussians that made the points."""
        total = self.theory(step=max(0, step - 1), **self.groundings(step)).total
        chosen = self.network(self.points).argmax(-1)
        return {"sat": float(total), "adjusted_rand_index": adjusted_rand_index(chosen, self.owners)}


class AdditionTask(Task):
    """Pairs of MNIST digits with their sums, and a digit classifier that sees no digit's label."""

    def __init__(self, config: LTNConfig) -> None:
        super().__init__(config, addition.knowledge())
        self.network = DigitNetwork()
        digits = mnist.load()
        self.left, self.right, self.sums = _pairs(digits.train_images, digits.train_labels, config.train)
        self.test = _pairs(digits.test_images, digits.test_labels, config.test)
        self.order = Shuffle(config.train, config.batch, config.seed, _ORDER)
        self.steps_per_epoch = math.ceil(config.train / config.batch)

    def groundings(self, step: int) -> dict[str, Any]:
        """A batch of pairs."""
        rows = self.order.batch(step)
        return {"x": self.left[rows], "y": self.right[rows], "n": self.sums[rows], "digit": self.network}

    def examples(self, step: int) -> dict[str, Any]:
        """The test pairs."""
        left, right, sums = self.test
        return {"x": left, "y": right, "n": sums, "digit": self.network}

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """Share of test pairs whose two most likely digits add up to the sum."""
        self.network.eval()
        right = 0
        for rows in torch.arange(self.config.test).split(_TEST_BATCH):
            left, other, sums = (part[rows] for part in self.test)
            guess = self.network(left).argmax(-1) + self.network(other).argmax(-1)
            right += int((guess == sums).sum())
        self.network.train()
        return {"accuracy": right / self.config.test}


_TASKS: dict[str, Callable[[LTNConfig], Task]] = {
    "smokes": SmokesTask,
    "clustering": ClusteringTask,
    "addition": AdditionTask,
}


def _pairs(images: Any, labels: Any, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``count`` digits beside the next ``count``, and their sums (the papers' split)."""
    pixels = torch.from_numpy(images[: 2 * count]).float()[:, None] / 255
    numbers = torch.from_numpy(labels[: 2 * count]).long()
    return pixels[:count], pixels[count:], numbers[:count] + numbers[count:]


def adjusted_rand_index(first: Tensor, second: Tensor) -> float:
    """Agreement of partitions, 1 for equal ones, 0 on average for unrelated ones (Hubert, Arabie 1985)."""
    table = torch.zeros(int(first.max()) + 1, int(second.max()) + 1, dtype=torch.float64)
    table.index_put_((first, second), torch.ones(len(first), dtype=torch.float64), accumulate=True)

    def pairs(counts: Tensor) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / (len(first) * (len(first) - 1) / 2)
    most = (rows + columns) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)
