"""`tenfold evaluate microdit`: samples, retrieval shares with their controls, and the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.data.features import ImageFeatures
from tenfold.data.retrieval import chance, kernel_distance, nearest, nearest_caption, own_image_share, pixels
from tenfold.diffusion.dit import DiT
from tenfold.diffusion.edm import column, training_target, weighted_loss
from tenfold.diffusion.generator import Generator, SamplerConfig, load_generator
from tenfold.diffusion.precision import autocast
from tenfold.diffusion.text import TextStates
from tenfold.engine import checkpoint
from tenfold.engine.figures import image_grid, loss_curve, to_png
from tenfold.engine.metrics import read_metrics
from tenfold.engine.options import parse
from tenfold.engine.run import RunDirectory
from tenfold.engine.schedule import generator
from tenfold.methods.microdit.config import MicroDiTConfig
from tenfold.methods.microdit.data import OPENMOJI, Prepared, rows_of, trim
from tenfold.methods.microdit.report import write_report
from tenfold.methods.microdit.run import read_config, reopen
from tenfold.methods.microdit.sample import slug

SEEN_CAPTIONS = 100
NEIGHBOURS = 3
FEWEST_FOR_DISTANCE = 20  # pictures; below it the kernel distance is all noise
SHARE_RANKS = (1, 10)
HELDOUT_DRAWS = 4  # noise levels per held-out picture
# Kinds of pictures that a person tells apart at 32x32; those of the training split among them are drawn.
ICON_CAPTIONS = (
    "red apple", "pizza", "soccer ball", "flag of Japan", "sun", "dog face", "rainbow", "red heart",
    "house", "airplane", "bicycle", "guitar", "hot beverage", "smiling face with sunglasses", "octopus",
    "umbrella", "banana", "key", "snowman", "pineapple", "light bulb", "sailboat", "tomato", "locked",
)  # fmt: skip
FIXED_CAPTIONS = 16
# Purposes of the random streams of the evaluation, beside those of training.
_SEEN, _HELDOUT = 10, 11


@dataclass(frozen=True)
class EvaluateOptions:
    """Draw the fixed captions, measure retrieval and write report.md."""

    run: Path
    """The run directory."""
    data: str | None = None
    """Where its folder of pictures is now, if that was moved."""


def main(argv: list[str]) -> int:
    """Run `tenfold evaluate microdit`."""
    options = parse(EvaluateOptions, argv, "tenfold evaluate microdit")
    run = RunDirectory.open(options.run)
    _, _, prepared = reopen(run, options.data)
    evaluate(run, prepared)
    print(run.path / "report.md")
    return 0


def heldout_loss(
    model: DiT, config: MicroDiTConfig, patches: Tensor, text: TextStates, rows: Tensor
) -> float:
    """EDM loss over `rows` with their captions, the same noise at every call; NaN without rows."""
    total, count = 0.0, 0
    model.eval()
    for start in range(0, len(rows), config.batch):
        batch = rows[start : start + config.batch].repeat_interleave(HELDOUT_DRAWS)
        draws = generator(config.seed, _HELDOUT, start)
        sigma = config.noise.training_sigmas(len(batch), draws)
        scale = config.noise.scalings(sigma)
        clean = patches.index_select(0, batch)
        noisy = clean + column(sigma, clean) * torch.randn(clean.shape, generator=draws)
        states, mask = trim(*rows_of(text, batch))
        with torch.no_grad(), autocast(config.bf16):
            raw = model(column(scale.input, noisy) * noisy, scale.noise, states, mask).float()
        loss = weighted_loss(raw, training_target(clean, noisy, scale), scale)
        total, count = total + loss.item() * len(batch), count + len(batch)
    model.train()
    return total / count if count else float("nan")


def evaluate(run: RunDirectory, prepared: Prepared) -> dict[str, Any]:
    """Measure the newest averaged weights of `run`; write samples, figures, evaluation.json, report.md."""
    config, facts = read_config(run)
    drawer = load_generator(run.path, prepared.encoder)
    sampler = SamplerConfig(guidance=config.guidance)
    fixed = fixed_rows(config, prepared)
    pictures = _draw(drawer, prepared, fixed, config.seed, sampler)
    _write_samples(run, prepared, fixed, pictures)
    results = {
        "guidance": config.guidance,
        "sampler_steps": sampler.steps,
        **measure_retrieval(drawer, prepared, config.seed, sampler),
    }
    run.write_json("evaluation.json", results)
    loss_curve(read_metrics(run.metrics), run.figures / "loss.png")
    write_report(run, config, facts, prepared.images, results, _steps_done(run))
    return results


def _steps_done(run: RunDirectory) -> int:
    newest = checkpoint.latest(run.checkpoints)
    return int(newest.name.rpartition("-")[2]) if newest else 0


def fixed_rows(config: MicroDiTConfig, prepared: Prepared) -> NDArray[np.int64]:
    """Rows of the captions that every run on this set draws: icons a person knows, else evenly spaced."""
    train = prepared.images.train
    if config.data == OPENMOJI:
        rows = {prepared.images.captions[row]: int(row) for row in train}
        known = [rows[caption] for caption in ICON_CAPTIONS if caption in rows]
        return np.array(known[:FIXED_CAPTIONS], dtype=np.int64)
    return train[np.linspace(0, len(train) - 1, min(FIXED_CAPTIONS, len(train))).astype(np.int64)]


def measure_retrieval(
    drawer: Generator, prepared: Prepared, seed: int, sampler: SamplerConfig
) -> dict[str, Any]:
    """Shares of samples with their own picture among the nearest, for seen and for held-out captions."""
    data = prepared.images
    count = min(SEEN_CAPTIONS, len(data.train))
    # The same captions for every seed of training, so that seeds differ in the training alone.
    order = torch.randperm(len(data.train), generator=generator(_SEEN)).numpy()
    seen = np.sort(data.train[order[:count]])
    features = ImageFeatures.load()
    all_rows = {"pixels": pixels(data.images), "features": features.extract(data.images)}
    groups = {"seen": (seen, data.train), "heldout": (data.heldout, np.arange(len(data)))}
    results: dict[str, Any] = {}
    for name, (rows, gallery) in groups.items():
        if not len(rows):
            continue
        drawn = _draw(drawer, prepared, rows, seed, sampler)
        samples = {"pixels": pixels(drawn), "features": features.extract(drawn)}
        copied = _nearest_other_caption(prepared, rows)
        own = np.searchsorted(gallery, rows)
        results[name] = {"captions": len(rows), "gallery": len(gallery)}
        for space, vectors in all_rows.items():
            results[name][space] = {
                f"top{k}": {
                    "samples": own_image_share(samples[space], vectors[gallery], own, k),
                    "nearest_caption": own_image_share(vectors[copied], vectors[gallery], own, k),
                    "chance": chance(len(gallery), k),
                }
                for k in SHARE_RANKS
            }
        if min(len(rows), len(data.train)) >= FEWEST_FOR_DISTANCE:
            distance = kernel_distance(samples["features"], all_rows["features"][data.train], seed=seed)
            results[name]["kernel_distance"] = asdict(distance)
    return results


def _nearest_other_caption(prepared: Prepared, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The control that only copies: for each row the training picture with the nearest other caption."""
    train = prepared.images.train
    vectors = prepared.text.pooled().numpy()
    position = np.searchsorted(train, rows)
    is_train = np.isin(rows, train)
    if is_train.all():
        return train[nearest_caption(vectors[rows], vectors[train], exclude=position)]
    return train[nearest_caption(vectors[rows], vectors[train])]


def _draw(
    drawer: Generator, prepared: Prepared, rows: NDArray[np.int64], seed: int, sampler: SamplerConfig
) -> NDArray[np.uint8]:
    states, mask = trim(*rows_of(prepared.text, torch.from_numpy(rows)))
    return drawer.sample_encoded(TextStates(states, mask), seed, sampler)


def _write_samples(
    run: RunDirectory, prepared: Prepared, rows: NDArray[np.int64], pictures: NDArray[np.uint8]
) -> None:
    data = prepared.images
    captions = [data.captions[row] for row in rows]
    for number, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        run.write_bytes(f"samples/fixed-{number:02d}-{slug(caption)}.png", to_png(picture))
    image_grid(pictures, captions, run.samples / "grid.png")
    near = data.train[nearest(pixels(pictures), pixels(data.images[data.train]), NEIGHBOURS)]
    cells, labels = [], []
    for caption, picture, rows_near in zip(captions, pictures, near, strict=True):
        cells += [picture, *data.images[rows_near]]
        labels += [f"sample: {caption}", *(data.captions[row] for row in rows_near)]
    image_grid(np.stack(cells), labels, run.figures / "nearest.png", columns=near.shape[1] + 1)
