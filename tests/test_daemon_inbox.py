"""The inbox as a whole, case by case: bursts, deaf watchers, restarts, refusals that were mended, and what `why` tells."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import run_as_ordinary_user
from toy import Toy, chat_of

from daemon.cli.files import story_lines
from daemon.report import compose, live_facts
from daemon.story import tell_story
from guard import durable
from guard.errors import CheckFailed
from guard.store import intake as acts
from guard.store.intake import drop_folder
from guard.store.jobs import jobs_in
from guard.store.keeper import Keeper


@pytest.fixture
def toy(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    made = Toy(scratch / "home", backup__auto=False, coalesce__after=1000).make_base()
    made.keeper.ledger._db.execute("INSERT INTO meta VALUES ('paused', '1')")
    yield made
    made.die()


def test_a_burst_of_files_is_admitted_whole_and_in_order_across_restarts(toy: Toy) -> None:
    """A13, A51: three hundred files at once, two sudden deaths among them; each once, and the queue in one order."""
    names = [f"f{number:03d}.jsonl" for number in range(300)]
    for number, name in enumerate(names):
        toy.drop(name, chat_of(2, seed=number))
    for _ in range(8):
        toy.step()
    taken = toy.keeper.ledger.value("SELECT count(*) FROM drops")
    assert 0 < taken < 300
    toy.again()
    for _ in range(4):
        toy.step()
    toy.again().engine.hint()
    toy.settle()
    assert sorted(name for name, state, _reason in toy.drops() if state in ("admitted", "registered")) == names
    assert toy.keeper.ledger.value("SELECT count(*) FROM files") == 300
    order = [job.files for job in jobs_in(toy.keeper.ledger, "queued")]
    assert len(order) == len(set(order)) and [job.files for job in jobs_in(toy.again().keeper.ledger, "queued")] == order


def test_without_a_single_event_every_file_is_found_by_the_sweep(toy: Toy) -> None:
    """A33: events overflowed, watches were exhausted, the observer is deaf; the status says what it knows."""
    toy.settle()
    folder = toy.home.inbox / "new" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text(chat_of(3))
    toy.engine.watch_problem = "no file events (inotify watch limit reached): the inbox is swept instead"
    for _ in range(2 * int(toy.keeper.settings.inbox.sweep_seconds) + 20):
        toy.step()
    assert [state for _name, state, _reason in toy.drops()] == ["admitted"]
    alerts = compose(toy.keeper, live_facts(toy.engine), running=True)["alerts"]
    assert any("swept instead" in alert["what"] for alert in alerts)


def test_an_inbox_that_vanished_pauses_and_takes_nothing_for_deleted(toy: Toy) -> None:
    """A31, A32: renamed away and made again; what waited is not forgotten, and what came back is taken."""
    toy.drop("a.jsonl", "")
    toy.settle()
    away = toy.home.inbox.with_name("away")
    toy.home.inbox.rename(away)
    toy.engine.hint()
    for _ in range(10):
        toy.step()
    assert "cannot be read" in toy.engine.intake.problem or toy.engine.home_problem
    assert toy.drops() == []
    away.rename(toy.home.inbox)
    toy.drop("b.jsonl", chat_of(3))
    for _ in range(140):
        toy.step()
    assert [state for _name, state, _reason in toy.drops()] == ["admitted"] and toy.engine.intake.problem == ""


def test_a_mended_file_is_linked_to_its_refusals_and_the_story_is_whole(toy: Toy) -> None:
    """A66: asked by name or by hash; every arrival, the reasons, what is left to train, and what waits now."""
    for content in ('{"messages": 1}\n', '{"messages": []}\n', chat_of(40)):
        toy.drop("a.jsonl", content)
        toy.settle()
    toy.drop("a.jsonl", "")
    toy.drop("a.jsonl.meta.yaml", "description: for the next one\n")
    toy.settle()
    sha256 = toy.keeper.ledger.value("SELECT sha256 FROM files")
    for asked in ("a.jsonl", sha256):
        story = tell_story(toy.keeper, asked, toy.home.inbox)
        assert [drop["state"] for drop in story["drops"]] == ["rejected", "rejected", "admitted"]
        assert story["drops"][2]["mends"] == [1, 2] and story["drops"][1]["mends"] == []
        assert 30 < story["files"][0]["left"]["policy"] <= 40
        text = "\n".join(story_lines(story))
        assert text.count("mends what was refused") == 2 and "left to learn for policy" in text
        assert "drop.admitted" in text and "cannot be trained on" in text
        assert {Path(item["path"]).name for item in story["waits"]} == {"a.jsonl", "a.jsonl.meta.yaml"}
        assert "waits now" in text
    toy.keeper.ledger._db.execute("UPDATE meta SET value = '0' WHERE key = 'paused'")
    toy.settle()
    story = tell_story(toy.keeper, "a.jsonl", toy.home.inbox)
    assert story["files"][0]["left"] == {"policy": 0} and story["versions"][0]["examples"] > 30


def test_a_name_that_is_no_text_has_a_story_too(toy: Toy) -> None:
    """A20: a name of any bytes can be asked for as the shell passes it on."""
    name = os.fsdecode(b"\xff\xfe odd.jsonl")
    toy.drop(name, '{"messages": 1}\n')
    toy.settle()
    story = tell_story(toy.keeper, name, toy.home.inbox)
    assert story["drops"][0]["state"] == "rejected" and all(line.isprintable() for line in story_lines(story))


def test_a_reason_file_writes_nothing_to_a_terminal(toy: Toy) -> None:
    """A20: neither names nor columns of a refused file reach a terminal as they are."""
    toy.drop("\x1b[2Ja.jsonl", '{"chosen": 1, "rejected": 2}\n')
    toy.drop("b.jsonl", '{"\\u001b[2Jtext": 1}\n')
    toy.settle()
    texts = [path.read_text() for path in toy.home.rejected.glob("*.why.txt")]
    assert len(texts) == 2 and all(text.replace("\n", "").isprintable() for text in texts)
    assert not drop_folder(toy.keeper, 1).exists()


def test_a_file_that_is_moved_in_is_taken_once_and_whole(toy: Toy) -> None:
    """A07: a rename inside the file system; no writer ever closes it here, and its old times prove nothing."""
    outside = toy.home.root.parent / "a.jsonl"
    outside.write_text(chat_of(9))
    os.utime(outside, (1, 1))
    outside.rename(toy.home.inbox / "a.jsonl")
    toy.engine.hint()
    toy.step()
    assert toy.drops() == []
    toy.settle()
    assert [state for _name, state, _reason in toy.drops()] == ["admitted"]
    assert next(toy.home.files.glob("*/a.jsonl")).read_text() == chat_of(9)


# --- permissions and the machine ----------------------------------------------------------------------------------


def test_a_read_only_inbox_is_copied_from_once_with_its_side_files(toy: Toy) -> None:
    """A41: as an ordinary user, whom mode bits bind; nothing is taken twice, in this life or the next."""
    toy.drop("a.jsonl", chat_of(9))
    toy.drop("a.jsonl.meta.yaml", "description: copied\n")
    toy.drop("b.jsonl", '{"messages": 1}\n')
    toy.home.inbox.chmod(0o555)
    root = toy.home.root
    root.parent.chmod(0o755)
    toy.die()

    def act(keeper: Keeper) -> None:
        keeper.ledger.close()
        own = Toy(root, backup__auto=False)
        own.settle()
        own.again().settle()
        assert {name: state for name, state, _reason in own.drops()} == {"a.jsonl": "admitted", "b.jsonl": "rejected"}
        assert len(own.drops()) == 2 and own.keeper.ledger.value("SELECT description FROM files") == "copied"
        assert {row[0] for row in own.keeper.ledger.rows("SELECT mode FROM drops")} == {"copy"}
        left = sorted(name for name in os.listdir(own.home.inbox) if name[0] in "ab")
        assert left == ["a.jsonl", "a.jsonl.meta.yaml", "b.jsonl"]
        own.die()

    try:
        assert run_as_ordinary_user(root, act) == ""
    finally:
        toy.home.inbox.chmod(0o755)
        toy.begin()


@pytest.mark.parametrize("place", ["data", "data/files", "models", "."])
def test_an_inbox_that_lies_in_the_house_is_refused_at_the_start(toy: Toy, place: str) -> None:
    """A41: our own originals would be swept up as drops."""
    toy.home.check()
    inbox = toy.home.inbox
    inbox.rename(inbox.with_name("before"))
    inbox.symlink_to(toy.home.root / place)
    with pytest.raises(CheckFailed, match="the inbox is"):
        toy.home.check()
    inbox.unlink()
    inbox.with_name("before").rename(inbox)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.EBUSY, errno.ENOSPC])
@pytest.mark.parametrize("side", [False, True])
def test_what_the_machine_refuses_now_is_taken_later_and_never_counted_against_the_file(
    toy: Toy, number: int, side: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A42, A43: with backoff, told in the status, for the drop and for its side file."""
    if side:
        toy.drop("a.jsonl.meta.yaml", "description: x\n")
    toy.drop("a.jsonl", chat_of(9))
    moving = acts.rename_new

    def refused(source: Path, target: Path, *later: Any) -> None:
        if source.parent == toy.home.inbox:
            raise OSError(number, os.strerror(number))
        moving(source, target, *later)

    with monkeypatch.context() as patch:
        patch.setattr(acts, "rename_new", refused)
        for _ in range(60):
            toy.step()
        assert [state for _name, state, _reason in toy.drops()] == ["claiming"]
        assert os.strerror(number) in toy.engine.intake.problem and (toy.home.inbox / "a.jsonl").exists()
    toy.clock.advance(60)
    toy.settle()
    assert [tuple(row) for row in toy.keeper.ledger.rows("SELECT state, attempts FROM drops")] == [("admitted", 0)]
    assert toy.keeper.ledger.value("SELECT description FROM files") == ("x" if side else "")
