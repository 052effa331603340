"""Admission stores: bytes once and for ever, jobs, documents and their links; sidecars that are torn, syncs that fail.

Not here: how it decides what becomes of a file (`test_guard_admission.py`). Deaths at its steps: `test_daemon_points.py`.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from admission_help import BASE, _keeper, _template, drop, judge, rows, take  # noqa: F401 - fixtures
from homes import add_original, add_version, known_fingerprints, read_sidecar

from guard import durable
from guard.durable import sha256_file
from guard.errors import Damage
from guard.store import placing
from guard.store.admission import Admission, finish_admissions
from guard.store.decision import decide
from guard.store.intake import drop_folder
from guard.store.jobs import find_job, jobs_in
from guard.store.keeper import Keeper
from guard.store.learnt import write_known
from guard.store.lost import lost_now


def test_admission_stores_the_bytes_once_and_for_ever(keeper: Keeper) -> None:
    content = rows(1, 2, 3)
    sha256, job = take(keeper, "a.jsonl", content, description="for tests")
    stored = keeper.home.files / sha256 / "a.jsonl"
    assert stored.read_bytes() == content and sha256_file(stored) == sha256 and not stored.stat().st_mode & 0o222
    assert len(read_sidecar(keeper.home.files / sha256)) == 3
    row = keeper.ledger.row("SELECT * FROM files")
    assert row is not None and (row["name"], row["examples"], row["description"]) == ("a.jsonl", 3, "for tests")
    assert job is not None and find_job(keeper.ledger, job).files == (sha256,)
    assert list(keeper.home.incoming.iterdir()) == [] and list(keeper.home.inbox.glob("*.jsonl")) == []


def test_registering_is_not_training(keeper: Keeper) -> None:
    sha256, job = take(keeper, "a.jsonl", rows(1, 2), queue=False)
    assert job is None and jobs_in(keeper.ledger, "queued") == []
    assert keeper.ledger.value("SELECT state FROM drops") == "registered"
    again, queued = take(keeper, "a.jsonl", rows(1, 2))
    assert again == sha256 and queued is not None


def test_a_higher_priority_runs_first(keeper: Keeper) -> None:
    _sha256, late = take(keeper, "a.jsonl", rows(1))
    _sha256, first = take(keeper, "b.jsonl", rows(2), priority=5)
    assert [job.id for job in jobs_in(keeper.ledger, "queued")] == [first, late]


# --- what the ancestry knows --------------------------------------------------------------------------------------


def test_the_known_fingerprints_are_those_of_the_ancestry_by_ordinal(keeper: Keeper, tmp_path: Path) -> None:
    first = add_original(keeper, "first.jsonl")
    second = add_original(keeper, "second.jsonl")
    one = add_version(keeper, "one", BASE, learnt={first: (0, 3, 9)})
    add_version(keeper, "two", one, learnt={first: (1,), second: (2,)})
    sides = {sha256: read_sidecar(keeper.home.files / sha256) for sha256 in (first, second)}
    wanted = {sides[first][ordinal] for ordinal in (0, 1, 3, 9)} | {sides[second][2]}
    assert set(known_fingerprints(keeper, 3, "pretrain")) == wanted
    assert set(known_fingerprints(keeper, 2, "pretrain")) == {sides[first][ordinal] for ordinal in (0, 3, 9)}
    folders = [keeper.home.files / first, keeper.home.files / second]
    assert write_known(keeper, folders, 3, "pretrain", tmp_path / "known.fp") == 5
    data = (tmp_path / "known.fp").read_bytes()
    assert {data[start : start + 16] for start in range(0, len(data), 16)} == wanted


@pytest.mark.parametrize("content", [None, b"x" * 17])
def test_a_missing_or_torn_sidecar_is_damage_and_never_an_empty_file(keeper: Keeper, content: bytes | None) -> None:
    sha256 = add_original(keeper, "first.jsonl")
    add_version(keeper, "one", BASE, learnt={sha256: (0,)})
    path = keeper.home.files / sha256 / "examples.fp"
    durable.unseal_tree(path.parent)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Damage, match=r"torn|missing"):
        write_known(keeper, [path.parent], 2, "pretrain", keeper.home.staging / "known.fp")
    # What is dropped beside it goes on, and what could not be asked is remembered to be told.
    assert judge(keeper, "b.jsonl", rows(1, 2)).verdict == "admit"
    assert list(lost_now(keeper)) == [sha256] and "1 learnt example" in lost_now(keeper)[sha256]


# --- documents ----------------------------------------------------------------------------------------------------


def test_a_document_goes_into_the_index_and_its_link_appears(keeper: Keeper) -> None:
    sha256, job = take(keeper, "guide.md", b"# Guide\n")
    assert job is not None and find_job(keeper.ledger, job).kind == "index"
    link = keeper.home.docs / "guide.md"
    assert link.is_symlink() and link.resolve() == (keeper.home.files / sha256 / "guide.md").resolve()


def test_many_documents_wait_for_one_rebuild(keeper: Keeper) -> None:
    jobs = {take(keeper, f"{number}.md", f"# {number}\n".encode())[1] for number in range(4)}
    assert len(jobs) == 1


def test_the_same_document_twice_is_a_duplicate_naming_the_first(keeper: Keeper) -> None:
    take(keeper, "guide.md", b"# Guide\n")
    decision = judge(keeper, "copy.md", b"# Guide\n")
    assert decision.verdict == "duplicate" and "as guide.md" in decision.reason


def test_a_newer_document_of_the_same_path_replaces_the_older_and_may_come_back(keeper: Keeper) -> None:
    old, _job = take(keeper, "guide.md", b"# Old\n", dropped_as="handbook/guide.md")
    other, _job = take(keeper, "guide.md", b"# Other\n", dropped_as="elsewhere/guide.md")
    new, _job = take(keeper, "guide.md", b"# New\n", dropped_as="handbook/guide.md")

    def current() -> set[str]:
        return {row[0] for row in keeper.ledger.rows("SELECT sha256 FROM files WHERE current_doc = 1")}

    assert current() == {other, new} and (keeper.home.files / old / "guide.md").exists()
    take(keeper, "guide.md", b"# Old\n", dropped_as="handbook/guide.md")
    assert current() == {other, old}


# --- a disk that fails --------------------------------------------------------------------------------------------


def test_what_could_not_be_synced_holds_back_itself_alone_and_is_written_anew(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    admissions = []
    for name, number in (("a.jsonl", 1), ("b.jsonl", 2)):
        number, record = drop(keeper, name, rows(number))
        row = keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (number,))
        assert row is not None
        decision = decide(keeper, record, {}, drop_folder(keeper, number) / "identity")
        admissions.append(Admission(row, record, decision))
    content = drop_folder(keeper, admissions[0].drop["id"]) / "content"
    inode, real = content.stat().st_ino, placing.seal_file

    def failing(path: Path) -> None:
        if path == content:
            raise OSError(errno.EIO, "the disk lost it")
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(placing, "seal_file", failing)
        first, second = finish_admissions(keeper, admissions)
    assert isinstance(first[1], OSError) and first[0] is None and second[1] is None and second[0] is not None
    job, problem = finish_admissions(keeper, admissions[:1])[0]
    assert problem is None and job is not None
    assert (keeper.home.files / admissions[0].record["sha256"] / "a.jsonl").stat().st_ino != inode
