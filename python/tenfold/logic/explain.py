"""What a compiled knowledge base did: for each axiom the rules, the bytes moved and the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tenfold.logic.kernels import Done


@dataclass(frozen=True)
class Explanation:
    """By the name of the axiom, what was computed for it and not already for one before; print it.

    Bytes are counted from the shapes of the tensors: what the operands and the result of each step hold, and
    what a step needs besides. Memory inside of callables is theirs and is not counted.
    """

    axioms: Mapping[str, Sequence[Done]]

    def moved(self, axiom: str) -> int:
        """Bytes of operands and results."""
        return sum(done.moved for done in self.axioms[axiom])

    def peak(self, axiom: str) -> int:
        """Bytes of all results, which stay for the backward pass, and of the largest scratch besides."""
        steps = self.axioms[axiom]
        return sum(done.kept for done in steps) + max((done.scratch for done in steps), default=0)

    def __str__(self) -> str:
        lines = []
        for name, steps in self.axioms.items():
            lines.append(f"{name}: {_bytes(self.moved(name))} moved, peak {_bytes(self.peak(name))}")
            for done in steps:
                sizes = " ".join(f"{axis}={size}" for axis, size in done.axes)
                lines.append(f"    {done.rule} [{sizes}]: {done.step}")
        return "\n".join(lines)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
