"""`tenfold sample microdit`: pictures from captions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tenfold.data.folder import is_unicode
from tenfold.diffusion.generator import SamplerConfig, load_generator
from tenfold.engine.atomic import atomic_write
from tenfold.engine.figures import to_png
from tenfold.engine.options import parse
from tenfold.engine.run import RunDirectory
from tenfold.errors import UserError


@dataclass(frozen=True)
class SampleOptions:
    """Draw a picture for each caption with the averaged weights of a run."""

    run: Path
    """The run directory."""
    captions: tuple[str, ...]
    """What to draw; one PNG each."""
    seed: int = 0
    """Seed of the noise; the same seed draws the same picture."""
    steps: int = 30
    """Noise levels of the sampler."""
    guidance: float | None = None
    """Weight of the caption (default: the run's own)."""
    out: Path | None = None
    """A PNG file for one caption, or a folder (default: RUN/samples)."""
    scale: int = 8
    """Pixels of the PNG per pixel of the picture."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be drawn."""
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        if self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}")
        if self.guidance is not None and self.guidance < 0:
            raise ValueError(f"--guidance must be 0 or more, got {self.guidance}")
        if self.scale < 1:
            raise ValueError(f"--scale must be at least 1, got {self.scale}")


def main(argv: list[str]) -> int:
    """Run `tenfold sample microdit`."""
    options = parse(SampleOptions, argv, "tenfold sample microdit")
    for caption in options.captions:
        if not caption.strip():
            raise UserError("a caption is empty; give a text to draw")
        if not is_unicode(caption):
            raise UserError(f"the caption {caption!r} is not UTF-8; write it in that encoding")
    run = RunDirectory.open(options.run)
    sampler = SamplerConfig(options.steps, _guidance(options, run))
    pictures = load_generator(options.run).sample(options.captions, options.seed, sampler)
    for number, (caption, picture) in enumerate(zip(options.captions, pictures, strict=True)):
        path = _target(options, sampler.guidance, number, caption)
        enlarged = picture.repeat(options.scale, axis=0).repeat(options.scale, axis=1)
        with atomic_write(path, "wb") as sink:
            sink.write(to_png(enlarged))
        print(path)
    return 0


def _guidance(options: SampleOptions, run: RunDirectory) -> float:
    """The option, else the run's own, which may have been edited."""
    if options.guidance is not None:
        return options.guidance
    own = run.config_dict.get("guidance", SamplerConfig.guidance)
    if isinstance(own, bool) or not isinstance(own, int | float) or own < 0:
        raise UserError(
            f"{run.path / 'config.json'}: 'guidance' is {own!r}; it must be a number of 0 or more"
        )
    return float(own)


def slug(caption: str) -> str:
    """A caption as part of a file name: its letters and digits, of any script, in at most 120 bytes."""
    words = re.sub(r"[\W_]+", "-", caption.lower()).strip("-")
    return words.encode()[:120].decode(errors="ignore").strip("-") or "picture"


def _target(options: SampleOptions, guidance: float, number: int, caption: str) -> Path:
    out = options.out
    if out is not None and out.suffix.lower() == ".png":
        if len(options.captions) > 1:
            raise UserError(
                f"--out {out} is one file, but there are {len(options.captions)} captions; give a folder"
            )
        folder, path = out.parent, out
    else:
        folder = out or options.run / "samples"
        drawn = f"seed{options.seed}-steps{options.steps}-guidance{guidance:g}"
        path = folder / f"{number:02d}-{slug(caption)}-{drawn}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; give another --out") from error
    return path
