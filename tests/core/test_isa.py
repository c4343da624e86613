"""Instruction-set levels: the choice, the override, and that no level leaks into another."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tenfold import _core

ROOT = Path(__file__).parents[2]


def isa_of_process(level: str) -> subprocess.CompletedProcess[str]:
    code = "from tenfold import _core; print(_core.isa())"
    environment = {**os.environ, "TENFOLD_ISA": level}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def runnable() -> list[str]:
    return [level for level in _core.isas_compiled() if level in _core.isas_supported()]


def test_the_highest_level_is_the_default():
    assert isa_of_process("").stdout.strip() == runnable()[-1]


@pytest.mark.parametrize("level", runnable())
def test_a_level_can_be_forced(level):
    assert isa_of_process(level).stdout.strip() == level


def test_an_unknown_level_is_refused():
    done = isa_of_process("avx9")
    assert done.returncode != 0
    assert "TENFOLD_ISA: got 'avx9', want one of baseline" in done.stderr


@pytest.mark.parametrize("level", [x for x in _core.isas_compiled() if x not in _core.isas_supported()])
def test_a_level_that_the_processor_lacks_is_refused(level):
    done = isa_of_process(level)
    assert done.returncode != 0
    assert "this processor cannot run that level" in done.stderr


def weak_symbols(objects: list[Path]) -> set[str]:
    listing = subprocess.run(["nm", *map(str, objects)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^[0-9a-f]* [WVu] (\S+)$", listing, flags=re.MULTILINE)
    return {symbol for symbol in found if not symbol.startswith("DW.ref.")}  # a pointer, not code


def built_targets(folder: Path) -> set[str]:
    """What CMake builds there: not every family has every level."""
    command = ["ninja", "-C", str(folder), "-t", "targets", "all"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.partition(":")[0] for line in listing.splitlines()}


@pytest.mark.slow
def test_levels_share_no_weak_symbol(tmp_path):
    # A symbol that two levels define would be linked once, from whichever level: illegal instructions on a
    # lesser processor.
    import pybind11

    configure = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(configure, check=True, capture_output=True)
    seen: dict[str, str] = {}
    families = [source.parent.name for source in sorted((ROOT / "csrc").glob("*/*_cpu.cpp"))]
    known = built_targets(tmp_path)
    for level in _core.isas_compiled():
        targets = [f"{family}_{level}" for family in families if f"{family}_{level}" in known]
        assert targets
        subprocess.run(["cmake", "--build", str(tmp_path), "-t", *targets], check=True, capture_output=True)
        objects = [
            path for target in targets for path in (tmp_path / f"CMakeFiles/{target}.dir").rglob("*.o")
        ]
        assert len(objects) == len(targets)
        for symbol in weak_symbols(objects):
            assert symbol not in seen, f"{symbol} is defined by {seen[symbol]} and {level}"
            seen[symbol] = level
