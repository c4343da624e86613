"""Computes the steps of a plan at one call: exact factorisations first, then the fused kernel, then torch.

R1  the mean of a conjunction is the sum of its parts' means, each over its own axes.
R2  LogMeanExp over an axis of a disjunction is the disjunction of its parts'.
R3  LogMeanExp over an axis of a conjunction: parts without the axis leave it; two parts that share the axis
    are a matrix product of exponentials. Axes go one at a time.
R4  products of degrees to an integer power: products of powers (polynomial.py).
Minimum and maximum go into conjunctions and disjunctions. An index list as a guard gathers its pairs; where
one of its axes is free, sums are taken by segments, and a minimum makes a table of all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tenfold.logic import polynomial
from tenfold.logic.groundings import Axes, Compared, Grounding, Guard, Values, aligned, replaced, union
from tenfold.logic.kernels import Kernels, elementwise_max
from tenfold.logic.plan import Connect, Literal, Quantify, Step
from tenfold.logic.reference import power
from tenfold.logic.semantics import Aggregator, Fuzzy, LogProduct
from tenfold.logic.summation import contracted
from tenfold.logic.syntax import Compare, Formula


@dataclass
class Run:
    """One call: values by step, computed once. ``zipped`` maps axes to the one that replaces them here."""

    grounding: Grounding
    semantics: Fuzzy | LogProduct
    kernels: Kernels
    above: Run | None = None
    zipped: dict[str, str] = field(default_factory=dict)
    values: dict[Step, Values] = field(default_factory=dict)
    masks: dict[Formula, Values | Compared] = field(default_factory=dict)
    inner: dict[tuple[Formula, Axes], tuple[Run, Tensor | None]] = field(default_factory=dict)

    def value(self, step: Step) -> Values:
        """Degrees of truth, or in log space their logarithms."""
        if self.above is not None and not set(step.axes) & set(self.zipped):
            return self.above.value(step)
        if step not in self.values:
            self.values[step] = self._compute(step)
        return self.values[step]

    def _compute(self, step: Step) -> Values:
        if isinstance(step, Literal):
            return self._literal(step)
        if isinstance(self.semantics, LogProduct):
            if isinstance(step, Connect):
                return self._log_connect(step, self.semantics)
            assert isinstance(step, Quantify)
            return self._gathered(step) or self._log_quantify(step, self.semantics)
        if isinstance(step, Connect):
            return self._degrees(step, self.semantics)
        assert isinstance(step, Quantify)
        return self._gathered(step) or self._aggregate(step, self.semantics)

    def _literal(self, step: Literal) -> Values:
        if isinstance(step.atom, Compare):
            made = self.grounding.compared(step.atom, step.positive)
        elif isinstance(self.semantics, LogProduct):
            made = self.grounding.logs(step.atom, step.positive)
        else:
            made = self.grounding.degrees(step.atom)
        sizes = dict(zip(made.axes, made.tensor.shape, strict=True))
        self.kernels.note(step, "grounding", sizes, [], made.tensor)
        return made

    def axes(self, step: Step) -> Axes:
        """The axes of a step here."""
        return replaced(step.axes, self.zipped)

    def over(self, step: Quantify) -> Axes:
        """The axes that a quantifier binds, here."""
        return replaced(step.over, self.zipped)

    def guard(self, step: Quantify) -> Guard:
        """Where a quantifier looks."""
        if step.guard is None:
            return None
        if step.guard not in self.masks:
            compared = self.grounding.comparison(step.guard) if self.kernels.fused else None
            self.masks[step.guard] = compared or self.grounding.mask(step.guard)
        return self.masks[step.guard]

    def _gathered(self, step: Quantify) -> Values | None:
        """A quantifier over an index list: its body on the listed individuals alone."""
        if self.zipped or step.guard is None:
            return None
        pairs = self.grounding.index_list(step.guard)
        axes = tuple(var.axis for var in step.guard.free)
        free = tuple(axis for axis in axes if axis not in step.over)
        if pairs is None or not set(step.over) <= set(axes):
            return None
        if free and not (set(step.body.axes) <= set(axes) and self._has_segments(step)):
            return None
        name = f"rows of {step.guard}"
        key = (step.guard, free)
        if key not in self.inner:
            begins, pairs = self._by_segment(pairs, axes, free) if free else (None, pairs)
            picks = {axis: pairs[:, number] for number, axis in enumerate(axes)}
            view = self.grounding.gathered(picks, name)
            run = Run(view, self.semantics, self.kernels, self, dict.fromkeys(axes, name))
            self.inner[key] = run, begins
        run, begins = self.inner[key]
        if begins is not None:
            body = run.value(step.body).tensor.expand(len(pairs))
            sizes = [self.grounding.size(axis) for axis in free]
            return Values(self._of_segments(step, body, begins).reshape(sizes), free)
        plain = Quantify(step.kind, step.over, step.body, None, step.p)
        if isinstance(self.semantics, LogProduct):
            return run._log_quantify(plain, self.semantics)
        return run._aggregate(plain, self.semantics)

    def _by_segment(self, pairs: Tensor, axes: Axes, free: Axes) -> tuple[Tensor, Tensor]:
        """The listed rows ordered by their individuals of the free axes, and where those of each begin."""
        segment = pairs.new_zeros(len(pairs))
        count = 1
        for axis in free:
            size = self.grounding.size(axis)
            segment, count = segment * size + pairs[:, axes.index(axis)], count * size
        begins = torch.bincount(segment, minlength=count).cumsum(0)
        begins = torch.cat([begins.new_zeros(1), begins])
        return begins, pairs[segment.argsort(stable=True)]

    def _has_segments(self, step: Quantify) -> bool:
        """Whether there is a fast segment form of the quantifier."""
        if not self.kernels.fused:
            return False
        if isinstance(self.semantics, LogProduct):
            return step.kind == "forall" or self.semantics.exists.kind == "lme"
        return self._aggregator(step, self.semantics).kind not in ("min", "max")

    def _of_segments(self, step: Quantify, body: Tensor, begins: Tensor) -> Tensor:
        """The quantifier of each segment of the body's values."""
        ops, semantics = self.kernels.ops, self.semantics
        made: Tensor
        if not isinstance(semantics, LogProduct):
            aggregator = self._aggregator(step, semantics)
            power_mean = aggregator.kind != "mean"
            made = ops.segment_pmean(
                body,
                begins,
                max(power(step.p, aggregator), 1.0) if power_mean else 1.0,
                error=aggregator.kind == "pmean_error",
                eps=semantics.eps if power_mean else 0.0,
                empty=float(step.kind == "forall"),
            )
        elif step.kind == "exists":
            made = ops.segment_logmeanexp(body, begins, semantics.alpha)
        elif semantics.forall == "sum":  # bfloat16 would round the mean, the count and their product
            exact = body.to(torch.promote_types(body.dtype, torch.float32))
            mean = ops.segment_pmean(exact, begins, 1.0, empty=0.0)
            made = (mean * begins.diff().to(mean.dtype)).to(body.dtype)
        else:
            made = ops.segment_pmean(body, begins, 1.0, empty=0.0)
        self.kernels.note(step, f"{step.kind}, segments of an index list", {}, [body, begins], made)
        return made

    @staticmethod
    def _aggregator(step: Quantify, semantics: Fuzzy) -> Aggregator:
        return semantics.forall if step.kind == "forall" else semantics.exists

    # Log space

    def _log_connect(self, step: Connect, semantics: LogProduct) -> Values:
        return self._log_join(step, step.sign, [self.value(part) for part in step.parts], step.log_weights)

    def _log_join(
        self, step: object, sign: str, parts: Sequence[Values], log_weights: Sequence[float] | None
    ) -> Values:
        """``sign`` of values, element by element."""
        assert isinstance(self.semantics, LogProduct)
        if len(parts) == 1:
            return parts[0]
        kind, alpha = self.semantics.exists.kind, self.semantics.alpha
        if sign == "or" and kind == "max":
            return elementwise_max(parts)
        how = {"conn": sign, "alpha": alpha}
        if sign == "or":
            how["log_weights"] = [0.0] * len(parts) if kind == "lse" else log_weights
        return self.kernels.log_quantify(step, sign, parts, (), None, quant="lme", **how)

    def _log_quantify(self, step: Quantify, semantics: LogProduct) -> Values:
        if step.kind == "forall":
            return self._log_forall(step, semantics)
        over, guard, body = self.over(step), self.guard(step), step.body
        if isinstance(body, Connect) and semantics.exists.kind == "lme":
            if body.sign == "or" and len({frozenset(self.axes(part)) for part in body.parts}) > 1:
                return self._exists_or(step, body)
            if body.sign == "and" and guard is None:
                return self._exists_and(step, [self.value(part) for part in body.parts], over)
        return self._log_fused(step, body, over, guard, semantics.exists.kind, "exists, fused")

    def _log_fused(self, step: object, body: Step, over: Axes, guard: Guard, quant: str, rule: str) -> Values:
        """One kernel for a quantifier and the connective under it."""
        assert isinstance(self.semantics, LogProduct)
        kind = self.semantics.exists.kind
        plain = isinstance(body, Connect) and not (body.sign == "or" and kind == "max")
        parts = [self.value(part) for part in body.parts] if plain else [self.value(body)]  # type: ignore[attr-defined]
        how: dict[str, object] = {"conn": "and"}
        if isinstance(body, Connect) and plain and body.sign == "or":
            weights = [0.0] * len(parts) if kind == "lse" else body.log_weights
            how = {"conn": "or", "log_weights": weights}
        missing = set(over) - set(
            union([part.axes for part in parts] + ([guard.axes] if guard is not None else []))
        )
        assert not missing, f"{step}: {missing} in no operand"
        return self.kernels.log_quantify(
            step, rule, parts, over, guard, quant=quant, alpha=self.semantics.alpha, **how
        )

    def _log_forall(self, step: Quantify, semantics: LogProduct) -> Values:
        """R1."""
        over, guard, body = self.over(step), self.guard(step), step.body
        flat = isinstance(body, Connect) and body.sign == "and"
        parts = list(body.parts) if isinstance(body, Connect) and flat else [body]
        if guard is not None and len(parts) > 1:
            return self._guarded_forall(step, parts, over, guard, semantics)
        if len(parts) == 1:
            return self._log_fused(step, body, over, guard, semantics.forall, "forall, fused")
        sums = []
        for part in parts:
            own = tuple(axis for axis in over if axis in self.axes(part))
            if own:
                made = self._log_fused(part, part, own, None, semantics.forall, "R1: forall, fused")
            else:
                made = self.value(part)
            if semantics.forall == "sum":
                made = Values(made.tensor * self._count(over, own), made.axes)
            sums.append(made)
        return self._log_join(step, "and", sums, None)

    def _count(self, over: Axes, own: Axes) -> int:
        """How many individuals the axes have that a part lacks."""
        return math.prod(self.grounding.size(axis) for axis in over if axis not in own)

    def _guarded_forall(
        self, step: Quantify, parts: list[Step], over: Axes, guard: Values | Compared, semantics: LogProduct
    ) -> Values:
        """R1 under a guard: each part is weighted with how often the guard has its individuals."""
        values = [self.value(part) for part in parts]
        kept = union([*(value.axes for value in values), guard.axes])
        kept = tuple(axis for axis in kept if axis not in over)
        bound = tuple(axis for axis in over if axis not in guard.axes)
        dtype = torch.promote_types(self.grounding.dtype, torch.float32)  # of the sums
        held = guard.tensor.to(dtype)
        total = held.sum([n for n, axis in enumerate(guard.axes) if axis in over])
        count = Values(total * self._count(bound, ()), tuple(a for a in guard.axes if a not in over))
        tensors = []
        for value in values:
            outside = tuple(axis for axis in bound if axis not in value.axes)
            weight = held * self._count(outside, ())
            made = contracted([Values(value.tensor.to(dtype), value.axes), Values(weight, guard.axes)], over)
            tensors.append(aligned(*made, kept))
        summed = sum(tensors[1:], tensors[0])
        some = aligned(*count, kept)
        if semantics.forall == "mean":
            summed = summed / some.clamp(min=1)
        held_some = torch.where(some > 0, summed, torch.zeros_like(summed)).to(self.grounding.dtype)
        inputs = [value.tensor for value in values]
        self.kernels.note(
            step, "R1: forall, guard as counts", {}, inputs, held_some, held.nbytes * len(values)
        )
        return Values(held_some, kept)

    def _exists_or(self, step: Quantify, body: Connect) -> Values:
        """R2, also under a guard, which all parts share."""
        over, guard = self.over(step), self.guard(step)
        parts = []
        for part in body.parts:
            there = set(over) & set(self.axes(part))
            if guard is None and not there:
                parts.append(self.value(part))
                continue
            own = over if guard is not None else tuple(axis for axis in over if axis in there)
            if guard is None and isinstance(part, Connect) and part.sign == "and":
                parts.append(self._exists_and(part, [self.value(inner) for inner in part.parts], own))
            else:
                parts.append(self._exists_guarded(part, own, guard))
        return self._log_join(step, "or", parts, body.log_weights)

    def _exists_guarded(self, part: Step, over: Axes, guard: Guard) -> Values:
        there = union([self.axes(part), guard.axes if guard is not None else ()])
        # Over an axis that nothing has, LogMeanExp changes nothing.
        own = tuple(axis for axis in over if axis in there)
        return self._log_fused(part, part, own, guard, "lme", "R2: exists, fused")

    def _exists_and(self, step: object, parts: list[Values], over: Axes) -> Values:
        """R3."""
        assert isinstance(self.semantics, LogProduct)
        alpha = self.semantics.alpha
        left = list(parts)
        axes = [axis for axis in over if any(axis in part.axes for part in left)]
        while axes:
            axis = min(axes, key=lambda a: len(union(part.axes for part in left if a in part.axes)))
            axes.remove(axis)
            having = [part for part in left if axis in part.axes]
            left = [part for part in left if axis not in part.axes]
            is_product = len(having) == 2 and all(
                set(one.axes) - set(other.axes) for one, other in (having, having[::-1])
            )
            if is_product:
                left.append(self.kernels.logmatmul(step, having[0], having[1], axis, alpha))
            else:
                # Axes that only these have go in the same pass.
                alone = [a for a in axes if not any(a in part.axes for part in left)]
                for other in alone:
                    axes.remove(other)
                left.append(
                    self.kernels.log_quantify(
                        step, "R3: exists, fused", having, (axis, *alone), None,
                        conn="and", quant="lme", alpha=alpha,
                    )
                )  # fmt: skip
        return self._log_join(step, "and", left, None)

    # Degrees

    def _degrees(self, step: Step, semantics: Fuzzy) -> Values:
        formula, leaves = self._postfix(step, semantics)
        return self.kernels.fuzzy_quantify(
            step, "connectives", [self.value(leaf) for leaf in leaves], (), None,
            formula=formula, agg="mean", eps=semantics.eps,
        )  # fmt: skip

    def _postfix(self, step: Step, semantics: Fuzzy) -> tuple[str, list[Step]]:
        """The connectives over ``step`` down to literals and quantifiers, as ops.fuzzy reads them."""
        leaves: dict[Step, int] = {}

        def tokens(part: Step) -> list[str]:
            if not isinstance(part, Connect):
                return [str(leaves.setdefault(part, len(leaves)))]
            sign = semantics.signs[part.sign]
            if part.sign == "not":
                return [*tokens(part.parts[0]), sign]
            found = tokens(part.parts[0])
            for other in part.parts[1:]:
                found += [*tokens(other), sign]
            return found

        return " ".join(tokens(step)), list(leaves)

    def _aggregate(self, step: Quantify, semantics: Fuzzy) -> Values:
        over, guard = self.over(step), self.guard(step)
        aggregator = self._aggregator(step, semantics)
        split = self._split(step, semantics)
        if split is not None:
            return split
        p = power(step.p, aggregator)
        if aggregator.kind in ("pmean", "pmean_error"):
            made = polynomial.factorised(
                self, step.body, over, guard, aggregator.kind, p, semantics, step.kind
            )
            if made is not None:
                return made
        formula, leaves = self._postfix(step.body, semantics)
        return self.kernels.fuzzy_quantify(
            step, f"{step.kind}, fused", [self.value(leaf) for leaf in leaves], over, guard,
            formula=formula, agg=aggregator.kind, p=max(p, 1.0), eps=semantics.eps,
            empty=float(step.kind == "forall"),
        )  # fmt: skip

    def _split(self, step: Quantify, semantics: Fuzzy) -> Values | None:
        """Minimum over a conjunction of minima, maximum over a disjunction of maxima (Goedel)."""
        sign, kind = ("and", "min") if step.kind == "forall" else ("or", "max")
        aggregator = self._aggregator(step, semantics)
        body = step.body
        if semantics.tnorm != "goedel" or aggregator.kind != kind or step.guard is not None:
            return None
        if not isinstance(body, Connect) or body.sign != sign:
            return None
        over = self.over(step)
        if len({frozenset(self.axes(part)) for part in body.parts}) == 1:
            return None
        parts = []
        for part in body.parts:
            own = tuple(axis for axis in over if axis in self.axes(part))
            inner = Quantify(step.kind, own, part, None, step.p)
            parts.append(self._aggregate(inner, semantics) if own else self.value(part))
        tokens = " ".join(["0", *(f"{n} {semantics.signs[sign]}" for n in range(1, len(parts)))])
        return self.kernels.fuzzy_quantify(
            step, f"{kind} pushed inwards", parts, (), None, formula=tokens, agg="mean", eps=semantics.eps
        )
