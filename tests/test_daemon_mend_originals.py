"""A damaged original is mended by dropping the same bytes again: bytes and sidecars, training text and documents."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from homes import copy_home
from toy import Toy, chat_of

from daemon.cli.files import register_lines
from daemon.cli.homes import happened_lines
from daemon.client import _drop_result
from daemon.training import admit_dataset
from guard import failpoints
from guard.clock import ManualClock
from guard.durable import sha256_bytes
from guard.failpoints import Crash
from guard.store.decision import Decision
from guard.store.rebuild import rebuild
from guard.store.verify import verify
from trainer.dataset import open_dataset

CHAT, GUIDE = chat_of(40), "# Guide\n\nKeep the home on a disk of its own.\n"


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    root = shared_scratch / "mend-template"
    toy = Toy(root).make_base()
    toy.drop("a.jsonl", CHAT)
    toy.drop("guide.md", GUIDE)
    toy.settle().die()
    return root


@pytest.fixture
def toy(template: Path, scratch: Path) -> Iterator[Toy]:
    copy_home(template, scratch / "home")
    toy = Toy(scratch / "home")
    yield toy
    toy.die()


def part(toy: Toy, content: str, name: str) -> Path:
    return toy.home.files / sha256_bytes(content.encode()) / name


def rot(path: Path) -> None:
    os.chmod(path, 0o644)
    path.write_bytes(b"rot")


def gone(path: Path) -> None:
    os.chmod(path.parent, 0o755)
    path.unlink()


def damage(toy: Toy) -> list[str]:
    return [f"{item.name} {item.file}: {item.problem}" for item in verify(toy.keeper, everything=True).damage]


@pytest.mark.parametrize("harm", [rot, gone])
@pytest.mark.parametrize(("content", "name", "file"), [
    (CHAT, "a.jsonl", "a.jsonl"), (CHAT, "a.jsonl", "examples.fp"), (CHAT, "a.jsonl", "record.json"),
    (GUIDE, "guide.md", "guide.md"), (GUIDE, "guide.md", "record.json"),
])  # fmt: skip
def test_the_same_bytes_mend_whatever_is_damaged(
    toy: Toy, content: str, name: str, file: str, harm: Callable[[Path], None]
) -> None:
    jobs = toy.jobs()
    harm(part(toy, content, file))
    assert damage(toy)
    toy.drop(f"again/{name}", content)
    toy.settle()
    assert damage(toy) == []
    assert toy.jobs() == jobs, "it is trained or in the index already: nothing is queued for it"
    _name, state, reason = toy.drops()[-1]
    assert state == "registered" and reason.startswith("mended: the stored copy was damaged (")
    assert "trained in v002_a" in reason or "in the index already" in reason


def test_the_words_tell_that_it_was_mended_and_what_its_state_is(toy: Toy) -> None:
    rot(part(toy, CHAT, "examples.fp"))
    toy.drop("again.jsonl", CHAT)
    toy.settle()
    number = toy.keeper.ledger.value("SELECT max(id) FROM drops")
    result = _drop_result(toy.keeper, number)
    assert result is not None
    lines = register_lines(result)
    assert lines[0] == "✅ Mended: again.jsonl" and lines[-1] == "   Status: Trained"
    told = happened_lines([{"verb": "file.mended", "subject": "again.jsonl", "reason": result["reason"]}])
    assert told == [f"✅ again.jsonl was {result['reason']}"]


def test_a_document_that_a_build_left_out_goes_into_the_next_index(toy: Toy) -> None:
    rot(part(toy, GUIDE, "guide.md"))
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("UPDATE indexes SET record = json_set(record, '$.documents', json('[]')) WHERE state = 'active'")
    toy.drop("guide.md", GUIDE)
    toy.settle()
    assert toy.jobs()[-1][1:3] == ("index", "done")
    assert toy.drops()[-1][1] == "admitted"


def test_an_arrival_of_another_kind_replaces_the_bytes_and_never_the_fingerprints(toy: Toy) -> None:
    rot(part(toy, CHAT, "a.jsonl"))
    fingerprints = part(toy, CHAT, "examples.fp").read_bytes()
    toy.drop("pretrain/a.jsonl", CHAT)  # rows without `text`: refused as text, whatever is damaged
    toy.settle()
    assert toy.drops()[-1][1] == "rejected"
    toy.drop("docs/a.md", CHAT)
    toy.settle()
    assert damage(toy) == [] and part(toy, CHAT, "examples.fp").read_bytes() == fingerprints


def test_fingerprints_that_a_document_cannot_give_back_stay_damaged_and_are_told(toy: Toy) -> None:
    rot(part(toy, CHAT, "examples.fp"))
    toy.drop("docs/a.md", CHAT)
    toy.settle()
    assert [line for line in damage(toy) if "examples.fp" in line]
    assert "stays damaged (examples.fp)" in toy.drops()[-1][2] and "mended" not in toy.drops()[-1][2]
    toy.drop("a.jsonl", CHAT)
    toy.settle()
    assert damage(toy) == []


def test_new_sidecars_are_known_after_a_lost_ledger(toy: Toy) -> None:
    rot(part(toy, CHAT, "record.json"))
    toy.drop("renamed.jsonl", CHAT)
    toy.settle()
    toy.die()
    toy.home.ledger.unlink()
    rebuild(toy.home, clock=ManualClock(), actor="tester")
    toy.begin()
    toy.settle()
    assert damage(toy) == []


def test_a_folder_that_a_lost_ledger_left_without_sidecars_is_stored_anew(toy: Toy) -> None:
    gone(part(toy, GUIDE, "record.json"))
    toy.die()
    toy.home.ledger.unlink()
    rebuild(toy.home, clock=ManualClock(), actor="tester")
    toy.begin()
    toy.drop("guide.md", GUIDE)
    toy.settle()
    assert damage(toy) == []


@pytest.mark.parametrize("point", ["admit.intended", "admit.stored", "admit.sidecars", "admit.aside", "admit.renamed",
                                   "admit.recorded", "admit.cleared"])  # fmt: skip
@pytest.mark.parametrize("file", ["a.jsonl", "examples.fp"])
def test_a_death_in_the_middle_of_mending_is_finished_by_the_next_start(toy: Toy, point: str, file: str) -> None:
    before = part(toy, CHAT, "examples.fp").read_bytes()
    rot(part(toy, CHAT, file))
    failpoints.arm(point, "crash")
    toy.drop("a.jsonl", CHAT)
    with pytest.raises(Crash):
        toy.settle()
    failpoints.disarm()
    toy.again().settle()
    assert damage(toy) == [] and part(toy, CHAT, "examples.fp").read_bytes() == before
    assert toy.drops()[-1][1] == "registered" and list(toy.home.incoming.iterdir()) == []


def test_a_parked_job_is_told_together_with_its_remedy(toy: Toy) -> None:
    content = chat_of(30, seed=9)
    toy.drop("b.jsonl", content)
    while not part(toy, content, "b.jsonl").exists():
        toy.step()
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("UPDATE jobs SET state = 'parked' WHERE id = (SELECT max(id) FROM jobs)")
    rot(part(toy, content, "b.jsonl"))
    toy.drop("b2.jsonl", content)
    toy.settle()
    assert "(parked): heirloom queue retry" in toy.drops()[-1][2]


def test_a_decision_of_an_earlier_release_is_still_finished() -> None:
    assert Decision(**{"verdict": "admit", "queue": "none", "reason": ""}).mends == ()


# --- prepared datasets, and how everything lies ---------------------------------------------------------------------


def admitted_dataset(toy: Toy) -> tuple[Path, Path]:
    """A dataset admitted as `heirloom train` does it: (the folder it came from, where it is stored)."""
    folder = toy.home.root / "made"
    if not folder.exists():
        shutil.copytree(next(toy.home.shards.iterdir()), folder)
    return folder, toy.home.files / admit_dataset(toy.keeper, folder, open_dataset(folder))


def writable(folder: Path) -> list[str]:
    return [str(path) for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o222]


def test_everything_that_is_admitted_is_read_only_however_it_came_in(toy: Toy) -> None:
    _folder, stored = admitted_dataset(toy)
    for place in (stored, *(toy.home.files / name for name in os.listdir(toy.home.files))):
        assert writable(place) == []


@pytest.mark.parametrize("point", ["admit.renamed", "dataset.renamed"])
def test_a_death_between_move_and_seal_leaves_it_read_only_after_all(toy: Toy, point: str) -> None:
    failpoints.arm(point, "crash")
    toy.drop("new.jsonl", chat_of(30, seed=5))
    with pytest.raises(Crash):
        admitted_dataset(toy) if point == "dataset.renamed" else toy.settle()
    failpoints.disarm()
    for path in toy.home.files.iterdir():
        os.chmod(path, 0o755)  # as it lies between the two
    toy.again().settle()
    _folder, stored = admitted_dataset(toy)
    assert writable(stored) == [] and writable(toy.home.files / sha256_bytes(chat_of(30, seed=5).encode())) == []


@pytest.mark.parametrize("file", ["made/train/examples.npy", "examples.fp", "record.json"])
def test_a_damaged_dataset_is_mended_by_training_it_again(toy: Toy, file: str) -> None:
    _folder, stored = admitted_dataset(toy)
    rot(stored / file)
    assert damage(toy)
    _folder, again = admitted_dataset(toy)
    assert again == stored and damage(toy) == [] and writable(stored) == []


@pytest.mark.parametrize("point", ["dataset.copied", "dataset.aside", "dataset.renamed"])
def test_a_death_while_a_dataset_is_mended_is_finished_by_the_next_attempt(toy: Toy, point: str) -> None:
    _folder, stored = admitted_dataset(toy)
    rot(stored / "examples.fp")
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        admitted_dataset(toy)
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    toy.again()
    admitted_dataset(toy)
    assert damage(toy) == [] and writable(stored) == []
