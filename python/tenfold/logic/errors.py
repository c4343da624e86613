"""The error that shows a formula with a caret under the place."""

from __future__ import annotations

_WIDTH = 100  # characters of a line that are shown


class FormulaError(ValueError):
    """A formula that cannot be built or read; the message shows it and points at the place.

    ``text`` is the formula, ``start`` and ``end`` delimit the place in it, ``reason`` is the first line.
    """

    def __init__(self, reason: str, text: str, start: int, end: int) -> None:
        self.reason, self.text, self.start, self.end = reason, text, start, end
        self.place: object = None  # the part at fault, where the formula is a tree
        super().__init__(f"{reason}\n{_pointed(text, start, end)}")


def _pointed(text: str, start: int, end: int) -> str:
    """The line of ``text`` that holds ``start``, and carets under it up to ``end`` or the end of the line."""
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", start)
    last = len(text) if last < 0 else last
    if last - first > _WIDTH:
        first = max(first, start - _WIDTH // 2)
        last = min(last, first + _WIDTH)
    shown = "".join(c if c.isprintable() else "?" for c in text[first:last])
    return f"  {shown}\n  {' ' * (start - first)}{'^' * max(1, min(end, last) - start)}"
