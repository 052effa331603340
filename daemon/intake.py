"""Intake: from a file that lies in the inbox to its claim, and on to its verdict. It drives; others judge and act.

Each tick: sweep, settle, look for writers, peek at the end in a reader child, claim; then, in `verdicts.py`, identify
in a reader child, decide, and admit or give back. Every step's outcome is in the ledger before the next begins, so that
this object can be thrown away at any moment. Environment faults (disk full, too many open files) postpone and never count.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from daemon.folder_scan import changing_beside, folder_now, held_open, room_problem
from daemon.readers import SMALL_BYTES, ReaderPool
from daemon.scan import Sweep, dropped_as, forced_kind, has_writer, signature_of, sweep, top_folder
from daemon.settle import Settler, Sighting
from daemon.sides import Sides
from daemon.verdicts import TOGETHER, Verdicts
from guard.checks.folders import LACKS
from guard.checks.kinds import ignore_reason
from guard.errors import HeirloomError
from guard.names import safe_name
from guard.store.files import open_drops
from guard.store.intake import Wish, claim_many
from guard.store.keeper import Keeper

__all__ = ["Intake"]

MOST_LARGE = 4
MOST_UNREAD = 256
"""So many files at most are claimed and not yet read: what lies in the inbox is safe there."""


class Intake:
    """The state of intake between ticks; all of it can be had again from the disk and the ledger."""

    def __init__(self, keeper: Keeper, pool: ReaderPool) -> None:
        self.keeper, self.pool = keeper, pool
        self.settler = Settler(keeper.settings.inbox.settle_seconds)
        self.sides = Sides(keeper, self._submit, self.settler)
        self.verdicts = Verdicts(keeper, self._submit, self._changed)
        self.last = Sweep()
        self.inbox_problem = ""
        self.views_dirty = False
        self._peeking: set[Path] = set()
        self._peeked: dict[Path, tuple[tuple[int, ...], str]] = {}
        self._kept = self._kept_sources()
        self._backlog: deque[Sighting] = deque()
        self._to_peek: list[Sighting] = []

    def _submit(self, request: Mapping[str, Any], size: int, done: Callable[[dict[str, Any]], None]) -> None:
        self.pool.submit(request, size, done)

    def _changed(self) -> None:
        self.views_dirty = True

    @property
    def problem(self) -> str:
        """What holds intake up now, for the status; "" when nothing does."""
        return self.inbox_problem or self.verdicts.problem

    @property
    def busy(self) -> bool:
        return bool(self.verdicts.in_flight or self._peeking or self.sides.reading)

    @property
    def held(self) -> bool:
        """Drops that wait for the machine; they are tried again, and `run --once` ends over them with 3."""
        return bool(self.verdicts.retry_at)

    @property
    def stirring(self) -> bool:
        """Files are just arriving: what would be made from all of them may wait a moment."""
        return self.busy or self.settler.next_due(0.0) is not None

    def _kept_sources(self) -> set[tuple[str, str]]:
        """Files that could not be moved (a read-only inbox) and were copied: they are not taken a second time."""
        rows = self.keeper.ledger.rows("SELECT source, options FROM drops WHERE mode = 'copy' AND origin = 'inbox'")
        return {(os.fsdecode(row["source"]), str(orjson.loads(row["options"]).get("signature"))) for row in rows}

    def take_up(self, now: float) -> None:
        """Admit what was judged, and find work that an earlier life or a fault left."""
        self.verdicts.take_up(now)

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
        if self.verdicts.unread + len(self._peeking) > MOST_UNREAD // 2:
            return  # when there is room for many again, they share a transaction
        large, skipped = self.verdicts.large, []
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
            facts = os.lstat(item.path)
            folder = stat.S_ISDIR(facts.st_mode)
            if (folder_now(item.path).signature if folder else signature_of(facts)) != item.signature:
                return None  # it changed since the look; the next one knows
            busy = self._folder_waits(item, now) if folder else "somebody still writes to it" if has_writer(item.path) else ""
            if busy:
                self.settler.postpone(item.path, busy)
                return None
            if self._needs_peek(item):
                self._to_peek.append(item)
                return None
            grace = self.keeper.settings.intake.tail_grace_seconds
            problem = self._peeked.get(item.path, ((), ""))[1]
            if problem and (problem.startswith(LACKS) or self.settler.still_for(item.path, now) < grace):
                self.settler.postpone(item.path, problem)
                return None
            side = self.sides.ready(item, self.last.sides.get(item.path, []), now)
            if isinstance(side, str):
                self.settler.postpone(item.path, side)
                return None
            options: dict[str, Any] = {"dropped_as": safe_name(dropped_as(self.keeper.home, item.path)),
                                       "permissions": stat.S_IMODE(facts.st_mode),
                                       "signature": _mark(item), **({"side": side.as_dict()} if side else {})}  # fmt: skip
            return Wish(item.path, forced_kind=forced_kind(self.keeper.home, item.path), options=options)
        except FileNotFoundError:
            self.settler.forget(item.path)
        except (OSError, HeirloomError) as error:
            self._cannot_take(item, error)
        return None

    def _folder_waits(self, item: Sighting, now: float) -> str:
        """Why a settled folder is not taken now: a writer, its surroundings, the disk; "" when it is. Raises OSError."""
        home = self.keeper.home
        moving = changing_beside(item.path, top_folder(home, item.path / "x") or item.path, self.settler, now)
        if moving:
            return f"{moving} beside it changed a moment ago"
        if name := held_open(item.path, has_writer):
            return f"somebody still writes to {name} in it"
        return room_problem(item.size, shutil.disk_usage(home.incoming).free)

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
                self.verdicts.identify(drop)


def _mark(item: Sighting) -> str:
    return ",".join(str(number) for number in item.signature)
