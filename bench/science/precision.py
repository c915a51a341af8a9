"""In which precision networks compute: float32, or bfloat16 where the device has units for it.

bfloat16 is mixed precision as torch's autocast defines it: convolutions and matrix products take and give bfloat16,
while weights, their gradients, the optimizer, normalisation, softmax and loss stay float32.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Literal

import torch

Precision = Literal["float32", "bfloat16"]


def resolved(asked: Literal["auto", "float32", "bfloat16"], device: torch.device | str) -> Precision:
    """`auto` as the precision that suits the device; anything else as it is."""
    if asked != "auto":
        return asked
    return "bfloat16" if _has_units(torch.device(device).type) else "float32"


def _has_units(kind: str) -> bool:
    """Whether bfloat16 is faster than float32, rather than emulated."""
    if kind == "cuda":  # a command may send its work to GPUs that it does not see: all since 2020 have them
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "DEFAULT")).upper()
    if not any(name in limit for name in ("DEFAULT", "ALL", "BF16", "FP16", "AMX", "AVX10")):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def computing_in(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Inside, what autocast knows is computed in this precision."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
