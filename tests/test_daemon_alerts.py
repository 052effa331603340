"""The alerts of the status: a job that rests is told with its number and with what to type about it."""

from __future__ import annotations

from pathlib import Path

from homes import add_job_row, small_family

from daemon.alerts import standing_alerts
from daemon.disk_room import disk_state
from guard.store.jobs import counts, set_job
from guard.store.keeper import Keeper


def told(keeper: Keeper) -> dict[str, str]:
    found = standing_alerts(keeper, {}, counts(keeper.ledger), disk_state(keeper, None))
    return {item["what"]: item["remedy"] for item in found}


def resting(keeper: Keeper, state: str, reason: str, output: int | None = None) -> int:
    number = add_job_row(keeper, state="queued")
    with keeper.ledger.transaction():
        set_job(keeper.ledger, number, state, reason, **({} if output is None else {"output_id": output}))
    return number


def test_a_resting_job_is_named_by_its_number(tmp_path: Path) -> None:
    keeper = small_family(tmp_path)
    parked, failed = resting(keeper, "parked", "you asked"), resting(keeper, "failed", "it died")
    found = told(keeper)
    assert found["1 job parked: you asked"] == f"heirloom queue retry {parked}"
    assert found["1 job failed: it died"] == f"heirloom queue retry {failed}"


def test_of_several_the_newest_is_named_and_where_the_others_are(tmp_path: Path) -> None:
    keeper = small_family(tmp_path)
    resting(keeper, "parked", "first")
    newest = resting(keeper, "parked", "second")
    with keeper.ledger.transaction():
        keeper.ledger.run("UPDATE jobs SET updated = '9' WHERE id = ?", (newest,))
    assert told(keeper)["2 jobs parked: second"] == f"heirloom queue retry {newest} (all of them: heirloom queue)"


def test_what_is_held_may_need_a_person_or_only_time(tmp_path: Path) -> None:
    keeper = small_family(tmp_path)
    resting(keeper, "held", "999 processes are too many")
    remedy = told(keeper)["1 job held: 999 processes are too many"]
    assert "mend what it names" in remedy and "tried again by itself" in remedy


def test_a_child_in_quarantine_is_named_itself(tmp_path: Path) -> None:
    keeper = small_family(tmp_path)
    resting(keeper, "quarantined", "it lost what it knew", output=3)
    assert told(keeper)["1 job quarantined: it lost what it knew"] == "heirloom show v003_reasoning"


def test_a_job_that_went_on_since_it_was_counted_is_no_alert_and_no_error(tmp_path: Path) -> None:
    keeper = small_family(tmp_path)
    found = standing_alerts(keeper, {}, {"held": 1, "failed": 2}, disk_state(keeper, None))
    assert not any("job" in item["what"] for item in found)
