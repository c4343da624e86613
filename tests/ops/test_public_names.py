"""The public face of tenfold.ops is a committed list: whoever changes it sees it, and tells the users."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import tenfold.ops

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).parent / "public_names.txt"


def public_names() -> list[str]:
    lines = []
    for module in pkgutil.iter_modules(tenfold.ops.__path__):
        if module.name.startswith("_") or module.ispkg:
            continue
        family = importlib.import_module(f"tenfold.ops.{module.name}")
        lines += [
            f"{module.name}.{name}{inspect.signature(getattr(family, name))}"
            for name in sorted(family.__all__)
        ]
    return lines


def test_names_and_signatures_are_as_committed():
    assert public_names() == LIST.read_text().splitlines(), (
        f"a public name or signature of tenfold.ops changed: update {LIST.name}, say so in CHANGELOG.md"
    )


def test_the_changelog_names_every_op():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    missing = [
        line.partition("(")[0]
        for line in public_names()
        if line.partition("(")[0].split(".")[1] not in changelog
    ]
    assert not missing, f"CHANGELOG.md does not name {', '.join(missing)}"
