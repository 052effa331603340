"""Snapshots of a training run: whole, checked and atomic, taken at step boundaries only.

    snapshots/step-00000120/   model.safetensors  optimizer.safetensors  state.json  checksums.json
    snapshots.taken            that there was one: a folder that vanished is not one that never was

A snapshot is written into a hidden folder, synced, and renamed. The newest INTACT one wins, by number and not by
spelling; a damaged newer one is reported beside it. When snapshots were taken and none is intact the answer is Damage,
never a fresh start. Weights and moments are safetensors, the rest is JSON: nothing here can run code when loaded.
What the state means is known to `trainer/loop.py` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from guard.durable import fsync_dir, fsync_tree, make_dir, remove_tree, rename_new, sha256_file, write_json
from guard.errors import Damage
from guard.failpoints import point
from trainer.weights import save_weights

__all__ = ["KEPT", "Snapshot", "forget_snapshots", "newest_snapshot", "save_snapshot", "told_by_newest"]

KEPT = 2
_NAME = re.compile(r"step-(\d+)\Z")
_PARTS = ("model.safetensors", "optimizer.safetensors", "state.json")
_CHECKSUMS = "checksums.json"


@dataclass(frozen=True)
class Snapshot:
    """What a run needs to go on as if nothing had happened."""

    step: int
    """Steps done; the next one has this number (0-based)."""
    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    damaged: tuple[str, ...] = ()
    """Newer snapshots that were passed over, each as `name: why`."""


def save_snapshot(
    folder: Path, step: int, state: Mapping[str, Any], model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
) -> Path:
    """Write the snapshot of `step` durably, then drop all but the newest KEPT. Raises OSError (disk full, ...).

    When it raises, the earlier snapshots are untouched.
    """
    make_dir(folder)
    _remove_unfinished(folder)
    temporary, target = folder / f".step-{step:08d}.tmp", folder / f"step-{step:08d}"
    temporary.mkdir()
    try:
        _fill(temporary, {**state, "step": step}, model, optimizer)
        if target.exists():  # a damaged one of the same step that the run went past
            remove_tree(target)
            point("snapshot.aside")
        rename_new(temporary, target)
        point("snapshot.renamed")
        if not _marker(folder).exists():
            write_json(_marker(folder), {"first_step": step})
            point("snapshot.marked")
    except OSError:
        remove_tree(temporary)
        raise
    _forget_old(folder)
    point("snapshot.forgotten")
    return target


def _fill(folder: Path, state: Mapping[str, Any], model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
    """All parts of a snapshot and their checksums, synced."""
    point("snapshot.begun")
    save_weights(model, folder / "model.safetensors")
    point("snapshot.weights")
    save_weights(optimizer, folder / "optimizer.safetensors")
    point("snapshot.moments")
    write_json(folder / "state.json", state)
    write_json(folder / _CHECKSUMS, {name: sha256_file(folder / name) for name in _PARTS})
    point("snapshot.described")
    fsync_tree(folder)
    point("snapshot.synced")


def told_by_newest(folder: Path) -> dict[str, Any]:
    """The state of the newest snapshot as it stands there, unchecked: to be shown, never to be resumed from; or {}."""
    for step, path in reversed(_all(folder)):
        try:
            state = orjson.loads((path / "state.json").read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(state, dict) and state.get("step") == step:
            return state
    return {}


def newest_snapshot(folder: Path) -> Snapshot | None:
    """The newest intact snapshot; None when none was ever taken.

    Raises Damage when every one that was taken is torn, altered, incomplete or gone.
    """
    damaged: list[str] = []
    for step, path in reversed(_all(folder)):
        try:
            return _read(step, path, tuple(damaged))
        except (Damage, OSError, SafetensorError, ValueError) as error:
            damaged.append(f"{path.name}: {error}")
    if damaged or _marker(folder).exists():
        raise Damage(
            f"no snapshot in {folder} is intact ({'; '.join(damaged) or 'all that were taken are gone'})",
            subject=str(folder),
            hint="check the disk; `heirloom queue retry ID` trains from the beginning",
        )
    return None


def forget_snapshots(folder: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    """Remove the finished snapshots whose state `keep` turns down, whole, so that none looks torn afterwards.

    One that cannot be read is left for `newest_snapshot` to judge. When none is left the run begins at its beginning.
    """
    refused, left = [], 0
    for step, path in _all(folder):
        try:
            refuse = not keep({**orjson.loads((path / "state.json").read_bytes()), "step": step})
        except (OSError, ValueError, KeyError, TypeError):
            refuse = False
        refused += [(step, path)] if refuse else []
        left += not refuse
    if refused and not left:
        _marker(folder).unlink(missing_ok=True)
        fsync_dir(folder.parent)
    for step, path in refused:
        hidden = folder / f".step-{step:08d}.tmp"
        remove_tree(hidden)
        rename_new(path, hidden)
        remove_tree(hidden)


def _marker(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.taken")


def _all(folder: Path) -> list[tuple[int, Path]]:
    """Finished snapshots by step, as numbers: step 999 comes before step 1000 whatever the padding."""
    if not folder.is_dir():
        return []
    found = ((_NAME.match(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def _read(step: int, path: Path, damaged: tuple[str, ...]) -> Snapshot:
    if path.is_symlink() or not path.is_dir():
        raise Damage("not a folder of its own")
    promised = orjson.loads((path / _CHECKSUMS).read_bytes())
    if not isinstance(promised, dict) or sorted(promised) != sorted(_PARTS):
        raise Damage(f"{_CHECKSUMS} does not list {', '.join(_PARTS)}")
    for name in _PARTS:
        if sha256_file(path / name) != promised[name]:
            raise Damage(f"{name} is not what was written")
    state = orjson.loads((path / "state.json").read_bytes())
    if state["step"] != step:
        raise Damage(f"it says step {state['step']}, its name says {step}")
    return Snapshot(
        step, state, load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors"), damaged
    )


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(".step-*.tmp"):
        remove_tree(path)


def _forget_old(folder: Path) -> None:
    for _step, path in _all(folder)[:-KEPT]:
        remove_tree(path)
