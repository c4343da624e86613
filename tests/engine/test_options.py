"""Options from dataclasses: what they read, and one line for every mistake."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from tenfold.engine.budget import parse_duration
from tenfold.engine.options import parse
from tenfold.errors import UserError


@dataclass(frozen=True)
class Model:
    """The transformer."""

    depth: int = 8
    """Blocks."""
    mask_ratio: float = 0.0
    """Share of patches left out (0.75 is 75%)."""


@dataclass(frozen=True)
class Options:
    """Draw pictures.

    Not in the help.
    """

    run: Path
    """Run directory."""
    captions: tuple[str, ...]
    """What to draw."""
    steps: int = 30
    """Sampler
    steps."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    budget: Annotated[float, parse_duration] = 600.0
    seed: int | None = 0
    ema: bool = True
    betas: tuple[float, float] = (0.9, 0.99)
    out: Path | None = None
    only: tuple[str, ...] = ()
    model: Model = field(default_factory=Model)

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}")


def read(*argv, **settings):
    return parse(Options, argv, "tenfold sample microdit", **settings)


def test_defaults():
    assert read("run", "red apple") == Options(Path("run"), ("red apple",))


def test_a_list_option_given_twice_keeps_both():
    assert read("run", "a", "--only", "x", "y", "--only", "z").only == ("x", "y", "z")


def test_every_kind_of_option():
    given = read(
        *(
            "run",
            "a",
            "b c",
            "--steps=3",
            "--dtype",
            "fp32",
            "--budget",
            "1h30m",
            "--seed",
            "none",
            "--no-ema",
        ),
        *("--betas", "0.8", "1", "--out", "x/y", "--mask-ratio", "0.75"),
    )
    assert given == Options(
        run=Path("run"),
        captions=("a", "b c"),
        steps=3,
        dtype="fp32",
        budget=5400.0,
        seed=None,
        ema=False,
        betas=(0.8, 1.0),
        out=Path("x/y"),
        model=Model(mask_ratio=0.75),
    )
    assert read("run", "a", "--seed", "-5").seed == -5


def test_default_instance_and_presets():
    base = Options(Path(), (), steps=7, model=Model(depth=3))
    given = read("run", "a", "--mask-ratio", "0.5", default=base)
    assert (given.steps, given.model) == (7, Model(3, 0.5))
    presets = {"laptop": Options(Path(), ()), "paper": base}
    assert read("run", "a", presets=presets).steps == 30
    assert read("run", "a", "--preset", "paper", presets=presets).steps == 7
    assert read("run", "a", "--preset=paper", "--steps", "9", presets=presets).steps == 9
    with pytest.raises(
        UserError, match=r"option --preset must be laptop or paper, got 'papr' \(did you mean paper"
    ):
        read("run", "a", "--preset", "papr", presets=presets)


BAD = [
    (["run", "a", "--stesp", "3"], r"unknown option --stesp \(did you mean --steps\?\)"),
    (["--stesp", "3"], r"unknown option --stesp"),
    (["run", "a", "--step", "3"], r"unknown option --step \(did you mean --steps\?\)"),
    (["run", "a", "--zzz=1"], r"unknown option --zzz;"),
    (["run", "a", "-q"], "unexpected argument '-q'"),
    (["run", "a", "--steps", "3.5"], "option --steps must be an integer, got '3.5'"),
    (["run", "a", "--steps", ""], "option --steps must be an integer, got ''"),
    (["run", "a", "--steps"], "option --steps: expected one argument"),
    (["run", "a", "--steps", "0"], "--steps must be at least 1, got 0"),
    (["run", "a", "--mask-ratio", "nan"], "option --mask-ratio must be a number, got 'nan'"),
    (
        ["run", "a", "--dtype", "bf61"],
        r"option --dtype must be bf16 or fp32, got 'bf61' \(did you mean bf16\?\)",
    ),
    (["run", "a", "--budget", "ten"], "option --budget: cannot read the duration 'ten'; write it like"),
    (["run", "a", "--seed", "two"], "option --seed must be an integer, got 'two'"),
    (["run", "a", "--ema=yes"], "option --ema/--no-ema: takes no value, got 'yes'"),
    (["run", "a", "--betas", "0.9"], "option --betas: expected 2 arguments"),
    (["run"], "missing argument CAPTIONS"),
    ([], "missing argument RUN, CAPTIONS"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_mistakes_are_named(argv, message, capsys):
    with pytest.raises(UserError, match=f"^{message}.*see tenfold sample microdit --help$"):
        read(*argv)
    assert capsys.readouterr() == ("", "")


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: tenfold sample microdit" in text
    assert "Sampler steps. (default: 30)" in text
    assert "(0.75 is 75%). (default: 0.0)" in text
    assert "The transformer:" in text
    assert "--dtype bf16|fp32" in text
    assert "--budget DURATION" in text
    assert "Not in the help" not in text
    assert "(default: )" not in text


def test_unsupported_type():
    @dataclass(frozen=True)
    class Odd:
        values: dict[str, int] = field(default_factory=dict)

    with pytest.raises(TypeError, match="dict"):
        parse(Odd, [], "x")
