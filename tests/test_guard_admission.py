"""Admission: what becomes of sound bytes, judged by bytes, by examples, and against the model that would learn them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from homes import (
    add_job_row,
    add_original,
    add_version,
    copy_home,
    keeper_of,
    known_fingerprints,
    make_home,
    no_syncing,
    read_sidecar,
    set_tip,
)

from guard import durable
from guard.checks.identify import identify
from guard.durable import sha256_file
from guard.errors import Damage
from guard.heldout import is_held_out
from guard.store import placing
from guard.store.admission import Admission, finish_admission, finish_admissions
from guard.store.decision import Decision, decide
from guard.store.intake import claim, drop_folder
from guard.store.jobs import find_job, jobs_in, set_job
from guard.store.keeper import Keeper
from guard.store.learnt import judge_novelty, write_known
from guard.store.lost import lost_now

BASE = "v001_baseline"


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    keeper = make_home(shared_scratch / "admission-template")
    add_version(keeper, "baseline")
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("validation_fraction", "0")
        keeper.ledger.set_meta("validation_salt", "fixed")
    keeper.ledger.close()
    return shared_scratch / "admission-template"


@pytest.fixture
def keeper(template: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    no_syncing(monkeypatch)
    copy_home(template, scratch / "home")
    opened = keeper_of(scratch / "home")
    yield opened
    opened.ledger.close()


def rows(*numbers: int) -> bytes:
    return b"".join(orjson.dumps({"text": f"row {number}"}) + b"\n" for number in numbers)


def drop(keeper: Keeper, name: str, content: bytes, **options: object) -> tuple[int, dict[str, Any]]:
    """Claim and identify a file; returns its drop and its record, as the daemon has them before it decides."""
    path = keeper.home.inbox / name
    path.write_bytes(content)
    number = claim(keeper, path, options=options)
    folder = drop_folder(keeper, number)
    kind = str(options.get("kind")) if options.get("kind") else None
    identity = identify(folder / "content", name, kind, out_folder=folder / "identity")
    assert identity.verdict == "ok", identity
    return number, {**identity.as_record(), "dropped_as": options.get("dropped_as", name)}


def judge(keeper: Keeper, name: str, content: bytes, **options: object) -> Decision:
    """Decide only."""
    number, record = drop(keeper, name, content, **options)
    return decide(keeper, record, options, drop_folder(keeper, number) / "identity")


def take(keeper: Keeper, name: str, content: bytes, **options: object) -> tuple[str, int | None]:
    """Decide and admit; returns the stored file's hash and its job."""
    number, record = drop(keeper, name, content, **options)
    decision = decide(keeper, record, options, drop_folder(keeper, number) / "identity")
    assert decision.verdict == "admit", decision
    row = keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (number,))
    assert row is not None
    return str(record["sha256"]), finish_admission(keeper, row, {**record, "decision": asdict(decision)}, decision)


def finish(keeper: Keeper, job: int | None) -> None:
    assert job is not None
    with keeper.ledger.transaction():
        set_job(keeper.ledger, job, "done")


def test_new_data_is_admitted_and_queued_under_the_file_s_name(keeper: Keeper) -> None:
    decision = judge(keeper, "My Data (1).jsonl", rows(1, 2, 3))
    assert decision == Decision("admit", "train", "3 new examples", "policy", "my_data_1", "", 0, 3, 0)


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


@pytest.mark.parametrize("state", ["queued", "held", "preparing", "training", "committing", "parked"])
def test_bytes_that_wait_in_a_job_are_a_duplicate(keeper: Keeper, state: str) -> None:
    _sha256, job = take(keeper, "a.jsonl", rows(1, 2))
    assert job is not None
    with keeper.ledger.transaction():
        set_job(keeper.ledger, job, state)
    decision = judge(keeper, "b.jsonl", rows(1, 2))
    assert decision.verdict == "duplicate" and decision.reason == f"the same bytes are already in job {job} ({state})"


