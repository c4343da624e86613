"""What a run's config.json holds: the configuration, and facts measured once before the first step."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from tenfold.data.manifest import Manifest
from tenfold.diffusion.pixels import PixelScaling
from tenfold.engine.config import from_dict
from tenfold.engine.run import RunDirectory
from tenfold.errors import UserError
from tenfold.methods.microdit.config import MicroDiTConfig
from tenfold.methods.microdit.data import Prepared, anchored, prepare


@dataclass(frozen=True)
class Facts:
    """What config.json holds beside the configuration."""

    method: str
    version: str
    pixels: PixelScaling
    manifest: Manifest
    parameters: int
    flops_per_step: int
    seconds_per_step: float
    threads: int

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        if self.threads < 1:
            raise ValueError(f"threads: wanted at least 1, got {self.threads}")


def read_config(run: RunDirectory) -> tuple[MicroDiTConfig, Facts]:
    """Split a run's config.json into its two parts; UserError names an unknown or ill-typed key."""
    source = str(run.path / "config.json")
    if run.config_dict.get("method") != "microdit":
        raise UserError(f"{source}: not a microdit run")
    own = {item.name for item in fields(Facts)}
    facts = {key: value for key, value in run.config_dict.items() if key in own}
    config = {key: value for key, value in run.config_dict.items() if key not in own}
    return from_dict(MicroDiTConfig, config, source), from_dict(Facts, facts, source)


def reopen(run: RunDirectory, data: str | None = None) -> tuple[MicroDiTConfig, Facts, Prepared]:
    """Read a run's config and its data, which must be what they were when it began.

    `data` is where its folder of pictures lies now, if that was moved.
    """
    config, facts = read_config(run)
    if data is not None:
        config = anchored(replace(config, data=data))
    prepared = prepare(config)
    facts.manifest.verify(prepared.images)
    return config, facts, prepared
