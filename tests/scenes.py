"""What is played while the disk fails: scripted lives of a home, and what must be true of it afterwards.

A scene can be begun, die without goodbye, be begun again over whatever is left, and be played to its end; a `Witness`
keeps outside the home what was acknowledged, so that no life can talk itself out of it. `complaints` is the whole list of
invariants. Not here: what a person does to versions (`scenes_care.py`), where it fails (`playing.py`, fail points) or how
often (the tests that import this).
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import orjson
from toy import Toy, chat_of, text_of

from guard.durable import sha256_bytes, sha256_file
from guard.errors import HeirloomError, is_environment
from guard.failpoints import Crash
from guard.home import Home
from guard.store import views
from guard.store.keeper import Keeper
from guard.store.ledger import Ledger
from guard.store.verify import verify

__all__ = ["Birth", "Journey", "Scene", "Witness", "reader_s_complaints"]


class Witness:
    """What was acknowledged, and which numbers were given to whom."""

    def __init__(self) -> None:
        self.newest: tuple[int, str] = (0, "")
        self.numbers: dict[tuple[str, int], str] = {}

    def committed(self, ledger: Ledger) -> None:
        """A COMMIT returned: its newest event may have been told to somebody."""
        row = ledger._db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        self.newest = max(self.newest, (row[0], row[1]), key=lambda item: item[0])
        for number, name in ledger._db.execute("SELECT id, name FROM versions"):
            self._once(("version", number), name)
        for number, job in ledger._db.execute("SELECT output_id, id FROM jobs WHERE output_id IS NOT NULL AND kind != 'index'"):
            self._once(("number", number), f"job {job}")

    def _once(self, key: tuple[str, int], owner: str) -> None:
        assert self.numbers.setdefault(key, owner) == owner, f"{key} was {self.numbers[key]} and is now {owner}"

    def complaints(self, ledger: Ledger) -> list[str]:
        """What was acknowledged and is not in this ledger."""
        sequence, digest = self.newest
        found = ledger.value("SELECT hash FROM events WHERE seq = ?", (sequence,)) if sequence else ""
        return [] if found == digest else [f"event {sequence} was acknowledged and is lost"]


_VIEWS = {"versions": "models/registry.json", "files": "data/manifest.json"}


def reader_s_complaints(root: Path) -> list[str]:
    """What the views show and the ledger does not know: before any recovery, as a reader finds it."""
    with sqlite3.connect(f"file:{root}/data/ledger.db?mode=ro", uri=True) as database:
        known = {"versions": {row[0] for row in database.execute("SELECT name FROM versions")},
                 "files": {row[0] for row in database.execute("SELECT sha256 FROM files")}}  # fmt: skip
    database.close()
    found = []
    for key, path in _VIEWS.items():
        data = (root / path).read_bytes() if (root / path).exists() else b"{}"
        try:
            told = set(orjson.loads(data))
        except ValueError:
            found.append(f"{path} is torn")
            continue
        found += [f"{path} shows {name}, which the ledger does not know" for name in sorted(told - known[key])]
    return found


class Scene:
    """One home and its lives. Subclasses say how a life begins, what is played, and what else must be true."""

    keeper: Keeper
    synced: Callable[[], None] = staticmethod(lambda: None)
    """Called after a stranger's hand changed the home: whoever simulates a disk settles it, for nobody promises what a
    stranger did not sync."""

    def __init__(self, template: Path | None, root: Path, progress: Any = None) -> None:
        """A copy of `template` at `root`; without one, the scene that somebody left there at `progress`."""
        self.root, self.home, self.witness = root, Home(root), Witness()
        if template:
            subprocess.run(["cp", "-a", "--", template, root], check=True)
        self.prepare(progress)

    def prepare(self, progress: Any) -> None:
        """Set the scene, or take it up at `progress`."""
        raise NotImplementedError

    def progress(self) -> Any:
        """How far it has come, for whoever takes it up."""
        raise NotImplementedError

    def begin(self) -> None:
        """Begin a life: open the ledger and recover."""
        raise NotImplementedError

    def die(self) -> None:
        """End it without any goodbye."""
        raise NotImplementedError

    def play(self) -> None:
        """Play to the end from wherever the scene stands."""
        raise NotImplementedError

    def specific(self) -> list[str]:
        """What is wrong beyond what is true of every home."""
        raise NotImplementedError

    def life(self) -> bool:
        """One life to its end; False when it died on the way."""
        try:
            self.begin()
            self.play()
            alive = True
        except Crash:
            alive = False
        try:
            self.die()
        except Crash:  # closing the ledger writes, too
            return False
        return alive

    def patient_life(self, mend: Callable[[], None]) -> list[str]:
        """One life in which the disk may refuse; `mend` ends the fault. Returns what went wrong with the very life."""
        found: list[str] = []
        self.begin_patiently(mend)
        try:
            for _attempt in range(4):
                try:
                    self.play()
                    found += self.waiting()
                except (OSError, HeirloomError) as error:
                    found += [] if is_environment(error) else [f"{type(error).__name__} is not the machine's: {error}"]
                mend()
                self.wait()
        finally:
            self.die()
        return found

    def begin_patiently(self, mend: Callable[[], None]) -> None:
        """Begin, and begin again when the disk refused the first time."""
        try:
            self.begin()
        except (OSError, HeirloomError) as error:
            assert is_environment(error), error
            self.die()
            mend()
            self.begin()

    def waiting(self) -> list[str]:
        """What was blamed on a file or job for the machine's fault."""
        rows = self.keeper.ledger.rows("SELECT id, state, reason FROM jobs WHERE state IN ('failed', 'parked', 'cancelled')")
        return [f"job {row[0]} is {row[1]}: {row[2]}" for row in rows]

    def wait(self) -> None:
        """Let time pass until what is held is tried again."""

    def complaints(self) -> list[str]:
        """Every broken promise, in words; empty when all is well. Takes one more life, which must change nothing."""
        self.begin()
        try:
            keeper = self.keeper
            report = verify(keeper, everything=True, backup=(self.root / "backups" / "store-id").exists())
            found = [f"{item.what} {item.name} {item.file}: {item.problem}" for item in report.damage]
            found += [f"view: {text}" for text in views.stale(keeper)]
            found += keeper.ledger.broken_events() + self.witness.complaints(keeper.ledger) + reader_s_complaints(self.root)
            left = [path.name for path in (*self.home.staging.iterdir(), *self.home.incoming.iterdir())]
            open_rows = keeper.ledger.rows("SELECT key FROM meta WHERE key LIKE 'intent:%'")
            found += [f"left over: {name}" for name in (*left, *(row[0] for row in open_rows))]
            found += [f"half a file: {path}" for path in self.root.rglob("*.tmp")]
            return found + self.specific()
        finally:
            self.die()


