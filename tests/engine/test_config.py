"""A config survives the way to JSON and back, and nothing else is accepted."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest

from tenfold.engine.config import added, config_hash, from_dict, to_dict
from tenfold.errors import UserError


@dataclass(frozen=True)
class Inner:
    depth: int = 8
    rates: tuple[float, ...] = (0.5, 1.0)


@dataclass(frozen=True)
class Outer:
    name: str = "laptop"
    scale: float = 0.1
    fast: bool = True
    size: tuple[int, int] = (32, 32)
    dtype: Literal["bf16", "fp32"] = "bf16"
    data: Path | None = None
    budget: Annotated[float, "seconds"] = 600.0
    limit: int | None = 3
    inner: Inner = field(default_factory=Inner)
    extra: dict[str, list[int]] = field(default_factory=dict)


CASES = [
    Outer(),
    Outer(data=Path("a/b"), limit=None, inner=Inner(3, ()), extra={"x": [1, 2]}),
    Outer(scale=1 / 3, budget=1e-300, dtype="fp32", fast=False),
]


@pytest.mark.parametrize("config", CASES)
def test_round_trip_through_json(config):
    text = json.dumps(to_dict(config))
    again = from_dict(Outer, json.loads(text), "config.json")
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert isinstance(again.size, tuple)


def test_an_integer_passes_for_a_float():
    value = from_dict(Outer, to_dict(Outer()) | {"scale": 2}, "c").scale
    assert value == 2.0
    assert isinstance(value, float)


def edited(**changes):
    return to_dict(Outer()) | changes


BAD = [
    (edited(nmae="x"), "unknown key 'nmae'"),
    (edited(inner={"depth": 8, "rates": [], "width": 1}), "unknown key 'inner.width'"),
    ({key: value for key, value in to_dict(Outer()).items() if key != "scale"}, "key 'scale' is missing"),
    (edited(inner={"depth": 8}), "key 'inner.rates' is missing"),
    (edited(limit="3"), "'limit' is '3'; it must be an integer"),
    (edited(limit=True), "'limit' is True; it must be an integer"),
    (edited(limit=3.0), "'limit' is 3.0; it must be an integer"),
    (edited(scale=float("nan")), "'scale' is nan; it must be a finite number"),
    (edited(scale=False), "'scale' is False; it must be a finite number"),
    (edited(budget="10m"), "'budget' is '10m'; it must be a finite number"),
    (edited(fast=1), "'fast' is 1; it must be true or false"),
    (edited(name=None), "'name' is None; it must be a text"),
    (edited(dtype="fp16"), "'dtype' is 'fp16'; it must be one of 'bf16', 'fp32'"),
    (edited(size=[32]), r"'size' is \[32\]; it must be a list of 2"),
    (edited(size=32), "'size' is 32; it must be a list"),
    (edited(size=[32, "x"]), r"'size\[1\]' is 'x'; it must be an integer"),
    (edited(inner=3), "'inner' is 3; it must be an object"),
    (edited(extra={"x": ["y"]}), r"'extra.x\[0\]' is 'y'; it must be an integer"),
    ([1], "'the file' is .1.; it must be an object"),
]


@pytest.mark.parametrize(("mapping", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_configs_are_named(mapping, message):
    with pytest.raises(UserError, match="run/config.json: " + message):
        from_dict(Outer, mapping, "run/config.json")


def test_hash_depends_on_every_value_and_not_on_the_class():
    hashes = {config_hash(config) for config in CASES}
    hashes.add(config_hash(replace(Outer(), inner=Inner(rates=(0.5, 2.0)))))
    assert len(hashes) == 4
    assert config_hash(Outer()) == config_hash(Outer(inner=Inner(8, (0.5, 1.0))))


def test_a_field_that_came_later():
    @dataclass(frozen=True)
    class Part:
        old: int = 1
        new: float = added(2.0)

    @dataclass(frozen=True)
    class Before:
        old: int = 1

    assert config_hash(Part()) == config_hash(Before())
    assert config_hash(Part(new=3.0)) != config_hash(Before())
    assert from_dict(Part, {"old": 5}, "file") == Part(5)
    assert from_dict(Part, to_dict(Part(5, 4.0)), "file") == Part(5, 4.0)
    with pytest.raises(UserError, match="file: key 'old' is missing"):
        from_dict(Part, {"new": 1.0}, "file")

    @dataclass(frozen=True)
    class Whole:
        part: Part = Part()

    @dataclass(frozen=True)
    class WholeBefore:
        part: Before = Before()

    assert config_hash(Whole()) == config_hash(WholeBefore())


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="set"):
        to_dict(Outer(extra={1, 2}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="JSON compliant"):
        config_hash(Outer(scale=float("inf")))
