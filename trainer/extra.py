"""Parameters that an objective adds to a model, such as the head of a reward model: `model.extra`, and `extra.safetensors`.

They are trained and snapshotted like all others and sealed in a file of their own, so that the rest of the version stays a
model that anything can load. Not here: what they are for (`trainer/objectives/`).
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from guard.errors import Damage
from trainer.weights import save_weights

__all__ = ["EXTRA", "PREFIX", "attach_extra", "write_extra"]

EXTRA = "extra.safetensors"
PREFIX = "extra."


def write_extra(folder: Path, model: nn.Module) -> None:
    """Write `model.extra` into a version's folder (synced by the caller); nothing where there is none."""
    extra = getattr(model, "extra", None)
    if extra is not None:
        save_weights(dict(extra.named_parameters()), folder / EXTRA)


def attach_extra(model: nn.Module, folder: Path) -> None:
    """Give the model the extra parameters of a version, in the place of those it has; nothing where the version has none.

    Raises Damage when the file is torn, or when the model has others already.
    """
    path = folder / EXTRA
    if not path.exists():
        return
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise Damage(f"{path} is not a sound safetensors file: {error}", subject=str(path),
                     hint="heirloom restore brings a version back") from error  # fmt: skip
    extra = getattr(model, "extra", None)
    wanted = None if extra is None else {name: tensor.shape for name, tensor in extra.named_parameters()}
    if wanted is not None and wanted != {name: tensor.shape for name, tensor in stored.items()}:
        raise Damage(f"{path} holds {', '.join(sorted(stored))}, the objective asks for {', '.join(sorted(wanted))}",
                     subject=str(path), hint="train it from a version of the same objective")  # fmt: skip
    model.extra = nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in stored.items()})