@pytest.mark.parametrize("state", ["failed", "cancelled", "quarantined"])
def test_bytes_whose_job_came_to_nothing_train_when_dropped_again(keeper: Keeper, state: str) -> None:
    _sha256, job = take(keeper, "a.jsonl", rows(1, 2))
    assert job is not None
    with keeper.ledger.transaction():
        set_job(keeper.ledger, job, state)
    sha256, again = take(keeper, "b.jsonl", rows(1, 2))
    assert again != job and keeper.ledger.value("SELECT count(*) FROM files") == 1
    assert [path.name for path in keeper.home.files.iterdir()] == [sha256]


def learn(keeper: Keeper, name: str, content: bytes, *ordinals: int, tip: bool = True) -> tuple[str, str]:
    """Admit a file and seal a version that learnt these of its examples."""
    sha256, job = take(keeper, name, content)
    finish(keeper, job)
    parent = keeper.ledger.value("SELECT v.name FROM lines l JOIN versions v ON v.id = l.tip_id WHERE l.name = 'policy'")
    return sha256, add_version(keeper, Path(name).stem, parent, tip=tip, learnt={sha256: ordinals})


def test_bytes_the_model_has_learnt_are_a_duplicate_naming_the_version(keeper: Keeper) -> None:
    _sha256, version = learn(keeper, "a.jsonl", rows(1, 2, 3), 0, 1, 2)
    decision = judge(keeper, "other name.jsonl", rows(1, 2, 3))
    assert (decision.verdict, decision.queue) == ("duplicate", "none")
    assert decision.reason == f"nothing new for policy: trained in {version}"
    assert (decision.new_examples, decision.known_examples) == (0, 3)


@pytest.mark.parametrize("content", [
    rows(3, 1, 2), rows(1, 2, 3).replace(b"\n", b"\r\n"), rows(1, 1, 2, 2, 3, 3),
    b'{"id": 9, "text":   "row 2"}\n{"text": " row 1 ", "source": "web"}\n',
])  # fmt: skip
def test_the_same_examples_in_another_dress_are_a_duplicate(keeper: Keeper, content: bytes) -> None:
    learn(keeper, "a.jsonl", rows(1, 2, 3), 0, 1, 2)
    decision = judge(keeper, "b.jsonl", content)
    assert decision.verdict == "duplicate" and "every example in it was learnt from other files" in decision.reason


def test_examples_known_from_several_files_together_are_known(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2), 0, 1)
    learn(keeper, "b.jsonl", rows(3, 4), 0, 1)
    assert judge(keeper, "c.jsonl", rows(2, 3)).verdict == "duplicate"


def test_of_a_partly_known_file_the_rest_is_counted_and_trained(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2, 3), 0, 1, 2)
    decision = judge(keeper, "b.jsonl", rows(2, 3, 4, 4, 5))
    assert (decision.verdict, decision.queue) == ("admit", "train")
    assert (decision.new_examples, decision.known_examples) == (2, 2)
    assert decision.reason == "2 new examples, 2 were learnt before"


def test_a_partly_learnt_file_dropped_again_trains_the_rest(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2, 3, 4), 0, 2)
    decision = judge(keeper, "a.jsonl", rows(1, 2, 3, 4))
    assert (decision.verdict, decision.new_examples, decision.known_examples) == ("admit", 2, 2)


def test_an_indentation_is_not_a_duplicate_in_code(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", orjson.dumps({"text": "if x:\n    y()\nz()"}) + b"\n", 0)
    decision = judge(keeper, "b.jsonl", orjson.dumps({"text": "if x:\n    y()\n    z()"}) + b"\n")
    assert (decision.verdict, decision.new_examples) == ("admit", 1)


def test_rolled_back_data_is_trainable_again_by_itself(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2, 3), 0, 1, 2)
    assert judge(keeper, "b.jsonl", rows(1, 2, 3)).verdict == "duplicate"
    set_tip(keeper, "policy", BASE)
    decision = judge(keeper, "c.jsonl", rows(1, 2, 3))
    assert (decision.verdict, decision.queue, decision.new_examples) == ("admit", "train", 3)


def test_what_only_another_branch_learnt_is_new_to_this_one(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2), 0, 1, tip=False)
    assert judge(keeper, "b.jsonl", rows(1, 2)).queue == "train"


