"""The older flat JSON recipes (nanoGPT's names: n_layer, n_embd, batch_size, max_iters ...) in today's words.

Only translates names and units; whether the values make sense is judged in `trainer/recipe.py`. Keys that steered
another program (logging, evaluation intervals, devices) mean nothing here and are listed in `ignored`, so that a
person is told instead of left to wonder. Anything else unknown is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guard.errors import UsageError

__all__ = ["from_flat", "is_flat"]

_MODEL = {"n_layer": "layers", "n_head": "heads", "n_embd": "width", "block_size": "block_size",
          "vocab_size": "vocab_size", "n_kv_head": "kv_heads"}  # fmt: skip
_TRAINING = {"learning_rate": "learning_rate", "weight_decay": "weight_decay", "beta1": "beta1", "beta2": "beta2",
             "grad_clip": "grad_clip", "max_iters": "iterations", "epochs": "epochs",
             "packing": "packing"}  # fmt: skip
_TOP = ("name", "stage", "seed", "use_loss_mask")
_COMPUTED = ("batch_size", "gradient_accumulation_steps", "warmup_iters", "min_lr")
_MEANINGLESS = ("always_save_checkpoint", "backend", "batch_norm", "bias", "compile", "decay_lr", "device", "dropout",
                "dtype", "eval_interval", "eval_iters", "eval_only", "eval_seed", "init_from", "log_interval",
                "lr_decay_iters", "model_name", "out_dir", "save_interval", "tokenization", "wandb_log",
                "wandb_project", "wandb_run_name")  # fmt: skip


def is_flat(data: Mapping[str, Any]) -> bool:
    """Does this look like an older recipe? Then it has neither section and at least one of the old names."""
    return not {"model", "training"} & set(data) and bool({*_MODEL, *_TRAINING, *_COMPUTED} & set(data))


def _number(data: Mapping[str, Any], key: str, source: str) -> float:
    try:
        return float(data[key])
    except (TypeError, ValueError):
        raise UsageError(f"{source}: {key} = {data[key]!r} must be a number", subject=key,
                         hint=f"correct {key} and try again") from None  # fmt: skip


def _computed(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if "batch_size" in data:
        accumulated = {"gradient_accumulation_steps": 1, **data}
        steps = _number(accumulated, "gradient_accumulation_steps", source)
        values["batch_sequences"] = _number(data, "batch_size", source) * steps
    if "warmup_iters" in data and "max_iters" in data:
        values["warmup_fraction"] = _number(data, "warmup_iters", source) / max(1.0, _number(data, "max_iters", source))
    if "min_lr" in data and "learning_rate" in data:
        highest = _number(data, "learning_rate", source)
        values["min_learning_rate_ratio"] = _number(data, "min_lr", source) / highest if highest else 0.0
    return values


def from_flat(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The same recipe with today's sections. Raises UsageError for a key of neither vocabulary."""
    known = {*_MODEL, *_TRAINING, *_TOP, *_COMPUTED, *_MEANINGLESS}
    unknown = sorted(set(data) - known)
    if unknown:
        words = ", ".join((*_MODEL, *_TRAINING, *_TOP, *_COMPUTED))
        raise UsageError(f"{source}: unknown key {unknown[0]}", subject=unknown[0],
                         hint=f"an older flat recipe may say: {words}")  # fmt: skip
    recipe: dict[str, Any] = {key: data[key] for key in _TOP if key in data}
    recipe["training"] = {new: data[old] for old, new in _TRAINING.items() if old in data} | _computed(data, source)
    if {"n_layer", "n_head", "n_embd"} & set(data):
        recipe["model"] = {new: data[old] for old, new in _MODEL.items() if old in data}
    ignored = [key for key in _MEANINGLESS if key in data]
    # A block size without the rest of a shape belongs to the base, which is already made.
    ignored += [key for key in _MODEL if key in data and "model" not in recipe]
    recipe["ignored"] = ignored
    return recipe
