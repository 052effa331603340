"""The ledger: all or nothing, an audit trail that betrays every change, and no error taken for something else."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guard.clock import ManualClock
from guard.errors import Damage, EnvironmentFault
from guard.store import ledger_file as module
from guard.store.intents import clear_intent, open_intents, put_intent
from guard.store.ledger import Ledger
from guard.store.schema import SCHEMA_VERSION, STEPS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    made = Ledger.create(path, clock=ManualClock(), actor="tester")
    yield made
    made.close()


def tell(ledger: Ledger, count: int = 1) -> None:
    with ledger.transaction():
        for number in range(count):
            ledger.event("thing.done", f"thing {number}", number=number, word="é\udce9")


def by_hand(path: Path, sql: str, *values: object) -> None:
    """What somebody does to the file behind our back."""
    with sqlite3.connect(path) as database:
        database.execute(sql, values)
    database.close()


def test_a_ledger_that_is_refused_is_not_left_open(ledger: Ledger, path: Path) -> None:
    """Whoever keeps the error keeps the half-made ledger with it: doctor asks again and again in one process."""
    ledger.close()
    for content in (b"no database at all" * 500, path.read_bytes()):
        path.write_bytes(content)
        if content.startswith(b"SQLite"):
            by_hand(path, f"PRAGMA user_version={SCHEMA_VERSION + 1}")
        for read_only in (False, True):
            with pytest.raises(Damage) as kept:
                Ledger(path, read_only=read_only)
            assert open_below(path.parent) == [], (kept.value, content[:9])


def test_rows_are_followed_from_the_first_transaction_on_also_after_one_that_failed(ledger: Ledger) -> None:
    assert ledger.rows("SELECT name FROM sqlite_temp_master") == [], "a writer that only looks pays for no triggers"
    with pytest.raises(ZeroDivisionError), ledger.transaction():
        ledger.set_meta("one", str(1 // 0))
    with ledger.transaction():
        ledger.set_meta("two", "2")
    assert ledger.changed_tables() == []
    ledger._db.execute("DROP TRIGGER row_meta_UPDATE")
    with ledger.transaction():
        ledger.set_meta("two", "3")
    assert ledger.changed_tables() == ["meta"]


def open_below(folder: Path) -> list[str]:
    links = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link))
    return [link for link in links if link.startswith(f"{folder}/")]


# --- transactions -------------------------------------------------------------------------------------------------


def test_a_transaction_is_all_or_nothing(ledger: Ledger) -> None:
    with pytest.raises(ValueError), ledger.transaction():
        ledger.set_meta("a", "1")
        ledger.event("x", "y")
        raise ValueError
    assert ledger.meta("a") is None and ledger.sequence() == 0
    with ledger.transaction():
        ledger.set_meta("a", "2")
    assert ledger.meta("a") == "2"


def test_an_inner_transaction_belongs_to_the_outer_one(ledger: Ledger) -> None:
    with pytest.raises(ValueError), ledger.transaction():
        with ledger.transaction():
            ledger.set_meta("a", "1")
        ledger.set_meta("b", "1")
        raise ValueError
    assert ledger.meta("a") is None and ledger.meta("b") is None
    with ledger.transaction(), ledger.transaction():
        ledger.set_meta("a", "1")
    assert ledger.meta("a") == "1"


def test_nothing_is_changed_outside_a_transaction(ledger: Ledger) -> None:
    for act in (lambda: ledger.set_meta("a", "1"), lambda: ledger.event("x", "y"),
                lambda: ledger.run_many("INSERT INTO meta VALUES (?, ?)", [("a", "b")])):  # fmt: skip
        with pytest.raises(AssertionError):
            act()
    assert ledger.meta("a") is None


def test_what_was_committed_is_there_for_the_next_life_and_the_rest_is_not(ledger: Ledger, path: Path) -> None:
    tell(ledger, 3)
    ledger._db.execute("BEGIN")
    ledger._db.execute("INSERT INTO meta VALUES ('half', 'done')")
    other = Ledger(path, read_only=True)
    assert other.sequence() == 3 and other.meta("half") is None
    other.close()


def test_the_ledger_syncs_at_every_commit(ledger: Ledger) -> None:
    assert ledger.value("PRAGMA synchronous") == 2 and ledger.value("PRAGMA journal_mode") == "wal"
    assert ledger.value("PRAGMA foreign_keys") == 1


def test_a_second_writer_is_the_environment_and_not_damage(ledger: Ledger, path: Path) -> None:
    other = Ledger(path)
    other._db.execute("PRAGMA busy_timeout=10")
    with ledger.transaction(), pytest.raises(EnvironmentFault, match="locked"), other.transaction():
        raise AssertionError("two writers")
    other.close()


def test_a_reader_cannot_write(ledger: Ledger, path: Path) -> None:
    reader = Ledger(path, read_only=True)
    with pytest.raises(EnvironmentFault), reader.transaction():
        reader.set_meta("a", "1")
    reader.close()
    assert ledger.meta("a") is None


def test_a_full_disk_is_an_environment_fault_and_costs_nothing(ledger: Ledger) -> None:
    tell(ledger, 2)
    pages = ledger.value("PRAGMA page_count")
    ledger._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(EnvironmentFault, match="full"), ledger.transaction():
        ledger.set_meta("big", "x" * 1_000_000)
    assert ledger.meta("big") is None and ledger.broken_events() == []
    ledger._db.execute(f"PRAGMA max_page_count={pages * 1000}")
    with ledger.transaction():
        ledger.set_meta("big", "x" * 1_000_000)
    assert len(ledger.meta("big") or "") == 1_000_000


def test_a_disk_that_fills_up_at_the_last_write_of_a_transaction_is_the_environment_too(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger._digests, "write", full)
        with pytest.raises(EnvironmentFault, match="full"), ledger.transaction():
            ledger.set_meta("a", "1")
    assert ledger.meta("a") is None and ledger.changed_tables() == []
    with ledger.transaction():
        ledger.set_meta("a", "2")
    assert ledger.meta("a") == "2" and ledger.changed_tables() == []


def test_a_mistake_of_ours_is_not_called_damage(ledger: Ledger) -> None:
    with pytest.raises(sqlite3.IntegrityError), ledger.transaction():
        ledger.run("INSERT INTO lines VALUES ('policy', 99, 'now')")


# --- the audit trail ----------------------------------------------------------------------------------------------


def test_a_whole_chain_is_whole(ledger: Ledger) -> None:
    assert ledger.broken_events() == []
    tell(ledger, 5)
    assert ledger.broken_events() == [] and ledger.sequence() == 5
    row = ledger.row("SELECT * FROM events WHERE seq = 1")
    assert row is not None and (row["actor"], row["verb"], row["subject"]) == ("tester", "thing.done", "thing 0")
    assert row["utc"] == ManualClock().utc() and row["previous"] == "0" * 64


@pytest.mark.parametrize("column, value", [
    ("payload", '{"number":9}'), ("utc", "2000-01-01T00:00:00.000Z"), ("actor", "nobody"), ("verb", "thing.undone"),
    ("subject", "thing 9"), ("hash", "0" * 64), ("previous", "0" * 64), ("boot_id", "x"),
])  # fmt: skip
def test_a_changed_event_is_found(ledger: Ledger, path: Path, column: str, value: str) -> None:
    tell(ledger, 5)
    by_hand(path, f"UPDATE events SET {column} = ? WHERE seq = 3", value)
    assert ledger.broken_events()[0].startswith(("event 3 was changed", "event 4 was changed"))


@pytest.mark.parametrize("gone, told", [
    ("seq = 3", "events 3 to 3 are missing"), ("seq = 1", "events 1 to 1 are missing"),
    ("seq >= 4", "events 4 to 5 are missing"), ("seq > 0", "events 1 to 5 are missing"),
])  # fmt: skip
def test_a_removed_event_is_found_wherever_it_stood(ledger: Ledger, path: Path, gone: str, told: str) -> None:
    tell(ledger, 5)
    by_hand(path, f"DELETE FROM events WHERE {gone}")
    assert told in ledger.broken_events()


def test_two_swapped_events_are_found(ledger: Ledger, path: Path) -> None:
    tell(ledger, 5)
    by_hand(path, "UPDATE events SET seq = -seq WHERE seq IN (2, 3)")
    by_hand(path, "UPDATE events SET seq = 5 + seq WHERE seq < 0")
    assert ledger.broken_events()


def test_names_that_are_no_text_are_told_escaped(ledger: Ledger) -> None:
    name, shown = "caf\udce9.txt", "caf\\xe9.txt"
    with ledger.transaction():
        ledger.event("drop.seen", name, why=[{"of": name}])
        ledger.set_meta("said", name)
        ledger.set_meta("half", "\ud800")
    assert tuple(ledger.rows("SELECT subject, payload FROM events")[0]) == (shown, '{"why":[{"of":"caf\\\\xe9.txt"}]}')
    assert (ledger.meta("said"), ledger.meta("half")) == (shown, "\\ud800") and ledger.broken_events() == []


# --- schema and damage --------------------------------------------------------------------------------------------


def test_a_new_ledger_is_made_only_where_none_is(ledger: Ledger, path: Path) -> None:
    with pytest.raises(FileExistsError):
        Ledger.create(path)
    assert ledger.value("PRAGMA user_version") == SCHEMA_VERSION


def test_a_missing_ledger_is_never_made_by_opening_it(path: Path) -> None:
    with pytest.raises(Damage, match="missing"):
        Ledger(path)
    assert not path.exists()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_ledger_from_the_future_is_refused_unchanged(ledger: Ledger, path: Path, read_only: bool) -> None:
    ledger.close()
    by_hand(path, f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(Damage, match=f"schema {SCHEMA_VERSION + 1}"):
        Ledger(path, read_only=read_only)
    assert path.read_bytes() == before


def overwrite(path: Path, where: int) -> None:
    with path.open("r+b") as handle:
        handle.seek(where)
        handle.write(b"\xde\xad" * 2048)


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(b"this is not a database" * 100), lambda path: overwrite(path, 0),
    lambda path: path.write_bytes(path.read_bytes()[:5000]),
])  # fmt: skip
def test_a_damaged_file_is_called_damage(ledger: Ledger, path: Path, spoil: Callable[[Path], object]) -> None:
    tell(ledger, 50)
    ledger.close()
    spoil(path)
    with pytest.raises(Damage):
        opened = Ledger(path)
        opened.rows("SELECT * FROM events")


def test_an_older_ledger_is_copied_and_checked_before_it_is_migrated(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(ledger, 2)
    ledger.close()
    monkeypatch.setattr(module, "STEPS", (*STEPS, "CREATE TABLE later (id INTEGER)"))
    monkeypatch.setattr(module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    half = path.with_name(f"ledger.db.schema{SCHEMA_VERSION}.tmp")
    half.write_bytes(b"left by a crash")
    newer = Ledger(path)
    assert newer.rows("SELECT * FROM later") == [] and newer.sequence() == 2
    newer.close()
    monkeypatch.undo()
    kept = Ledger(path.with_name(f"ledger.db.schema{SCHEMA_VERSION}"))
    assert kept.sequence() == 2 and kept.value("PRAGMA user_version") == SCHEMA_VERSION and not half.exists()
    kept.close()


def test_a_step_that_fails_changes_nothing(ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.close()
    with monkeypatch.context() as patch:
        patch.setattr(module, "STEPS", (*STEPS, "CREATE TABLE later (id INTEGER); CREATE TABLE meta (broken)"))
        patch.setattr(module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        with pytest.raises(Damage):
            Ledger(path)
    again = Ledger(path)
    assert again.value("PRAGMA user_version") == SCHEMA_VERSION
    assert again.row("SELECT 1 FROM sqlite_master WHERE name = 'later'") is None
    again.close()


# --- copies and intents -------------------------------------------------------------------------------------------


def test_a_copy_holds_everything_and_opens_by_itself(ledger: Ledger, path: Path) -> None:
    tell(ledger, 3)
    target = path.with_name("copy.db")
    ledger.copy_to(target)
    assert [item.name for item in path.parent.glob("copy*")] == ["copy.db"]
    copy = Ledger(target, read_only=True)
    assert copy.sequence() == 3 and copy.broken_events() == []
    copy.close()


def test_a_copy_that_fails_its_check_is_refused(ledger: Ledger, path: Path) -> None:
    """A row that an index does not know: what a bit on the disk may do."""
    tell(ledger, 3)
    ledger._db.execute("PRAGMA writable_schema=ON")
    ledger._db.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX files_by_name ON files (kind)' WHERE name = 'files_by_name'")
    with ledger.transaction():
        ledger.run("INSERT INTO files (sha256, name, kind, size_bytes, examples, tokens_approx, first_seen, record) "
                   "VALUES ('a', 'b', 'c', 1, 1, 1, 'now', '{}')")  # fmt: skip
    with pytest.raises(Damage, match="check"):
        ledger.copy_to(path.with_name("copy.db"))


def test_a_place_where_no_copy_can_be_made_is_the_environment(ledger: Ledger, path: Path) -> None:
    with pytest.raises(EnvironmentFault):
        ledger.copy_to(path.parent / "missing" / "copy.db")


def test_intents_are_kept_apart_by_operation_and_subject(ledger: Ledger) -> None:
    with ledger.transaction():
        put_intent(ledger, "delete", "v002_b", {"a": 1})
        put_intent(ledger, "delete", "v001_a", {"a": 2})
        put_intent(ledger, "deleted", "x", {"a": 3})
        put_intent(ledger, "restore", "v001_a", {"a": 4})
    assert open_intents(ledger, "delete") == [{"a": 2}, {"a": 1}]
    with ledger.transaction():
        clear_intent(ledger, "delete", "v001_a")
    assert open_intents(ledger, "delete") == [{"a": 1}] and open_intents(ledger, "restore") == [{"a": 4}]
