"""Minutes of training until MicroDiT draws nine of ten captions' own pictures.

    python benchmarks/microdit_minutes.py --preset laptop --seed 0 --label after --out DIR
    python benchmarks/microdit_minutes.py --preset laptop --speed --label after --out DIR
    python benchmarks/microdit_minutes.py --table --out DIR

The first form trains a run of fixed length and looks at its averaged weights on the way, by the measure of
`tenfold evaluate microdit`; it stops when they reach the share. The second times steps, and nothing else, on
a machine that has nothing else to do. The third makes a table of all files. The script uses whichever tenfold
is installed, so that two versions can be compared. The plan is docs/plans/microdit_minutes.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tenfold
from tenfold.diffusion.dit import DiT
from tenfold.diffusion.generator import Generator, SamplerConfig
from tenfold.diffusion.pixels import PixelScaling
from tenfold.diffusion.text import TextStates
from tenfold.engine.schedule import generator
from tenfold.methods.microdit import evaluate
from tenfold.methods.microdit.config import PRESETS, MicroDiTConfig
from tenfold.methods.microdit.data import Prepared, patches_of, prepare, rows_of, trim
from tenfold.methods.microdit.step import TrainingState, TrainingStep

STEPS = {"laptop": 1000, "laptop64": 2000}  # of the whole run, which its learning rate is planned for
LOOK_EVERY = 100
SHARE = 0.9
ROUNDS, ROUND_STEPS = 3, 20


def main() -> None:
    """Run one cell and write its file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=list(STEPS), default="laptop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", default="after", help="the version's name in the files")
    parser.add_argument("--speed", action="store_true", help="time steps only")
    parser.add_argument("--table", action="store_true", help="print the table of the files in --out")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]))
        return
    config = replace(PRESETS[options.preset](), seed=options.seed, steps=STEPS[options.preset])
    prepared = prepare(config)
    training = prepared.images.train
    pixels = PixelScaling.fit(prepared.images.images[training])
    patches = patches_of(config, prepared, pixels)
    step = TrainingStep(config, patches, prepared.text, torch.from_numpy(training))
    state = TrainingState.fresh(config)
    if options.speed:
        kind, result = f"speed{options.seed}", {"seconds_per_step": seconds_per_step(step, state)}
    else:
        kind, result = f"seed{options.seed}", {"looks": looks(Judge(prepared, pixels), config, step, state)}
    cell = {
        "label": options.label,
        "preset": options.preset,
        "seed": options.seed,
        "version": tenfold.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "precision": "bf16" if config.bf16 else "fp32",
        "batch": config.batch,
        "run_steps": config.steps,
        **result,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.label}-{options.preset}-{kind}.json"
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(cell, indent=1) + "\n")
    partial.replace(path)
    print(path)


def seconds_per_step(step: TrainingStep, state: TrainingState) -> list[float]:
    """Mean seconds of a step in each of a few rounds, after a warm-up."""
    for _ in range(10):
        step(state)
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(ROUND_STEPS):
            step(state)
        rounds.append((time.perf_counter() - began) / ROUND_STEPS)
    return rounds


class Judge:
    """Draws 100 training captions and asks how many drawings are nearest to their own picture."""

    def __init__(self, prepared: Prepared, pixels: PixelScaling) -> None:
        self.prepared, self.pixels = prepared, pixels
        self.gallery = prepared.images.train
        order = torch.randperm(len(self.gallery), generator=generator(evaluate._SEEN)).numpy()
        self.rows = np.sort(self.gallery[order[: evaluate.SEEN_CAPTIONS]])
        self.text = TextStates(*trim(*rows_of(prepared.text, torch.from_numpy(self.rows))))
        self.features = evaluate.ImageFeatures.load()
        pictures = prepared.images.images[self.gallery]
        self.vectors = {"pixels": evaluate.pixels(pictures), "features": self.features.extract(pictures)}

    def shares(self, config: MicroDiTConfig, state: TrainingState) -> dict[str, float]:
        """Shares of the averaged weights' drawings with their own picture among the 10 nearest."""
        model = DiT(config.model)
        model.load_state_dict(state.ema.tensors())
        drawer = Generator(model, config.noise, self.pixels, self.prepared.encoder, config.precision)
        drawn = drawer.sample_encoded(self.text, config.seed, SamplerConfig(guidance=config.guidance))
        samples = {"pixels": evaluate.pixels(drawn), "features": self.features.extract(drawn)}
        own = np.searchsorted(self.gallery, self.rows)
        return {
            space: evaluate.own_image_share(samples[space], vectors, own, 10)
            for space, vectors in self.vectors.items()
        }


def looks(
    judge: Judge, config: MicroDiTConfig, step: TrainingStep, state: TrainingState
) -> list[dict[str, Any]]:
    """Train until a look at the averaged weights finds the share in pixels, or the run is over."""
    found: list[dict[str, Any]] = []
    while state.step < config.steps:
        step(state)
        if state.step % LOOK_EVERY == 0:
            found.append({"step": state.step, **judge.shares(config, state)})
            print(found[-1], flush=True)
            if found[-1]["pixels"] >= SHARE:
                break
    return found


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown: images/s, steps and minutes of each preset and version, mean and spread over the seeds."""
    lines = [
        "| preset | version | images/s | seeds | steps to 90 % | minutes to 90 % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for preset in STEPS:
        for label in sorted({cell["label"] for cell in cells}, reverse=True):
            mine = [cell for cell in cells if (cell["label"], cell["preset"]) == (label, preset)]
            rounds = [seconds for cell in mine for seconds in cell.get("seconds_per_step", [])]
            runs = [cell["looks"] for cell in mine if cell.get("looks")]
            steps = np.array([run[-1]["step"] for run in runs if run[-1]["pixels"] >= SHARE], dtype=float)
            minutes = steps * (float(np.mean(rounds)) if rounds else float("nan")) / 60
            speed = f"{mine[0]['batch'] / np.mean(rounds):.0f}" if rounds else ""
            count = f"{len(steps)} of {len(runs)} reached it"
            lines.append(f"| {preset} | {label} | {speed} | {count} | {spread(steps)} | {spread(minutes)} |")
    return "\n".join(lines)


def spread(values: Any) -> str:
    """Mean and standard deviation."""
    if not len(values):
        return ""
    digits = 0 if np.mean(values) >= 100 else 2
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
