"""What is left of a home whose ledger was lost, and what follows from it: records, states, lines, and what is to be told.

Folders say what cannot change, events what can; where both are silent the careful answer is taken and told. Nothing is
written here. Not here: where the facts come from (`rebuild_facts.py`), and the rows made of them (`rebuild_rows.py`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from guard.names import parse_version_number
from guard.store.rebuild_facts import FoundFile, FoundVersion, rows_of
from guard.store.rebuild_story import Story

__all__ = ["Marks", "Remains"]


@dataclass(frozen=True)
class Marks:
    """The highest version and index number that the high-water files of home and vault know."""

    versions: int = 0
    indexes: int = 0


@dataclass
class Remains:
    """Everything that is left of a home, read from the disk."""

    events: list[dict[str, Any]]
    story: Story
    versions: dict[int, FoundVersion]
    files: list[FoundFile]
    indexes: dict[int, dict[str, Any]]
    elders: list[Path]
    marks: Marks = Marks()

    def __post_init__(self) -> None:
        self.lost = self._lost_versions()

    def _lost_versions(self) -> dict[int, dict[str, Any]]:
        """Versions that were born and have no readable folder: their records from an older ledger, else by name only.

        They stay in the lineage, so that `verify` names them and `restore` knows what to look for.
        """
        here = {version.name for version in self.versions.values()}
        lost = {}
        for name, birth in self.story.sealed.items():
            number = parse_version_number(name)
            if name not in here and number is not None and number not in self.versions:
                lost[number] = self._elder_record(name) or {
                    "name": name, "id": number, "parent": birth.get("parent"), "line": birth.get("line", "policy"),
                    "created": birth["utc"], "data": [], "metrics": {}, "objective": "none",
                    "gate": {"verdict": birth.get("gate", "unknown"), "reason": ""}}  # fmt: skip
        return lost

    def _elder_record(self, name: str) -> dict[str, Any] | None:
        quoted = name.replace("'", "''")
        for path in self.elders:
            for row in rows_of(path, f"SELECT record FROM versions WHERE name = '{quoted}'"):
                try:
                    record = orjson.loads(row["record"])
                except orjson.JSONDecodeError:
                    continue
                if record.get("name") == name:
                    return record
        return None

    @functools.cached_property
    def records(self) -> dict[int, dict[str, Any]]:
        """version.json of every version, ascending by id."""
        found = {number: version.record for number, version in self.versions.items()} | self.lost
        return {number: found[number] for number in sorted(found)}

    def state_of(self, number: int) -> str:
        """`trashed` by where it lies; otherwise what the gate said."""
        version, record = self.versions.get(number), self.records[number]
        if version is not None and version.leaving and self.story.states.get(record["name"]) in ("archived", "purged"):
            return self.story.states[record["name"]]
        if version is not None and version.trashed:
            return "trashed"
        if version is None and self.story.states.get(record["name"]) in ("trashed", "archived", "purged"):
            return self.story.states[record["name"]]
        return self.gate_state(number)

    def gate_state(self, number: int) -> str:
        """What the gate said of a version at its birth."""
        return "quarantined" if str((self.records[number].get("gate") or {}).get("verdict")) == "failed" else "sealed"

    def lines(self) -> dict[str, tuple[str, str]]:
        """Line -> (tip, since): as the events tell; a birth that no event knows, and lines of none, by lineage."""
        records = self.records
        sound = {record["name"]: record for number, record in records.items() if self.state_of(number) == "sealed"}
        tips = {line: tip for line, tip in self.story.tips.items() if tip[0] in sound}
        for name, record in sound.items():
            line = str(record.get("line") or "policy")
            # A line that no event tells of ends with its youngest version; on others only a birth that none tells of counts.
            grown = record.get("parent") == tips[line][0] and name not in self.story.sealed if line in tips else True
            if grown or line not in self.story.tips:
                tips[line] = (name, tips[line][1] if line in tips else str(record.get("created", "")))
        return tips

    def notes(self) -> list[str]:
        """What a person should know about the result, in sentences."""
        told = [f"{record['name']} has no readable folder: it stays in the lineage, heirloom restore {record['name']}"
                for record in self.lost.values() if record["name"]]  # fmt: skip
        told += [f"{record['name']} does not say which examples of {item.get('file')} it learnt: all {item.get('examples')}"
                 " are taken for learnt" for record in self.records.values() for item in record.get("data", [])
                 if item.get("examples") and not item.get("bitmap")]  # fmt: skip
        moved = {line: tip for line, tip in self.lines().items() if line in self.story.tips and self.story.tips[line] != tip}
        return told + [f"the tip of {line} is taken to be {tip[0]}" for line, tip in moved.items()]
