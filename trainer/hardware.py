"""What this machine is, and how a process is set up for it: facts, environment, threads. Torch-free at import.

Facts are read from the kernel's files, which tests pass in. A training child applies the numbers of its plan with
`apply_numbers`. Not here: which numbers a job gets (`trainer/numbers.py`), what was measured (`trainer/machine.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from guard.errors import EnvironmentFault

__all__ = [
    "apply_numbers",
    "compiler_version",
    "gpu_model",
    "has_compiler",
    "has_cuda",
    "hardware_facts",
    "keep_memory",
    "library_versions",
    "peak_memory",
    "require_compiler",
    "set_environment",
    "torch_version",
    "usable_cores",
    "usable_memory",
]

_CPUINFO = Path("/proc/cpuinfo")
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_MEMINFO = Path("/proc/meminfo")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_TOLD_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
_LIBRARIES = ("torch", "numpy", "safetensors", "tiktoken", "transformers")
_GPU_NODE, _GPUS = Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/gpus")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _MALLOC_KEEPS = -1, -3, 1 << 30  # glibc's malloc.h; bytes
_ARITHMETIC = "3"
"""Raised when model, loss or optimiser add or multiply in another order than they did; versions without one have the first."""


def hardware_facts(cpuinfo: Path = _CPUINFO) -> dict[str, Any]:
    """The machine in words: `cpu`, `cpu_flags` (those that change arithmetic), `cores`, `machine`, `system`."""
    fields = _first_processor(cpuinfo)
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", platform.processor() or "unknown"),
        "cpu_flags": [flag for flag in _TOLD_FLAGS if flag in flags],
        "cores": usable_cores(),
        "machine": platform.machine(),
        "system": platform.system(),
    }


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that touch the bits; a library that is not installed is left out.

    `arithmetic` is our own part: with another one the same plan gives other bits, and none of them is damaged.
    """
    versions = {"python": platform.python_version(), "arithmetic": _ARITHMETIC}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def torch_version() -> str:
    """The installed torch's version, without importing it; "" where there is none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def usable_cores(limit_file: Path = _CPU_LIMIT) -> int:
    """Processors this process may use: its affinity, capped by the control group's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = limit_file.read_text("ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def usable_memory(meminfo: Path = _MEMINFO, limit_file: Path = _MEMORY_LIMIT) -> tuple[int, int]:
    """(all, available now) in bytes: the machine's memory, capped by the control group's limit. Raises OSError, ValueError.

    What is available counts caches that the kernel gives back (proc(5), MemAvailable).
    """
    fields = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines() if ":" in line)
    whole, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    try:
        limit = int(limit_file.read_text("ascii"))
    except (OSError, ValueError):  # "max", or no control group of its own
        return whole, available
    return min(whole, limit), min(available, limit)


def peak_memory(status: Path = Path("/proc/self/status")) -> int | None:
    """Most bytes this process ever held in memory (proc(5), VmHWM), pages shared with its parent included; None: not told."""
    try:
        lines = status.read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def has_compiler(environment: Mapping[str, str] | None = None) -> bool:
    """Whether `torch.compile` finds a C++ compiler here: what CXX names, else g++ or clang++."""
    environment = os.environ if environment is None else environment
    named = [environment["CXX"]] if environment.get("CXX") else ["g++", "clang++"]
    return any(shutil.which(name, path=environment.get("PATH")) for name in named)


def compiler_version(environment: Mapping[str, str] | None = None) -> str:
    """The first line that the compiler says of its version; "" where there is none."""
    environment = os.environ if environment is None else environment
    named = [environment["CXX"]] if environment.get("CXX") else ["g++", "clang++"]
    found = next((path for name in named if (path := shutil.which(name, path=environment.get("PATH")))), None)
    if found is None:
        return ""
    told = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return told.stdout.partition("\n")[0]


def require_compiler() -> None:
    """Raise EnvironmentFault when a plan wants compiled kernels and the compiler it was made with is gone."""
    if not has_compiler():
        raise EnvironmentFault("the plan is for compiled kernels and there is no C++ compiler any more", subject="compile",
                               hint="install g++ again, or name one in CXX; the job waits until it is back")  # fmt: skip


def has_cuda(node: Path = _GPU_NODE, torch_folder: Path | None = None) -> bool:
    """Whether there is an NVIDIA driver and a torch that was built for it. Looks at files: nothing is imported."""
    if torch_folder is None:
        spec = find_spec("torch")
        torch_folder = Path(spec.origin).parent if spec and spec.origin else Path("/nonexistent")
    return node.exists() and (torch_folder / "lib" / "libtorch_cuda.so").exists()


def gpu_model(folder: Path = _GPUS) -> str:
    """What the driver calls the first card; "" where it tells nothing. Looks at files: nothing is imported."""
    for path in sorted(folder.glob("*/information")):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text("utf-8").splitlines():
                name, _colon, value = line.partition(":")
                if name.strip() == "Model":
                    return value.strip()
    return ""


def set_environment() -> None:
    """Settings that the native libraries read when they are loaded: call it before torch or numpy is imported."""
    # Waiting threads sleep instead of spinning: beside other work on the same cores spinning costs a factor of ten.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Always the threads that were planned, never fewer because MKL thinks so: the bits depend on their number.
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")
    # numpy's OpenBLAS starts its threads when it is loaded, and a process that is going to fork must have none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def keep_memory() -> None:
    """Ask the C library to keep what is freed: a step frees and takes the same gigabyte again and again.

    Given back to the kernel, every page of it has to be cleared and mapped anew: 28,000 of them in a step of 10 million
    weights, 3 % of its processor time (mallopt(3)). Where there is no such call, as with musl, nothing is asked.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MALLOC_KEEPS)
        mallopt(_M_TRIM_THRESHOLD, _MALLOC_KEEPS)


def apply_numbers(threads: int) -> None:
    """Set torch up for a training child: fixed threads, deterministic kernels. Raises what torch raises."""
    import torch

    keep_memory()

    torch.set_num_threads(threads)
    # Costs nothing on a CPU once uninitialised memory is left alone; filling it would touch every buffer twice.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    """The first block of /proc/cpuinfo as a dict; empty where there is none."""
    try:
        block = cpuinfo.read_text("utf-8", "replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}
