"""What tenfold relies on in the real cupy, as far as it goes without a GPU (arrays: test_patches_cuda.py).

cupy is not among the extras that tests need, so these run where it happens to be installed, and in an
environment of their own in the slow suite.
"""

import importlib.util
import os
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

from isolated import build
from tenfold import _core
from tenfold.ops import patches
from tenfold.ops._arrays import module_of

has_cupy = importlib.util.find_spec("cupy") is not None
with_cupy = pytest.mark.skipif(not has_cupy, reason="cupy is not installed (pip install 'tenfold[cuda]')")


@with_cupy
def test_what_the_bindings_ask_of_cupy_is_there():
    import cupy

    assert f"{cupy.ndarray.__module__}.{cupy.ndarray.__qualname__}" == "cupy.ndarray"  # how its type is known
    for name in ("__dlpack__", "__dlpack_device__", "dtype"):
        assert hasattr(cupy.ndarray, name)
    assert "stream" in cupy.ndarray.__dlpack__.__doc__
    assert "device_id" in cupy.cuda.get_current_stream.__doc__
    assert hasattr(cupy.cuda.Device, "__enter__")
    for name in ("empty", "asarray", "nonzero", "flatnonzero"):
        assert callable(getattr(cupy, name))


@with_cupy
def test_numpy_is_served_as_before_beside_cupy():
    import cupy

    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    ids, _ = patches.random_keep_ids(2, 4, 2, 0, like=x)
    assert type(ids) is np.ndarray
    assert module_of(x) is np
    kept = patches.gather_patches(x, ids)
    assert (kept == np.take_along_axis(x, ids[..., None], axis=1)).all()
    assert cupy.ndarray is not np.ndarray


@with_cupy
def test_without_a_driver_both_say_so():
    import cupy

    if cupy.cuda.is_available():
        pytest.skip("there is a GPU: test_patches_cuda.py has the tests")
    assert _core.cuda_device_count() == 0 or _core.cuda_architectures() == ""  # none, or the emulator's
    with pytest.raises(Exception, match="driver"):
        cupy.empty(3)


@pytest.mark.slow
@pytest.mark.skipif(has_cupy, reason="cupy is installed here: the tests above have run with it")
def test_in_an_environment_with_cupy(tmp_path):
    site = build(tmp_path, TENFOLD_SIMT="ON")
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv/bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "cupy-cuda13x>=14", "numpy", "pytest"]
    subprocess.run(install, check=True, capture_output=True)
    here = Path(__file__)
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        "-o",
        "addopts=",
        str(here),
    ]
    command += ["-k", "not environment"]
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{here.parents[1]}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "3 passed" in done.stdout, done.stdout[-4000:]
