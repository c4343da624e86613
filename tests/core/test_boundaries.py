"""Rules of csrc that a reader relies on, checked by reading the files."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
FOREIGN = re.compile(r'#include\s*[<"](Python\.h|pybind11|torch|ATen|c10|numpy|bindings)')


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((CSRC / folder).iterdir())]


def families() -> list[str]:
    return [path.name for path in sorted(CSRC.iterdir()) if path.name not in ("core", "bindings")]


@pytest.mark.parametrize("path", sources("core", *families()), ids=lambda path: path.name)
def test_core_and_kernels_know_no_python(path):
    assert not FOREIGN.search(path.read_text())


@pytest.mark.parametrize("path", sources("core"), ids=lambda path: path.name)
def test_core_knows_no_family(path):
    for family in families():
        assert f'"{family}/' not in path.read_text()


@pytest.mark.parametrize("family", families())
def test_kernels_use_no_templates_of_the_standard_library(family):
    # Their functions would be weak symbols shared by the levels; see core/level.h.
    text = (CSRC / family / f"{family}_cpu.cpp").read_text()
    assert not re.search(r"#include <(vector|string|map|memory|algorithm|functional)>", text)


def test_no_flags_that_change_results_or_bind_to_one_machine():
    text = (CSRC.parent / "CMakeLists.txt").read_text()
    assert "-march=native" not in text
    assert "-ffast-math" not in text