def test_a_quarantined_child_s_lessons_are_not_the_line_s(keeper: Keeper) -> None:
    sha256, job = take(keeper, "a.jsonl", rows(1, 2))
    finish(keeper, job)
    add_version(keeper, "bad", BASE, state="quarantined", learnt={sha256: (0, 1)})
    assert judge(keeper, "b.jsonl", rows(1, 2)).queue == "train"


def test_what_another_objective_learnt_may_be_learnt_again(keeper: Keeper) -> None:
    sha256, _version = learn(keeper, "a.jsonl", rows(1, 2), 0, 1)
    with keeper.ledger.transaction():
        keeper.ledger.run("UPDATE learnt SET objective = 'sft' WHERE sha256 = ?", (sha256,))
    assert judge(keeper, "b.jsonl", rows(1, 2)).queue == "train"


def test_registering_is_not_training(keeper: Keeper) -> None:
    sha256, job = take(keeper, "a.jsonl", rows(1, 2), queue=False)
    assert job is None and jobs_in(keeper.ledger, "queued") == []
    assert keeper.ledger.value("SELECT state FROM drops") == "registered"
    again, queued = take(keeper, "a.jsonl", rows(1, 2))
    assert again == sha256 and queued is not None


def test_a_line_of_its_own_and_wishes_are_kept(keeper: Keeper) -> None:
    learn(keeper, "a.jsonl", rows(1, 2), 0, 1)
    add_version(keeper, "branch", BASE, line="side")
    wished = {"line": "side", "recipe": "pretrain/tiny", "priority": 3, "slug": "mine"}
    decision = judge(keeper, "b.jsonl", rows(1, 2), **wished)
    assert (decision.line, decision.recipe, decision.priority, decision.slug) == ("side", "pretrain/tiny", 3, "mine")
    assert decision.queue == "train", "the side line has not learnt what policy has"
    assert judge(keeper, "c.jsonl", rows(1, 2), line="not there yet").verdict == "duplicate", "a new line forks from policy"


def test_a_higher_priority_runs_first(keeper: Keeper) -> None:
    _sha256, late = take(keeper, "a.jsonl", rows(1))
    _sha256, first = take(keeper, "b.jsonl", rows(2), priority=5)
    assert [job.id for job in jobs_in(keeper.ledger, "queued")] == [first, late]


def test_a_file_that_is_held_out_as_a_whole_is_kept_and_not_trained(keeper: Keeper) -> None:
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("validation_fraction", "1")
    decision = judge(keeper, "a.jsonl", rows(1, 2))
    assert (decision.verdict, decision.queue) == ("admit", "none") and "all 2 examples are held out" in decision.reason


def test_held_out_examples_are_neither_new_nor_known(keeper: Keeper) -> None:
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("validation_fraction", "0.5")
    numbers = tuple(range(40))
    sha256, job = take(keeper, "a.jsonl", rows(*numbers))
    finish(keeper, job)
    known = read_sidecar(keeper.home.files / sha256)
    held = [is_held_out(item, "fixed", 0.5) for item in known]
    novelty = judge_novelty(keeper, known + known[:3], None, "pretrain")
    assert 5 < sum(held) < 35
    assert (novelty.examples, novelty.new, novelty.known, novelty.held_out, novelty.repeated) == (
        43, 40 - sum(held), 0, sum(held), 3)  # fmt: skip
    add_version(keeper, "a", BASE, learnt={sha256: [place for place, out in enumerate(held) if not out]})
    assert judge(keeper, "b.jsonl", rows(*numbers[::-1])).verdict == "duplicate"


def test_the_salt_of_the_home_decides_and_not_the_settings_of_the_day(keeper: Keeper, scratch: Path) -> None:
    keys = [bytes([number]) * 16 for number in range(64)]
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("validation_fraction", "0.5")
    before = judge_novelty(keeper, keys, None, "pretrain")
    later = keeper_of(scratch / "home", validation__fraction=0.9, validation__salt="another")
    assert judge_novelty(later, keys, None, "pretrain") == before
    later.ledger.close()


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


def test_a_job_of_another_line_is_nobody_s_obstacle_to_new_bytes(keeper: Keeper) -> None:
    add_job_row(keeper, "training", line="side")
    assert judge(keeper, "a.jsonl", rows(1)).queue == "train"


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
