"""Lost marks of a home and its vault: the work halts, the words name one command, and that command puts it right."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import copy_home, no_syncing, settings_from_outside
from toy import SETTINGS, Toy, chat_of

from daemon.cli.backup import vault_lines
from daemon.cli.doctor import rebuild_lines
from daemon.doctor import examine
from daemon.mending import rebuild_home
from daemon.operations import perform
from guard import durable, failpoints
from guard.clock import ManualClock
from guard.errors import CheckFailed, Damage, EnvironmentFault, HeirloomError
from guard.failpoints import Crash
from guard.home import Home, find_home
from guard.store.create import create_home
from guard.store.keeper import open_reader
from guard.store.vault import run_backup
from guard.store.vault_state import backup_status, check_vault, find_vault
from guard.store.verify import verify


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncing(monkeypatch)
    settings_from_outside(monkeypatch, SETTINGS)


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    toy = Toy(shared_scratch / "identity").make_base()
    toy.drop("a.jsonl", chat_of(40))
    toy.settle()
    run_backup(toy.keeper)
    toy.die()
    return toy.home.root


@pytest.fixture
def home(template: Path, scratch: Path) -> Iterator[Home]:
    copy_home(template, scratch / "home")
    yield Home(scratch / "home")
    failpoints.disarm()


def mend(home: Home) -> dict[str, object]:
    return rebuild_home(home, dry_run=False, clock=ManualClock())


# --- the home's store id ---------------------------------------------------------------------------------------------


def lose_id(home: Home) -> None:
    home.store_id_file.unlink()


def empty_id(home: Home) -> None:
    home.store_id_file.write_text("\n")


def lose_state(home: Home) -> None:
    shutil.rmtree(home.state)


@pytest.mark.parametrize("lose", [lose_id, empty_id, lose_state])
def test_a_lost_store_id_halts_and_the_command_it_names_writes_it_again(home: Home, lose: object) -> None:
    before = home.store_id()
    lose(home)  # type: ignore[operator]
    assert find_home(home.root, str(home.root)) == find_home(home.data) == home
    with pytest.raises(Damage, match="store-id") as halted, open_reader(home):
        pass
    assert "heirloom doctor --rebuild" in halted.value.hint
    told = rebuild_home(home, dry_run=True, clock=ManualClock())
    assert "would be written again" in rebuild_lines(told, dry_run=True)[1]
    done = mend(home)
    assert "store-id was missing and was written again, as ledger.db has it" in str(done["notes"])
    assert home.store_id() == before
    toy = Toy(home.root)
    assert verify(toy.keeper, everything=True, backup=True).damage == ()
    toy.die()


@pytest.mark.parametrize("left", ["export", "vault"])
def test_the_id_comes_from_whoever_is_left_to_know_it(home: Home, left: str) -> None:
    before = home.store_id()
    lose_id(home)
    home.ledger.unlink()
    durable.remove_tree(home.events if left == "vault" else home.root / "backups")
    mend(home)
    assert home.store_id() == before
    toy = Toy(home.root)
    assert verify(toy.keeper, everything=True).damage == ()
    toy.die()


def test_two_witnesses_of_different_homes_are_refused_and_nothing_is_written(home: Home) -> None:
    lose_id(home)
    (home.root / "backups" / "store-id").write_text("another\n")
    with pytest.raises(Damage, match="two homes are mixed up"):
        mend(home)
    assert not home.store_id_file.exists()


def test_where_nobody_knows_the_id_none_is_made_up(home: Home) -> None:
    lose_id(home)
    for place in (home.data, home.root / "backups"):
        durable.remove_tree(place)
    with pytest.raises(Damage, match="nothing is left that says which home this is"):
        mend(home)
    assert not home.store_id_file.exists()


def test_init_never_settles_over_a_home_that_lost_its_id(home: Home) -> None:
    lose_id(home)
    with pytest.raises(CheckFailed, match="store-id is missing") as refused:
        create_home(home, clock=ManualClock(), recipes=home.configs)
    assert "doctor --rebuild" in refused.value.hint and not home.store_id_file.exists()


# --- export and numbers ------------------------------------------------------------------------------------------------


def verdicts(home: Home) -> dict[str, bool | None]:
    return {check.name: check.ok for check in examine(home)}


def gone_export(home: Home) -> None:
    durable.remove_tree(home.events)


def no_segment(home: Home) -> None:
    (home.events / "00001.jsonl").unlink()


def short_export(home: Home) -> None:
    segment = home.events / "00001.jsonl"
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:-3]))


def gone_mark(home: Home) -> None:
    home.high_water_file.unlink()


def low_mark(home: Home) -> None:
    home.high_water_file.write_text("1\n")


def gone_index_mark(home: Home) -> None:
    home.index_high_water_file.unlink()


@pytest.mark.parametrize(("harm", "name"), [
    (gone_export, "Event export is whole"), (no_segment, "Event export is whole"), (short_export, "Event export is whole"),
    (gone_mark, "Numbers are kept"), (low_mark, "Numbers are kept"), (gone_index_mark, "Numbers are kept"),
])  # fmt: skip
def test_doctor_tells_of_a_lost_export_or_mark_and_its_remedy_works(home: Home, harm: object, name: str) -> None:
    assert verdicts(home)[name] is True
    harm(home)  # type: ignore[operator]
    said = next(check for check in examine(home) if check.name == name)
    assert said.ok is False and said.remedy.startswith("heirloom doctor --rebuild")
    mend(home)
    assert verdicts(home)[name] is True
    toy = Toy(home.root)
    assert verify(toy.keeper, everything=True).damage == ()
    toy.die()


# --- the vault's store id ----------------------------------------------------------------------------------------------


@pytest.fixture
def toy(home: Home) -> Iterator[Toy]:
    toy = Toy(home.root)
    yield toy
    toy.die()


def refusal(act: object, *arguments: object) -> HeirloomError:
    with pytest.raises(HeirloomError) as refused:
        act(*arguments)  # type: ignore[operator]
    return refused.value


@pytest.mark.parametrize("text", [None, "\n"])
def test_a_vault_without_its_store_id_says_one_thing_and_is_adopted_again(toy: Toy, text: str | None) -> None:
    path = toy.home.root / "backups" / "store-id"
    path.unlink() if text is None else path.write_text(text)
    said = [refusal(check_vault, toy.keeper), refusal(find_vault, toy.keeper), refusal(run_backup, toy.keeper)]
    assert len({error.message for error in said}) == 1 and all("heirloom backup adopt" in error.hint for error in said)
    status = backup_status(toy.keeper)
    assert status["versions"]["verified"] == status["originals"]["verified"] == 0 and not status["protects"]
    lines = vault_lines(status)
    assert any("heirloom backup adopt" in line for line in lines)
    assert not any("try: heirloom backup run" in line for line in lines)
    would = perform(toy.engine, "backup.adopt", {"dry_run": True})
    assert "is a copy of this home's ledger" in would["proof"] and (not path.exists() or not path.read_text().strip())
    perform(toy.engine, "backup.adopt", {})
    run_backup(toy.keeper, recheck=True)
    assert verify(toy.keeper, everything=True, backup=True).damage == ()
    assert backup_status(toy.keeper)["versions"]["verified"] == 2
    assert refusal(perform, toy.engine, "backup.adopt", {}).message.endswith("is this home's vault")


def test_a_death_right_after_the_adoption_leaves_an_adopted_vault(toy: Toy) -> None:
    (toy.home.root / "backups" / "store-id").unlink()
    failpoints.arm("adopt.written", "crash")
    with pytest.raises(Crash):
        perform(toy.engine, "backup.adopt", {})
    failpoints.disarm()
    toy.again()
    assert check_vault(toy.keeper) and verify(toy.keeper, everything=True, backup=True).damage == ()


def test_a_vault_whose_ledgers_are_gone_is_proven_by_a_version_that_was_sealed_here(toy: Toy) -> None:
    vault = toy.home.root / "backups"
    (vault / "store-id").unlink()
    durable.remove_tree(vault / "ledger")
    assert perform(toy.engine, "backup.adopt", {})["proof"] == "every version in it (2) was sealed in this home"


def test_the_vault_of_another_home_is_never_adopted(toy: Toy, scratch: Path) -> None:
    other = Toy(scratch / "other").make_base()
    other.drop("a.jsonl", chat_of(44))
    other.settle()
    run_backup(other.keeper)
    other.die()
    vault = toy.home.root / "backups"
    durable.remove_tree(vault)
    shutil.copytree(scratch / "other" / "backups", vault)
    (vault / "store-id").unlink()
    assert "belongs to another home" in refusal(perform, toy.engine, "backup.adopt", {}).message
    durable.remove_tree(vault / "ledger")
    assert "nothing in" in refusal(perform, toy.engine, "backup.adopt", {}).message
    assert not (vault / "store-id").exists()


def test_a_vault_that_is_lost_for_good_is_begun_anew_only_by_word(toy: Toy) -> None:
    vault = toy.home.root / "backups"
    assert "is not empty" in refusal(perform, toy.engine, "backup.adopt", {"new": True}).message
    run_backup(toy.keeper)
    durable.remove_tree(vault)
    vanished = refusal(run_backup, toy.keeper)
    assert isinstance(vanished, EnvironmentFault) and "backup adopt --new" in vanished.hint
    assert isinstance(refusal(perform, toy.engine, "backup.adopt", {}), EnvironmentFault)
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("UPDATE versions SET state = 'archived' WHERE id = 2")
    assert "may lie there alone" in refusal(perform, toy.engine, "backup.adopt", {"new": True}).message
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.run("UPDATE versions SET state = 'sealed' WHERE id = 2")
    perform(toy.engine, "backup.adopt", {"new": True})
    run_backup(toy.keeper)
    assert verify(toy.keeper, everything=True, backup=True).damage == ()
