"""report.md: what a run measured, with the controls beside each figure."""

from __future__ import annotations

import math
from typing import Any

from tenfold.data.images import CaptionedImages
from tenfold.engine.metrics import read_metrics
from tenfold.engine.run import RunDirectory
from tenfold.methods.microdit.config import MicroDiTConfig
from tenfold.methods.microdit.run import Facts

_SPACES = {"pixels": "pixels", "features": "EfficientNet-Lite0 features"}
_SETS = {"seen": "training captions", "heldout": "held-out captions"}


def write_report(
    run: RunDirectory,
    config: MicroDiTConfig,
    facts: Facts,
    data: CaptionedImages,
    results: dict[str, Any],
    step: int,
) -> None:
    """Write report.md from the run's files and `results` of the evaluation, after `step` steps."""
    parts = [
        _training(run, config, facts, data, step),
        "## Retrieval\n\n" + _retrieval_table(results) + "\n\n" + _retrieval_text(results),
        _kernel_distances(results),
        "## Pictures\n\n![samples for the fixed captions](samples/grid.png)\n\n"
        "Each sample beside its three nearest training pictures in pixels, so that copying is visible:\n\n"
        "![nearest training pictures](figures/nearest.png)\n\n![loss](figures/loss.png)",
        f"## Data\n\n{data.source}. Licence: {data.licence}. {data.attribution}",
    ]
    run.write_text("report.md", "# MicroDiT run\n\n" + "\n\n".join(filter(None, parts)) + "\n")


def _training(
    run: RunDirectory, config: MicroDiTConfig, facts: Facts, data: CaptionedImages, step: int
) -> str:
    last = {key: value for row in read_metrics(run.metrics) for key, value in row.items()}
    passes = step * config.batch / len(data.train)
    unfinished = f" The run is UNFINISHED: {config.steps} steps were planned." if step < config.steps else ""
    model = config.model
    size, patch = model.image_size, model.patch_size
    lines = [
        "## Training",
        "",
        f"- {len(data.train)} pictures of {size}x{size} pixels, {len(data.heldout)} more held out.",
        f"- {facts.parameters / 1e6:.1f} M parameters, {model.tokens} patches of {patch}x{patch} pixels.",
        f"- {_masking(config)}",
        f"- {step} steps of {config.batch} pictures, {passes:.0f} passes, seed {config.seed}.{unfinished}",
        f"- {facts.flops_per_step / 1e9:.1f} GFLOP a step, {facts.seconds_per_step:.3f} s as calibrated on "
        f"{facts.threads} threads.",
        f"- Last training loss {_loss(last, 'loss')}, held-out loss {_loss(last, 'heldout_loss')}.",
    ]
    return "\n".join(lines)


def _loss(last: dict[str, Any], name: str) -> str:
    value = last.get(name, math.nan)
    return f"{value:.4f}" if math.isfinite(value) else "none"


def _masking(config: MicroDiTConfig) -> str:
    if not config.mask_ratio:
        return "No patch is masked; --mask-ratio turns deferred masking on."
    return (
        f"{config.mask_ratio:.0%} of the patches are masked after the mixer, none in the last "
        f"{config.unmasked_share:.0%} of the steps."
    )


def _retrieval_table(results: dict[str, Any]) -> str:
    lines = [
        "| captions | distance in | nearest | samples | nearest other caption | chance |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key, title in _SETS.items():
        for space, label in _SPACES.items():
            for top, shares in results.get(key, {}).get(space, {}).items():
                figures = [f"{100 * shares[name]:.1f} %" for name in ("samples", "nearest_caption", "chance")]
                cells = [f"{results[key]['captions']} {title}", label, top.removeprefix("top"), *figures]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _retrieval_text(results: dict[str, Any]) -> str:
    text = (
        "Share of the samples that have the picture of their own caption among the nearest 1 or 10. They "
        f"are drawn with guidance {results['guidance']:g} in {results['sampler_steps']} steps of Heun's "
        "method. "
        "The column 'nearest other caption' is the share reached without any training, by copying the "
        "training picture with the nearest caption. A high share on training captions says that pictures "
        "were memorised with their captions."
    )
    heldout = results.get("heldout", {}).get("pixels", {}).get("top10")
    if heldout:
        gain = 100 * (heldout["samples"] - heldout["nearest_caption"])
        text += f" On held-out captions the samples are {gain:+.1f} points from copying (pixels, 10 nearest)."
    return text


def _kernel_distances(results: dict[str, Any]) -> str:
    """The section, or nothing where there were too few pictures."""
    if not any("kernel_distance" in results.get(key, {}) for key in _SETS):
        return ""
    lines = [
        "## Kernel distance",
        "",
        "Unbiased polynomial-kernel distance between samples and training pictures in EfficientNet-Lite0",
        "features. It is not FID, and compares with nothing in other features or subset sizes.",
        "",
    ]
    for key, title in _SETS.items():
        distance = results.get(key, {}).get("kernel_distance")
        if distance:
            subsets = f"{distance['subsets']} subsets of {distance['subset_size']}"
            figures = f"{distance['mean']:.4f} (spread {distance['spread']:.4f} over {subsets})"
            lines.append(f"- {title}: {figures}")
    return "\n".join(lines)
