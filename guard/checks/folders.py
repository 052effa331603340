"""Which folders are one data set and not a heap of files, told by the names in them alone; and what of one is data.

A data set that `datasets` saved (`state.json`, `dataset_dict.json`), one in the hub's layout (`train-00000-of-00002.parquet`,
in `data/` or not), and one whose sub-folders or files are its splits (`train/` and `val/`, `train_512/` and `train_1024/`,
`train.jsonl` and `test.jsonl`) is one drop. Pure: names in, answers with reasons out, the same for a folder and for a tar
of it. Not here: listing a folder (`guard/folder_tree.py`), reading its rows (`members.py`).
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from guard.checks.kinds import container_of, forced_kind_of, holds_rows, ignored_name, kind_reason, unpacked_container

__all__ = ["LACKS", "PLAIN_FOLDER", "Member", "dataset_folders", "ignored_folder", "is_junk", "members_of", "named_missing",
           "row_container", "shown_name", "split_of", "split_word", "waits_for"]  # fmt: skip

LACKS = "it lacks "
"""How the reason begins when pieces are not there yet: such a folder waits for them however long it takes."""
PLAIN_FOLDER = "a plain folder: every file in it is a drop of its own"
_TRAIN, _VAL = "train|training", "val|valid|validation|dev|test|testing|eval|evaluation"
_WORD = re.compile(rf"(?:(?P<train>{_TRAIN})|(?P<val>{_VAL}))(?![a-z])", re.IGNORECASE)
_WORDS = frozenset(f"{_TRAIN}|{_VAL}".split("|"))
_CURRICULUM = re.compile(r"train[_-]?\d+", re.IGNORECASE)
# `train-00000-of-00002.parquet`, and `train_prefs-00000-of-00001.parquet` where a set has several of a kind.
_SHARD = re.compile(rf"(?:{_TRAIN}|{_VAL})(?![a-z])[^/.]*-\d{{5}}-of-\d{{5}}[^/.]*\..+", re.IGNORECASE)
_PIECE = re.compile(r"(.*)-(\d{5})-of-(\d{5})[^/.]*(\..*)", re.DOTALL)
_DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json",
                           "config.json", "stats.json", "info.json"})  # fmt: skip
_JUNK = frozenset({".ds_store", "thumbs.db", "desktop.ini", ".git", "__macosx"})
_UNFINISHED = ("an unfinished", "a transfer", "a hidden file; rsync", "an editor's")
_SHOWN = 80


class Member(NamedTuple):
    """One file of rows in a data set: its name in the folder, `train` or `val`, and how its bytes hold rows."""

    name: str
    split: str
    container: str


def shown_name(name: str) -> str:
    """A name as text that JSON, SQLite and a terminal can hold: bytes that are no UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_junk(name: str) -> bool:
    """Whether a name in a data set is what systems and tools leave behind: it is left out when the folder is packed."""
    parts = name.lower().split("/")
    return (any(part in _JUNK or part.startswith(("._", ".nfs")) for part in parts)
            or (".cache", "huggingface") in itertools.pairwise(parts))  # fmt: skip


def dataset_folders(names: Iterable[str]) -> dict[str, str]:
    """The topmost data sets among files with these names (parts joined by "/"): {folder: why it is one}, "" for the whole."""
    files: dict[str, set[str]] = {}
    folders: dict[str, set[str]] = {}
    for name in names:
        if is_junk(name):
            continue
        folder, _, last = name.rpartition("/")
        files.setdefault(folder, set()).add(last)
        while folder:
            parent, _, own = folder.rpartition("/")
            if own in folders.setdefault(parent, set()):
                break
            folders[parent].add(own)
            folder = parent
    found: dict[str, str] = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        reason = _why(folder, files, folders)
        if reason:
            found[folder] = reason
        else:
            waiting += [_below(folder, own) for own in folders.get(folder, ())]
    return found


def ignored_folder(relative: str) -> str:
    """Why a data set at this path relative to the inbox is not taken, or "" when it may be."""
    reason = next(filter(None, map(ignored_name, relative.split("/"))), "")
    forced = forced_kind_of(relative)
    return reason or (kind_reason(forced, "tar") if forced else "")


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _why(folder: str, files: dict[str, set[str]], folders: dict[str, set[str]]) -> str:
    here, data = files.get(folder, set()), files.get(_below(folder, "data"), set())
    if "dataset_dict.json" in here:
        return "a data set saved by datasets, with its splits"
    if {"state.json", "dataset_info.json"} <= here:
        return "a data set saved by datasets"
    if any(_SHARD.fullmatch(name) and row_container(name) for name in (*here, *data)):
        return "a data set in the hub's layout"
    for place in (folder, _below(folder, "data")):
        named = {name: split_of(name) for name in files.get(place, ())
                 if row_container(name) and name.partition(".")[0].lower() in _WORDS}  # fmt: skip
        if set(named.values()) == {"train", "val"} and _only_data(place, files):
            return f"its files are splits: {', '.join(sorted(named))[:_SHOWN]}"
    words = {own: found for own in folders.get(folder, ()) if (found := split_of(own))}
    whole = {own for own in words if _only_data(_below(folder, own), files)}
    train = {own for own in whole if words[own] == "train"}
    if whole == words.keys() and train and (len(train) < len(words) or any(_CURRICULUM.fullmatch(own) for own in train)):
        return f"its sub-folders are splits: {', '.join(sorted(words))[:_SHOWN]}"
    return ""


