"""Whether large blocks are used again is seen in the page faults of the process."""

import os
import subprocess
import sys

import pytest

from tenfold.ops.memory import reuse_large_buffers

# Faults of writing to a new block of 64 MiB, after another one was freed.
COUNT = """
import resource
import numpy as np
{before}
def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(64 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
faults()
print(faults())
"""


def faults_after(before: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(before=before)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.parametrize(
    "call",
    [
        "from tenfold.ops.memory import reuse_large_buffers; assert reuse_large_buffers()",
        "import tenfold.nn",
        "import tenfold.logic",
    ],
)
def test_large_blocks_are_used_again(call):
    assert faults_after("pass") > 30  # 32 huge pages, or 16384 small ones
    assert faults_after(call) < 4


def test_the_users_own_setting_wins():
    call = "from tenfold.ops.memory import reuse_large_buffers; assert not reuse_large_buffers()"
    assert faults_after(call, MALLOC_MMAP_THRESHOLD_="33554432") > 30
    assert faults_after(call, GLIBC_TUNABLES="glibc.malloc.mmap_threshold=33554432") > 30


def test_a_block_above_the_limit_is_given_back():
    call = "from tenfold.ops.memory import reuse_large_buffers; assert reuse_large_buffers(48)"
    assert faults_after(call) > 30


def test_wrong_limits():
    for limit in (0, 1025, -1):
        with pytest.raises(ValueError, match=f"limit_mib is {limit}, want 1 <= limit_mib <= 1024"):
            reuse_large_buffers(limit)
    with pytest.raises(TypeError, match="want a whole number"):
        reuse_large_buffers(1.5)
