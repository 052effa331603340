"""Side files in the inbox: whether a drop may be taken with the one beside it, and what becomes of what it says.

A side file settles like any drop, is read in the reader child, and its words are held against the ledger and the
home's configs: a line or recipe that does not exist, a kind the folder contradicts. While anything is wrong both files
stay where they are and say so; mending the side file is enough. What counts in the end is read once more from the
bytes that were taken (`settled_options`), below flags and environment and above recipe and configs.
Not here: parsing (`guard/checks/side.py`) or moving (`guard/store/side_files.py`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from daemon.scan import Sweep, forced_kind, has_writer
from daemon.settle import Settler, Sighting
from guard.checks.kinds import ROW_KINDS, TRAINABLE_KINDS, container_of, holds_rows, kind_reason, stage_of
from guard.checks.side import sides_beside
from guard.errors import HeirloomError, UsageError
from guard.names import safe_name
from guard.store.files import get_file
from guard.store.intake import set_drop
from guard.store.keeper import Keeper
from guard.store.versions import line_tip, tips

__all__ = ["Side", "Sides", "Submit", "beside", "only_beside", "read_otherwise", "settled_options", "wish_problem"]

Submit = Callable[[Mapping[str, Any], int, Callable[[dict[str, Any]], None]], None]

_FOR_TRAINING = ("recipe", "line", "training", "max_steps", "columns", "roles")


@dataclass(frozen=True)
class Side:
    """A side file that may be taken with its drop; `settings` as they were read in the inbox."""

    path: Path
    settings: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """What the drop's options hold of it, for its claim and for `heirloom why`."""
        return {"name": safe_name(self.path.name), "source": os.fsencode(self.path).hex(), "settings": dict(self.settings)}


class Sides:
    """What is known of side files between ticks; all of it can be had again."""

    def __init__(self, keeper: Keeper, submit: Submit, settler: Settler) -> None:
        self.keeper, self.submit, self.settler = keeper, submit, settler
        self.reading: set[Path] = set()
        self._read: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = {}

    def look(self, found: Sweep, regular: list[Sighting]) -> None:
        """After every sweep: a settled side file says what it waits for."""
        for gone in self._read.keys() - {item.path for item in regular}:
            del self._read[gone]
        here = {item.path for item in found.files}
        for data, sides in found.sides.items():
            for side in sides:
                if side.path in self.settler.seen and not self.settler.seen[side.path].reason:
                    self.settler.postpone(side.path, f"it goes with {data.name}" if data in here else self._alone(data, found))

    def _alone(self, data: Path, found: Sweep) -> str:
        if data in found.ignored:
            return f"it is for {data.name}, which is ignored: {found.ignored[data]}"
        name = safe_name(data.name)
        if self.keeper.ledger.row("SELECT 1 FROM drops WHERE name = ? AND state != 'gone'", (name,)):
            return f"it waits for {data.name}, which was taken before: drop that again beside it, or take this away"
        return f"it waits for {data.name} to be dropped beside it"

    def ready(self, item: Sighting, sides: list[Sighting], now: float) -> Side | str | None:
        """The side file to take with a settled drop, None when there is none, or why the drop has to wait."""
        now_here = beside(item.path, [side.path for side in sides])
        folder = next((path for path in now_here if path.is_dir() and not path.is_symlink()), None)
        if folder is not None:
            return f"its side file {folder.name} is a folder: take it away"
        if [side.path for side in sides] != now_here:
            return "its side file changed a moment ago"
        if not sides:
            return None
        if len(sides) > 1:
            return f"it has two side files: take {sides[1].path.name} or {sides[0].path.name} away"
        side = sides[0]
        problem = self._unsettled(side, now)
        if problem:
            return f"its side file {problem}"
        known = self._read.get(side.path, ((), {}))
        if known[0] != side.signature:
            self._begin(side)
            return ""
        problem = known[1].get("problem") or self._wish(item.path, known[1]["settings"])
        return f"its side file {side.path.name}: {problem}" if problem else Side(side.path, known[1]["settings"])

    def _unsettled(self, side: Sighting, now: float) -> str:
        if side.problem:
            return side.problem.removeprefix("it ") if side.problem.startswith("it ") else f"is {side.problem}"
        if side.size == 0:
            return "is empty: write settings into it, or take it away"
        if self.settler.still_for(side.path, now) < self.settler.settle_seconds:
            return "changed a moment ago"
        return "is still written to by somebody" if has_writer(side.path) else ""

    def _begin(self, side: Sighting) -> None:
        if side.path in self.reading:
            return
        self.reading.add(side.path)

        def done(answer: Mapping[str, Any]) -> None:
            self.reading.discard(side.path)
            problem = str(answer.get("problem") or "")
            if answer.get("fault") in ("crash", "bug"):
                problem = f"it could not be read: {answer.get('message')}"
            elif answer.get("fault"):
                return  # the machine's fault: it is read again at the next look
            self._read[side.path] = (side.signature, {"problem": problem, "settings": answer.get("settings") or {}})

        self.submit({"id": 0, "task": "meta", "path": str(side.path), "name": safe_name(side.path.name)}, 0, done)

    def _wish(self, data: Path, settings: Mapping[str, Any]) -> str:
        folder = forced_kind(self.keeper.home, data)
        kind = str(settings.get("kind") or "")
        if folder and kind and folder != kind:
            return f"it says {kind} and the folder says {folder}: take one of the two away"
        return wish_problem(self.keeper, settings, folder or kind, "tar" if data.is_dir() else container_of(data.name))


