"""The same bits from every instruction-set level, library half and number of threads."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tenfold import _core
from tenfold.ops import patches


def digest() -> str:
    """A hash of every kernel's output on shapes that meet all of their branches."""
    sha = hashlib.sha256()
    rng = np.random.default_rng(0)
    shapes = [
        (64, 33, 96),
        (3, 200, 1001),
        (300, 5, 7),
        (1, 64, 16384),
        (2, 9),
        (7, 40, 64, 3),
        (40, 300, 1024),
    ]
    for shape in shapes:
        x = rng.integers(-128, 128, shape, dtype=np.int8)
        ids, ranks = patches.random_keep_ids(shape[0], shape[1], shape[1] // 2 + 1, 5, offset=len(shape))
        sorted_ids, _ = patches.random_keep_ids(shape[0], shape[1], shape[1] // 2, 5, ordered=True)
        results = [ids, ranks, sorted_ids]
        for view in (x, x.astype(np.float64), np.asfortranarray(x)):
            kept = patches.gather_patches(view, ids)
            fill = view[-1, -1]
            full = patches.restore_patches(kept, ids, shape[1], fill.copy() if fill.ndim else None)
            results += [kept, full, patches.restore_patches(kept, restore_ids=ranks)]
        for result in results:
            sha.update(np.ascontiguousarray(result).tobytes())
    return sha.hexdigest()


def gradient_digest() -> str:
    """The same for the sum that is mask_token's gradient."""
    import torch

    sha = hashlib.sha256()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for shape in ((70, 90, 130), (3, 1000, 33), (1, 2, 1)):
            x = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            ids, _ = patches.random_keep_ids(shape[0], shape[1], shape[1] // 3, 5, like=x)
            sha.update(_core.raw_dropped_sum(x, ids).double().numpy().tobytes())
    return sha.hexdigest()


def in_process(function: str, **environment: str) -> str:
    code = f"import test_patches_levels as t; print(t.{function}())"
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": here, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "level", [level for level in _core.isas_compiled() if level in _core.isas_supported()]
)
def test_levels_agree(level):
    assert in_process("digest", TENFOLD_ISA=level) == digest()


@pytest.mark.parametrize("threads", ["1", "2", "3", "8"])
def test_thread_counts_agree(threads):
    assert in_process("digest", OMP_NUM_THREADS=threads) == digest()


def test_gradient_sum_does_not_depend_on_the_threads():
    pytest.importorskip("torch")
    one, *others = (in_process("gradient_digest", OMP_NUM_THREADS=threads) for threads in ("1", "2", "5"))
    assert others == [one, one]


def test_gradient_sum_of_the_levels_agrees():
    # No multiplication, so nothing to fuse: additions in the same order give the same bits.
    pytest.importorskip("torch")
    levels = [level for level in _core.isas_compiled() if level in _core.isas_supported()]
    assert len({in_process("gradient_digest", TENFOLD_ISA=level) for level in levels}) == 1
