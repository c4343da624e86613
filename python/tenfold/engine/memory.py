"""What the process has used of the machine's memory."""

import resource
import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """The largest resident memory of this process so far, in bytes."""
    # On Linux ru_maxrss survives exec, so it may be the parent's peak; VmHWM is this program's own.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