def beside(data: Path, known: list[Path]) -> list[Path]:
    """The side files that lie beside a file now: the ones that were seen, if they are still there, and new ones."""
    fresh = [path for path in sides_beside(data) if path not in known]
    return [path for path in known if os.path.lexists(path)] + fresh


def only_beside(data: Path) -> Side | None:
    """The side file of a file that a person names. Raises UsageError when there are two."""
    found = beside(data, [])
    if len(found) > 1:
        raise UsageError(f"{data.name} has two side files", subject=str(data), hint=f"take {found[1].name} away")
    return Side(found[0], {}) if found else None


def wish_problem(keeper: Keeper, settings: Mapping[str, Any], kind: str, container: str) -> str:
    """Why what a side file asks for cannot be had here, with what to do; "" when it can. `kind` may be unknown ("")."""
    if kind and kind_reason(kind, container):
        return kind_reason(kind, container)
    if container and not holds_rows(container) and ("columns" in settings or "roles" in settings):
        return "columns and roles are for rows, and this is plain text: take them out"
    asked = [key for key in _FOR_TRAINING if key in settings]
    if asked and (kind or "docs") == "docs" and not holds_rows(container):
        return f"{asked[0]} is for training and this is a document: take it out, or add kind: pretrain"
    line = settings.get("line")
    if line and line_tip(keeper.ledger, line) is None:
        known = ", ".join(sorted(tips(keeper.ledger))) or "none yet"
        return f"there is no line {line} (lines: {known}); heirloom plan --base VERSION --line {line} starts one"
    return _recipe_problem(keeper, settings, kind)


def _recipe_problem(keeper: Keeper, settings: Mapping[str, Any], kind: str) -> str:
    from trainer.recipe import resolve
    from trainer.recipe_files import find_recipe, load_recipe

    named, training = settings.get("recipe"), settings.get("training")
    if not named and not training:
        return ""
    problems = []
    if kind and not stage_of(kind):
        return f"{'recipe' if named else 'training'} is for training and {kind} is not trained here: take it out"
    for stage in [stage_of(kind)] if kind else dict.fromkeys(map(stage_of, TRAINABLE_KINDS)):
        try:
            recipe = load_recipe(find_recipe(str(named or "small"), [keeper.home.configs], stage), stage)
            if named and recipe.stage != stage:
                problems.append(f"the recipe {named} is for {recipe.stage} and the data is {stage}; ls configs/{stage}/")
                continue
            if training:
                resolve(recipe, {"training": dict(training)})
            return ""
        except HeirloomError as error:
            problems.append(f"{error.message}; {error.hint}" if error.hint else error.message)
    return problems[0]


def read_otherwise(keeper: Keeper, row: sqlite3.Row | Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any] | str:
    """Stored bytes are read as they were when they were admitted: other columns would be other examples.

    Returns how to read them instead, when nobody asked for anything else; the reason to refuse, when somebody did;
    "" when all is as it was.
    """
    known = get_file(keeper.ledger, str(answer.get("sha256") or ""))
    if known is None or known.kind not in ROW_KINDS or answer.get("kind") == "docs":
        return ""
    stored, reading = known.record.get("reading") or {}, answer.get("reading") or {}
    if (answer.get("kind"), reading) == (known.kind, stored):
        return ""
    settings = answer.get("settings") or {}
    asked = bool(row["forced_kind"] or {"kind", "columns", "roles"} & settings.keys())
    same = answer.get("kind") == known.kind and _names(reading) == _names(stored)
    if same or not asked:  # what differs is nobody's wish: the rules were others when they were admitted
        return {"reading": stored, "forced_kind": known.kind}
    if answer.get("verdict") != "ok":
        return ""
    how = ", ".join(f"{key} as {name}" for key, name in (stored.get("columns") or {}).items())
    return (f"the same bytes are stored as {known.kind}{f' with {how}' if how else ''}, and read in another way they would be "
            f"other examples; add an empty line at its end (echo >> FILE), which makes it another file")  # fmt: skip


def _names(reading: Mapping[str, Any]) -> dict[str, Any]:
    """A reading without the version of its rules, which nobody asks for."""
    return {key: value for key, value in reading.items() if key != "rules"}


def settled_options(keeper: Keeper, row: sqlite3.Row, answer: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The drop's options with what its side file says, recorded; and why that cannot be had, or ""."""
    options: dict[str, Any] = orjson.loads(row["options"])
    settings = answer.get("settings") or {}
    if not settings:
        return options, ""
    problem = wish_problem(keeper, settings, str(answer["kind"]), str(answer["container"]))
    if not problem and settings.get("untouchable") and not answer.get("evaluation"):
        problem = "untouchable was written into it while it was taken: drop both again"
    if problem:
        return options, f"its side file: {problem}"
    merged = _under_flags(keeper, row, options, settings)
    with keeper.ledger.transaction():
        set_drop(keeper, row["id"], "claimed", options=merged)
    return merged, ""


def _under_flags(keeper: Keeper, row: sqlite3.Row, options: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A flag stands above the environment, and both above the side file."""
    merged = {**options, "side": {**(options.get("side") or {}), "settings": dict(settings)}}
    for key in ("description", "recipe", "line", "priority"):
        if settings.get(key) and not merged.get(key):
            merged[key] = settings[key]
    if settings.get("training"):
        merged["overrides"] = {"training": dict(settings["training"])}
    if settings.get("max_steps") and keeper.settings.origins.get("training.max_steps") not in ("environment", "flag"):
        merged["max_steps"] = settings["max_steps"]
    if settings.get("untouchable"):
        merged |= {"untouchable": True, "queue": False}
    elif "queue" in settings and row["origin"] == "inbox":
        merged["queue"] = settings["queue"]
    return merged
