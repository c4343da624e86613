"""Metrics as JSON lines: one object per logged step, readable while the run goes on."""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tenfold.engine.atomic import atomic_write, write_error
from tenfold.errors import UserError


class MetricsLog:
    """Appends to a JSON-lines file that agrees with the checkpoint a run goes on from.

    Opening with `step=k` drops what a killed run wrote after step k, and a torn last line. With
    `tensorboard`, numbers also go to event files in a `tensorboard` folder beside the file.
    """

    def __init__(self, path: Path, step: int = 0, tensorboard: bool = False) -> None:
        self.path = Path(path)
        self._board = _summary_writer(self.path.parent / "tensorboard", step) if tensorboard else None
        if self.path.exists():
            kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= step]
            with atomic_write(self.path) as stream:
                stream.writelines(line + "\n" for line in kept)
        try:
            self._stream = self.path.open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise write_error(self.path, error) from error

    def log(self, step: int, **values: Any) -> None:
        """Append one line: `step` and the values (numbers, 0-d tensors or arrays, texts, booleans).

        NaN and infinity become null, for JSON has neither.
        """
        plain = {name: _plain(value) for name, value in values.items()}
        line = json.dumps({"step": step, **plain}, ensure_ascii=False, allow_nan=False)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError as error:
            raise write_error(self.path, error) from error
        if self._board is not None:
            for name, value in plain.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the file; more calls of `log` are an error."""
        try:
            self._stream.close()
        except OSError as error:
            raise write_error(self.path, error) from error
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file, in order; a torn last line is left out, null reads as NaN."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder of a run that has been trained")
    rows = [json.loads(line) for line in _lines(path)]
    return [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]


def _lines(path: Path) -> list[str]:
    """The file's lines, each checked to be an object with a step; only the last one may be torn."""
    lines = path.read_bytes().split(b"\n")
    whole = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no object with a step")
        except ValueError as error:
            # A prefix of an object is never JSON, so the text after the last newline is torn or empty.
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is damaged ({error}); delete that line") from error
        whole.append(line.decode())
    return whole


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # 0-d tensors and numpy scalars, without importing either library
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a metric must be a number, text or boolean, got {type(value).__name__}")


def require_tensorboard() -> Any:
    """torch's writer of event files; UserError where the package is missing, before anything is computed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs one more package: pip install tensorboard") from error
    return SummaryWriter


def _summary_writer(folder: Path, step: int) -> Any:
    return require_tensorboard()(str(folder), purge_step=step + 1)
