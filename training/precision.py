"""Precision for the machine that trains: bfloat16 is fast, or ten times slower than float32."""

from __future__ import annotations

from pathlib import Path

import torch

FAST = frozenset({"avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"})
"""What CPUs that multiply in bfloat16 call it, x86 and ARM."""

SLOW = (
    "this CPU has no instructions for bfloat16 (AVX512-BF16 or AMX), which takes ten times as long"
)


def has_bfloat16(device: str) -> bool:
    """Return whether a "cpu", or another kind of device, multiplies in bfloat16 by itself."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):  # since torch 2.13
        found = torch.cpu.get_capabilities()
        return any(found.get(name) for name in FAST)
    info = Path("/proc/cpuinfo")
    return info.is_file() and not FAST.isdisjoint(info.read_text("utf-8", "replace").split())


def machine_precision(device: str) -> tuple[str, str]:
    """Return the trainer's precision for a kind of device, and why, as a line."""
    if device == "cuda" and has_bfloat16(device):
        return "bf16-mixed", "bf16-mixed: this GPU is fastest in bfloat16"
    if device != "cpu":
        return "32-true", "32-true: float32, since this device has no bfloat16 of its own"
    if not has_bfloat16(device):
        return "32-true", f"32-true: float32, since {SLOW}"
    return "32-true", (
        "32-true: float32; this CPU has bfloat16 too, of which matrices of 1,000 rows and more "
        "gain: --trainer.precision bf16-mixed"
    )
