"""A vault gone bad is brought back: what verify finds is made again, proven, and only then takes the bad copy's place.

Not here: how copies are made and when they count (`test_guard_vault.py`).
"""

from __future__ import annotations

from typing import Any

import pytest
from homes import add_version
from vault_help import _keeper, _no_syncing, _template, flip, vault_of  # noqa: F401 - fixtures

from daemon.engine import Engine
from daemon.operations import perform
from daemon.reactor import Reactor
from guard import durable
from guard.errors import Damage
from guard.store.keeper import Keeper
from guard.store.trash import delete
from guard.store.vault import run_backup
from guard.store.vault_frames import stored_problems
from guard.store.verify import verify
from guard.store.versions import find_version


def test_a_copy_gone_bad_is_found_moved_aside_and_made_again(keeper: Keeper) -> None:
    run_backup(keeper)
    flip(vault_of(keeper) / "versions" / "v003_reasoning" / "tokenizer.json")
    found = verify(keeper, backup=True)
    assert [(item.what, item.name, item.file) for item in found.damage] == [
        ("backup", "v003_reasoning", "tokenizer.json")]  # fmt: skip
    assert found.damage[0].descendants == ("v004_full_stack",)
    assert run_backup(keeper, recheck=True)["copied"][0] == "v003_reasoning"
    assert (vault_of(keeper) / "versions" / ".damaged-v003_reasoning-1").is_dir()
    assert verify(keeper, backup=True).ok


@pytest.mark.parametrize("what", ["versions/v002_syllo", "files", "ledger"])
def test_a_copy_taken_away_is_missed(keeper: Keeper, what: str) -> None:
    run_backup(keeper)
    folder = vault_of(keeper) / what
    durable.remove_tree(folder if what.startswith("versions") else max(folder.iterdir()))
    assert not verify(keeper, backup=True).ok
    run_backup(keeper)
    assert verify(keeper, backup=True).ok


def run_by_hand(keeper: Keeper) -> dict[str, Any]:
    """`heirloom backup run`, as the daemon does it."""
    engine = Engine(keeper, Reactor())
    try:
        return perform(engine, "backup.run", {})
    finally:
        engine.close()
        engine.reactor.close()


@pytest.mark.parametrize("what", ["versions/v002_syllo/model.frame", "versions/v001_baseline/tokenizer.json", "files",
                                  "configs/pretrain/tiny.yaml", "events/events-0000000001.jsonl", "ledger"])  # fmt: skip
def test_what_verify_found_bad_is_mended_by_the_very_command_it_names(keeper: Keeper, what: str) -> None:
    run_backup(keeper)
    with keeper.ledger.transaction():
        keeper.ledger.event("test.turn", "x")
    run_backup(keeper)
    path = vault_of(keeper) / what
    if what == "files":
        path = next(path.rglob("math.jsonl"))
    flip(min(path.iterdir()) if what == "ledger" else path)
    found = verify(keeper, backup=True)
    assert found.damage and all("heirloom backup run" in item.remedy for item in found.damage)
    if what != "events/events-0000000001.jsonl":  # that file grows with every backup anyway
        run_backup(keeper)
        assert not verify(keeper, backup=True).ok, "the automatic one after a birth reads nothing old"
    run_by_hand(keeper)
    assert verify(keeper, everything=True, backup=True).damage == ()
    again = run_by_hand(keeper)
    assert [name for name in again["copied"] if not name.startswith("ledger-")] == []


def test_a_full_file_of_events_is_mended_and_never_replaced_by_events_that_changed(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guard.store.vault_events.EVENTS_IN_FILE", 3)
    run_backup(keeper)
    path = vault_of(keeper) / "events" / "events-0000000001.jsonl"
    sound = path.read_bytes()
    flip(path)
    assert [item.name for item in verify(keeper, backup=True).damage] == [path.name]
    run_by_hand(keeper)
    assert path.read_bytes() == sound and verify(keeper, backup=True).ok
    monkeypatch.setattr("guard.store.vault_events._lines", lambda *_: b"not what was copied")
    flip(path)
    with pytest.raises(Damage, match="own events are not what was copied"):
        run_backup(keeper, recheck=True)
    assert path.read_bytes() != b"not what was copied"


def test_the_bad_copy_of_a_version_in_the_trash_is_made_again_too(keeper: Keeper) -> None:
    leaf = add_version(keeper, "leaf", "v003_reasoning", tip=False)
    run_backup(keeper)
    delete(keeper, leaf, force=True)
    flip(vault_of(keeper) / "versions" / leaf / "model.frame")
    run_by_hand(keeper)
    assert verify(keeper, everything=True, backup=True).ok
    assert stored_problems(vault_of(keeper) / "versions" / leaf, find_version(keeper.ledger, leaf).sums_sha256) == []


def test_a_bad_copy_stays_where_it_is_while_its_source_is_no_better(keeper: Keeper) -> None:
    """Its weights may be sound, and others stand on them."""
    run_backup(keeper)
    for folder in (vault_of(keeper) / "versions", keeper.home.models):
        flip(folder / "v002_syllo" / "tokenizer.json")
    with pytest.raises(Damage, match="v002_syllo"):
        run_by_hand(keeper)
    assert [item.name for item in verify(keeper, backup=True).damage] == ["v002_syllo"]
    assert not list(vault_of(keeper).rglob(".damaged-*"))
