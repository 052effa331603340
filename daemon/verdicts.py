"""Verdicts: from a claimed drop to what becomes of it, by what a reader's answer says.

The daemon has it read in a child, decides, and admits it or gives it back; a burst shares its transactions. A reader
that dies over a file costs it one of its chances; what the machine is at fault for is tried again and never counted.
All of this can be had again from the ledger. Not here: how it came out of the inbox (`intake.py`), the rules of the
decision (`guard/store/decision.py`), the bytes (`guard/store/placing.py`, `guard/store/returning.py`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from daemon.examining import Examining
from daemon.read_limits import read_limits
from daemon.readers import SMALL_BYTES
from daemon.sides import Submit, read_otherwise, settled_options
from guard.checks.scan import LISTED_FAULTS
from guard.checks.why import DUPLICATE_ADVICE, printable, returned_text
from guard.errors import Damage, HeirloomError, is_environment
from guard.folder_tree import list_tree, mark_of, tree_bytes
from guard.store.admission import Admission, finish_admission, finish_admissions
from guard.store.decision import Decision, decide
from guard.store.estimate import stored_estimate
from guard.store.evaluation import protected_now
from guard.store.files import OPEN_DROPS, open_drops
from guard.store.folder_drops import PACKED
from guard.store.intake import claimed_content, drop_folder, resume_claim, set_drop
from guard.store.keeper import Keeper
from guard.store.placing import REREAD, is_itself, not_synced, take_back
from guard.store.returning import give_back
from guard.store.side_files import SIDE
from guard.store.versions import DEFAULT_LINE

__all__ = ["TOGETHER", "Verdicts"]

MAX_ATTEMPTS = 3
RETRY_SECONDS = 15.0
MAX_RETRY_SECONDS = 3600.0
TOGETHER = 64
"""Claims and admissions in one transaction at most, and how long the first judged file waits for others."""
TOGETHER_SECONDS = 0.25


class Verdicts:
    """The drops that are under way between their claim and their end."""

    def __init__(self, keeper: Keeper, submit: Submit, changed: Callable[[], None]) -> None:
        """`submit` asks a reader; `changed` is called whenever what the views show has changed."""
        self.keeper, self._submit, self._changed = keeper, submit, changed
        self.in_flight: set[int] = set()
        self.retry_at: dict[int, float] = {}
        """Drops that wait for the machine: when each is tried again."""
        self._held: dict[int, str] = {}
        self._waits: dict[int, float] = {}
        self._judged: list[Admission] = []
        self._large: set[int] = set()
        self._judged_at = 0.0
        self.examining = Examining(keeper, self._identified, self._cannot_examine)

    @property
    def problem(self) -> str:
        """Why a drop is held now; "" when none is."""
        return next(iter(self._held.values()), "")

    @property
    def large(self) -> int:
        """How many large files are being read or wait for their reader."""
        return len(self._large)

    @property
    def unread(self) -> int:
        """Drops that are claimed and not yet read, the large ones left out."""
        return len(self.in_flight | self.retry_at.keys()) - len(self._large)

    def take_up(self, now: float) -> None:
        """Admit what was judged, and find work that an earlier life or a fault left: claimed drops, and copies asked for."""
        self.examining.tick()
        reading = len(self.in_flight) - len(self._judged)
        if self._judged and (not reading or len(self._judged) >= TOGETHER or now >= self._judged_at + TOGETHER_SECONDS):
            self._admit(now)
        unknown = self.keeper.ledger.value(f"SELECT count(*) FROM drops WHERE state IN {OPEN_DROPS}") - len(self.in_flight)
        if not unknown:
            return
        for row in open_drops(self.keeper.ledger):
            if row["id"] in self.in_flight or self.retry_at.get(row["id"], 0.0) > now:
                continue
            self.retry_at.pop(row["id"], None)
            self._held.pop(row["id"], None)
            try:
                self._go_on(row)
            except Exception as error:  # noqa: BLE001 - told in the status; one drop never ends the daemon
                self._hold(row["id"], error, now)

    def _go_on(self, row: sqlite3.Row) -> None:
        """The next step of a drop: finish its claim, read it, or finish an admission or return that was interrupted."""
        state = row["state"]
        if state == "claiming":
            state = resume_claim(self.keeper, row["id"], Path(os.fsdecode(row["source"])), move=row["mode"] == "move")
        if state == "claimed":
            self.identify(row["id"])
        if state not in ("admitting", "returning"):
            return
        record = orjson.loads(row["verdict"])
        if state == "admitting" and not is_itself(self.keeper, row["id"], str(row["sha256"])):
            self._read_again(row["id"])
        elif state == "admitting":
            finish_admission(self.keeper, row, record, Decision(**record["decision"]))
        else:
            give_back(self.keeper, row["id"], record["verdict"], row["reason"], record["why"], record)
        self._changed()

    def _read_again(self, drop: int) -> None:
        """What was judged is not what lies there now: judge what lies there."""
        take_back(self.keeper, drop, REREAD)
        self.identify(drop)

    def identify(self, drop: int, **otherwise: object) -> None:
        """Have a claimed drop read; `otherwise` replaces words of the request."""
        row = self.keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (drop,))
        assert row is not None
        content = claimed_content(self.keeper, drop)
        if not content.exists():
            with self.keeper.ledger.transaction():
                set_drop(self.keeper, drop, "gone", "its bytes have vanished from data/.incoming")
            return
        out = drop_folder(self.keeper, drop) / "identity"
        options = orjson.loads(row["options"])
        side = drop_folder(self.keeper, drop) / SIDE
        body = {
            "id": drop, "task": "identify", "path": str(content), "name": row["name"], "forced_kind": row["forced_kind"],
            "out_folder": str(out), "home": str(self.keeper.home.root),
            "line": options.get("line"),  # a flag's; the side file is read there
            "limits": read_limits(self.keeper, str(options.get("line") or "")),
            "side": str(side) if side.exists() else None, "sync": True,
            "packed": str(drop_folder(self.keeper, drop) / PACKED), **otherwise,
        }  # fmt: skip
        if options.get("untouchable") or (options.get("side") or {}).get("settings", {}).get("untouchable"):
            body["keys_out"] = str(drop_folder(self.keeper, drop) / "untouchable.keys")
        with contextlib.suppress(Damage):  # the verdict is an estimate; a job on such a home is refused, with the reason
            body["protected"] = protected_now(self.keeper)
        self.in_flight.add(drop)
        size = tree_bytes(list_tree(content)) if content.is_dir() else content.stat().st_size
        if size > SMALL_BYTES:
            self._large.add(drop)
        self._submit(body, size, lambda answer: self._identified(drop, answer))

    def _identified(self, drop: int, answer: dict[str, Any]) -> None:
        self.in_flight.discard(drop)
        self._large.discard(drop)
        now = self.keeper.clock.monotonic()
        try:
            if answer.get("fault") in ("crash", "bug"):
                self._crashed(drop, str(answer["message"]))
            elif answer.get("fault"):
                self._postpone(drop, f"reading is held: {answer.get('message')}", now, rarer=answer["fault"] == "killed")
            else:
                self._conclude(drop, answer)
        except Exception as error:  # noqa: BLE001 - told in the status; one drop never ends the daemon
            self._hold(drop, error, now)

    def _cannot_examine(self, drop: int, error: Exception) -> None:
        self.in_flight.discard(drop)
        self._hold(drop, error, self.keeper.clock.monotonic())

    def _hold(self, drop: int, error: BaseException, now: float) -> None:
        """It could not be done: try again later, ever more rarely, blame nobody, and say so until it succeeds."""
        kind = "" if isinstance(error, OSError | HeirloomError) else f"{type(error).__name__}: "
        self._postpone(drop, f"intake of drop {drop} is held: {kind}{error}", now, rarer=not is_environment(error))

    def _postpone(self, drop: int, reason: str, now: float, *, rarer: bool) -> None:
        self._held[drop] = reason
        self._waits[drop] = min(self._waits.get(drop, RETRY_SECONDS / 2) * 2, MAX_RETRY_SECONDS)
        self.retry_at[drop] = now + (self._waits[drop] if rarer else RETRY_SECONDS)

    def _crashed(self, drop: int, message: str) -> None:
        """A reader that died over a file costs the file one of its chances (law 12)."""
        attempts = 1 + int(self.keeper.ledger.value("SELECT attempts FROM drops WHERE id = ?", (drop,)))
        with self.keeper.ledger.transaction():
            set_drop(self.keeper, drop, "claimed", message, attempts=attempts)
        if attempts < MAX_ATTEMPTS:
            self.identify(drop)
            return
        reason = f"it could not be read: {message} ({attempts} attempts)"
        name = str(self.keeper.ledger.value("SELECT name FROM drops WHERE id = ?", (drop,)))
        why = returned_text(name, "was rejected", reason, "split it into smaller files, or mend it, and drop it again.")
        self._return(drop, "rejected", reason, why, {})

    def _conclude(self, drop: int, answer: dict[str, Any]) -> None:
        if any(item.record["sha256"] == answer.get("sha256") for item in self._judged):
            self._admit(self.keeper.clock.monotonic())  # the same bytes twice in one burst: the first decides the second
        if self.examining.begin(drop, answer):
            self.in_flight.add(drop)  # until its stored copy was read
            return
        packed = answer.pop("folder", None)
        if packed is not None and mark_of(list_tree(claimed_content(self.keeper, drop))) != packed["mark"]:
            self.identify(drop)  # somebody still had a file of it open: it is packed again
            return
        if packed is not None and packed["left_out"]:
            answer["left_out"] = packed["left_out"][:LISTED_FAULTS]
        synced = answer.pop("synced", None)
        if synced is False:
            not_synced(self.keeper, drop)
        row = self.keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (drop,))
        assert row is not None
        if answer["verdict"] == "wait" and row["mode"] != "copy":
            # A writer that had it open when it was taken still writes: read it again when it holds still.
            self.retry_at[drop] = self.keeper.clock.monotonic() + RETRY_SECONDS
            return
        shown = printable(str(row["name"]))
        otherwise = read_otherwise(self.keeper, row, answer)
        if isinstance(otherwise, dict):
            self.identify(drop, **otherwise)
            return
        if otherwise:
            self._refuse(drop, shown, otherwise, answer)
            return
        if answer["verdict"] == "ignore":
            # Its name promised data and its content is none: it was taken already, so it goes back with a word.
            why = returned_text(shown, "came back", str(answer["reason"]))
            self._return(drop, "rejected", str(answer["reason"]), why, answer)
            return
        if answer["verdict"] == "wait":
            # Our own copy changes no more: whoever waits for it would wait for ever.
            why = returned_text(shown, "was rejected", str(answer["reason"]))
            self._return(drop, "rejected", str(answer["reason"]), why, answer)
            return
        if answer["verdict"] != "ok":
            self._return(drop, "rejected", str(answer["reason"]), str(answer["why"]), answer)
            return
        options, problem = settled_options(self.keeper, row, answer)
        if problem:
            self._refuse(drop, shown, problem, answer)
            return
        novelty = stored_estimate(self.keeper, str(options.get("line") or DEFAULT_LINE), answer.pop("novelty", None))
        record = {**answer, "name": row["name"], "dropped_as": options.get("dropped_as", row["name"])}
        decision = decide(self.keeper, record, options, drop_folder(self.keeper, drop) / "identity", novelty)
        if decision.verdict == "duplicate":
            why = returned_text(shown, "is a duplicate", decision.reason, DUPLICATE_ADVICE)
            self._return(drop, "duplicate", decision.reason, why, {**record, "decision": asdict(decision)})
            return
        row = self.keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (drop,))
        assert row is not None
        if not self._judged:
            self._judged_at = self.keeper.clock.monotonic()
        self._judged.append(Admission(row, record, decision, synced))
        self.in_flight.add(drop)  # until it is admitted: nobody takes it up a second time

    def _admit(self, now: float) -> None:
        """Admit what was judged, together: a burst shares its transactions."""
        judged, self._judged = self._judged, []
        problems: list[Exception | None]
        try:
            problems = [problem for _job, problem in finish_admissions(self.keeper, judged)]
        except Exception as error:  # noqa: BLE001 - told in the status; one drop never ends the daemon
            problems = [error] * len(judged)
        for item, problem in zip(judged, problems, strict=True):
            self.in_flight.discard(item.drop["id"])
            self.examining.forget(item.record)
            if problem is not None:
                self._hold(item.drop["id"], problem, now)
        self._changed()

    def _refuse(self, drop: int, name: str, problem: str, record: Mapping[str, Any]) -> None:
        why = returned_text(name, "was rejected", problem)
        self._return(drop, "rejected", problem, why, record)

    def _return(self, drop: int, verdict: str, reason: str, why: str, record: Mapping[str, Any]) -> None:
        """Give a file back with its reason; an earlier rejection of the same name is not forgotten by `why`."""
        options = orjson.loads(self.keeper.ledger.value("SELECT options FROM drops WHERE id = ?", (drop,)))
        if "permissions" in options:
            with contextlib.suppress(FileNotFoundError):
                # The reader may have sealed it for its place in data/files.
                os.chmod(claimed_content(self.keeper, drop), options["permissions"])
        give_back(self.keeper, drop, verdict, reason, why, record)
        self.examining.forget(record)
        self._changed()
