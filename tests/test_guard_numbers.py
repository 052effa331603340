"""Version numbers: never given twice, whatever is deleted, lost or rebuilt, and never matched by a prefix."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import add_version, copy_home, keeper_of, no_syncing, small_family

from guard.durable import remove_tree
from guard.errors import NotFound
from guard.store.keeper import Keeper
from guard.store.recovery import recover
from guard.store.trash import delete
from guard.store.versions import (
    ancestors,
    dependants,
    find_version,
    high_water,
    intend_number,
    line_tip,
    number_is_free,
    reserve_number,
    tips,
    version_by_id,
)


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    small_family(shared_scratch / "numbers-template").ledger.close()
    return shared_scratch / "numbers-template"


@pytest.fixture
def keeper(template: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    no_syncing(monkeypatch)
    copy_home(template, scratch / "home")
    opened = keeper_of(scratch / "home")
    yield opened
    opened.ledger.close()


def take(keeper: Keeper, wanted: int | None = None) -> int:
    with keeper.ledger.transaction():
        return reserve_number(keeper, wanted)


def test_numbers_go_up_by_one_and_are_written_in_both_places(keeper: Keeper) -> None:
    assert [take(keeper), take(keeper)] == [5, 6]
    assert keeper.home.high_water_file.read_text() == "6\n" and keeper.ledger.meta("version_high_water") == "6"


def test_a_number_taken_by_a_transaction_that_failed_is_lost_and_not_repeated(keeper: Keeper) -> None:
    with pytest.raises(ValueError), keeper.ledger.transaction():
        assert reserve_number(keeper) == 5
        raise ValueError
    assert keeper.ledger.meta("version_high_water") == "4" and take(keeper) == 6


def test_deleting_the_newest_version_frees_no_number(keeper: Keeper) -> None:
    leaf = add_version(keeper, "leaf", "v004_full_stack", tip=False)
    delete(keeper, leaf, force=True)
    assert take(keeper) == 6
    for path in keeper.home.trash.iterdir():
        remove_tree(path)
    assert take(keeper) == 7


@pytest.mark.parametrize("lost", ["file", "torn file", "ledger", "file and ledger", "file, trash folder"])
def test_a_place_that_forgot_the_mark_repeats_no_number(keeper: Keeper, lost: str) -> None:
    take(keeper, 20)
    (keeper.home.models / "v030_stranger").mkdir()
    if "file" in lost:
        keeper.home.high_water_file.unlink()
    if lost == "torn file":
        keeper.home.high_water_file.write_text("2\x000")
    if "ledger" in lost:
        with keeper.ledger.transaction():
            keeper.ledger.run("DELETE FROM meta WHERE key = 'version_high_water'")
    if "trash" in lost:
        shutil.rmtree(keeper.home.trash)
    assert high_water(keeper) == 30 and take(keeper) == 31


def test_recovery_brings_every_mark_to_the_highest_one(keeper: Keeper) -> None:
    keeper.home.high_water_file.write_text("41\n")
    recover(keeper)
    assert keeper.ledger.meta("version_high_water") == "41"
    keeper.home.high_water_file.unlink()
    recover(keeper)
    assert keeper.home.high_water_file.read_text() == "41\n"


def test_a_trashed_version_holds_its_number(keeper: Keeper) -> None:
    (keeper.home.trash / "v050_old~20260101").mkdir()
    (keeper.home.trash / "v060_old").mkdir()
    assert high_water(keeper) == 60


def test_a_wanted_number_is_free_only_above_every_one_ever_given(keeper: Keeper) -> None:
    assert not any(number_is_free(keeper, number) for number in (0, 1, 4)) and number_is_free(keeper, 5)
    assert take(keeper, 9) == 9
    assert not number_is_free(keeper, 7) and take(keeper) == 10


def interrupted(keeper: Keeper, job: int, wanted: int) -> None:
    """A death after the high-water file and before the ledger, and the recovery of the next life."""
    intend_number(keeper, job, wanted)
    with pytest.raises(ValueError), keeper.ledger.transaction():
        reserve_number(keeper, wanted, job)
        raise ValueError
    recover(keeper)


def test_a_job_that_died_while_taking_the_number_it_wanted_still_gets_it_and_nobody_else_does(keeper: Keeper) -> None:
    interrupted(keeper, 12, 7)
    assert number_is_free(keeper, 7, 12)
    assert not any(number_is_free(keeper, number, job) for number, job in ((7, None), (7, 13), (6, 12)))
    intend_number(keeper, 13, 7)
    assert not number_is_free(keeper, 7, 13), "a job cannot note what is not its own"
    interrupted(keeper, 12, 7)
    with keeper.ledger.transaction():
        assert reserve_number(keeper, 7, 12) == 7
    assert not number_is_free(keeper, 7, 12) and take(keeper) == 8


def test_a_noted_number_that_was_given_away_or_passed_is_lost(keeper: Keeper) -> None:
    intend_number(keeper, 12, 5)
    assert add_version(keeper, "other", "v004_full_stack", tip=False) == "v005_other"
    assert not number_is_free(keeper, 5, 12)
    interrupted(keeper, 14, 9)
    take(keeper)
    assert not number_is_free(keeper, 9, 14)


def test_taking_a_low_number_never_lowers_a_mark(keeper: Keeper) -> None:
    take(keeper, 12)
    take(keeper, 8)
    assert keeper.ledger.meta("version_high_water") == "12" and keeper.home.high_water_file.read_text() == "12\n"


def test_a_version_is_found_by_number_or_full_name_and_never_by_a_prefix(keeper: Keeper) -> None:
    take(keeper, 99)
    hundred = add_version(keeper, "hundred", "v004_full_stack", tip=False)
    take(keeper, 999)
    thousand = add_version(keeper, "thousand", hundred, tip=False)
    assert (hundred, thousand) == ("v100_hundred", "v1000_thousand")
    assert find_version(keeper.ledger, "v100").name == hundred and find_version(keeper.ledger, "v1000").id == 1000
    assert find_version(keeper.ledger, thousand).id == 1000
    for text in ("v10", "v100_", "v100_h", "v004_full", "full_stack", "1000", "v1001", "", "%", "v004_full_stack2"):
        with pytest.raises(NotFound):
            find_version(keeper.ledger, text)
    with pytest.raises(NotFound):
        version_by_id(keeper.ledger, 10)


def test_ancestry_and_dependants_are_computed(keeper: Keeper) -> None:
    side = add_version(keeper, "judge", "v001_baseline", line="reward", inputs=["v003_reasoning"])
    ledger = keeper.ledger
    assert ancestors(ledger, 4) == [4, 3, 2, 1] and ancestors(ledger, 5) == [5, 1]
    assert [item.name for item in dependants(ledger, 3)] == ["v004_full_stack", side]
    assert [item.id for item in dependants(ledger, 1)] == [2, 5] and dependants(ledger, 4) == []
    assert {line: tip.name for line, tip in tips(ledger).items()} == {"policy": "v004_full_stack", "reward": side}
    assert line_tip(ledger, "nobody") is None
