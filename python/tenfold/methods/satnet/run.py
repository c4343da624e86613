"""What a run's config.json holds: the configuration, and facts established before the first step."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from tenfold.engine.config import from_dict
from tenfold.engine.run import RunDirectory
from tenfold.errors import UserError
from tenfold.methods.satnet.config import SEEING_TASKS, SATNetConfig
from tenfold.methods.satnet.data import anchored, prepare
from tenfold.methods.satnet.problems import Problems


@dataclass(frozen=True)
class Facts:
    """What config.json holds beside the configuration."""

    method: str
    version: str
    train_sha256: str
    test_sha256: str
    train_problems: int
    test_problems: int
    parameters: int
    threads: int

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        if self.threads < 1:
            raise ValueError(f"threads: wanted at least 1, got {self.threads}")

    def verify(self, problems: Problems) -> None:
        """Refuse problems that are not those that the run began with."""
        for name, split in (("train", problems.train), ("test", problems.test)):
            wanted = getattr(self, f"{name}_sha256")
            if split.fingerprint() != wanted:
                raise UserError(
                    f"the {name} problems are not those that the run began with (SHA-256 "
                    f"{split.fingerprint()[:12]}, wanted {wanted[:12]}); give the data it had, or start anew"
                )


def read_config(run: RunDirectory) -> tuple[SATNetConfig, Facts]:
    """Split a run's config.json into its two parts; UserError names an unknown or ill-typed key."""
    source = str(run.path / "config.json")
    if run.config_dict.get("method") != "satnet":
        raise UserError(f"{source}: not a satnet run")
    own = {item.name for item in fields(Facts)}
    facts = {key: value for key, value in run.config_dict.items() if key in own}
    config = {key: value for key, value in run.config_dict.items() if key not in own}
    return from_dict(SATNetConfig, config, source), from_dict(Facts, facts, source)


def reopen(run: RunDirectory, puzzles: str = "", digits: str = "") -> tuple[SATNetConfig, Facts, Problems]:
    """Read a run's config and its problems, which must be what they were when it began.

    `puzzles` and `digits` are where its file of puzzles and its folder of digits are now, if they were moved.
    """
    config, facts = read_config(run)
    data = config.data
    if puzzles and not data.puzzles:
        raise UserError(f"--puzzles {puzzles}: {run.path} was not trained on a file of puzzles")
    if digits and config.task not in SEEING_TASKS:
        raise UserError(
            f"--digits {digits}: {run.path} was trained on {config.task}, which shows no pictures"
        )
    data = replace(data, puzzles=puzzles or data.puzzles, digits=digits or data.digits)
    config = anchored(replace(config, data=data))
    problems = prepare(config)
    facts.verify(problems)
    return config, facts, problems
