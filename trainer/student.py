"""What a job trains: the base it loads, with an adapter where the recipe asks for one, and the other models it looks at.

Everything that a job loads besides its data is named in its plan with a hash, and the hash is taken here, from the very file
that is loaded: the proof of training compares it (law 6). Not here: training (`trainer/loop.py`), files
(`trainer/version_files.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guard.durable import sha256_file
from guard.errors import Damage
from guard.weights import ADAPTER, ADAPTER_BASE, FULL, input_identity
from trainer.adapter import adapter_tensors, freeze, new_adapter, put_on
from trainer.adapter_config import AdapterConfig, require_continuable
from trainer.adapter_files import AdapterNote, is_adapter, read_note, read_settings
from trainer.extra import attach_extra
from trainer.model import Decoder
from trainer.objectives import find_objective
from trainer.tokenizer import Tokenizer
from trainer.version_files import load_adapted, load_version, weights_differ

__all__ = ["Student", "load_student"]

Job = Mapping[str, Any]


@dataclass
class Student:
    """A model about to be trained, and everything it was made from."""

    model: Decoder
    tokenizer: Tokenizer
    parent: Path
    parent_sha256: str
    """Of the parent's weights, or of its adapter where the parent is one; taken from the file."""
    inputs: list[dict[str, str]] = field(default_factory=list)
    """Role, name and hash of what else was loaded, in the plan's order; the hashes were taken from the files."""
    frozen: dict[str, Decoder] = field(default_factory=dict)
    """By role: models that the objective looks at and nobody trains."""
    adapter: tuple[AdapterConfig, AdapterNote] | None = None
    """What is trained instead of all weights."""
    _start: dict[str, Tensor] = field(default_factory=dict)

    @property
    def weights_name(self) -> str:
        """The file that the trained weights go into."""
        return FULL if self.adapter is None else ADAPTER

    def changed(self) -> bool:
        """Did training change what the model computes? Where B is what it was, only A can have moved, by its decay alone."""
        if self.adapter is None:
            return weights_differ(self.model, self.parent)
        now = adapter_tensors(self.model)
        return any(not torch.equal(before, now[name].detach()) for name, before in self._start.items())


def load_student(job: Job) -> Student:
    """Load and check what the plan names. Raises what `load_version` raises; Damage for an input with another hash."""
    parent = Path(job["base"]["path"])
    wanted = list(job.get("inputs") or ())
    found = [{**item, "sha256": _hash(Path(item["path"]), item)} for item in wanted]
    if job["recipe"].get("lora"):
        student = _with_adapter(job, parent, next(item for item in found if item["role"] == ADAPTER_BASE))
    else:
        with ThreadPoolExecutor(1) as beside:  # hashing gives Python's lock back
            hashed = beside.submit(sha256_file, parent / (ADAPTER if is_adapter(parent) else FULL))
            model, tokenizer = load_version(parent)
            student = Student(model, tokenizer, parent, hashed.result())
    student.inputs = input_identity(found)
    for item in found:
        if item["role"] != ADAPTER_BASE:
            student.frozen[item["role"]] = _frozen(Path(item["path"]))
    extend = getattr(find_objective(job["objective"]), "extend", None)
    if extend is not None:
        extend(student.model, int(job["seed"]))
        attach_extra(student.model, parent)
    return student


def _hash(folder: Path, item: Mapping[str, Any]) -> str:
    """The hash of an input's weights as they lie there. Raises Damage when they are not those of the plan."""
    path = folder / (ADAPTER if is_adapter(folder) else FULL)
    found = sha256_file(path) if path.is_file() else "missing"
    if found != item["sha256"]:
        raise Damage(f"the {item['role'].replace('_', ' ')} {item['name']} is not the one that was planned: "
                     f"{str(item['sha256'])[:12]} planned, {found[:12]} found", subject=item["name"],
                     hint=f"heirloom verify {item['name']}")  # fmt: skip
    return found


def _with_adapter(job: Job, parent: Path, base: Mapping[str, Any]) -> Student:
    """The parent's own adapter trained on, or a fresh one on the parent's full weights."""
    config = AdapterConfig.from_recipe(job["recipe"]["lora"])
    if is_adapter(parent):
        require_continuable(config, read_settings(parent), parent.name)
        model, tokenizer = load_adapted(parent, Path(base["path"]))
        note, digest = read_note(parent), sha256_file(parent / ADAPTER)
    else:
        assert Path(base["path"]) == parent, "a fresh adapter stands on its parent's own weights"
        model, tokenizer = load_version(parent)
        put_on(model, config)
        new_adapter(model, int(job["seed"]))
        note, digest = AdapterNote(str(base["name"]), str(base["sha256"])), str(base["sha256"])
    student = Student(model, tokenizer, parent, digest, adapter=(config, note))
    student._start = {name: tensor.detach().clone() for name, tensor in adapter_tensors(model).items() if "lora_B" in name}
    return student


def _frozen(folder: Path) -> Decoder:
    model, _tokenizer = load_version(folder)
    attach_extra(model, folder)
    freeze(model)
    return model
