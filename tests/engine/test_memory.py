"""The peak is this program's own, in bytes."""

import subprocess
import sys

import numpy as np

from tenfold.engine.memory import peak_rss_bytes


def test_peak_follows_an_allocation():
    before = peak_rss_bytes()
    assert 2**22 < before < 2**40
    block = np.ones((before + 2**25) // 8)
    assert peak_rss_bytes() > before + 2**24
    del block


def test_a_child_does_not_inherit_the_peak():
    block = np.ones(2**25)  # 256 MiB
    code = "from tenfold.engine.memory import peak_rss_bytes; print(peak_rss_bytes())"
    child = int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    del block
    assert child < 2**28
