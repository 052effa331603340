"""What one `heirloom eval` was asked for, and what follows before a model is loaded: versions, sets, and what is known already.

Reads the ledger and the files that were named; measures nothing (`evaluating.py`) and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.eval_questions import QuestionFile, read_questions
from daemon.eval_sets import RULES, Judging, file_set, held_out_sets, registered_sets
from daemon.loaded import sound_version
from guard.errors import UsageError
from guard.home import Home
from guard.store.evaluations import same_evaluation
from guard.store.keeper import Keeper, open_reader
from guard.store.ledger import Ledger
from guard.store.versions import Version

__all__ = ["Asked", "EvalItem", "EvalPlan", "against", "plan_of"]


@dataclass(frozen=True)
class Asked:
    """What a person asked for."""

    version: str | None = None
    vs: str | None = None
    sets: tuple[str, ...] = ()
    held_out: bool = True
    questions: tuple[str, ...] = ()
    kind: str | None = None
    max_tokens: int = 200_000
    limit: int | None = None
    match: str | None = None
    ignore_case: bool = False
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    raw: bool = False
    skip_bad_rows: bool = False
    again: bool = False
    show: int = 0
    threads: int = 0

    def loss_options(self) -> dict[str, Any]:
        """What a loss depends on besides version and set."""
        return {"rules": RULES, "max_tokens": self.max_tokens}

    def question_options(self) -> dict[str, Any]:
        """What an accuracy depends on besides version and set."""
        return {"rules": RULES, "limit": self.limit, "match": self.match, "ignore_case": self.ignore_case,
                "max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "seed": self.seed, "raw": self.raw,
                "skip_bad_rows": self.skip_bad_rows}  # fmt: skip


@dataclass
class EvalItem:
    """One set or question file on its way: what is measured of each version, and what is known already."""

    kind: str
    name: str
    set_id: str
    options: dict[str, Any]
    about: dict[str, Any]
    judging: Judging | None = None
    questions: QuestionFile | None = None
    raw: list[Any] = field(default_factory=list)
    """Per version: Measured, or the answers."""
    figures: list[dict[str, Any]] = field(default_factory=list)
    comparison: dict[str, Any] | None = None
    created: str | None = None
    """When the ledger learnt it; None: measured now."""
    problem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def path(self) -> tuple[Path, tuple[int, ...]] | None:
        """The file a person named, with its stamp when it was hashed."""
        if self.questions is not None:
            return self.questions.path, self.questions.stamp
        return (self.judging.path, self.judging.stamp) if self.judging and self.judging.path else None


@dataclass(frozen=True)
class EvalPlan:
    home: Home
    versions: tuple[Version, ...]
    items: tuple[EvalItem, ...]
    notes: tuple[str, ...]


def plan_of(home: Home, folder: Path, asked: Asked) -> EvalPlan:
    """Everything that is decided before a model is loaded.

    Raises NotFound, Damage, UsageError, DataFault for what cannot be judged, or cannot be judged by.
    """
    with open_reader(home) as keeper:
        versions = [sound_version(keeper, asked.version)]
        if asked.vs is not None:
            versions.append(sound_version(keeper, asked.vs))
            if versions[0].id == versions[1].id:
                raise UsageError(f"{versions[0].name} is compared with itself", subject=versions[0].name, hint="--vs another one")
        sets, notes = _sets(keeper, versions[0], folder, asked)
        items = [_of_set(item, asked) for item in {item.set_id: item for item in sets}.values()]
        items += [_of_questions(folder / Path(text).expanduser(), asked) for text in asked.questions]
        for item in items if not asked.again else ():
            if not (asked.show and item.kind == "questions"):
                _take_known(keeper.ledger, versions, item)
    return EvalPlan(home, tuple(versions), tuple(items), tuple(notes))


def _sets(keeper: Keeper, version: Version, folder: Path, asked: Asked) -> tuple[list[Judging], list[str]]:
    sets: list[Judging] = []
    notes: list[str] = []
    if asked.held_out:
        for found, told in (held_out_sets(keeper, version), registered_sets(keeper)):
            sets, notes = [*sets, *found], [*notes, *told]
    return [*sets, *(file_set(keeper, text, folder, asked.kind) for text in asked.sets)], notes


def _of_set(item: Judging, asked: Asked) -> EvalItem:
    return EvalItem("loss", item.name, item.set_id, asked.loss_options(), {"stage": item.stage, "origin": item.origin},
                    judging=item, notes=list(item.notes))  # fmt: skip


def _of_questions(path: Path, asked: Asked) -> EvalItem:
    read = read_questions(path, limit=asked.limit, match=asked.match, skip_bad=asked.skip_bad_rows)
    return EvalItem("questions", read.name, read.sha256, asked.question_options(), {"origin": "file"}, questions=read,
                    notes=[f"left out: {line}" for line in read.listed])  # fmt: skip


def _take_known(ledger: Ledger, versions: Sequence[Version], item: EvalItem) -> None:
    """Fill in what the ledger knows, all of it or nothing."""
    rows = [same_evaluation(ledger, version.id, item.kind, item.set_id, item.options, version.sums_sha256)
            for version in versions]  # fmt: skip
    if len(versions) == 2:
        rows.append(same_evaluation(ledger, versions[0].id, "comparison", item.set_id, against(item, versions),
                                    versions[0].sums_sha256))  # fmt: skip
    known = [row for row in rows if row is not None]
    if len(known) == len(rows):
        item.figures = [row["figures"] for row in known[: len(versions)]]
        item.comparison = known[-1]["figures"] if len(versions) == 2 else None
        item.created = max(str(row["created"]) for row in known)


def against(item: EvalItem, versions: Sequence[Version]) -> dict[str, Any]:
    return {**item.options, "of": item.kind, "vs": versions[1].name, "vs_sums": versions[1].sums_sha256}
