"""What keeps the ledger honest from outside: the export of its events, the digests of its rows, the mark of its file."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from guard import failpoints
from guard.clock import ManualClock
from guard.errors import Damage
from guard.failpoints import Crash
from guard.store import event_export
from guard.store.closed_mark import mark_problem
from guard.store.event_export import read_events
from guard.store.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    made = Ledger.create(path, clock=ManualClock(), actor="tester")
    yield made
    made.close()


def tell(ledger: Ledger, count: int = 1) -> None:
    for number in range(count):
        with ledger.transaction():
            ledger.event("thing.done", f"thing {number}", word="é")
            ledger.set_meta("last", str(number))


def numbers(path: Path) -> list[int | None]:
    return [event["seq"] if event else None for _name, event in read_events(path.parent / "events")]


def by_hand(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(sql)
    database.close()


# --- the export ----------------------------------------------------------------------------------------------------


def test_every_event_is_in_the_export_with_the_hash_it_has_in_the_ledger(ledger: Ledger, path: Path) -> None:
    tell(ledger, 3)
    lines = [orjson.loads(line) for line in (path.parent / "events" / "00001.jsonl").read_bytes().splitlines()]
    assert lines == ledger.events_after(0) and numbers(path) == [1, 2, 3]
    assert lines[0]["payload"] == '{"word":"é"}' and lines[2]["previous"] == lines[1]["hash"]


def test_what_was_rolled_back_is_in_no_export(ledger: Ledger, path: Path) -> None:
    tell(ledger)
    with pytest.raises(ValueError), ledger.transaction():
        ledger.event("never", "happened")
        raise ValueError
    tell(ledger)
    assert numbers(path) == [1, 2]


@pytest.mark.parametrize("name, told", [("events.committed", 2), ("events.exported", 3)])
def test_a_death_around_the_export_is_made_good_by_the_next_writer(ledger: Ledger, path: Path, name: str, told: int) -> None:
    tell(ledger, 2)
    failpoints.arm(name)
    with pytest.raises(Crash):
        tell(ledger)
    assert failpoints.hits(name) == 1
    assert numbers(path) == list(range(1, told + 1)) and ledger.sequence() == 3
    failpoints.disarm()
    ledger._db.close()
    again = Ledger(path)
    assert numbers(path) == [1, 2, 3]
    again.close()


def test_a_full_disk_under_the_export_costs_no_transaction_and_is_told(ledger: Ledger, path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def full(*_words: object) -> None:
        raise OSError(28, "No space left on device")

    tell(ledger)
    with monkeypatch.context() as patch:
        patch.setattr(event_export, "append_to", full)
        tell(ledger, 2)
        assert ledger.sequence() == 3 and "No space" in ledger.export_problem and numbers(path) == [1]
    tell(ledger)
    assert numbers(path) == [1, 2, 3, 4] and ledger.export_problem == ""


@pytest.mark.parametrize("tail", [b'{"seq": 4, "utc"', b"\x00" * 300, b'{"seq":4}\n'])
def test_half_a_line_of_a_sudden_death_is_cut_off_and_written_whole(ledger: Ledger, path: Path, tail: bytes) -> None:
    tell(ledger, 4)
    ledger.close()
    segment = path.parent / "events" / "00001.jsonl"
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:3]) + tail)
    again = Ledger(path)
    assert numbers(path) == [1, 2, 3, 4]
    again.close()


def test_a_lost_export_is_made_again_and_goes_on_in_segments(ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_export, "SEGMENT_EVENTS", 3)
    tell(ledger, 7)
    folder = path.parent / "events"
    assert [item.name for item in sorted(folder.iterdir())] == ["00001.jsonl", "00002.jsonl", "00003.jsonl"]
    ledger.close()
    for item in folder.iterdir():
        item.unlink()
    again = Ledger(path)
    assert numbers(path) == list(range(1, 8))
    again.close()


@pytest.mark.parametrize("change", ["DELETE FROM events WHERE seq > 2", "UPDATE events SET hash = 'x' WHERE seq = 4"])
def test_a_ledger_that_is_older_than_its_export_or_tells_another_story_is_not_written_to(ledger: Ledger, path: Path,
                                                                                         change: str) -> None:  # fmt: skip
    tell(ledger, 4)
    ledger.close()
    by_hand(path, change)
    with pytest.raises(Damage, match="export") as refusal:
        Ledger(path)
    assert "doctor --rebuild" in refusal.value.hint
    Ledger(path, read_only=True).close()


# --- rows and file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, table", [
    ("UPDATE meta SET value = '9' WHERE key = 'last'", "meta"), ("DELETE FROM meta WHERE key = 'last'", "meta"),
    ("INSERT INTO lines VALUES ('x', 1, 'now')", "lines"), ("UPDATE meta SET value = 'x' WHERE key = 'digest:files'", "files"),
    ("DELETE FROM meta WHERE key = 'digest:jobs'", "jobs"), ("UPDATE meta SET key = 'digest:odd' WHERE key = 'last'", "meta"),
])  # fmt: skip
def test_a_row_that_somebody_changed_is_found_also_after_more_was_written(ledger: Ledger, path: Path, change: str,
                                                                          table: str) -> None:  # fmt: skip
    tell(ledger, 3)
    assert ledger.changed_tables() == []
    by_hand(path, change)
    assert table in ledger.changed_tables()
    with ledger.transaction():
        ledger.set_meta("more", "1")
    assert table in ledger.changed_tables()


def test_rows_that_were_rolled_back_leave_no_trace_in_the_digests(ledger: Ledger) -> None:
    tell(ledger)
    with pytest.raises(ValueError), ledger.transaction():
        ledger.set_meta("a", "1")
        raise ValueError
    with ledger.transaction():
        ledger.set_meta("b", "'quoted' \x00 é")
        ledger.set_meta("b", "again")
        ledger.run("DELETE FROM meta WHERE key = 'last'")
    assert ledger.changed_tables() == []


def test_a_closed_file_in_which_one_byte_fell_over_is_found_wherever_it_lies(ledger: Ledger, path: Path) -> None:
    tell(ledger, 3)
    assert mark_problem(path) == "", "while it is open there is no mark"
    ledger.close()
    sound = path.read_bytes()
    for place in range(0, len(sound), 997):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        assert "changed since" in mark_problem(path)
    path.write_bytes(sound)
    assert mark_problem(path) == ""


def test_looking_leaves_the_mark_and_the_first_change_takes_it_away(ledger: Ledger, path: Path) -> None:
    tell(ledger)
    ledger.close()
    mark = path.with_name("ledger.db.closed")
    before = mark.read_bytes()
    Ledger(path).close()
    Ledger(path, read_only=True).close()
    assert mark.read_bytes() == before and mark_problem(path) == ""
    again = Ledger(path)
    with again.transaction():
        assert not mark.exists()
    again.close()
    assert mark.exists() and mark_problem(path) == ""


def test_a_segment_whose_sync_failed_is_written_anew_and_not_synced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.create(tmp_path / "ledger.db", clock=ManualClock(), actor="test")
    with ledger.transaction():
        ledger.event("thing.made", "a")
    segment = tmp_path / "events" / "00001.jsonl"
    inode, before = segment.stat().st_ino, segment.read_bytes()

    def failing(_path: Path) -> None:
        raise OSError(errno.EIO, "the disk lost it")

    with monkeypatch.context() as patch:
        patch.setattr(event_export, "fsync_file", failing)
        ledger.sync_export()
        assert "the disk lost it" in ledger.export_problem
    ledger.sync_export()
    assert segment.stat().st_ino != inode and segment.read_bytes() == before
    with ledger.transaction():
        ledger.event("thing.made", "b")
    ledger.close()
    assert len(segment.read_bytes().splitlines()) == 2
