"""Figures of a run, drawn without a display; the same input gives the same bytes."""

import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tenfold.engine.atomic import atomic_write

Pixels = NDArray[np.uint8]


def to_png(image: Pixels) -> bytes:
    """A uint8 image of shape (H, W, 3) or (H, W) as PNG."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"image must be uint8 of shape (H, W, 3) or (H, W), got {image.dtype} {image.shape}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def loss_curve(metrics: Sequence[Mapping[str, Any]], path: Path, smoothing: float = 0.98) -> None:
    """Plot every metric named "loss" or "*_loss" over the steps, on a log axis where all are positive.

    `metrics` are the rows of `read_metrics`. A curve of more than 100 points is drawn pale, with its
    exponential moving average (weight `smoothing` on the past, corrected for the start) above it.
    """
    names = sorted({name for row in metrics for name in row if name == "loss" or name.endswith("_loss")})
    figure, axes = _figure(7.0, 4.0)
    positive = True
    for name in names:
        points = [(row["step"], row[name]) for row in metrics if name in row and math.isfinite(row[name])]
        if not points:
            continue
        steps, values = (list(column) for column in zip(*points, strict=True))
        positive = positive and min(values) > 0
        dense = len(points) > 100
        (line,) = axes.plot(steps, values, alpha=0.3 if dense else 1.0, label=None if dense else name)
        if dense:
            axes.plot(steps, _average(values, smoothing), color=line.get_color(), label=name)
    if names and positive:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    _save(figure, path)


def curves(
    named: Mapping[str, Sequence[Sequence[float]]],
    path: Path,
    xlabel: str,
    ylabel: str,
    logarithmic: bool = True,
    dots: Collection[str] = (),
) -> None:
    """Plot one line of (x, y) points for each name, y on a log axis; equal names up to a dash share a colour.

    "arm-seed0" and "arm-seed1" are two runs of one arm, so they look alike and only the first has a label.
    Names in `dots` are drawn as points, which a line that fits them does not hide.
    """
    figure, axes = _figure(7.0, 4.0)
    colours: dict[str, str] = {}
    for name, points in named.items():
        arm = name.rpartition("-")[0] or name
        x, y = zip(*points, strict=True)
        label = None if arm in colours else arm
        style = "o" if name in dots else "-"
        (line,) = axes.plot(x, y, style, color=colours.get(arm), label=label, linewidth=1.0, markersize=3.0)
        colours[arm] = line.get_color()
    if logarithmic:
        axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    if colours:
        axes.legend()
    _save(figure, path)


def image_grid(images: Pixels, captions: Sequence[str], path: Path, columns: int = 4) -> None:
    """Show `images` (uint8, (N, H, W, 3)) in rows of `columns`, each above its caption (may be empty)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 of shape (N, H, W, 3), got {images.dtype} {images.shape}")
    if len(captions) != len(images) or len(images) == 0 or columns < 1:
        raise ValueError(f"got {len(images)} images, {len(captions)} captions and {columns} columns")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure, _ = _figure(1.6 * columns, 1.9 * rows, axes=False)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        axes.text(0.5, -0.04, _wrap(caption), transform=axes.transAxes, ha="center", va="top", fontsize=7)
    _save(figure, path)


def _figure(width: float, height: float, axes: bool = True) -> tuple[Any, Any]:
    # The object interface: no pyplot, so no global state and no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot() if axes else None


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    with atomic_write(Path(path), "wb") as stream:
        stream.write(buffer.getvalue())


def _average(values: Sequence[float], weight: float) -> list[float]:
    total, norm, result = 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def _wrap(caption: str, width: int = 22, lines: int = 2) -> str:
    import textwrap

    # matplotlib reads $...$ as mathematics; a caption is text.
    return "\n".join(textwrap.wrap(caption, width, max_lines=lines, placeholder=" ...")).replace("$", r"\$")