def split_word(name: str) -> str:
    """The word that says the split of a file: that of the nearest folder that begins with one, else its own; "" for none."""
    *parts, last = name.split("/")
    return next((found[0].lower() for part in (*reversed(parts), last) if (found := _WORD.match(part))), "")


def split_of(name: str) -> str:
    """`train` or `val` by `split_word`; "" when nothing says a split."""
    word = split_word(name)
    return "" if not word else "train" if word in _TRAIN.split("|") else "val"


def _only_data(folder: str, files: dict[str, set[str]]) -> bool:
    """Whether a sub-folder holds files of rows and nothing but what describes them."""
    names = files.get(folder, set())
    data = {name for name in names if row_container(name)}
    return bool(data) and all(name in data or name in _DESCRIPTIONS or _describes(name) for name in names)


def _describes(name: str) -> bool:
    return name.lower() in ("readme.md", "license", "license.md", "license.txt") or name.startswith(".git")


def row_container(name: str) -> str:
    """The container of a file of rows in a data set, "" for any other: what is hidden or only describes is none."""
    last = name.rpartition("/")[2]
    container = container_of(last)
    # `cache-0123456789abcdef.arrow`: what `datasets` remembers of a computation, beside the data.
    cache = unpacked_container(container) == "arrow" and last.lower().startswith("cache-")
    hidden = any(part.startswith(".") for part in name.split("/"))
    other = not holds_rows(container) or unpacked_container(container) == "tar"
    return "" if other or cache or hidden or last in _DESCRIPTIONS else container


def members_of(names: Iterable[str]) -> list[Member]:
    """The files of rows of one data set in the order in which they are read: train first, each split by name, where numbers
    in names count as numbers (train_512 before train_1024).

    A split is told by the nearest folder that names one, else by the file; what names none is train.
    """
    found = []
    for name in names:
        container, split = "" if is_junk(name) else row_container(name), split_of(name)
        if not container or (unpacked_container(container) == "json" and not split):
            continue  # settings beside the data
        found.append(Member(name, split or "train", container))
    return sorted(found, key=lambda member: (member.split, _natural(member.name)))


def _natural(name: str) -> tuple[list[str | int], str]:
    parts: list[str | int] = list(re.split(r"([0-9]+)", name))
    parts[1::2] = [int(str(part)) for part in parts[1::2]]
    return parts, name


def waits_for(names: Sequence[str], irregular: Sequence[str] = ()) -> str:
    """Why a data set with these files cannot be taken yet, "" when it can; `irregular`: names of links, pipes and the like."""
    for name in irregular:
        if not is_junk(name):
            return f"{shown_name(name)} in it is not a regular file: put the file itself in its place, or take it away"
    for name in names:
        reason = "" if is_junk(name) else next(filter(None, map(ignored_name, name.split("/"))), "")
        if reason.startswith(_UNFINISHED):
            return f"{shown_name(name)} in it is {reason}"
    missing = _missing_pieces(names)
    if missing:
        return LACKS + _listed(missing)
    return "" if members_of(names) else "it holds no file of rows yet"


def _missing_pieces(names: Iterable[str]) -> list[str]:
    """The names of pieces that the others tell of: `-00001-of-00003` where only 0 and 2 are there."""
    pieces: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        found = _PIECE.fullmatch(name)
        if found and not is_junk(name):
            pieces.setdefault((found[1], found[3], found[4]), set()).add(int(found[2]))
    return [f"{stem}-{number:05d}-of-{total}{suffix}" for (stem, total, suffix), there in sorted(pieces.items())
            for number in range(int(total)) if number not in there]  # fmt: skip


def named_missing(folder: str, description: object, names: Iterable[str]) -> str:
    """Why a data set cannot be taken yet by what its own `state.json` or `dataset_dict.json` (parsed) in `folder` names."""
    told: Any = description if isinstance(description, dict) else {}
    files, splits = told.get("_data_files"), told.get("splits")
    wanted = [item.get("filename") for item in files if isinstance(item, dict)] if isinstance(files, list) else []
    wanted += [f"{split}/state.json" for split in splits if isinstance(split, str)] if isinstance(splits, list) else []
    here = set(names)
    missing = [_below(folder, name) for name in wanted if isinstance(name, str) and _below(folder, name) not in here]
    return LACKS + _listed(missing) if missing else ""


def _listed(missing: Sequence[str]) -> str:
    return shown_name(missing[0]) + (f" and {len(missing) - 1:,} more" if len(missing) > 1 else "")
