"""Intake: from a file that lies in the inbox to its verdict. It drives; others judge and act.

Each tick: sweep, settle, look for writers, peek at the end in a reader child, claim, identify in a reader child,
decide, and admit or give back. Every step's outcome is in the ledger before the next begins, so that this object can
be thrown away at any moment. Environment faults (disk full, too many open files) postpone and never count.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from daemon.readers import SMALL_BYTES, ReaderPool
from daemon.scan import Sweep, dropped_as, forced_kind, has_writer, signature_of, sweep
from daemon.settle import Settler, Sighting
from daemon.sides import Sides, read_otherwise, settled_options
from guard.checks.kinds import ignore_reason
from guard.checks.why import DUPLICATE_ADVICE, printable, returned_text
from guard.errors import Damage, HeirloomError, is_environment
from guard.names import safe_name
from guard.store.admission import Admission, Decision, decide, finish_admission, finish_admissions
from guard.store.estimate import stored_estimate
from guard.store.evaluation import protected_now
from guard.store.files import OPEN_DROPS, open_drops
from guard.store.intake import (
    REREAD,
    Wish,
    claim_many,
    claimed_content,
    drop_folder,
    give_back,
    is_itself,
    resume_claim,
    set_drop,
    take_back,
)
from guard.store.keeper import Keeper
from guard.store.side_files import SIDE
from guard.store.versions import DEFAULT_LINE

__all__ = ["Intake"]

MAX_ATTEMPTS = 3
RETRY_SECONDS = 15.0
MAX_RETRY_SECONDS = 3600.0
TOGETHER = 64
"""Claims and admissions in one transaction at most, and how long the first judged file waits for others."""
TOGETHER_SECONDS = 0.25
MOST_LARGE = 4
MOST_UNREAD = 256
"""So many files at most are claimed and not yet read: what lies in the inbox is safe there."""


class Intake:
    """The state of intake between ticks; all of it can be had again from the disk and the ledger."""

    def __init__(self, keeper: Keeper, pool: ReaderPool) -> None:
        self.keeper, self.pool = keeper, pool
        self.settler = Settler(keeper.settings.inbox.settle_seconds)
        self.sides = Sides(keeper, lambda *request: self.pool.submit(*request), self.settler)
        self.last = Sweep()
        self.inbox_problem = ""
        self.views_dirty = False
        self.in_flight: set[int] = set()
        self._peeking: set[Path] = set()
        self._peeked: dict[Path, tuple[tuple[int, ...], str]] = {}
        self._retry_at: dict[int, float] = {}
        self._held: dict[int, str] = {}
        self._waits: dict[int, float] = {}
        self._kept = self._kept_sources()
        self._backlog: deque[Sighting] = deque()
        self._to_peek: list[Sighting] = []
        self._judged: list[Admission] = []
        self._large: set[int] = set()
        self._judged_at = 0.0

    @property
    def problem(self) -> str:
        """What holds intake up now, for the status; "" when nothing does."""
        return self.inbox_problem or next(iter(self._held.values()), "")

    @property
    def busy(self) -> bool:
        return bool(self.in_flight or self._peeking or self.sides.reading)

    @property
    def held(self) -> bool:
        """Drops that wait for the machine; they are tried again, and `run --once` ends over them with 3."""
        return bool(self._retry_at)

    @property
    def stirring(self) -> bool:
        """Files are just arriving: what would be made from all of them may wait a moment."""
        return self.busy or self.settler.next_due(0.0) is not None

    def _kept_sources(self) -> set[tuple[str, str]]:
        """Files that could not be moved (a read-only inbox) and were copied: they are not taken a second time."""
        rows = self.keeper.ledger.rows("SELECT source, options FROM drops WHERE mode = 'copy' AND origin = 'inbox'")
        return {(os.fsdecode(row["source"]), str(orjson.loads(row["options"]).get("signature"))) for row in rows}

    # --- sweeping ------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Look through the inbox once and take what is settled."""
        try:
            self.last = sweep(self.keeper.home, ignore_reason)
        except OSError as error:
            self.inbox_problem = f"the inbox cannot be read: {error.strerror or error}"
            return
        self.inbox_problem = ""
        files = self.last.files
        if self._kept:
            files = [item for item in files if (str(item.path), _mark(item)) not in self._kept]
        for gone in self._peeked.keys() - {item.path for item in files}:
            del self._peeked[gone]
        # A claim that the machine interrupted is finished by `take_up`, never begun a second time.
        taken = {Path(os.fsdecode(row["source"])) for row in open_drops(self.keeper.ledger, "claiming")} | self._peeking
        regular = [side for sides in self.last.sides.values() for side in sides if side.signature[1]]
        ready = self.settler.look([*files, *regular], now)
        self.sides.look(self.last, regular)
        taken |= {item.path for item in regular}
        self._backlog = deque(item for item in ready if item.path not in taken)
        self.work_off(now)

    @property
    def backlog(self) -> bool:
        """Whether files wait that were found settled: they are taken before the inbox is looked through again."""
        return bool(self._backlog or self._peeking)

    def work_off(self, now: float) -> None:
        """Take some of the settled files, while the readers are not busy enough."""
        wishes: list[tuple[Sighting, Wish]] = []
        # Drops that wait for the machine count: while nothing can be read, the inbox is the better place.
        unread = len(self.in_flight | self._retry_at.keys()) - len(self._large) + len(self._peeking)
        if unread > MOST_UNREAD // 2:
            return  # when there is room for many again, they share a transaction
        large, skipped = len(self._large), []
        while self._backlog and len(wishes) < TOGETHER and len(self._to_peek) < TOGETHER:
            item = self._backlog.popleft()
            if item.size > SMALL_BYTES and large >= MOST_LARGE:
                skipped.append(item)  # the small ones behind it have a reader of their own
                continue
            wish = self._consider(item, now)
            if wish is not None:
                wishes.append((item, wish))
                large += item.size > SMALL_BYTES
        self._backlog.extendleft(reversed(skipped))
        self._send_peeks(now)
        if wishes:
            self._claim(wishes)

    def _consider(self, item: Sighting, now: float) -> Wish | None:
        """How a settled file is to be taken; None when it has to wait, or has gone."""
        try:
            if signature_of(os.lstat(item.path)) != item.signature:
                return None  # it changed since the look; the next one knows
            if has_writer(item.path):
                self.settler.postpone(item.path, "somebody still writes to it")
                return None
            if self._needs_peek(item):
                self._to_peek.append(item)
                return None
            grace = self.keeper.settings.intake.tail_grace_seconds
            problem = self._peeked.get(item.path, ((), ""))[1]
            if problem and self.settler.still_for(item.path, now) < grace:
                self.settler.postpone(item.path, problem)
                return None
            side = self.sides.ready(item, self.last.sides.get(item.path, []), now)
            if isinstance(side, str):
                self.settler.postpone(item.path, side)
                return None
            options: dict[str, Any] = {"dropped_as": safe_name(dropped_as(self.keeper.home, item.path)),
                                       "signature": _mark(item), **({"side": side.as_dict()} if side else {})}  # fmt: skip
            return Wish(item.path, forced_kind=forced_kind(self.keeper.home, item.path), options=options)
        except FileNotFoundError:
            self.settler.forget(item.path)
        except (OSError, HeirloomError) as error:
            self._cannot_take(item, error)
        return None

    def _cannot_take(self, item: Sighting, error: Exception) -> None:
        """Whatever it is, it is about this file: it keeps waiting, and the others go on."""
        self.settler.postpone(item.path, f"it cannot be taken now: {getattr(error, 'strerror', None) or error}")

    def _needs_peek(self, item: Sighting) -> bool:
        return self._peeked.get(item.path, ((), ""))[0] != item.signature

    def _send_peeks(self, now: float) -> None:
        """Have the ends of files looked at, many in one question: most of a burst are small."""
        items, self._to_peek = self._to_peek, []
        if not items:
            return
        self._peeking.update(item.path for item in items)

        def done(answer: Mapping[str, Any]) -> None:
            tails = answer.get("tails") or [""] * len(items)
            if answer.get("fault") in ("environment", "killed"):
                for item in items:  # the machine's fault costs no file its grace: they are asked about again
                    self._peeking.discard(item.path)
                    self.settler.postpone(item.path, f"its end cannot be looked at now: {answer.get('message')}")
                return
            for item, tail in zip(items, tails, strict=True):
                self._peeking.discard(item.path)
                self._peeked[item.path] = (item.signature, str(tail))
                self._backlog.append(item)

        paths = [[str(item.path), safe_name(item.path.name)] for item in items]
        self.pool.submit({"id": 0, "task": "tails", "path": "", "name": "", "files": paths}, 0, done)

    def _claim(self, wishes: list[tuple[Sighting, Wish]]) -> None:
        try:
            found = claim_many(self.keeper, [wish for _item, wish in wishes])
        except (OSError, HeirloomError) as error:
            for item, _wish in wishes:
                self._cannot_take(item, error)
            return
        for (item, _wish), (drop, problem) in zip(wishes, found, strict=True):
            if problem is not None:
                self._cannot_take(item, problem)
                continue
            self.settler.forget(item.path)
            self._peeked.pop(item.path, None)
            row = self.keeper.ledger.row("SELECT state, mode FROM drops WHERE id = ?", (drop,))
            assert row is not None
            if row["mode"] == "copy":
                self._kept.add((str(item.path), _mark(item)))
            if row["state"] == "claimed":
                self._identify(drop)

    # --- identification ------------------------------------------------------------------------------------------

    def take_up(self, now: float) -> None:
        """Admit what was judged, and find work that an earlier life or a fault left: claimed drops, and copies asked for."""
        reading = len(self.in_flight) - len(self._judged)
        if self._judged and (not reading or len(self._judged) >= TOGETHER or now >= self._judged_at + TOGETHER_SECONDS):
            self._admit(now)
        unknown = self.keeper.ledger.value(f"SELECT count(*) FROM drops WHERE state IN {OPEN_DROPS}") - len(self.in_flight)
        if not unknown:
            return
        for row in open_drops(self.keeper.ledger):
            if row["id"] in self.in_flight or self._retry_at.get(row["id"], 0.0) > now:
                continue
            self._retry_at.pop(row["id"], None)
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
            self._identify(row["id"])
        if state not in ("admitting", "returning"):
            return
        record = orjson.loads(row["verdict"])
        if state == "admitting" and not is_itself(self.keeper, row["id"], str(row["sha256"])):
            self._read_again(row["id"])
        elif state == "admitting":
            finish_admission(self.keeper, row, record, Decision(**record["decision"]))
        else:
            give_back(self.keeper, row["id"], record["verdict"], row["reason"], record["why"], record)
        self.views_dirty = True

    def _read_again(self, drop: int) -> None:
        """What was judged is not what lies there now: judge what lies there."""
        take_back(self.keeper, drop, REREAD)
        self._identify(drop)

    def _identify(self, drop: int, **otherwise: object) -> None:
        row = self.keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (drop,))
        assert row is not None
        content = claimed_content(self.keeper, drop)
        if not content.exists():
            with self.keeper.ledger.transaction():
                set_drop(self.keeper, drop, "gone", "its bytes have vanished from data/.incoming")
            return
        out = drop_folder(self.keeper, drop) / "identity"
        out.mkdir(exist_ok=True)
        intake, side = self.keeper.settings.intake, drop_folder(self.keeper, drop) / SIDE
        body = {
            "id": drop, "task": "identify", "path": str(content), "name": row["name"], "forced_kind": row["forced_kind"],
            "out_folder": str(out), "home": str(self.keeper.home.root),
            "line": str(orjson.loads(row["options"]).get("line") or DEFAULT_LINE),
            "limits": {"max_bad_rows": intake.max_bad_rows, "max_unusable_rows": intake.max_unusable_rows, "final": True},
            "side": str(side) if side.exists() else None, **otherwise,
        }  # fmt: skip
        options = orjson.loads(row["options"])
        if options.get("untouchable") or (options.get("side") or {}).get("settings", {}).get("untouchable"):
            body["keys_out"] = str(drop_folder(self.keeper, drop) / "untouchable.keys")
        with contextlib.suppress(Damage):  # the verdict is an estimate; a job on such a home is refused, with the reason
            body["protected"] = protected_now(self.keeper)
        self.in_flight.add(drop)
        size = content.stat().st_size
        if size > SMALL_BYTES:
            self._large.add(drop)
        self.pool.submit(body, size, lambda answer: self._identified(drop, answer))

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

    def _hold(self, drop: int, error: BaseException, now: float) -> None:
        """It could not be done: try again later, ever more rarely, blame nobody, and say so until it succeeds."""
        kind = "" if isinstance(error, OSError | HeirloomError) else f"{type(error).__name__}: "
        self._postpone(drop, f"intake of drop {drop} is held: {kind}{error}", now, rarer=not is_environment(error))

    def _postpone(self, drop: int, reason: str, now: float, *, rarer: bool) -> None:
        self._held[drop] = reason
        self._waits[drop] = min(self._waits.get(drop, RETRY_SECONDS / 2) * 2, MAX_RETRY_SECONDS)
        self._retry_at[drop] = now + (self._waits[drop] if rarer else RETRY_SECONDS)

    def _crashed(self, drop: int, message: str) -> None:
        """A reader that died over a file costs the file one of its chances (law 12)."""
        attempts = 1 + int(self.keeper.ledger.value("SELECT attempts FROM drops WHERE id = ?", (drop,)))
        with self.keeper.ledger.transaction():
            set_drop(self.keeper, drop, "claimed", message, attempts=attempts)
        if attempts < MAX_ATTEMPTS:
            self._identify(drop)
            return
        reason = f"it could not be read: {message} ({attempts} attempts)"
        name = str(self.keeper.ledger.value("SELECT name FROM drops WHERE id = ?", (drop,)))
        why = returned_text(name, "was rejected", reason, "split it into smaller files, or mend it, and drop it again.")
        self._return(drop, "rejected", reason, why, {})

    def _conclude(self, drop: int, answer: dict[str, Any]) -> None:
        if any(item.record["sha256"] == answer.get("sha256") for item in self._judged):
            self._admit(self.keeper.clock.monotonic())  # the same bytes twice in one burst: the first decides the second
        row = self.keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (drop,))
        assert row is not None
        if answer["verdict"] == "wait" and row["mode"] != "copy":
            # A writer that had it open when it was taken still writes: read it again when it holds still.
            self._retry_at[drop] = self.keeper.clock.monotonic() + RETRY_SECONDS
            return
        shown = printable(str(row["name"]))
        otherwise = read_otherwise(self.keeper, row, answer)
        if isinstance(otherwise, dict):
            self._identify(drop, **otherwise)
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
        self._judged.append(Admission(row, record, decision))
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
            if problem is not None:
                self._hold(item.drop["id"], problem, now)
        self.views_dirty = True

    def _refuse(self, drop: int, name: str, problem: str, record: Mapping[str, Any]) -> None:
        why = returned_text(name, "was rejected", problem)
        self._return(drop, "rejected", problem, why, record)

    def _return(self, drop: int, verdict: str, reason: str, why: str, record: Mapping[str, Any]) -> None:
        """Give a file back with its reason; an earlier rejection of the same name is not forgotten by `why`."""
        give_back(self.keeper, drop, verdict, reason, why, record)
        self.views_dirty = True


def _mark(item: Sighting) -> str:
    return ",".join(str(number) for number in item.signature)
