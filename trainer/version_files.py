"""The files of a version: written by a training child into staging, loaded by whoever wants the model.

Written: config.json, generation_config.json, model.safetensors (one file, fp32 as trained; a tied output layer is not
stored, as Hugging Face does it), tokenizer files, recipe.yaml, metrics.jsonl. The lineage (version.json, README.md,
SHA256SUMS) is the daemon's to write. Loading refuses anything that could run code or is not what it claims to be.
A version of adapter files has those of `trainer/adapter_files.py` in the place of model.safetensors; loaded, it is a model of
full weights like any other.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from guard.copies import copy_verified
from guard.durable import fsync_tree, make_dir, rename_new, sha256_file, write_json, write_text
from guard.errors import CheckFailed, Damage, NotFound
from guard.weights import FULL as WEIGHTS
from trainer.adapter import merged
from trainer.adapter_config import AdapterConfig
from trainer.adapter_files import (
    AdapterNote,
    base_folder,
    is_adapter,
    load_adapter,
    read_note,
    read_object,
    require_base,
    write_adapter,
)
from trainer.extra import PREFIX, write_extra
from trainer.hf_tokenizer import write_hf_tokenizer
from trainer.model import Decoder
from trainer.model_config import ModelConfig
from trainer.template import stop_ids
from trainer.templates.base import Template
from trainer.templates.mypt import MYPT
from trainer.tokenizer import Tokenizer, load_tokenizer, require_same_tokenizer
from trainer.weights import save_weights

__all__ = ["OPTIMIZER", "WEIGHTS", "load_adapted", "load_version", "weights_are_finite", "weights_differ", "write_version_files"]

OPTIMIZER = "optimizer.safetensors"
"""AdamW's moments as `<parameter>.<part>`, where the recipe asked for them (`training.seal_optimizer`)."""
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def write_version_files(
    folder: Path, model: Decoder, tokenizer: Tokenizer, recipe: Mapping[str, Any], metrics: Path | None,
    template: Template = MYPT, adapter: tuple[AdapterConfig, AdapterNote] | None = None,
    optimizer: Path | None = None,
) -> dict[str, str]:  # fmt: skip
    """Write a new folder durably; returns the SHA-256 of every file, read back from disk, by name.

    `adapter`: write only the adapter that is on the model, and the base it belongs to.
    `optimizer`: the state of the optimiser, moved into the folder.
    """
    make_dir(folder)
    if adapter is not None:
        # No config.json: with one there, transformers would look for full weights beside it instead of asking for the base.
        write_adapter(folder, model, *adapter)
    else:
        _write_config(folder, model.config, tokenizer, stop_ids(template, tokenizer))
        save_weights({name: tensor for name, tensor in model.named_parameters() if not name.startswith(PREFIX)}, folder / WEIGHTS)
    write_extra(folder, model)
    write_hf_tokenizer(tokenizer, folder, model.config.block_size, template)
    write_text(folder / "recipe.yaml", yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))
    if metrics is not None:
        copy_verified(metrics, folder / "metrics.jsonl")
    if optimizer is not None:
        rename_new(optimizer, folder / OPTIMIZER)
    fsync_tree(folder)
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def _write_config(folder: Path, config: ModelConfig, tokenizer: Tokenizer, stops: tuple[int, ...]) -> None:
    tokens = {
        "bos_token_id": None,
        "eos_token_id": list(stops),
        "pad_token_id": tokenizer.separator_id,
    }
    write_json(folder / "config.json", {**config.to_hf(), **tokens, "dtype": "float32"})
    write_json(folder / "generation_config.json",
               {**tokens, "do_sample": True, "temperature": 0.8, "top_k": 50})  # fmt: skip


