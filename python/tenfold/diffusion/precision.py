"""Which arithmetic a CPU is fast in."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]


def cpu_has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def uses_bf16(precision: Precision) -> bool:
    """Return whether matrix products run in bfloat16 here; "auto" is where the CPU has it."""
    return precision == "bf16" or (precision == "auto" and cpu_has_bf16())


def autocast(bf16: bool) -> torch.autocast:
    """Return the autocast context of the matrix products: bfloat16, or none."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16)
