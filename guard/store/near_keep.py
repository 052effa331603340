"""Keeping the index of sketches: loose files are taken in, small folders joined, leftovers cleared. See `near.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.columns import Columns, write_columns_steps
from guard.durable import remove_tree, write_json
from guard.errors import Damage
from guard.failpoints import point
from guard.home import Home
from guard.minhash import VERSION
from guard.near_file import SignatureFile
from guard.near_task import SKETCH_COLUMNS
from guard.steps import Steps
from guard.store.derived import is_aside
from guard.store.keeper import Keeper
from guard.store.near import SCHEMA, NearIndex, forget_signatures, near_folder, open_near, signature_folder

__all__ = ["LAYOUT", "keep_near_steps", "prove_near_steps"]

LAYOUT = {**dict.fromkeys(SKETCH_COLUMNS, "u1"), "file": "<u4", "ordinal": "<u4"}
FLUSH_FILES, FLUSH_ROWS = 128, 1 << 16
"""So many files, or examples, that no folder holds become one."""
FAN_OUT = 8
_CHUNK_ROWS = 1 << 19
_TOGETHER_FILES, _TOGETHER_ROWS = 256, 1 << 13
"""So many small files are taken in at a time: ten columns of three rows each are ten writes of a few bytes."""


def prove_near_steps(keeper: Keeper) -> Steps[int]:
    """Compare everything with its checksums, once in a life: what is damaged is let go and made again; returns how many.

    A question that leads nowhere near the damage never finds it, and a file whose signatures are damaged resembles nothing.
    """
    index, damaged = open_near(keeper), set[str]()
    for number, sha256 in enumerate(sorted(index.covered | set(index.loose()))):
        path = signature_folder(keeper.home) / f"{sha256}.mh"
        try:
            if path.exists():
                SignatureFile(path, sha256).all()
        except Damage:
            forget_signatures(keeper, sha256)
            damaged.add(sha256)
        if number % 32 == 31:
            yield
    for name, part in list(index.parts.items()):
        try:
            yield from part.prove_all_steps()
        except Damage as damage:
            index.leave_out(name, damage.message)
    if damaged or index.damaged:
        with keeper.ledger.transaction():
            keeper.ledger.event("near.damaged", "data/near", files=len(damaged), folders=sorted(index.damaged))
    if index.damaged:
        _publish(keeper, list(index.parts))
    return len(damaged)


def keep_near_steps(keeper: Keeper, *, all_of_it: bool = False) -> Steps[int]:
    """Bring the index up to date in slices: clear leftovers, take in loose files, join small folders; returns its rows.

    Until enough of them wait, or with `all_of_it`, loose files stay loose. The holder of the home lock calls it.
    """
    index = open_near(keeper)
    if near_folder(keeper.home).is_dir():
        for entry in list(near_folder(keeper.home).iterdir()):
            if entry.is_dir() and entry.name not in ("signatures", *index.parts) and not is_aside(entry.name):
                remove_tree(entry)
    files, rows = yield from _readable_steps(keeper, index)
    if files and (all_of_it or len(files) >= FLUSH_FILES or rows >= FLUSH_ROWS):
        name = _next_name(keeper.home)
        yield from write_columns_steps(near_folder(keeper.home) / name, LAYOUT, rows, _taken_in(index.home, files), files)
        point("near.written")
        index = _publish(keeper, [*index.parts, name])
    yield from _join_steps(keeper)
    return sum(part.rows for part in open_near(keeper).parts.values())


def _readable_steps(keeper: Keeper, index: NearIndex) -> Steps[tuple[list[str], int]]:
    files, rows = list[str](), 0
    for number, sha256 in enumerate(index.loose()):
        if number % 64 == 63:
            yield
        try:
            rows += SignatureFile(signature_folder(index.home) / f"{sha256}.mh", sha256).count
            files.append(sha256)
        except Damage:
            forget_signatures(keeper, sha256)  # derived: they are made again
    return files, rows


def _taken_in(home: Home, files: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
    parts: list[tuple[int, NDArray[np.uint8]]] = []
    held = 0
    for number, sha256 in enumerate(files):
        parts.append((number, SignatureFile(signature_folder(home) / f"{sha256}.mh", sha256).all()))
        held += len(parts[-1][1])
        if held >= _TOGETHER_ROWS or len(parts) >= _TOGETHER_FILES:
            yield _chunk(parts)
            parts, held = [], 0
    if parts:
        yield _chunk(parts)


def _chunk(parts: Sequence[tuple[int, NDArray[np.uint8]]]) -> dict[str, NDArray[Any]]:
    rows = np.concatenate([part for _number, part in parts])
    counts = [len(part) for _number, part in parts]
    return {**{name: rows[:, place] for place, name in enumerate(SKETCH_COLUMNS)},
            "file": np.repeat(np.array([number for number, _part in parts], dtype=np.uint32), counts),
            "ordinal": np.concatenate([np.arange(count, dtype=np.uint32) for count in counts])}  # fmt: skip


def _next_name(home: Home) -> str:
    taken = [int(entry.name) for entry in near_folder(home).iterdir() if entry.name.isdigit()]
    return f"{max(taken, default=0) + 1:08d}"


def _publish(keeper: Keeper, names: list[str]) -> NearIndex:
    """Make these the folders that count, then let the others go."""
    write_json(near_folder(keeper.home) / "index.json", {"schema": SCHEMA, "version": VERSION, "folders": names})
    point("near.published")
    index = open_near(keeper)
    for entry in list(near_folder(keeper.home).iterdir()):
        if entry.is_dir() and entry.name.isdigit() and entry.name not in index.parts:
            remove_tree(entry)
    return index


def _join_steps(keeper: Keeper) -> Steps[None]:
    """Join FAN_OUT folders of about one size into one, from the smallest up, until there is nothing to join."""
    while True:
        index = open_near(keeper)
        tiers: dict[int, list[str]] = {}
        for name, part in index.parts.items():
            tiers.setdefault((max(part.rows, 1) // FLUSH_ROWS).bit_length() // 3, []).append(name)
        full = next((names for _tier, names in sorted(tiers.items()) if len(names) >= FAN_OUT), None)
        if full is None:
            return
        try:
            for name in full:
                yield from index.parts[name].prove_all_steps()
        except Damage:
            _publish(keeper, [name for name in index.parts if name not in full])  # their files are loose now, and taken in anew
            return
        parts = [index.parts[name] for name in full]
        files = [sha256 for part in parts for sha256 in part.file_names()]
        name = _next_name(keeper.home)
        yield from write_columns_steps(near_folder(keeper.home) / name, LAYOUT, sum(part.rows for part in parts),
                                       _joined(parts), files)  # fmt: skip
        point("near.written")
        _publish(keeper, [*(other for other in index.parts if other not in full), name])


def _joined(parts: Sequence[Columns]) -> Iterator[dict[str, NDArray[Any]]]:
    base = 0
    for part in parts:
        for start in range(0, part.rows, _CHUNK_ROWS):
            chunk = {name: np.asarray(column[start : start + _CHUNK_ROWS]) for name, column in part.columns.items()}
            chunk["file"] = chunk["file"] + np.uint32(base)
            yield chunk
        base += part.files
