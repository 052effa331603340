"""Settings: flag over environment over file over default, each with its origin, and no typo passes silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guard.errors import UsageError
from guard.settings import Settings
from guard.settings_read import load_settings


def load(root: Path, text: str = "", environment: dict[str, str] | None = None, **flags: object) -> Settings:
    (root / "configs").mkdir(exist_ok=True)
    (root / "configs" / "heirloom.yaml").write_text(text)
    return load_settings(root, environment or {}, {key.replace("__", "."): value for key, value in flags.items()})


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    text = "inbox: {settle_seconds: 1, sweep_seconds: 11}\ndisk:\n  reserve_gb: 7\n"
    environment = {"HEIRLOOM_INBOX__SETTLE_SECONDS": "2", "HEIRLOOM_DISK__RESERVE_GB": "8", "PATH": "x"}
    found = load(tmp_path, text, environment, inbox__settle_seconds=3)
    assert (found.inbox.settle_seconds, found.disk.reserve_gb, found.inbox.sweep_seconds) == (3.0, 8.0, 11.0)
    assert found.coalesce.after == 32
    origins = {key: found.origins[key] for key in ("inbox.settle_seconds", "disk.reserve_gb", "inbox.sweep_seconds",
                                                   "coalesce.after")}  # fmt: skip
    assert list(origins.values()) == ["flag", "environment", str(tmp_path / "configs" / "heirloom.yaml"), "default"]
    assert set(found.origins) == set(found.flat())


def test_the_environment_is_the_process_s_own_when_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEIRLOOM_GATE", "warn")
    monkeypatch.setenv("HEIRLOOM_HOME", "/not/a/setting")
    assert load_settings(tmp_path).gate == "warn"


def test_no_file_and_an_empty_file_are_all_defaults(tmp_path: Path) -> None:
    assert load_settings(tmp_path, {}) == load(tmp_path, "") == load(tmp_path, "# nothing\n") == Settings()


@pytest.mark.parametrize(
    "text, key, hint",
    [
        ("inbox: {setle_seconds: 2}", "inbox.setle_seconds", "inbox.settle_seconds"),
        ("gaet: off", "gaet", "gate"),
        ("zzzzqqqq: 1", "zzzzqqqq", "heirloom config show"),
        ("inbox: 5", "inbox", ""),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(tmp_path: Path, text: str, key: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert caught.value.subject == key and hint in caught.value.hint and "heirloom.yaml" in caught.value.message


def test_an_unknown_name_in_the_environment_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"inbox\.settle \(environment\)"):
        load(tmp_path, environment={"HEIRLOOM_INBOX__SETTLE": "2"})


@pytest.mark.parametrize("text", ["gate: off", "gate: 'off'", "gate: OFF", "gate: no"])
def test_a_bare_off_means_off(tmp_path: Path, text: str) -> None:
    """YAML 1.1 reads `off` as false."""
    assert load(tmp_path, text).gate == "off"


def test_the_gate_cannot_be_switched_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load(tmp_path, "gate: on")


@pytest.mark.parametrize("word, value", [("1", True), ("yes", True), ("On", True), ("0", False), ("FALSE", False), ("no", False)])
def test_yes_and_no_in_every_spelling(tmp_path: Path, word: str, value: bool) -> None:
    assert load(tmp_path, environment={"HEIRLOOM_BACKUP__AUTO": word}).backup.auto is value


@pytest.mark.parametrize(
    "key, value",
    [
        ("inbox.settle_seconds", -1), ("inbox.settle_seconds", "nan"), ("inbox.settle_seconds", "inf"),
        ("disk.reserve_gb", float("inf")), ("disk.reserve_gb", "much"), ("disk.reserve_gb", ""),
        ("replay.fraction", 1.01), ("validation.fraction", -0.1), ("coalesce.after", 0), ("coalesce.after", 1.5),
        ("coalesce.after", True), ("coalesce.after", "1e999"), ("intake.memory_mb", 0), ("gate", "maybe"),
        ("training.device", "tpu"), ("storage.seal", "concrete"), ("backup.auto", "perhaps"), ("backup.path", None),
        ("backup.path", ["a"]), ("web.port", None), ("gate", {"mode": "off"}),
    ],
)  # fmt: skip
def test_values_out_of_range_or_of_another_type_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(tmp_path, {}, {key: value})
    assert caught.value.subject == key and key in caught.value.message and "flag" in caught.value.message


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just words", "\x00"])
def test_a_file_that_is_no_settings_file_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"heirloom\.yaml"):
        load(tmp_path, text)


def test_numbers_keep_their_type(tmp_path: Path) -> None:
    found = load(tmp_path, "coalesce: {after: 1e1}\ngoal: {tokens: 10}\n")
    assert found.coalesce.after == 10 and isinstance(found.coalesce.after, int)
    assert isinstance(found.goal.tokens, float)


def test_settings_cannot_be_changed_once_they_are_frozen_into_a_plan() -> None:
    with pytest.raises(AttributeError):
        Settings().inbox.settle_seconds = 1.0  # type: ignore[misc]


def test_the_settings_file_of_a_new_home_reads_as_all_defaults(tmp_path: Path) -> None:
    from guard.store.create import SETTINGS_TEXT

    assert load(tmp_path, SETTINGS_TEXT) == Settings()
