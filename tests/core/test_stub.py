"""The committed stub of the extension module says what the module has."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pybind11_stubgen")

STUB = Path(__file__).parents[2] / "python/tenfold/_core.pyi"


def test_stub_is_fresh(tmp_path):
    command = [sys.executable, "-m", "pybind11_stubgen", "tenfold._core", "-o", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    made = (tmp_path / "tenfold/_core.pyi").read_text()
    assert STUB.read_text() == made, (
        f"regenerate with: pybind11-stubgen tenfold._core -o python (then {STUB})"
    )