class Journey(Scene):
    """Drops of every sort on their way: claim, verdict, admission, training, birth, index and backup."""

    DROPS: ClassVar[dict[str, str]] = {
        "a.jsonl": chat_of(40), "pretrain/b.txt": text_of(900), "broken.jsonl": '{"messages": 3}\n',
        "guide.md": "# Guide\n\nKeep the home on a disk of its own.\n", "again.jsonl": chat_of(40)}  # fmt: skip
    VERDICTS: ClassVar[dict[str, str]] = {
        "a.jsonl": "admitted", "b.txt": "admitted", "broken.jsonl": "rejected", "guide.md": "admitted",
        "again.jsonl": "duplicate"}  # fmt: skip
    VERSIONS: ClassVar[list[str]] = ["a", "b", "baseline"]
    SIDES: ClassVar[dict[str, str]] = {"a.jsonl": "description: sums\n", "broken.jsonl": "description: not one row\n"}
    toy: Toy

    @staticmethod
    def template(root: Path) -> Path:
        Toy(root).make_base().die()
        return root

    def prepare(self, progress: Any) -> None:
        self.dropped: list[str] = list(progress or ())
        self.sided: list[str] = []
        for name in () if progress else self.DROPS:
            if name != "again.jsonl":
                self._drop(name)

    def progress(self) -> list[str]:
        return list(self.dropped)

    def _drop(self, name: str) -> None:
        """A person's hand, on a disk that keeps what a person gave it."""
        path = self.home.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in self.SIDES:
            path.with_name(f"{name}.meta.yaml").write_text(self.SIDES[name])
            self.sided.append(name)
        path.write_bytes(self.DROPS[name].encode())
        self.dropped.append(name)

    def begin(self) -> None:
        # A Toy opens and recovers in its constructor; a death there must leave something to close.
        self.toy = Toy.__new__(Toy)
        self.toy.__init__(self.root)  # type: ignore[misc]
        self.keeper = self.toy.keeper

    def die(self) -> None:
        if hasattr(self.toy, "keeper"):
            self.toy.die()

    def play(self) -> None:
        self.toy.settle()
        learnt = self.keeper.ledger.value("SELECT count(*) FROM versions WHERE name LIKE '%\\_a' ESCAPE '\\'")
        if learnt and "again.jsonl" in self.DROPS and "again.jsonl" not in self.dropped:
            # A cut while the file was being synced: it may be there, and known, though no life could tell of it.
            given = self.keeper.ledger.value("SELECT count(*) FROM drops WHERE name = 'again.jsonl'")
            if given:
                self.dropped.append("again.jsonl")
                return
            self._drop("again.jsonl")
            self.synced()
            self.toy.engine.hint()
            self.toy.settle()

    def wait(self) -> None:
        self.toy.clock.advance(120)

    def specific(self) -> list[str]:
        toy = self.toy
        states = {name: state for name, state, _reason in toy.drops()}
        found = [] if states == self.VERDICTS and len(toy.drops()) == len(self.DROPS) else [f"drops are {toy.drops()}"]
        found += [f"job {row}" for row in toy.jobs() if row[2] != "done"]
        slugs = sorted(name.split("_", 1)[1] for name in toy.versions())
        found += [] if slugs == self.VERSIONS else [f"versions are {toy.versions()}"]
        return found + self._bytes_lost()

    def _bytes_lost(self) -> list[str]:
        """Every dropped file's bytes lie somewhere, and in one place only."""
        places: dict[str, int] = {}
        for folder in (self.home.inbox, self.home.incoming, self.home.files):
            for path in folder.rglob("*"):
                if path.is_file() and not path.name.endswith(".why.txt"):
                    digest = sha256_file(path)
                    places[digest] = places.get(digest, 0) + 1
        counts = {name: places.get(sha256_bytes(text.encode()), 0) for name, text in self.DROPS.items()}
        # The duplicate has the bytes of its original: one copy stored, one given back.
        sides = [places.get(sha256_bytes(self.SIDES[name].encode()), 0) for name in self.sided]
        return [f"side files are there {sides} times" for _ in [0] if set(sides) - {1}] + [
                f"{name} is there {count} times" for name, count in counts.items()
                if count != list(self.DROPS.values()).count(self.DROPS[name])]  # fmt: skip


class Birth(Journey):
    """One drop and the version it becomes: the shortest journey with every sort of step."""

    DROPS: ClassVar[dict[str, str]] = {"a.jsonl": chat_of(40)}
    VERDICTS: ClassVar[dict[str, str]] = {"a.jsonl": "admitted"}
    VERSIONS: ClassVar[list[str]] = ["a", "baseline"]
