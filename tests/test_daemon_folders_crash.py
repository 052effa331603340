"""Deaths at every step of a folder's way: after the next start it is stored once or given back whole, and nothing is lost.

One scene: a data set with a repository's history and a side file, one with broken rows, the first again. It is played with
folders that are renamed into the house, and with folders that have to be copied from another device.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from folder_help import contents, hub, texts, write_files
from toy import Toy

from guard import failpoints
from guard.durable import sha256_file
from guard.failpoints import POINTS, Crash
from guard.store import folder_drops
from guard.store.files import find_file, stored_path
from guard.store.rebuild import rebuild
from guard.store.verify import verify

RENAMED = [name for name in POINTS if name.startswith(("claim.", "pack.", "verdict.", "admit."))
           and name not in ("admit.aside",)]  # fmt: skip
COPIED = [name for name in POINTS if name.startswith(("copy.", "pack."))] + ["claim.renamed", "claim.recorded", "admit.renamed"]


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    """A home in which the three folders lie, with a queue that waits: what is trained is not what is tested here."""
    root = shared_scratch / "folders_crash"
    toy = Toy(root, backup__auto=False).make_base()
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.set_meta("paused", "1")
    write_files(hub(toy.home.inbox / "sums"), {".git/HEAD": "ref: refs/heads/main\n"})
    (toy.home.inbox / "sums.meta.yaml").write_text("description: mine\n")
    (toy.home.inbox / "bad.meta.yaml").write_text("description: not one row\n")
    write_files(toy.home.inbox / "bad", {"train/a.jsonl": [{"text": ""}] * 9, "val/b.jsonl": texts("val", 3)})
    toy.die()
    return root


def begin(template: Path, root: Path) -> Toy:
    subprocess.run(["cp", "-a", "--", template, root], check=True)
    return Toy(root, backup__auto=False)


def play(toy: Toy) -> None:
    """To the end: the first folder once more when it is known."""
    toy.engine.hint()
    toy.settle()
    if not any(name == "again" for name, _state, _reason in toy.drops()):
        hub(toy.home.inbox / "again")
        toy.engine.hint()
        toy.settle()


def assert_nothing_lost(toy: Toy, template: Path) -> None:
    home, made = toy.home, template / "inbox"
    assert {name: state for name, state, _reason in toy.drops()} == {"sums": "admitted", "bad": "rejected", "again": "duplicate"}
    assert len(toy.drops()) == 3 and len(toy.jobs()) == 2
    assert contents(home.rejected / "bad") == contents(made / "bad")
    assert contents(home.duplicates / "again") == contents(made / "sums", [".git/HEAD"])
    assert (home.rejected / "bad.meta.yaml").read_bytes() == (made / "bad.meta.yaml").read_bytes()
    assert [path.name for path in home.rejected.glob("*.git")] == ["sums.git"]
    assert contents(home.rejected / "sums.git")["HEAD"] == contents(made / "sums")[".git/HEAD"]
    stored = stored_path(home, find_file(toy.keeper.ledger, "sums"))
    assert sha256_file(stored.with_name("meta.yaml")) == sha256_file(made / "sums.meta.yaml")
    unpacked = home.root / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "xf", stored, "-C", unpacked], check=True)
    assert contents(unpacked) == contents(made / "sums", [".git/HEAD"])
    left = {path.relative_to(home.inbox).parts[0] for path in home.inbox.rglob("*") if path.is_file()}
    assert left - {"README.md"} == {"rejected", "duplicates"}
    assert list(home.incoming.iterdir()) == [] and toy.keeper.ledger.broken_events() == []
    assert verify(toy.keeper, everything=True).damage == ()


def dies_and_lives(toy: Toy, point: str) -> None:
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        play(toy)
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    play(toy.again())


def from_another_device(monkeypatch: pytest.MonkeyPatch, inbox: Path) -> None:
    """No folder can be renamed out of the inbox, and none into it."""
    real = folder_drops.rename_new

    def rename(source: Path, target: Path, later: object = None) -> None:
        if Path(source).is_relative_to(inbox) != Path(target).is_relative_to(inbox):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target, later)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_drops, "rename_new", rename)


@pytest.mark.parametrize("point", RENAMED)
def test_a_death_at_any_step_loses_nothing_and_stores_once(point: str, template: Path, scratch: Path) -> None:
    toy = begin(template, scratch / "home")
    dies_and_lives(toy, point)
    assert_nothing_lost(toy, template)


@pytest.mark.parametrize("point", COPIED)
def test_a_death_while_a_folder_is_copied_from_another_device_loses_nothing(
    point: str, template: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = begin(template, scratch / "home")
    from_another_device(monkeypatch, toy.home.inbox)
    dies_and_lives(toy, point)
    assert_nothing_lost(toy, template)


@pytest.mark.sweep
@pytest.mark.parametrize("second", RENAMED)
@pytest.mark.parametrize("first", ["claim.renamed", "pack.written", "admit.stored", "admit.renamed", "admit.recorded",
                                   "admit.spared", "verdict.returned"])  # fmt: skip
def test_a_second_death_during_recovery_changes_nothing(first: str, second: str, template: Path, scratch: Path) -> None:
    toy = begin(template, scratch / "home")
    failpoints.arm(first, "crash")
    with pytest.raises(Crash):
        play(toy)
    failpoints.disarm()
    failpoints.arm(second, "crash")
    try:
        play(toy.again())
    except Crash:
        failpoints.disarm()
        play(toy.again())
    failpoints.disarm()
    assert_nothing_lost(toy, template)


@pytest.mark.parametrize("point", ["claim.renamed", "pack.written", "admit.renamed", "admit.spared"])
def test_a_full_disk_holds_a_folder_and_blames_it_for_nothing(point: str, template: Path, scratch: Path) -> None:
    toy = begin(template, scratch / "home")
    failpoints.arm(point, "enospc")
    toy.engine.hint()
    for _ in range(40):
        toy.step()
    assert failpoints.hits(point) >= 1
    failpoints.disarm()
    toy.clock.advance(120)
    play(toy)
    toy.again()  # what a full disk left of a closed drop is cleared by the next start
    assert_nothing_lost(toy, template)


@pytest.mark.parametrize("point", ["claim.recorded", "pack.compared", "admit.stored", "admit.renamed", "admit.recorded"])
def test_a_ledger_lost_with_the_daemon_in_the_middle_of_it_costs_no_folder(point: str, template: Path, scratch: Path) -> None:
    toy = begin(template, scratch / "home")
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        play(toy)
    failpoints.disarm()
    toy.die()
    toy.home.ledger.unlink()
    rebuild(toy.home, clock=toy.clock, actor="tester")
    toy.begin()
    toy.engine.hint()
    toy.settle()
    stored = stored_path(toy.home, find_file(toy.keeper.ledger, "sums"))
    assert stored.name == "sums.tar" and sha256_file(stored) == stored.parent.name
    assert contents(toy.home.rejected / "bad") == contents(template / "inbox/bad")
    assert verify(toy.keeper, everything=True).damage == ()


def test_what_was_packed_and_was_lost_by_the_disk_is_packed_again(template: Path, scratch: Path) -> None:
    toy = begin(template, scratch / "home")
    failpoints.arm("admit.intended", "crash")
    with pytest.raises(Crash):
        play(toy)
    failpoints.disarm()
    [packed] = toy.home.incoming.rglob("packed.tar")
    packed.chmod(0o644)
    packed.write_bytes(b"")
    play(toy.again())
    assert_nothing_lost(toy, template)


def test_a_folder_that_changes_after_it_was_packed_is_packed_again(
    template: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = begin(template, scratch / "home")
    pool, written = toy.engine.intake.pool, []
    submit = pool.submit

    def late_writer(body: Mapping[str, Any], size: int, done: Callable[[dict[str, Any]], None]) -> None:
        def after(answer: dict[str, Any]) -> None:
            if body.get("name") == "sums" and not written:
                written.append(Path(body["path"], "README.md").write_text("# Other words\n"))
            done(answer)

        submit(body, size, after if body["task"] == "identify" else done)

    monkeypatch.setattr(pool, "submit", late_writer)
    play(toy)
    assert written and find_file(toy.keeper.ledger, "sums").record["card"] == "Other words"


def test_a_folder_that_cannot_be_moved_is_copied_once_and_stays(
    template: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = begin(template, scratch / "home")
    from_another_device(monkeypatch, toy.home.inbox)
    monkeypatch.setattr(folder_drops, "_removed", lambda source, entries: False)
    before = contents(toy.home.inbox / "sums")
    toy.engine.hint()
    toy.settle()
    toy.again()
    toy.engine.hint()
    toy.settle()
    assert contents(toy.home.inbox / "sums") == before and contents(toy.home.inbox / "bad") == contents(template / "inbox/bad")
    assert sorted(drop[:2] for drop in toy.drops()) == [("bad", "rejected"), ("sums", "admitted")]
    assert list(toy.home.incoming.iterdir()) == []


def test_a_folder_of_which_one_file_has_a_second_name_is_copied_and_not_shared(template: Path, scratch: Path) -> None:
    toy = begin(template, scratch / "home")
    os.link(toy.home.inbox / "sums/README.md", scratch / "elsewhere.md")
    play(toy)
    assert_nothing_lost(toy, template)
    assert (scratch / "elsewhere.md").exists()
