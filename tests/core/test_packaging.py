"""What a wheel holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_wheel_holds_the_module_its_stub_and_the_marker(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    command += [f"-Cbuild-dir={tmp_path}/build", str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"tenfold/_core.pyi", "tenfold/py.typed", "tenfold/ops/patches.py"} <= set(names)
    assert any(name.startswith("tenfold/_core.") and name.endswith(".so") for name in names)
    assert not [name for name in names if name.startswith(("csrc", "tests", "benchmarks", "docs"))]
