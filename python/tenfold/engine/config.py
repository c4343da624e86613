"""Frozen dataclasses to JSON and back, strictly: a run is described by its config file and nothing else."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from tenfold.errors import UserError

T = TypeVar("T")


def added(default: Any) -> Any:
    """A field that came after runs had been written: missing in their files, it has its default.

    At its default it is left out of config_hash, so that older results keep their names. The default must
    mean what the program did before.
    """
    return dataclasses.field(default=default, metadata={_ADDED: True})


_ADDED = "added"


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass instance as JSON types: nested ones become objects, tuples lists, paths strings."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"to_dict wants a dataclass instance, got {config!r}")
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(cls: type[T], mapping: Mapping[str, Any], source: str) -> T:
    """Build dataclass `cls` from what `to_dict` made; `source` names the file in messages.

    Every field must be present, nothing else may be, and each value must have its field's type (an integer
    passes for a float, a boolean for neither). Otherwise `UserError` names `source` and the dotted key.
    """
    return typing.cast(T, _build(cls, mapping, source, ""))


def config_hash(config: Any) -> str:
    """16 hexadecimal digits that depend on the values alone (not on the order of fields)."""
    values = _without_added(config, to_dict(config))
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_added(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """`values` of `config` without the added fields that have their defaults."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values[field.name] = _without_added(value, values[field.name])
        elif field.metadata.get(_ADDED) and value == field.default:
            del values[field.name]
    return values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config field cannot hold {type(value).__name__}: {value!r}")


def _build(cls: Any, mapping: Any, source: str, prefix: str) -> Any:
    if not isinstance(mapping, Mapping):
        raise _error(source, prefix.rstrip(".") or "the file", mapping, "an object")
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    names = [field.name for field in fields if field.name in mapping or not field.metadata.get(_ADDED)]
    known = {field.name for field in fields}
    for key in mapping:
        if key not in known:
            raise UserError(
                f"{source}: unknown key '{prefix}{key}'; delete it, or use the version that wrote it"
            )
    for name in names:
        if name not in mapping:
            raise UserError(f"{source}: key '{prefix}{name}' is missing; add it, or start a new run")
    values = {name: _value(hints[name], mapping[name], source, prefix + name) for name in names}
    try:
        return cls(**values)
    except ValueError as error:  # what the class itself refuses: values out of range
        where = f" in '{prefix.rstrip('.')}'" if prefix else ""
        raise UserError(f"{source}{where}: {error}") from error


def _value(hint: Any, value: Any, source: str, key: str) -> Any:
    """Check one value against its type and rebuild what JSON cannot say (tuples, paths, dataclasses)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _value(arguments[0], value, source, key)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, source, key)
    if origin is Literal:
        # 1 == True in Python, so the type is compared as well.
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _error(source, key, value, "one of " + ", ".join(map(repr, arguments)))
    if origin in (tuple, list):
        return _sequence(origin, arguments, value, source, key)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _error(source, key, value, "an object")
        return {name: _value(arguments[1], item, source, f"{key}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, source, key + ".")
    return _scalar(hint, value, source, key)


def _union(choices: tuple[Any, ...], value: Any, source: str, key: str) -> Any:
    if value is None and type(None) in choices:
        return None
    failures = []
    for choice in choices:
        if choice is not type(None):
            try:
                return _value(choice, value, source, key)
            except UserError as error:
                failures.append(error)
    # With one choice beside None its own message (perhaps about a nested key) says most.
    if len(failures) == 1:
        raise failures[0]
    raise _error(source, key, value, " or ".join(getattr(c, "__name__", str(c)) for c in choices))


def _sequence(origin: Any, arguments: tuple[Any, ...], value: Any, source: str, key: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _error(source, key, value, "a list")
    endless = origin is list or arguments[-1] is Ellipsis
    hints = [arguments[0]] * len(value) if endless else list(arguments)
    if len(hints) != len(value):
        raise _error(source, key, value, f"a list of {len(hints)}")
    pairs = enumerate(zip(hints, value, strict=True))
    return origin(_value(hint, item, source, f"{key}[{i}]") for i, (hint, item) in pairs)


_WANTED = {bool: "true or false", int: "an integer", float: "a finite number", str: "a text", Path: "a path"}


def _scalar(hint: Any, value: Any, source: str, key: str) -> Any:
    if hint is type(None):
        if value is None:
            return None
        raise _error(source, key, value, "null")
    if hint not in _WANTED:
        raise TypeError(f"{source}: field '{key}' has a type that configs do not support: {hint!r}")
    is_bool = isinstance(value, bool)
    if hint is bool and is_bool:
        return value
    if hint is int and isinstance(value, int) and not is_bool:
        return value
    if hint is float and isinstance(value, int | float) and not is_bool and math.isfinite(value):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    raise _error(source, key, value, _WANTED[hint])


def _error(source: str, key: str, value: Any, wanted: str) -> UserError:
    shown = repr(value)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    return UserError(f"{source}: '{key}' is {shown}; it must be {wanted}")
