"""A progress bar with ETA on a terminal, one plain line a minute anywhere else.

Both go to stderr, so that what a command prints can be piped.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """What `progress` yields."""

    def update(self, step: int, **fields: Any) -> None:
        """Say that `step` steps are done; the fields (loss=0.12, speed="448 images/s") are shown beside."""

    def print(self, text: str) -> None:
        """Print a line without breaking the bar."""


@contextmanager
def progress(
    total: int,
    start: int = 0,
    description: str = "",
    stream: TextIO | None = None,
    interval: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show `start` to `total` steps; the ETA counts only what was done since `start`.

    `interval` is the seconds between two lines where `stream` (stderr) is no terminal.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        with _bar(total, start, description, stream) as bar:
            yield bar
    else:
        yield _Lines(total, start, description, stream, interval, clock)


class _Lines:
    """The plain form: a line when `interval` seconds have passed, and one at the end."""

    def __init__(
        self,
        total: int,
        start: int,
        description: str,
        stream: TextIO,
        interval: float,
        clock: Callable[[], float],
    ) -> None:
        self._total, self._start, self._description = total, start, description
        self._stream, self._interval, self._clock = stream, interval, clock
        self._began = self._shown = clock()

    def update(self, step: int, **fields: Any) -> None:
        now = self._clock()
        if step < self._total and now - self._shown < self._interval:
            return
        self._shown = now
        parts = [f"{self._description} {step}/{self._total}".strip(), _text(fields)]
        if self._start < step < self._total:
            rest = (now - self._began) / (step - self._start) * (self._total - step)
            parts.append(f"eta {_clock_text(rest)}")
        else:
            parts.append(f"in {_clock_text(now - self._began)}")
        self.print("  ".join(part for part in parts if part))

    def print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


@contextmanager
def _bar(total: int, start: int, description: str, stream: TextIO) -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[values]}", markup=False),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("eta"),
        rich_progress.TimeRemainingColumn(),
    )
    # Two refreshes a second: the bar must not take the processor from the training.
    bar = rich_progress.Progress(
        *columns,
        console=Console(file=stream),
        refresh_per_second=2,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=False,
        speed_estimate_period=60,
    )
    with bar:
        task = bar.add_task(description, total=total, completed=start, values="")

        class Bar:
            def update(self, step: int, **fields: Any) -> None:
                bar.update(task, completed=step, values=_text(fields))

            def print(self, text: str) -> None:
                bar.console.print(text, markup=False, highlight=False)

        yield Bar()


def _text(fields: dict[str, Any]) -> str:
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in fields.items()
    }
    return "  ".join(f"{name} {value}" for name, value in shown.items())


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
