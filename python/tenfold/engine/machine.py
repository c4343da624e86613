"""The machine a result was made on, as results and tables name it."""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """The processor's name, and its family and model: virtual machines hide the full name."""
    facts: dict[str, str] = {}
    for line in _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')})"
