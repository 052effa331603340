"""A version of adapter files: `adapter_config.json`, `adapter_model.safetensors` (both as peft writes and reads them) and
`adapter_base.json`, which names the version with the full weights and their hash.

The base is looked for beside the version, by that name, and its hash is compared before a number of it is used: an adapter on
other weights is noise. The tokenizer's files lie beside them as in every version; the shape is the base's. Not here: what an
adapter computes (`trainer/adapter.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open

from guard.durable import sha256_file, write_json
from guard.errors import CheckFailed, Damage, NotFound
from guard.weights import ADAPTER, ADAPTER_NOTE, ADAPTER_SETTINGS, FULL
from trainer.adapter import adapter_tensors, put_on
from trainer.adapter_config import AdapterConfig
from trainer.model import Decoder
from trainer.weights import save_weights

__all__ = ["AdapterNote", "base_folder", "is_adapter", "load_adapter", "read_note", "read_object", "read_settings",
           "require_base", "write_adapter"]  # fmt: skip  # fmt: skip

_PREFIX = "base_model.model."
"""How peft calls what stands inside its own model."""


@dataclass(frozen=True)
class AdapterNote:
    """On which full weights an adapter stands."""

    name: str
    """Name of the version."""
    sha256: str
    """Of its model.safetensors."""


def is_adapter(folder: Path) -> bool:
    """Does this version hold an adapter and not full weights?"""
    return (folder / ADAPTER_SETTINGS).exists() or (folder / ADAPTER).exists()


def write_adapter(folder: Path, model: Decoder, config: AdapterConfig, note: AdapterNote) -> None:
    """Write the three files into a version's folder (synced by the caller)."""
    # Relative to the home, like every example in the documentation; peft takes a folder given by hand just as well.
    write_json(folder / ADAPTER_SETTINGS, config.to_peft(f"models/{note.name}"))
    write_json(folder / ADAPTER_NOTE, {"name": note.name, "sha256": note.sha256})
    save_weights({_PREFIX + name: tensor for name, tensor in adapter_tensors(model).items()}, folder / ADAPTER)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a version's folder. Raises Damage when it is missing or anything else."""
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Damage(f"{path} is missing", subject=str(path), hint="heirloom restore brings a version back") from error
    except orjson.JSONDecodeError as error:
        raise Damage(f"{path} is not JSON: {error}", subject=str(path), hint="heirloom verify") from error
    if not isinstance(value, dict):
        raise Damage(f"{path} does not hold an object", subject=str(path), hint="heirloom verify")
    return value


def read_settings(folder: Path) -> AdapterConfig:
    """The adapter of a version's folder. Raises Damage, CheckFailed for another kind of adapter."""
    return AdapterConfig.from_peft(read_object(folder / ADAPTER_SETTINGS))


def read_note(folder: Path) -> AdapterNote:
    """The base of an adapter version. Raises Damage when the folder does not say it, or says a path for a name."""
    value = read_object(folder / ADAPTER_NOTE)
    name, digest = value.get("name"), value.get("sha256")
    if not isinstance(name, str) or not isinstance(digest, str) or Path(name).name != name or name in ("", "..", "."):
        raise Damage(f"{folder / ADAPTER_NOTE} does not name a version and its hash", subject=str(folder), hint="heirloom verify")
    return AdapterNote(name, digest)


def base_folder(folder: Path) -> Path:
    """Where the base of an adapter version lies: beside it. Raises NotFound."""
    there = folder.absolute().parent / read_note(folder).name
    if not there.is_dir():
        raise NotFound(f"{folder.name} is an adapter of {there.name}, which is not at {there}", subject=there.name,
                       hint=f"heirloom restore {there.name}")  # fmt: skip
    return there


def require_base(folder: Path, note: AdapterNote) -> None:
    """Raise CheckFailed when the full weights in `folder` are not those the adapter was trained on; Damage when missing."""
    path = folder / FULL
    if not path.is_file():
        raise Damage(f"{path} is missing", subject=str(path), hint=f"heirloom restore {note.name}")
    found = sha256_file(path)
    if found != note.sha256:
        raise CheckFailed(f"the adapter was trained on {note.name} with weights {note.sha256[:12]}; those at {folder} are "
                          f"{found[:12]}", subject=note.name,
                          hint=f"heirloom verify {note.name}, then heirloom restore {note.name}")  # fmt: skip


def load_adapter(model: Decoder, folder: Path) -> None:
    """Put the adapter of a version on `model`, the base's, in place. Raises Damage when it does not fit, CheckFailed."""
    put_on(model, read_settings(folder))
    wanted = {_PREFIX + name: parameter for name, parameter in adapter_tensors(model).items()}
    path = folder / ADAPTER
    try:
        with safe_open(path, framework="pt") as stored, torch.no_grad():
            if set(stored.keys()) != set(wanted):
                strange = ", ".join(sorted(set(stored.keys()) ^ set(wanted))[:3])
                raise Damage(f"{path} does not hold this adapter (differs in {strange})", subject=str(path),
                             hint=f"{ADAPTER_SETTINGS} and {ADAPTER} do not belong together")  # fmt: skip
            for name, parameter in wanted.items():
                tensor = stored.get_tensor(name)
                if tensor.shape != parameter.shape or not tensor.is_floating_point():
                    raise Damage(f"{path}: {name} has shape {tuple(tensor.shape)} and type {tensor.dtype}", subject=str(path),
                                 hint="heirloom verify")  # fmt: skip
                parameter.copy_(tensor)
    except FileNotFoundError as error:
        raise Damage(f"{path} is missing", subject=str(path), hint="heirloom restore brings a version back") from error
    except SafetensorError as error:
        raise Damage(f"{path} is not a sound safetensors file: {error}", subject=str(path),
                     hint="heirloom restore brings a version back") from error  # fmt: skip
