"""Crashes at every fail point of the daemon's journey: after the next start everything is in exactly one state.

One scenario (a text, a chat file, a duplicate, a broken file, a document) is played on a toy daemon and killed at the
first visit of each point; a further life must end with the very same versions, bit for bit, as an undisturbed run.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from toy import Toy, chat_of, text_of

from guard import failpoints
from guard.failpoints import POINTS, Crash
from guard.store import views
from guard.store.verify import verify

# Points that a journey through the inbox visits; the others are stopped in test_daemon_points.py.
RARE = ("admit.aside", "prepare.cleared", "start.intended", "birth.aside", "backup.aside", "ledger_backup.pruned",
        "ledger_backup.aside", "documents.unlinked", "admit.spared")  # fmt: skip
JOURNEY = [
    name for name in POINTS
    if name.split(".")[0] in ("claim", "verdict", "admit", "prepare", "start", "birth", "index", "backup",
                              "ledger_backup", "events_backup", "view", "documents") and name not in RARE
]  # fmt: skip


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    """A home with its base, from which every test starts."""
    root = shared_scratch / "template"
    Toy(root).make_base().die()
    return root


@pytest.fixture(scope="module")
def undisturbed(template: Path, shared_scratch: Path) -> dict[str, str]:
    """The weights of the scenario when nothing happens to it."""
    toy = begin(template, shared_scratch / "undisturbed")
    toy.settle()
    weights = toy.weights()
    toy.die()
    assert len(weights) == 3
    return weights


def begin(template: Path, root: Path) -> Toy:
    subprocess.run(["cp", "-a", "--", template, root], check=True)
    toy = Toy(root)
    toy.drop("a.jsonl.meta.yaml", "description: sums\npriority: 1\n")
    toy.drop("broken.jsonl.meta.yaml", "description: not one row\n")
    toy.drop("a.jsonl", chat_of(40))
    toy.drop("pretrain/b.txt", text_of(900))
    toy.drop("broken.jsonl", '{"messages": 3}\n')
    toy.drop("guide.md", "# Guide\n\nKeep the home on a disk of its own.\n")
    return toy


def play(toy: Toy) -> None:
    """The scenario; the duplicate comes when its original is known."""
    toy.settle()
    if not any(name == "again.jsonl" for name, _state, _reason in toy.drops()):
        toy.drop("again.jsonl", chat_of(40))
        toy.settle()


def by_slug(weights: dict[str, str]) -> dict[str, str]:
    """A crash may cost a number, which is never given again; everything else must be the same."""
    return {name.split("_", 1)[1]: digest for name, digest in weights.items()}


def assert_sound(toy: Toy, undisturbed: dict[str, str], *, same_order: bool = True) -> None:
    if same_order:
        assert by_slug(toy.weights()) == by_slug(undisturbed)
    assert {name.split("_", 1)[1] for name in toy.weights()} == {"baseline", "a", "b"}
    states = {name: state for name, state, _reason in toy.drops()}
    assert states == {"a.jsonl": "admitted", "b.txt": "admitted", "broken.jsonl": "rejected", "guide.md": "admitted",
                      "again.jsonl": "duplicate"}  # fmt: skip
    assert [row[2] for row in toy.jobs()] == ["done"] * len(toy.jobs()), toy.jobs()
    sides = {place: [path.read_text() for path in place.rglob("*meta.yaml")] for place in (toy.home.inbox, toy.home.files)}
    assert sides == {toy.home.inbox: ["description: not one row\n"], toy.home.files: ["description: sums\npriority: 1\n"]}
    assert toy.keeper.ledger.value("SELECT description FROM files WHERE name = 'a.jsonl'") == "sums"
    report = verify(toy.keeper, everything=True, backup=True)
    assert report.damage == ()
    assert views.stale(toy.keeper) == []
    assert toy.keeper.ledger.broken_events() == []
    assert list(toy.home.staging.iterdir()) == [] and list(toy.home.incoming.iterdir()) == []
    learnt = toy.keeper.ledger.value("SELECT sum(l.count) FROM learnt l JOIN files f USING (sha256) WHERE f.name = 'a.jsonl'")
    told = "SELECT sum(json_extract(record, '$.data[0].examples')) FROM versions WHERE name LIKE '%_a'"
    assert learnt == toy.keeper.ledger.value(told) > 30


def crash_and_recover(toy: Toy, point: str, second: str | None = None) -> None:
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        play(toy)
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    if second:
        failpoints.arm(second, "crash")
        try:
            play(toy.again())
        except Crash:
            failpoints.disarm()
        failpoints.disarm()
    play(toy.again())


@pytest.mark.parametrize("point", JOURNEY)
def test_a_crash_at_any_point_ends_in_the_same_versions(
    point: str, template: Path, undisturbed: dict[str, str], scratch: Path
) -> None:
    toy = begin(template, scratch / "home")
    crash_and_recover(toy, point)
    assert_sound(toy, undisturbed)
    toy.die()


@pytest.mark.sweep
@pytest.mark.parametrize("second", JOURNEY)
@pytest.mark.parametrize("point", ["claim.renamed", "admit.renamed", "birth.renamed", "index.recorded", "backup.renamed"])
def test_a_second_crash_during_recovery_changes_nothing(
    point: str, second: str, template: Path, undisturbed: dict[str, str], scratch: Path
) -> None:
    toy = begin(template, scratch / "home")
    crash_and_recover(toy, point, second)
    assert_sound(toy, undisturbed)
    toy.die()


@pytest.mark.parametrize("point", ["claim.renamed", "birth.summed", "backup.copied", *(
    pytest.param(point, marks=pytest.mark.sweep) for point in ("admit.sidecars", "birth.described", "prepare.renamed"))])
def test_a_full_disk_holds_the_work_and_blames_no_file(
    point: str, template: Path, undisturbed: dict[str, str], scratch: Path
) -> None:
    toy = begin(template, scratch / "home")
    failpoints.arm(point, "enospc")
    for _ in range(40):
        toy.step()
    assert failpoints.hits(point) >= 1
    failpoints.disarm()
    toy.clock.advance(120)
    play(toy)
    assert_sound(toy, undisturbed, same_order=False)  # a held job lets another line of work go first
    toy.die()
