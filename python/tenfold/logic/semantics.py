"""What the connectives and quantifiers compute: degrees of truth in [0, 1], or their logarithms.

Real Logic (Badreddine, d'Avila Garcez, Serafini, Spranger, arXiv 2012.13635) computes with degrees: a
``Fuzzy`` semantics, made by ``StableProduct``, ``Product``, ``Goedel`` or ``Lukasiewicz``. logLTN
(Badreddine, Serafini, Spranger, arXiv 2306.14546) computes with logarithms: ``LogProduct``. In both, not x is
1 - x; the n-ary And and Or of a Fuzzy semantics are binary ones from the left, those of LogProduct are flat.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

S = TypeVar("S")


@runtime_checkable
class Schedule(Protocol):
    """A number that changes with the step of training, which the compiled module is called with."""

    def at(self, step: int) -> float:
        """The number at ``step``."""


@dataclass(frozen=True)
class Linear:
    """From ``start`` at step 0 to ``end`` at step ``steps`` and after."""

    start: float
    end: float
    steps: int

    def at(self, step: int) -> float:
        """The number at ``step``."""
        return self.start + (self.end - self.start) * min(1.0, step / max(1, self.steps))


@dataclass(frozen=True)
class Stepwise:
    """``Stepwise((0, 1.0), (100, 6.0))``: 1 from step 0, 6 from step 100."""

    levels: tuple[tuple[int, float], ...]

    def __init__(self, *levels: tuple[int, float]) -> None:
        starts = [start for start, _ in levels]
        if not levels or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"levels: wanted (step, number) pairs, rising from step 0, got {levels}")
        object.__setattr__(self, "levels", levels)

    def at(self, step: int) -> float:
        """The number at ``step``."""
        return [number for start, number in self.levels if start <= step or start == 0][-1]


Number = float | Schedule


@dataclass(frozen=True)
class Aggregator:
    """How a quantifier sums up; ``level`` is p or alpha where the kind has one."""

    kind: Literal["pmean", "pmean_error", "mean", "min", "max", "lme", "lse", "sum"]
    level: Number = 1.0

    def __post_init__(self) -> None:
        """Refuse levels that no aggregator has."""
        if isinstance(self.level, Schedule):
            return
        least, word = (1.0, "p") if self.kind.startswith("pmean") else (0.0, "alpha")
        if isinstance(self.level, bool) or not isinstance(self.level, int | float):
            raise TypeError(f"{word}: wanted a number or a schedule, got {self.level!r}")
        if not least <= self.level < float("inf") or self.level == 0:
            wanted = "at least 1" if least else "above 0"
            raise ValueError(f"{word}: wanted a number {wanted}, got {self.level}")


def PMean(p: Number = 2.0) -> Aggregator:  # noqa: N802
    """(mean u^p)^(1/p), towards the maximum as p grows."""
    return Aggregator("pmean", p)


def PMeanError(p: Number = 2.0) -> Aggregator:  # noqa: N802
    """1 - (mean (1 - u)^p)^(1/p), towards the minimum as p grows."""
    return Aggregator("pmean_error", p)


def LogMeanExp(alpha: Number = 1.0) -> Aggregator:  # noqa: N802
    """log(mean exp(alpha l)) / alpha, towards the maximum from below as alpha grows."""
    return Aggregator("lme", alpha)


def LogSumExp(alpha: Number = 1.0) -> Aggregator:  # noqa: N802
    """log(sum exp(alpha l)) / alpha, towards the maximum from above; a degree may exceed 1."""
    return Aggregator("lse", alpha)


Mean, Min, Max = Aggregator("mean"), Aggregator("min"), Aggregator("max")


@dataclass(frozen=True)
class Fuzzy:
    """Degrees of truth: a t-norm with its t-conorm and an implication, and an aggregator per quantifier.

    ``implication``: "R" is the residuum of the t-norm, "S" is ~x | y. ``eps`` moves operands away from where
    gradients vanish or explode (the stable product's projections). ``total`` sums the axioms up.
    """

    tnorm: Literal["product", "goedel", "lukasiewicz"]
    implication: Literal["R", "S"]
    forall: Aggregator
    exists: Aggregator
    total: Aggregator
    eps: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no definition."""
        for name, kinds in (
            ("forall", _FUZZY),
            ("exists", _FUZZY),
            ("total", ("pmean_error", "mean", "min")),
        ):
            if getattr(self, name).kind not in kinds:
                raise ValueError(f"{name}: wanted {' or '.join(kinds)}, got {getattr(self, name).kind}")
        if not 0 <= self.eps < 0.5:
            raise ValueError(f"eps: wanted 0 <= eps < 0.5, got {self.eps}")
        if self.implication not in ("R", "S"):
            raise ValueError(f"implication: wanted 'R' or 'S', got {self.implication!r}")

    @property
    def signs(self) -> dict[str, str]:
        """The connectives' names in ops.fuzzy."""
        end = "" if self.tnorm == "product" else f"_{self.tnorm}"
        return {
            "not": "not",
            "and": f"and{end}",
            "or": f"or{end}",
            "implies": _IMPLIES[self.tnorm, self.implication],
        }


_FUZZY = ("pmean", "pmean_error", "mean", "min", "max")
_IMPLIES = {
    ("product", "R"): "implies_goguen", ("product", "S"): "implies",
    ("goedel", "R"): "implies_goedel", ("goedel", "S"): "implies_kleene",
    ("lukasiewicz", "R"): "implies_lukasiewicz", ("lukasiewicz", "S"): "implies_lukasiewicz",
}  # fmt: skip


def StableProduct(  # noqa: N802
    p_forall: Number = 2.0, p_exists: Number = 2.0, eps: float = 1e-4, p_total: Number = 2.0
) -> Fuzzy:
    """The configuration of every LTN task: product, Reichenbach's implication, projections by ``eps``."""
    return Fuzzy("product", "S", PMeanError(p_forall), PMean(p_exists), PMeanError(p_total), eps)


def Product(  # noqa: N802
    implication: Literal["R", "S"] = "R",
    forall: Aggregator = Aggregator("pmean_error", 2.0),
    exists: Aggregator = Aggregator("pmean", 2.0),
    total: Aggregator = Aggregator("pmean_error", 2.0),
) -> Fuzzy:
    """x y and x + y - x y; the R-implication is Goguen's, the S-implication Reichenbach's."""
    return Fuzzy("product", implication, forall, exists, total)


def Goedel(  # noqa: N802
    implication: Literal["R", "S"] = "R",
    forall: Aggregator = Min,
    exists: Aggregator = Max,
    total: Aggregator = Min,
) -> Fuzzy:
    """Minimum and maximum; the S-implication is Kleene and Dienes'."""
    return Fuzzy("goedel", implication, forall, exists, total)


def Lukasiewicz(  # noqa: N802
    implication: Literal["R", "S"] = "R",
    forall: Aggregator = Mean,
    exists: Aggregator = Aggregator("pmean", 2.0),
    total: Aggregator = Mean,
) -> Fuzzy:
    """max(x + y - 1, 0) and min(x + y, 1); both implications are min(1 - x + y, 1)."""
    return Fuzzy("lukasiewicz", implication, forall, exists, total)


@dataclass(frozen=True)
class LogProduct:
    """Logarithms of degrees: formulas in negation normal form, both signs of an atom from its logit.

    and: the sum. exists, and or with it: LogMeanExp (or LogSumExp, or Max) with one alpha. forall: the mean
    (or "sum"), and so the ``total`` of the axioms. ``floor``: degrees that are not logits are clipped to
    [floor, 1] for the logarithm of an atom, and to [0, 1 - floor] for that of its negation (0.01 in the
    paper's code). A power p at a quantifier means nothing here.
    """

    exists: Aggregator = Aggregator("lme", 1.0)
    forall: Literal["mean", "sum"] = "mean"
    total: Literal["mean", "sum"] = "mean"
    floor: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what has no definition."""
        if self.exists.kind not in ("lme", "lse", "max"):
            raise ValueError(f"exists: wanted LogMeanExp, LogSumExp or Max, got {self.exists.kind}")
        for name in ("forall", "total"):
            if getattr(self, name) not in ("mean", "sum"):
                raise ValueError(f"{name}: wanted 'mean' or 'sum', got {getattr(self, name)!r}")
        if not 0 < self.floor < 0.5:
            raise ValueError(f"floor: wanted 0 < floor < 0.5, got {self.floor}")

    @property
    def alpha(self) -> float:
        """The one alpha, at a step (``at_step``)."""
        assert isinstance(self.exists.level, int | float)
        return float(self.exists.level)


Semantics = Fuzzy | LogProduct


def at_step(semantics: S, step: int | None) -> S:
    """``semantics`` with the numbers of its schedules at ``step``."""
    changed: dict[str, Any] = {}
    for name in ("forall", "exists", "total"):
        aggregator = getattr(semantics, name)
        if isinstance(aggregator, Aggregator) and not isinstance(aggregator.level, int | float):
            if step is None:
                raise ValueError(f"step: {name} has a schedule; call with step=")
            changed[name] = replace(aggregator, level=float(aggregator.level.at(step)))
    return replace(semantics, **changed) if changed else semantics  # type: ignore[type-var]