def weights_are_finite(model: torch.nn.Module) -> bool:
    """True when no weight is NaN or infinite."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def weights_differ(model: Decoder, folder: Path) -> bool:
    """True when at least one weight of the model is not that of the version in `folder`; reads tensor by tensor."""
    if is_adapter(folder):
        before = dict(load_version(folder)[0].named_parameters())
        return any(not torch.equal(parameter.detach(), before[name])
                   for name, parameter in model.named_parameters() if not name.startswith(PREFIX))  # fmt: skip
    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        return any(
            not torch.equal(parameter.detach(), weights.get_tensor(name).to(parameter.dtype))
            for name, parameter in model.named_parameters() if not name.startswith(PREFIX)
        )  # fmt: skip


def load_version(folder: Path | str) -> tuple[Decoder, Tokenizer]:
    """The model (fp32, evaluation mode) and tokenizer of a version folder; an adapter is merged into its base's weights.

    Raises NotFound when it is none or an adapter's base is missing, CheckFailed for what we refuse to load (pickles, code,
    links, other tokenizers, features our decoder lacks, another base than the adapter's), Damage when a file is not what
    it claims to be.
    """
    folder = Path(folder)
    if is_adapter(folder):
        adapted, tokenizer = load_adapted(folder, base_folder(folder))
        return merged(adapted).eval(), tokenizer
    _require_folder(folder)
    raw = read_object(folder / "config.json")
    _refuse_remote_code(raw, "config.json")
    config = ModelConfig.from_hf(raw)
    tokenizer = _load_tokenizer(folder, config)
    with _NoFirstWeights():
        model = Decoder(config)
    _load_weights(model, folder / WEIGHTS)
    return model.eval(), tokenizer


def load_adapted(folder: Path, base: Path) -> tuple[Decoder, Tokenizer]:
    """The model of an adapter version with the adapter still beside the frozen weights of `base`; only it can be trained.

    Raises what `load_version` raises.
    """
    _require_folder(folder)
    require_base(base, read_note(folder))
    model, tokenizer = load_version(base)
    own = _load_tokenizer(folder, model.config)
    require_same_tokenizer(own.state(), tokenizer.state(), folder.name, base.name)
    load_adapter(model, folder)
    return model.eval(), own


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise NotFound(f"there is no version at {folder}", subject=str(folder), hint="heirloom lineage lists them")
    _refuse_what_could_run(folder)


def _refuse_what_could_run(folder: Path) -> None:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_symlink() or not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise CheckFailed(f"{entry.name} in {folder} is not a plain file", subject=entry.path,
                              hint="a version holds only plain files; heirloom verify")  # fmt: skip
        if entry.name.endswith(_PICKLES):
            raise CheckFailed(f"{entry.name}: pickled weights can run code and are never loaded", subject=entry.path,
                              hint="convert them to safetensors")  # fmt: skip
        if entry.name.endswith((".py", ".so")):
            raise CheckFailed(f"{entry.name}: a version brings no code", subject=entry.path, hint="remove it")


def _refuse_remote_code(values: Mapping[str, Any], name: str) -> None:
    if "auto_map" in values:
        raise CheckFailed(f"{name} asks for code of its own (auto_map), which is never run", subject=name,
                          hint="use a base whose architecture is built in")  # fmt: skip


def _load_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer the weights were trained with, proven by its hash and by the size of the embedding (law 11)."""
    if (folder / "tokenizer_config.json").exists():
        _refuse_remote_code(read_object(folder / "tokenizer_config.json"), "tokenizer_config.json")
    state = read_object(folder / "tokenizer_state.json")
    tokenizer = load_tokenizer(str(state.get("tokenization")), folder)
    require_same_tokenizer(state, tokenizer.state(), folder.name, "this installation")
    if config.vocab_size < tokenizer.vocab_size:
        raise CheckFailed(f"{folder.name} has {config.vocab_size} embedding rows for {tokenizer.vocab_size} token ids",
                          subject=folder.name, hint="the weights and the tokenizer do not belong together")  # fmt: skip
    return tokenizer


class _NoFirstWeights(TorchFunctionMode):
    """Modules made inside draw no first weights: each one is read from the file, and drawing them took longer than that."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _load_weights(model: Decoder, path: Path) -> None:
    """Fill the model from one safetensors file that must hold exactly its parameters."""
    wanted = dict(model.named_parameters())
    try:
        with safe_open(path, framework="pt") as weights, torch.no_grad():
            names = set(weights.keys()) - ({"lm_head.weight"} if model.config.tie_embeddings else set())
            if names != set(wanted):
                strange = ", ".join(sorted(names ^ set(wanted))[:3])
                raise Damage(f"{path} does not hold this model's weights (differs in {strange})", subject=str(path),
                             hint="config.json and model.safetensors do not belong together")  # fmt: skip
            for name, parameter in wanted.items():
                tensor = weights.get_tensor(name)
                if tensor.shape != parameter.shape or not tensor.is_floating_point():
                    raise Damage(f"{path}: {name} has shape {tuple(tensor.shape)} and type {tensor.dtype}",
                                 subject=str(path), hint="heirloom verify")  # fmt: skip
                parameter.copy_(tensor)
    except FileNotFoundError as error:
        raise Damage(f"{path} is missing", subject=str(path), hint="heirloom restore brings a version back") from error
    except SafetensorError as error:
        raise Damage(f"{path} is not a sound safetensors file: {error}", subject=str(path),
                     hint="heirloom restore brings a version back") from error  # fmt: skip
