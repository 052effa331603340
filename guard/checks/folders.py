"""Which folders are one data set and not a heap of files, told by the names in them alone; and what of one is data.

A data set that `datasets` saved (`state.json`, `dataset_dict.json`), one in the hub's layout (`train-00000-of-00002.parquet`,
in `data/` or not), and one whose names tell rows to train from rows to judge by (`train/` and `val/`, `train_512/`,
`train.jsonl` and `test.jsonl`, at any depth, whatever else lies there) is one drop. Pure: names in, answers with reasons
out, the same for a folder and for a tar of it. Not here: listing a folder (`guard/folder_tree.py`), reading its rows
(`members.py`).
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from guard.checks.kinds import container_of, forced_kind_of, holds_rows, ignored_name, kind_reason, unpacked_container

__all__ = ["LACKS", "PLAIN_FOLDER", "Member", "dataset_folders", "ignored_folder", "is_junk", "members_of", "named_missing",
           "row_container", "shown_name", "split_of", "split_word", "unread_files", "waits_for"]  # fmt: skip

LACKS = "it lacks "
"""How the reason begins when pieces are not there yet: such a folder waits for them however long it takes."""
PLAIN_FOLDER = "a plain folder: every file in it is a drop of its own"
_TRAIN = "(?:train|training)(?:set)?"
_VAL = "(?:val|valid|validation|dev|test|testing|eval|evaluation)(?:set)?|(?:held|hold)[-_ ]?out"
_WORD = re.compile(rf"(?:(?P<train>{_TRAIN})|(?P<val>{_VAL}))(?![a-z])", re.IGNORECASE)
# `test.jsonl`: a file with nothing but such a word for a name is for judging even in `train/`.
_ONLY_VAL = re.compile(rf"(?:{_VAL})(?:-\d{{5}}-of-\d{{5}}[^/.]*)?", re.IGNORECASE)
_BOTH = {"train", "val"}
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
    files: dict[str, set[str]] = {"": set()}
    for name in names:
        if not is_junk(name):
            folder, _, last = name.rpartition("/")
            files.setdefault(folder, set()).add(last)
    said = {folder: found for folder, here in files.items() if (found := _said_by_files(here))}
    coming = {folder for folder, here in files.items() if _rows_to_come(folder, here)}
    folder_words = {split_of(part) for folder in said for part in folder.split("/")}
    words = folder_words.union(*said.values())
    if "train" not in folder_words and not words >= _BOTH and not (coming and "val" in words):
        said = {}  # most heaps: no word in them can make a data set
    below: dict[str, list[str]] = {}
    for folder in files:
        for above in _with_parents(folder):
            below.setdefault(above, []).append(folder)
    sets: dict[str, str] = {}
    for folder in sorted(below, key=lambda item: -(item.count("/") + bool(item))):  # a folder after those in it
        rows = [item for item in below[folder] if item in said]
        if reason := _why(folder, files) or _why_by_words(folder, rows, said, sets, not coming.isdisjoint(below[folder])):
            sets[folder] = reason
    return {folder: reason for folder, reason in sets.items() if not any(item in sets for item in _with_parents(folder)[1:])}


def _with_parents(folder: str) -> list[str]:
    """The folder and every one above it, "" last."""
    found = [folder]
    while folder:
        folder = folder.rpartition("/")[0]
        found.append(folder)
    return found


def _rows_to_come(folder: str, names: Iterable[str]) -> bool:
    """Whether names in a folder tell of rows to train that are still on their way: a transfer's own names, in a folder that is
    called after training or of a file that is."""
    last = folder.rpartition("/")[2]
    for name in names:
        if name.startswith(".") or name.lower().endswith((".part", ".partial", ".filepart", ".tmp")):
            meant = name.lstrip(".").rpartition(".")[0]  # `.train.jsonl.Xy12Zw`, `train.jsonl.part`
            if split_of(f"{last}/{meant}" if last else meant) == "train" and row_container(meant):
                return True
    return False


def _said_by_files(names: Iterable[str]) -> dict[str, str]:
    """What the names of the files of rows in one folder say: {"train", "val" or "": the name of one that does}, and "only" for
    one that says val whatever folder it lies in."""
    found: dict[str, str] = {}
    for name in sorted(names):
        split = split_of(name)
        if (split not in found or (split == "val" and "only" not in found)) and row_container(name):
            found.setdefault(split, name)
            if _ONLY_VAL.fullmatch(name.partition(".")[0]):
                found.setdefault("only", name)
    return found


def ignored_folder(relative: str) -> str:
    """Why a data set at this path relative to the inbox is not taken, or "" when it may be."""
    reason = next(filter(None, map(ignored_name, relative.split("/"))), "")
    forced = forced_kind_of(relative)
    return reason or (kind_reason(forced, "tar") if forced else "")


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _why(folder: str, files: Mapping[str, set[str]]) -> str:
    """Why a folder is a data set by what describes it, or by the names of its pieces."""
    here, data = files.get(folder, set()), files.get(_below(folder, "data"), set())
    if "dataset_dict.json" in here:
        return "a data set saved by datasets, with its splits"
    if {"state.json", "dataset_info.json"} <= here:
        return "a data set saved by datasets"
    if any(_SHARD.fullmatch(name) and row_container(name) for name in (*here, *data)):
        return "a data set in the hub's layout"
    return ""


def _why_by_words(folder: str, below: Sequence[str], said: Mapping[str, Mapping[str, str]], sets: Mapping[str, str],
                  coming: bool) -> str:  # fmt: skip
    """Why the words in its names make a folder a data set; `below`: folders at or in it that hold rows, `sets`: those in it that
    are data sets already.

    It holds rows to train and rows to judge by; data sets in folders without such a word stay what they are, unless rows to
    judge by lie outside them. Or it has a folder of rows to train: the others may be on their way. `coming`: rows to train
    are on their way into it, so that rows to judge by are not torn from them.
    """
    if not below:
        return ""
    loose: dict[str, str] = {}
    whole: dict[str, str] = {}
    training = ""
    for place in below:
        parts = place[len(folder) + 1 if folder else 0 :].split("/") if place != folder else []
        word = next((split for part in reversed(parts) if (split := split_of(part))), "")
        found = {word: next(iter(said[place].values()))} if word else dict(said[place])
        if only := said[place].get("only"):
            found["val"] = only
        shown = {split: "/".join((*parts, name)) for split, name in found.items() if split in _BOTH}
        whole = shown | whole
        if not _in_a_set(folder, parts, sets):
            loose = shown | loose
        first = parts[1:2] if parts[:1] == ["data"] else parts[:1]  # the hub's layout may have its files in `data/`
        if first and split_of(first[0]) == "train" and "train" in shown:
            training = training or shown["train"]
    told = whole if "val" in loose else loose
    if coming and "val" in told and "train" not in told:
        return f"its names are splits: {told['val'][:_SHOWN]}, and rows to train are on their way"
    if told.keys() >= _BOTH:
        return f"its names are splits: {', '.join(sorted(told.values()))[:_SHOWN]}"
    return f"its sub-folders are splits: {training[:_SHOWN]}" if training else ""


def _in_a_set(folder: str, parts: Sequence[str], sets: Mapping[str, str]) -> bool:
    """Whether a folder below another belongs to a data set of its own, to which no folder with a word for a split leads."""
    for end in range(1, len(parts) + 1):
        if split_of(parts[end - 1]):
            return False
        if _below(folder, "/".join(parts[:end])) in sets and parts[:end] != ["data"]:
            return True
    return False


def split_word(name: str) -> str:
    """The word that says the split of a file: that of the nearest folder that begins with one, else its own; its own, too,
    where that is one for judging and all of the name; "" for none."""
    *parts, last = name.split("/")
    if _ONLY_VAL.fullmatch(last.partition(".")[0]):
        parts = []
    return next((found[0].lower() for part in (*reversed(parts), last) if (found := _WORD.match(part))), "")


@functools.lru_cache(maxsize=1 << 14)  # a heap's names are asked for again and again
def split_of(name: str) -> str:
    """`train` or `val` by `split_word`; "" when nothing says a split."""
    word = _WORD.match(split_word(name))
    return "" if not word else "train" if word["train"] else "val"


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
    members = members_of(names)
    return _says_nothing(members) if members else "it holds no file of rows yet"


def _says_nothing(members: Sequence[Member]) -> str:
    """What is wrong with a file of rows that says no split beside others that do; pieces (`-00000-of-00002`) are named by whoever
    made the set, and count as train."""
    said = {split_of(member.name): member.name for member in reversed(members)}
    silent = next((item.name for item in members if not split_of(item.name) and not _PIECE.fullmatch(item.name)), "")
    if not silent or not said.keys() >= _BOTH:
        return ""
    beside = f"{shown_name(said['train'])} and {shown_name(said['val'])}"
    return f"{shown_name(silent)} says neither train nor val beside {beside}: rename it or take it out"


def _missing_pieces(names: Sequence[str]) -> list[str]:
    """The names of pieces that the others tell of: `-00001-of-00003` where only 0 and 2 are there.

    Arrow files that `datasets` saved are told by their `state.json` instead (`named_missing`): others may be stale.
    """
    here = set(names)
    told = {folder for name in names if (folder := name.removesuffix("dataset_info.json")) != name
            and folder + "state.json" in here}
    pieces: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        found = _PIECE.fullmatch(name)
        by_state = name.endswith(".arrow") and name[: name.rindex("/") + 1 if "/" in name else 0] in told
        if found and not is_junk(name) and not by_state:
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


def unread_files(folder: str, description: object, names: Iterable[str]) -> list[str]:
    """Arrow files in `folder` that its own `state.json` (parsed) does not name: what an earlier `save_to_disk` left there.

    None where it names no file: then all of them count.
    """
    files: Any = description.get("_data_files") if isinstance(description, dict) else None
    named = {item.get("filename") for item in files if isinstance(item, dict)} if isinstance(files, list) else set()
    return [name for name in names if named and name.rpartition("/")[0] == folder
            and unpacked_container(row_container(name)) == "arrow" and name.rpartition("/")[2] not in named]  # fmt: skip


def _listed(missing: Sequence[str]) -> str:
    return shown_name(missing[0]) + (f" and {len(missing) - 1:,} more" if len(missing) > 1 else "")
