"""Every declared fail point is reached and survived: the whole list, with nothing left out.

The journey's points are stopped in `test_daemon_crash.py`; here are those of backup, rollback, delete, restore and
recovery, and the rare ones, each with what it takes to come to them. A point that nobody stops at fails the last test.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from playing import calls_of, last_life, templates
from scenes import Birth, Journey, Scene
from scenes_care import Care
from test_daemon_crash import JOURNEY
from toy import Toy

from daemon.training import admit_dataset
from guard import failpoints
from guard.clock import ManualClock
from guard.errors import CheckFailed
from guard.failpoints import POINTS, Crash
from guard.home import Home
from guard.store import ledger_file
from guard.store.create import create_home
from guard.store.jobs import add_job
from guard.store.ledger import Ledger
from guard.store.restore import restore
from guard.store.schema import SCHEMA_VERSION, STEPS
from guard.store.trash import delete
from guard.store.vault import run_backup
from guard.store.verify import verify
from trainer.dataset import open_dataset

LEAF = "v005_leaf"
Template = dict[type[Scene], Path]


@pytest.fixture(scope="module")
def begin_from(shared_scratch: Path) -> Template:
    (shared_scratch / "points").mkdir()
    return templates(shared_scratch / "points")


_PARTS = ("backup", "ledger_backup", "rollback", "delete", "restore", "recover")
_NOT_BY_THE_WAY = ("ledger_backup.pruned", "ledger_backup.aside", "backup.aside", "delete.abandoned", "restore.withdrawn",
                   "restore.abandoned")  # fmt: skip
CARE = [name for name in POINTS if name.split(".")[0] in _PARTS and name not in _NOT_BY_THE_WAY]


def dies(scene: Scene, point: str) -> None:
    """One life that ends at the first visit of a point, which must come."""
    failpoints.arm(point, "crash")
    assert not scene.life()
    assert failpoints.hits(point) == 1, f"{point} was not reached"
    failpoints.disarm()


@pytest.mark.parametrize("point", CARE)
def test_a_death_while_versions_are_moved_ends_in_a_sound_home(point: str, begin_from: Template, scratch: Path) -> None:
    scene = Care(begin_from[Care], scratch / "home")
    dies(scene, point)
    assert last_life(scene) == []


RECOVERY = [name for name in POINTS if name.startswith("recover.")]


@pytest.mark.parametrize("second", RECOVERY)
@pytest.mark.parametrize("first", ["delete.moved", pytest.param("birth.moved", marks=pytest.mark.sweep)])
def test_recovery_itself_may_die_at_any_step(first: str, second: str, begin_from: Template, scratch: Path) -> None:
    kind = Care if first.startswith("delete") else Birth
    scene = kind(begin_from[kind], scratch / "home")
    dies(scene, first)
    dies(scene, second)
    dies(scene, second)
    assert last_life(scene) == []


@pytest.mark.sweep
@pytest.mark.parametrize("first", [name for name in CARE if not name.startswith("recover.")])
def test_recovery_may_die_wherever_it_comes_by(first: str, begin_from: Template, scratch: Path) -> None:
    """After a death at `first`, a second death at every point that the life after it visits."""
    reached = []
    for second in POINTS:
        scene = Care(begin_from[Care], scratch / f"home-{second}")
        dies(scene, first)
        failpoints.arm(second, "crash")
        scene.life()
        reached += [second] * bool(failpoints.hits(second))
        failpoints.disarm()
        assert last_life(scene) == [], second
    assert len(reached) > len(RECOVERY)


# --- the rare ones -------------------------------------------------------------------------------------------------


class Linked(Birth):
    """The drop has a second name somewhere, so it is copied and not moved."""

    def prepare(self, progress: object) -> None:
        super().prepare(progress)
        os.link(self.home.inbox / "a.jsonl", self.root / "second-name")


def copied(point: str, begin_from: Template, root: Path) -> None:
    scene = Linked(begin_from[Birth], root)
    dies(scene, point)
    assert last_life(scene) == [] and (root / "second-name").stat().st_nlink == 1


def spoil(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"rot" + path.read_bytes()[3:])


def damaged_original(point: str, begin_from: Template, root: Path) -> None:
    """The stored copy rotted, and a person drops the same bytes again."""
    scene = Birth(begin_from[Birth], root)
    assert scene.life()
    stored = next(path for path in scene.home.files.glob("*/a.jsonl"))
    stored.parent.chmod(0o755)
    spoil(stored)
    (scene.home.inbox / "a.jsonl").write_bytes(Birth.DROPS["a.jsonl"].encode())
    dies(scene, point)
    assert scene.life()
    scene.begin()
    assert verify(scene.keeper, everything=True).ok and len(list(scene.home.files.glob(".damaged-*"))) == 1
    scene.die()


def damaged_backup(point: str, begin_from: Template, root: Path) -> None:
    scene = Care(begin_from[Care], root)
    assert scene.life()
    spoil(root / "backups" / "versions" / LEAF / "config.json")
    spoil(min((root / "backups" / "ledger").glob("ledger-*.db")))
    scene.begin()
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        run_backup(scene.keeper, recheck=True)
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    scene.die()
    scene.begin()
    run_backup(scene.keeper, recheck=True)
    assert verify(scene.keeper, everything=True, backup=True).ok
    scene.die()


def many_backups(point: str, begin_from: Template, root: Path) -> None:
    """The sixth copy of the ledger lets the first one go."""
    scene = Care(begin_from[Care], root)
    scene.begin()
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        for number in range(9):
            with scene.keeper.ledger.transaction():
                scene.keeper.ledger.event("test.told", str(number))
            run_backup(scene.keeper)
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    scene.die()
    scene.begin()
    assert verify(scene.keeper, everything=True, backup=True).ok
    with scene.keeper.ledger.transaction():
        scene.keeper.ledger.event("test.told", "the last")
    run_backup(scene.keeper)
    assert len(list((root / "backups" / "ledger").glob("ledger-*.db"))) == 5
    assert verify(scene.keeper, everything=True, backup=True).ok
    scene.die()


def damaged_birth(point: str, begin_from: Template, root: Path) -> None:
    """A folder that was moved into models/ rots before it is recorded: it is set aside for a person to see."""
    scene = Birth(begin_from[Birth], root)
    dies(scene, "birth.moved")
    spoil(scene.home.models / "v002_a" / "config.json")
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        scene.begin()
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    scene.die()
    scene.begin()
    assert (scene.home.trash / "v002_a~unfinished").is_dir() and not (scene.home.models / "v002_a").exists()
    assert verify(scene.keeper).ok and scene.waiting() != []
    scene.die()


def dataset(point: str, begin_from: Template, root: Path) -> None:
    """`heirloom train` keeps a prepared dataset as an original of several files."""
    scene = Birth(begin_from[Birth], root)
    assert scene.life()
    folder = next(scene.home.shards.iterdir())
    scene.begin()
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        admit_dataset(scene.keeper, folder, open_dataset(folder))
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    scene.die()
    scene.begin()
    sha256 = admit_dataset(scene.keeper, folder, open_dataset(folder))
    assert scene.keeper.ledger.value("SELECT count(*) FROM files WHERE sha256 = ?", (sha256,)) == 1
    assert verify(scene.keeper, everything=True).ok and list(scene.home.incoming.iterdir()) == []
    scene.die()


def taken_back(point: str, begin_from: Template, root: Path) -> None:
    """The disk refuses in the middle, and death comes while that is being taken back."""
    scene = Care(begin_from[Care], root)
    scene.begin()
    refuses = {"delete.abandoned": "delete.unsealed", "restore.abandoned": "restore.checked",
               "restore.withdrawn": "restore.moved"}[point]  # fmt: skip
    if point != "delete.abandoned":
        delete(scene.keeper, LEAF, force=True)
    failpoints.arm(refuses, "eio")
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        delete(scene.keeper, LEAF, force=True) if point == "delete.abandoned" else restore(scene.keeper, LEAF)
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    scene.die()
    scene.begin()
    found = verify(scene.keeper, everything=True)
    assert found.ok, found.damage
    assert (scene.home.models / LEAF).is_dir() != (scene.home.trash / LEAF).is_dir()
    scene.die()


def new_document(point: str, begin_from: Template, root: Path) -> None:
    """A document dropped again with other words: its link is made anew."""
    scene = Journey(begin_from[Journey], root)
    assert scene.life()
    (scene.home.inbox / "guide.md").write_text("# Guide\n\nTwo disks are better than one.\n")
    dies(scene, point)
    assert scene.life()
    scene.begin()
    link = scene.home.docs / "guide.md"
    assert "Two disks" in link.read_text() and verify(scene.keeper, everything=True).ok
    scene.die()


def damaged_shards(point: str, begin_from: Template, root: Path) -> None:
    """Shards made by an earlier life rot; the same job makes them again."""
    scene = Birth(begin_from[Birth], root)
    dies(scene, "start.numbered")
    spoil(next(scene.home.shards.glob("*/train/shard_00000.bin")))
    dies(scene, point)
    assert last_life(scene) == []


def wanted_number(point: str, begin_from: Template, root: Path) -> None:
    """A job that asked for a number still gets it after a death between noting and taking."""
    toy = Toy(Birth(begin_from[Birth], root).root)
    (root / "inbox" / "a.jsonl").unlink()
    request = toy.keeper.ledger.value("SELECT request FROM jobs WHERE kind = 'base'")
    with toy.keeper.ledger.transaction():
        number = add_job(toy.keeper.ledger, kind="base", stage="base", line="second", slug="second", wanted_id=7)
        toy.keeper.ledger.run("UPDATE jobs SET request = ? WHERE id = ?", (request, number))
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        toy.settle()
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    toy.again().settle()
    assert set(toy.versions()) == {"v001_baseline", "v007_second"} and verify(toy.keeper, everything=True).ok
    toy.die()


def migration(point: str, begin_from: Template, root: Path) -> None:
    """Two new steps; a death after any of them is finished by the next opening, and the old shape is kept."""
    scene = Care(begin_from[Care], root)
    scene.begin()
    sequence = scene.keeper.ledger.sequence()
    scene.die()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_file, "STEPS", (*STEPS, "CREATE TABLE one (id INTEGER)", "CREATE TABLE two (id INTEGER)"))
        patch.setattr(ledger_file, "SCHEMA_VERSION", SCHEMA_VERSION + 2)
        failpoints.arm(point, "crash")
        with pytest.raises(Crash):
            Ledger(scene.home.ledger, clock=ManualClock())
        assert failpoints.hits(point) == 1
        failpoints.disarm()
        scene.begin()
        assert scene.keeper.ledger.rows("SELECT * FROM one, two") == [] and scene.keeper.ledger.sequence() >= sequence
        assert verify(scene.keeper, everything=True).ok
        scene.die()
    kept = Ledger(scene.home.data / f"ledger.db.schema{SCHEMA_VERSION}", read_only=True)
    assert kept.sequence() == sequence and kept.broken_events() == []
    kept.close()


def creation(point: str, begin_from: Template, root: Path) -> None:
    """`init` may be run again over what it left unfinished, and refuses what it finished."""
    recipes = Path(__file__).parent.parent / "configs"
    failpoints.arm(point, "crash")
    with pytest.raises(Crash):
        create_home(Home(root), clock=ManualClock(), recipes=recipes)
    assert failpoints.hits(point) == 1
    failpoints.disarm()
    if point == "init.identified":
        with pytest.raises(CheckFailed):
            create_home(Home(root), clock=ManualClock(), recipes=recipes)
    else:
        create_home(Home(root), clock=ManualClock(), recipes=recipes)
    toy = Toy(root).make_base()
    assert verify(toy.keeper, everything=True).ok
    toy.die()


RARE: dict[str, Callable[[str, Template, Path], None]] = {
    "copy.intended": copied, "copy.copied": copied, "copy.unlinked": copied, "admit.aside": damaged_original,
    "backup.aside": damaged_backup, "ledger_backup.aside": damaged_backup,
    "ledger_backup.pruned": many_backups,
    "birth.aside": damaged_birth, "dataset.copied": dataset, "dataset.renamed": dataset,
    "dataset.recorded": dataset, "delete.abandoned": taken_back, "restore.abandoned": taken_back,
    "restore.withdrawn": taken_back, "documents.unlinked": new_document, "prepare.cleared": damaged_shards,
    "start.intended": wanted_number, "migrate.staged": migration, "migrate.copied": migration,
    "migrate.stepped": migration, "migrate.recorded": migration, "init.folders": creation, "init.recipes": creation,
    "init.ledger": creation, "init.identified": creation,
}  # fmt: skip


@pytest.mark.parametrize("point", RARE)
def test_a_rare_point_is_reached_and_survived(point: str, begin_from: Template, scratch: Path) -> None:
    RARE[point](point, begin_from, scratch / "home")


def test_every_declared_point_is_stopped_at_by_some_test() -> None:
    """A point of another part counts when its test file arms every point of its kind by name."""
    left = set(POINTS) - set(JOURNEY) - set(CARE) - set(RARE)
    texts = [path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    elsewhere = {name for name in left for text in texts
                 if "failpoints.arm(" in text and (f'"{name.split(".")[0]}."' in text or f'"{name}"' in text)}  # fmt: skip
    assert left - elsewhere == set(), "nobody stops at these"
    told = (Path(__file__).parent.parent / "docs" / "RELIABILITY.md").read_text("utf-8")
    assert told.count("fail points**") == 1 and f"There are **{len(POINTS)} fail points**" in told


def test_an_undisturbed_scene_is_sound(begin_from: Template, scratch: Path) -> None:
    assert calls_of(Care, begin_from[Care], scratch / "home").count("commit") > 20
