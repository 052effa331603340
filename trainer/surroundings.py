"""What the bits of a run depend on outside its plan: libraries, processor, and what steers their arithmetic.

Only that: how many cores are free, how much memory there is or what the machine is called changes no bit, and a run
that is resumed with other ones stays exact. Needs torch, to ask it what it found the processor to be.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any

import torch

from trainer.device import device_facts
from trainer.hardware import compiler_version, hardware_facts, library_versions

__all__ = ["besides", "changes", "surroundings"]

_STEERING = (
    "ATEN_CPU_CAPABILITY", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS", "OMP_DYNAMIC", "OMP_THREAD_LIMIT", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip
"""Variables with which the native libraries choose other kernels, other orders of adding or other numbers of threads."""
_WORDS = {"libraries": "library", "processor": "processor", "steering": "setting"}


def surroundings(
    environment: Mapping[str, str] = os.environ, *, device: str = "cpu", compiled: bool = False
) -> dict[str, dict[str, Any]]:
    """`libraries` (versions, ours too), `processor`, `steering` (variables that are set). Call it in the training process.

    Of a run on another device also `device`, of a compiled one also `compiler`.
    """
    facts = hardware_facts()
    return {
        "libraries": {**library_versions(), "heirloom": importlib.metadata.version("heirloom")},
        "processor": {**{key: facts[key] for key in ("cpu", "cpu_flags", "machine", "system")},
                      "kernels": torch.backends.cpu.get_cpu_capability()},
        "steering": {name: environment[name] for name in _STEERING if name in environment},
        **({"device": device_facts(device)} if device != "cpu" else {}),
        **({"compiler": {"c++": compiler_version()}} if compiled else {}),
    }  # fmt: skip


def besides(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of `surroundings` what a version does not say as its `library_versions` and `hardware`: kernels, steering, compiler."""
    return {"kernels": found["processor"]["kernels"], **{key: found[key] for key in ("steering", "compiler") if key in found}}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is another now, each as `library torch: 2.12.0 -> 2.13.0`; empty when the same bits may be promised."""
    old, new = _flat(before), _flat(now)
    return [f"{key}: {old.get(key, 'none')} -> {new.get(key, 'none')}" for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)]  # fmt: skip


def _flat(parts: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part, values in parts.items():
        facts = values if isinstance(values, Mapping) else {"": values}
        found |= {f"{_WORDS.get(part, part)} {key}".rstrip(): value for key, value in facts.items()}
    return found
