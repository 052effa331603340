"""Many versions: what a fork touches does not grow with them, numbers sort as numbers, and none is given twice.

Counted in rows, statements and files, never in seconds: `benchmarks/scale.py` measures a home of 10,000 versions.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from homes import add_version, clone, small_family

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scale import fill_home
from daemon.cli.versions import related
from guard import durable
from guard.errors import NotFound
from guard.home import Home
from guard.store import views
from guard.store.birth import announce, finish_birth
from guard.store.jobs import add_job, find_job
from guard.store.keeper import Keeper, open_reader
from guard.store.lineage import lineage, tree_lines
from guard.store.recovery import recover
from guard.store.rollback import rollback
from guard.store.trash import delete
from guard.store.verify import verify
from guard.store.versions import ancestors, find_version, line_tip, reserve_number


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scale") / "family"
    small_family(root).ledger.close()
    return root


@pytest.fixture
def keeper(family: Path, tmp_path: Path) -> Keeper:
    return clone(family, tmp_path / "home")


def fork(keeper: Keeper) -> str:
    """A birth by the very steps of a real one, from the tip."""
    tip = line_tip(keeper.ledger, "policy")
    assert tip is not None
    with keeper.ledger.transaction():
        number = add_job(keeper.ledger, kind="train", stage="pretrain", line="policy", slug="fork")
        version = reserve_number(keeper)
    out = keeper.home.staging_of(number) / "out"
    out.mkdir(parents=True)
    (out / "model.safetensors").write_bytes(b"w" * 100)
    record = {**tip.record, "name": f"v{version:03d}_fork", "id": version, "parent": tip.name, "data": [],
              "files": {"model.safetensors": durable.sha256_file(out / "model.safetensors")}}  # fmt: skip
    announce(keeper, find_job(keeper.ledger, number), record, becomes_tip=True, learnt=[])
    return finish_birth(keeper, number)


def cost_of_a_fork(root: Path, versions: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Statements, changed rows and finished files of the second birth of a process (the first one fills its caches)."""
    keeper = fill_home(root, versions, versions * 2)
    views.refresh(keeper)
    fork(keeper)
    statements: list[str] = []
    files: list[Any] = []
    real = durable.open_new
    with monkeypatch.context() as patch:
        patch.setattr(durable, "open_new", lambda *words, **more: files.append(words) or real(*words, **more))
        keeper.ledger._db.set_trace_callback(statements.append)
        before = keeper.ledger._db.total_changes
        fork(keeper)
        changed = keeper.ledger._db.total_changes - before
        keeper.ledger._db.set_trace_callback(None)
    assert views.stale(keeper) == [], "the views are current when a version is acknowledged"
    keeper.ledger.close()
    return {"statements": len(statements), "rows": changed, "files": len(files)}


def test_a_fork_touches_as_much_among_many_versions_as_among_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = cost_of_a_fork(tmp_path / "few", 8, monkeypatch)
    many = cost_of_a_fork(tmp_path / "many", 120, monkeypatch)
    assert many == few
    assert few["rows"] < 60 and few["files"] < 12


def test_a_home_made_in_bulk_is_a_sound_one_and_answers(tmp_path: Path) -> None:
    keeper = fill_home(tmp_path / "home", 120, 600)
    views.refresh(keeper)
    assert verify(keeper).ok
    records = lineage(keeper)
    assert [item["id"] for item in records] == list(range(1, 121)) and ancestors(keeper.ledger, 120) == list(range(120, 0, -1))
    newest = lineage(keeper, newest=50)
    assert newest == records[-50:]
    assert tree_lines(newest, newest=50, total=120) == tree_lines(records, newest=50)
    assert len(related(records, "v060_scale")) == 120
    found = rollback(keeper, "v115", dry_run=True)
    assert found["changed"] and sum(item["examples"] for item in found["trainable_again"]) == 5 * 5 * 20
    keeper.ledger.close()


def test_an_opened_home_whose_views_are_current_is_not_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = fill_home(tmp_path / "home", 20, 40)
    recover(keeper)

    def never(_keeper: Keeper) -> Any:
        raise AssertionError("every view was rendered")

    monkeypatch.setattr(views, "_rendered", never)
    assert recover(keeper) == []
    with open_reader(Home(tmp_path / "home")) as reader:
        assert rollback(reader, "v015", dry_run=True)["to"] == "v015_scale"
    keeper.ledger.close()


def test_an_edited_or_stale_view_is_noticed_in_a_moment(keeper: Keeper) -> None:
    assert not views.outdated(keeper)
    keeper.home.registry.write_bytes(keeper.home.registry.read_bytes() + b" ")
    assert views.outdated(keeper)
    views.refresh(keeper)
    assert not views.outdated(keeper)
    with keeper.ledger.transaction():
        keeper.ledger.event("x", "y")
    assert views.outdated(keeper)
    for spoil in (b"{}", b"[]", b'{"registry": 1, "manifest": 2, "readme": 3}', b"not json"):
        (keeper.home.state / "views.json").write_bytes(spoil)
        assert views.outdated(keeper)


@pytest.mark.parametrize("last", [999, 9999])
def test_crossing_into_one_digit_more_keeps_numbers_apart(keeper: Keeper, last: int) -> None:
    """B01: versions sorted as strings, ids matched by prefix."""
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("version_high_water", str(last - 2))
    names = [add_version(keeper, "x", "v004_full_stack" if step == 0 else f"v{last + step - 2}_x") for step in range(3)]
    assert names == [f"v{last - 1}_x", f"v{last}_x", f"v{last + 1}_x"]
    views.refresh(keeper)
    assert [item["id"] for item in lineage(keeper)][-3:] == [last - 1, last, last + 1]
    assert ancestors(keeper.ledger, last + 1)[:3] == [last + 1, last, last - 1]
    assert find_version(keeper.ledger, f"v{last + 1}").name == f"v{last + 1}_x"
    for prefix in (f"v{str(last + 1)[:-1]}", f"v{last + 1}_", f"v{last}0"):
        with pytest.raises(NotFound):
            find_version(keeper.ledger, prefix)
    table = (keeper.home.models / "README.md").read_text().splitlines()
    rows = [line for line in table if line.startswith("| v") and "_x |" in line[:12]]
    assert [line.split()[1] for line in rows] == names
    assert verify(keeper).ok


def test_a_number_is_never_given_again_after_deletion_and_a_lost_mark(keeper: Keeper) -> None:
    """B02: deleting the newest version frees its id. The mark is kept in three places; any one of them is enough."""
    name = add_version(keeper, "leaf", "v004_full_stack", tip=False)
    delete(keeper, name, force=True)
    durable.remove_tree(keeper.home.trash / name)
    keeper.home.high_water_file.unlink()
    assert find_version(keeper.ledger, name).state == "trashed"
    with keeper.ledger.transaction():
        assert reserve_number(keeper) == 6
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("version_high_water", "0")
        assert reserve_number(keeper) == 7
