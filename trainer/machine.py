"""`configs/machine.yaml`: what `heirloom doctor --probe` measured of this machine, kept so that plans can go by it.

A probe is taken when a person asks for it and never while planning: the same file gives the same numbers for ever. It
counts only on the machine and the torch it was taken with. Torch-free. Not here: the measuring (`trainer/probe.py`), and
what a job makes of it (`trainer/numbers.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from guard.errors import EnvironmentFault
from guard.plain_yaml import parse_yaml
from trainer.hardware import gpu_model, hardware_facts, torch_version

__all__ = ["MACHINE_FILE", "Machine", "machine_here", "machine_text", "machine_values", "read_machine", "stranger"]

MACHINE_FILE = "machine.yaml"
_HINT = "heirloom doctor --probe writes it anew; without the file the built-in table is used"
_HEAD = """\
# What `heirloom doctor --probe` measured here. Plans go by it in the place of the built-in table; a plan that was made
# keeps its numbers. Only on this processor, with so many cores and this torch: elsewhere it is passed over.
"""


@dataclass(frozen=True)
class Machine:
    """The measured facts. Fields that could not be measured say what the table would do without them."""

    cpu: str
    cores: int
    torch: str
    measured: str
    """UTC."""
    threads: int = 0
    """Threads at which a training step was fastest; 0: not measured."""
    bfloat16_from_width: int | None = None
    """Width of a model from which steps in bf16 beat those in fp32; None: at none."""
    compile_warmup_seconds: float = float("inf")
    """Seconds before the first compiled step; infinite: compiling failed or was not measured, so nothing is compiled."""
    compile_gain: float = 1.0
    """Compiled over eager speed of a step."""
    float32_gflops: float | None = None
    """Best of several products of two 1,024 x 1,024 matrices."""
    bfloat16_gflops: float | None = None
    gpu: str = ""
    """The card that the two below were measured on, as its driver calls it."""
    gpu_compile_warmup_seconds: float = float("inf")
    """As `compile_warmup_seconds`, of steps on the card."""
    gpu_compile_gain: float = 1.0
    sha256: str = dataclasses.field(default="", compare=False)
    """Of the file's bytes; "" for one that was not read from a file."""


def read_machine(path: Path) -> Machine | None:
    """The file, checked key by key; None without one. Raises EnvironmentFault for one that says something else.

    An environment fault, since it is no fault of the data that is about to be trained: the job waits for a person.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        tree = parse_yaml(raw)
        if not isinstance(tree, Mapping) or tree.get("schema") != 1:
            raise ValueError("it does not say schema: 1")
        return dataclasses.replace(_parse({key: value for key, value in tree.items() if key != "schema"}),
                                   sha256=hashlib.sha256(raw).hexdigest())  # fmt: skip
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise EnvironmentFault(f"{path} is not what a probe writes: {error}", subject=str(path), hint=_HINT,
                               cause=error) from error  # fmt: skip


_RANGES = (("threads", 0, True), ("bfloat16_from_width", 1, True), ("compile_warmup_seconds", 0, False),
           ("compile_gain", 0, False), ("float32_gflops", 0, False), ("bfloat16_gflops", 0, False),
           ("gpu_compile_warmup_seconds", 0, False), ("gpu_compile_gain", 0, False))  # fmt: skip
"""Name, least value, and whether it is a whole number."""


def _parse(tree: Mapping[str, Any]) -> Machine:
    known = {item.name for item in dataclasses.fields(Machine)} - {"sha256"}
    if unknown := sorted(str(key) for key in tree if key not in known):
        raise ValueError(f"unknown key {unknown[0]}")
    if missing := [name for name in ("cpu", "cores", "torch", "measured") if tree.get(name) in (None, "")]:
        raise ValueError(f"{missing[0]} is missing")
    values = dict(tree)
    for name in ("cpu", "torch", "measured", "gpu"):
        values[name] = str(values.get(name) or "")
    values["cores"] = _number(values, "cores", 1, whole=True)
    for name, least, whole in _RANGES:
        if values.get(name) is None:
            values.pop(name, None)  # not measured
        else:
            values[name] = _number(values, name, least, whole=whole)
    return Machine(**values)


def _number(values: Mapping[str, Any], name: str, least: int, *, whole: bool) -> Any:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value >= least:
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number of at least {least}, not {value!r}")
    return value


def machine_values(machine: Machine) -> dict[str, Any]:
    """The facts as plain values for YAML and JSON: what was not measured is None, since neither should say infinity."""
    values = {key: value for key, value in dataclasses.asdict(machine).items() if key != "sha256"}
    return {key: None if value == float("inf") else value for key, value in values.items()}


def machine_text(machine: Machine) -> str:
    """The text of the file for what was measured; what was not stands there as null."""
    values = machine_values(machine)
    return _HEAD + yaml.safe_dump({"schema": 1, **values}, sort_keys=False, allow_unicode=True, width=1000)


def stranger(machine: Machine, facts: Mapping[str, Any] | None = None, torch: str | None = None) -> str:
    """Why a file does not speak of this machine, in words; "" when it does."""
    facts = hardware_facts() if facts is None else facts
    torch = torch_version() if torch is None else torch
    for what, then, now in (("processor", machine.cpu, facts["cpu"]), ("number of cores", machine.cores, facts["cores"]),
                            ("torch", machine.torch, torch)):  # fmt: skip
        if then != now:
            return f"it was measured with another {what} ({then}, here {now})"
    return ""


def machine_here(configs: Path) -> Machine | None:
    """What was measured on this very machine, or None: then plans go by the table. Raises EnvironmentFault.

    Of another card only what was measured on it does not count: the processor is still the same.
    """
    machine = read_machine(configs / MACHINE_FILE)
    if machine is None or stranger(machine):
        return None
    if machine.gpu == gpu_model():
        return machine
    return dataclasses.replace(machine, gpu="", gpu_compile_warmup_seconds=float("inf"), gpu_compile_gain=1.0)
