"""Command-line options from a frozen dataclass, with errors that fit on one line.

    @dataclass(frozen=True)
    class SampleOptions:
        '''Draw pictures for captions.'''

        run: Path
        '''Run directory that training made.'''
        captions: tuple[str, ...]
        '''What to draw, one picture each.'''
        steps: int = 30
        '''Sampler steps.'''

A field without a default is a positional argument, every other one an option. The text below a field is its
help. Fields of a nested dataclass are options of the same command under their own names (`model.depth` is
`--depth`), so no two fields may share a name. Types: bool (`--flag`, `--no-flag`), int, float, str, Path,
Literal, `X | None` (written none), `tuple[X, ...]`, `tuple[X, Y]`, and `Annotated[X, parse]`, where `parse`
turns the text into an X and raises UserError or ValueError.
"""

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

from tenfold.errors import UserError

T = TypeVar("T")


def parse(
    cls: type[T],
    argv: Sequence[str],
    prog: str,
    default: T | None = None,
    presets: Mapping[str, T] | None = None,
) -> T:
    """Read `argv` into an instance of `cls`; options not given keep the values of `default`.

    With `presets` there is an option --preset besides, and the chosen one (else the first) is the default.
    An unknown, missing or ill-typed argument raises `UserError`, which names it. --help prints and exits.
    """
    if presets is not None:
        names = tuple(presets)
        chooser = Parser(prog, add_help=False)
        chooser.add_argument("--preset", type=functools.partial(_choice, names), default=names[0])
        default = presets[chooser.parse_known_args(argv)[0].preset]
    parser = Parser(prog, description=_first_paragraph(cls), formatter_class=_Formatter)
    if presets is not None:
        help_text = f"where the other options start from: {' or '.join(names)} (default: {names[0]})"
        parser.add_argument("--preset", metavar="NAME", help=help_text, default=argparse.SUPPRESS)
    _add_fields(parser, parser, cls, default)
    parser.refuse_unknown(argv)
    given, extra = parser.parse_known_args(argv)
    if extra:
        parser.error(f"unexpected argument {extra[0]!r}")
    try:
        return typing.cast(T, _build(cls, vars(given), default))
    except ValueError as error:
        raise UserError(f"{error}; see {prog} --help") from error


def closest(name: str, known: Iterable[str]) -> str:
    """A hint " (did you mean X?)" for a mistyped name, or an empty text."""
    # Without the dashes, which all options have in common.
    bare = {item.lstrip("-"): item for item in known}
    matches = difflib.get_close_matches(name.lstrip("-"), list(bare), n=1)
    return f" (did you mean {bare[matches[0]]}?)" if matches else ""


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


# argparse's words on the left; the readers below say "must be ..." themselves.
_WORDING = (
    ("the following arguments are required:", "missing argument"),
    ("argument --", "option --"),
    ("ignored explicit argument", "takes no value, got"),
    (": must be", " must be"),
)


class Parser(argparse.ArgumentParser):
    """argparse with every error a UserError."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a UserError, with what to ask for help."""
        for said, better in _WORDING:
            message = message.replace(said, better, 1)
        raise UserError(f"{message}; see {self.prog} --help")

    def refuse_unknown(self, argv: Sequence[str]) -> None:
        """Name the first unknown option before argparse complains of something that follows from it."""
        for token in argv:
            name = token.partition("=")[0]
            if token == "--":
                return
            if name.startswith("--") and " " not in name and name not in self._option_string_actions:
                self.error(f"unknown option {name}{closest(name, self._option_string_actions)}")


def _add_fields(parser: Parser, group: Any, cls: Any, default: Any) -> None:
    """Add the fields of dataclass `cls` to `group`; nested dataclasses get a group of their own."""
    hints = typing.get_type_hints(cls, include_extras=True)
    texts = _field_texts(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint, value = hints[field.name], _default(field, default)
        if dataclasses.is_dataclass(hint):
            nested = parser.add_argument_group(_first_paragraph(hint).rstrip(".") or field.name)
            _add_fields(parser, nested, hint, None if value is dataclasses.MISSING else value)
        else:
            _add_field(group, field, hint, value, texts.get(field.name, ""))


def _add_field(group: Any, field: "dataclasses.Field[Any]", hint: Any, value: Any, text: str) -> None:
    settings: dict[str, Any] = {"help": text.replace("%", "%%")}
    if _is_positional(field):
        settings |= _type_settings(hint) | {"metavar": field.name.upper()}
        group.add_argument(field.name, **settings)
        return
    if value not in (None, "", ()):
        settings["help"] += f" (default: {_shown(value)})".replace("%", "%%")
    flag = "--" + field.name.replace("_", "-")
    # SUPPRESS: only what the user gave is in the result, the rest comes from the default instance.
    group.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, **settings, **_type_settings(hint))


def _type_settings(hint: Any) -> dict[str, Any]:
    """How argparse reads a value of type `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) == 1 and len(arguments) == 2:
            settings = _type_settings(inner[0])
            if "type" in settings:
                return settings | {"type": functools.partial(_optional, settings["type"])}
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            # extend: `--only a --only b` means the same as `--only a b`.
            return _type_settings(arguments[0]) | {"nargs": "+", "action": "extend"}
        return _type_settings(arguments[0]) | {"nargs": len(arguments)}
    if origin is typing.Annotated:
        reader = next(filter(callable, arguments[1:]), None)
        if reader is None:
            return _type_settings(arguments[0])
        metavar = getattr(reader, "__name__", "value").rpartition("_")[2].upper()
        return {"type": functools.partial(_custom, reader), "metavar": metavar}
    if origin is Literal:
        return {"type": functools.partial(_choice, arguments), "metavar": "|".join(map(str, arguments))}
    if hint in _READERS:
        return {"type": _READERS[hint], "metavar": _METAVARS[hint]}
    raise TypeError(f"options do not support the type {hint!r}")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return value


def _choice(choices: Sequence[Any], text: str) -> Any:
    for choice in choices:
        if str(choice) == text:
            return choice
    known = [str(choice) for choice in choices]
    raise argparse.ArgumentTypeError(f"must be {' or '.join(known)}, got {text!r}{closest(text, known)}")


def _optional(reader: Callable[[str], Any], text: str) -> Any:
    return None if text.lower() == "none" else reader(text)


def _custom(reader: Callable[[str], Any], text: str) -> Any:
    try:
        return reader(text)
    except (UserError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


_READERS: dict[Any, Callable[[str], Any]] = {int: _integer, float: _number, str: str, Path: Path}
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def _build(cls: Any, given: Mapping[str, Any], default: Any) -> Any:
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        value = _default(field, default)
        if dataclasses.is_dataclass(hints[field.name]):
            base = None if value is dataclasses.MISSING else value
            value = _build(hints[field.name], given, base)
        elif field.name in given:
            value = given[field.name]
            value = tuple(value) if isinstance(value, list) else value
        values[field.name] = value
    return cls(**values)


def _is_positional(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: "dataclasses.Field[Any]", instance: Any) -> Any:
    if instance is not None:
        return getattr(instance, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _first_paragraph(cls: Any) -> str:
    text = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]
    # A dataclass without a docstring gets its signature as one.
    return "" if text.startswith(f"{cls.__name__}(") else " ".join(text.split())


def _field_texts(cls: Any) -> dict[str, str]:
    """The string below each field in the source of `cls` and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(typing.cast(type, base))))
        except (OSError, TypeError, SyntaxError):
            continue  # no source at hand: help without texts
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        for statement, after in itertools.pairwise(body):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                texts[statement.target.id] = " ".join(str(after.value.value).split())
    return texts
