"""What the audit trail tells about everything that changed: a fold over the events. Pure; reads no disk.

Tips, jobs, drops, admissions, deletions and the home's own marks, each as the last event left it. The plan of a job
and the verdict of a drop stand in no event: what was under way is told so that it begins again, never half done.
Not here: versions and files themselves (`rebuild_facts.py`), or writing rows (`rebuild.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from guard.store.evaluation import set_marks
from guard.store.evaluations import VERB

__all__ = ["Story", "tell"]

_RUNNING = ("preparing", "training", "committing", "held")


@dataclass
class Story:
    """The home as its events tell it."""

    marks: dict[str, str] = field(default_factory=dict)
    """store_id, validation_salt, validation_fraction, paused, dataset:<id>."""
    sealed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Version -> the payload of its birth with its utc."""
    states: dict[str, str] = field(default_factory=dict)
    """Version -> sealed, quarantined, trashed, archived or purged, where an event told so after its birth."""
    trash: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Folder in the trash -> what it is."""
    tips: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Line -> (version, when the line was first moved)."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """SHA-256 -> name, description, stored_as, dropped_as, utc of its admission."""
    current: dict[str, str] = field(default_factory=dict)
    """Path a document was dropped under -> SHA-256 of the newest one."""
    jobs: dict[int, dict[str, Any]] = field(default_factory=dict)
    drops: dict[int, dict[str, Any]] = field(default_factory=dict)
    measured: list[dict[str, Any]] = field(default_factory=list)
    """Results of evaluations, oldest first, each with the name of its version."""
    index: str = ""
    highest: int = 0
    """The highest version number that any event names."""
    highest_index: int = 0


Teller = Callable[[Story, Mapping[str, Any], dict[str, Any]], None]


def tell(events: Iterable[Mapping[str, Any]]) -> Story:
    """Fold events, oldest first, into the story they tell."""
    story = Story()
    for event in events:
        payload = orjson.loads(event["payload"])
        verb = str(event["verb"])
        teller = _TELLERS.get(verb) or _FAMILIES.get(verb.split(".")[0])
        if teller is not None:
            teller(story, event, payload)
    return story


def _created(story: Story, _event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    story.marks |= {key: str(payload[key]) for key in ("store_id", "validation_salt", "validation_fraction") if key in payload}


def _sealed(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    name = str(event["subject"])
    story.sealed[name] = {**payload, "utc": event["utc"]}
    number = name[1:].split("_")[0]
    story.highest = max(story.highest, int(number) if number.isdecimal() else 0)
    if payload.get("job") in story.jobs:
        story.jobs[payload["job"]]["output"] = name


def _trashed(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    name = str(event["subject"])
    story.states[name] = "trashed"
    if payload.get("trash"):
        story.trash[str(payload["trash"])] = {"version": name, "was": payload.get("was") or "sealed", "why": "deleted",
                                              "utc": event["utc"]}  # fmt: skip


def _restored(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    name = str(event["subject"])
    story.states[name] = str(payload.get("state") or "sealed")
    if payload.get("source") == "trash":
        story.trash = {folder: note for folder, note in story.trash.items() if note["version"] != name}
    if payload.get("aside"):
        story.trash[str(payload["aside"])] = {"version": name, "was": story.states[name], "why": "damaged",
                                              "utc": event["utc"]}  # fmt: skip


def _purged(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    name = str(event["subject"])
    note = story.trash.pop(str(payload.get("trash")), None)
    if story.states.get(name) == "trashed" and all(other["version"] != name for other in story.trash.values()):
        story.states[name] = "purged"
        story.marks[f"gone:{name}"] = str((note or {}).get("was") or "sealed")


def _archived(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    story.states[str(event["subject"])] = "archived"
    story.marks[f"gone:{event['subject']}"] = str(payload.get("was") or "sealed")


def _regrowing(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    facts = {key: payload.get(key) for key in ("of", "without", "file", "base")}
    story.marks[f"regrown:{event['subject']}"] = orjson.dumps(facts, option=orjson.OPT_SORT_KEYS).decode()


def _drilled(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    text = orjson.dumps(payload, option=orjson.OPT_SORT_KEYS).decode()
    story.marks |= {"drill": text} | ({"drill_passed": text} if payload.get("ok") else {})


def _line(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    name = str(event["subject"])
    if payload.get("after"):
        story.tips[name] = (str(payload["after"]), story.tips.get(name, ("", str(event["utc"])))[1])


def _file(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    # Only the first admission made the row; a damaged copy that was replaced changes nothing of it.
    story.files.setdefault(str(payload["sha256"]), {**payload, "name": str(event["subject"]), "utc": str(event["utc"])})


def _dataset(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    story.files.setdefault(str(payload["sha256"]), {"name": str(event["subject"]), "description": "prepared dataset",
                                                    "utc": str(event["utc"]), "sidecars": payload.get("sidecars")})  # fmt: skip


def _trainable(story: Story, _event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    """A document that is training text as well from here on, or an original whose sidecars were made anew."""
    if payload["sha256"] in story.files:
        story.files[payload["sha256"]] |= {"sidecars": payload["sidecars"]}


def _document(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    story.current[str(event["subject"])] = str(payload["sha256"])


def _heads(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    story.marks[f"dataset:{event['subject']}"] = orjson.dumps(payload["heads"], option=orjson.OPT_SORT_KEYS).decode()


def _evaluation(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    story.marks |= set_marks(str(event["verb"]), payload)


def _measured(story: Story, _event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    story.measured.append(payload)


def _paused(story: Story, event: Mapping[str, Any], _payload: dict[str, Any]) -> None:
    story.marks["paused"] = "1" if event["verb"] == "queue.paused" else "0"


def _index(story: Story, event: Mapping[str, Any], _payload: dict[str, Any]) -> None:
    story.index = str(event["subject"])
    number = story.index.removeprefix("v")
    story.highest_index = max(story.highest_index, int(number) if number.isdecimal() else 0)


def _coalesced(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    job = story.jobs.get(_number(event["subject"]))
    if job is not None:
        others = [story.jobs[number] for number in payload.get("jobs", ()) if number in story.jobs]
        job["files"] = [*job["files"], *(sha256 for other in others for sha256 in other["files"])]
        job["slug"] = f"{job['slug']}_and_{len(job['files']) - 1}_more"


def _number(subject: object) -> int:
    text = str(subject).removeprefix("job ")
    return int(text) if text.isdecimal() else 0


def _job(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    number, state = _number(event["subject"]), str(event["verb"]).split(".", 1)[1]
    if state == "queued" and "kind" in payload:
        story.jobs[number] = {**payload, "state": "queued", "reason": "", "created": event["utc"], "updated": event["utc"]}
    elif number in story.jobs:
        story.jobs[number] |= {"state": state, "reason": str(payload.get("reason") or ""), "updated": event["utc"]}


def _drop(story: Story, event: Mapping[str, Any], payload: dict[str, Any]) -> None:
    number, state = int(payload.get("drop") or 0), str(event["verb"]).split(".", 1)[1]
    if state == "claiming" and number not in story.drops:
        story.drops[number] = {"seen": event["utc"], "name": str(event["subject"]), **payload}
    if number in story.drops:
        told = {key: payload[key] for key in ("sha256", "returned_to") if payload.get(key)}
        story.drops[number] |= {**told, "state": state, "reason": str(payload.get("reason") or ""), "updated": event["utc"]}


_TELLERS: dict[str, Teller] = {
    "home.created": _created, "version.sealed": _sealed, "version.trashed": _trashed, "version.restored": _restored,
    "version.purged": _purged, "version.archived": _archived, "line.regrowing": _regrowing, "backup.drilled": _drilled,
    "line.moved": _line, "line.rolled_back": _line, "file.admitted": _file, "dataset.admitted": _dataset,
    "dataset.prepared": _heads, "document.current": _document, "queue.paused": _paused, "queue.resumed": _paused,
    "index.switched": _index, "file.trainable": _trainable, "file.mended": _trainable, "job.coalesced": _coalesced,
    "evaluation.keys": _evaluation, "evaluation.registered": _evaluation,
    VERB: _measured,
}  # fmt: skip
_FAMILIES: dict[str, Teller] = {"job": _job, "drop": _drop}


def job_state(job: Mapping[str, Any], *, born: bool) -> tuple[str, str]:
    """State and reason of a job in a ledger that was made again: what was under way begins anew."""
    if born:
        return ("done" if job["state"] != "quarantined" else "quarantined"), str(job["reason"])
    if job["state"] in _RUNNING:
        return "queued", f"it was {job['state']} when the ledger was made again"
    return str(job["state"]), str(job["reason"])
