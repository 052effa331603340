"""What a birth read back need not be read again at once: how long that holds, and what ends it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import Toy, chat_of
from toy_fixtures import _begin, _no_syncing, _template, _toy  # noqa: F401 - fixtures

from daemon import facts
from guard.store import birth
from guard.store.proven import PROVEN_SECONDS, note_proven, still_proven
from guard.store.versions import Version, find_version


@pytest.fixture
def base(toy: Toy) -> Version:
    version = find_version(toy.keeper.ledger, "v001_baseline")
    note_proven(toy.keeper, toy.home.models / version.name, version.sums_sha256)
    return version


def trusted(toy: Toy, base: Version) -> bool:
    return still_proven(toy.keeper, toy.home.models / base.name, base.sums_sha256)


def test_a_folder_is_trusted_for_ten_minutes_against_that_list_alone(toy: Toy, base: Version) -> None:
    assert trusted(toy, base)
    assert not still_proven(toy.keeper, toy.home.models / base.name, "0" * 64)
    toy.clock.advance(PROVEN_SECONDS - 1)
    assert trusted(toy, base)
    toy.clock.advance(2)
    assert not trusted(toy, base)


def _rewrite(folder: Path) -> None:
    path = folder / "model.safetensors"
    facts_before = path.stat()
    os.chmod(path, 0o644)
    with path.open("r+b") as handle:
        handle.write(b"\x00")
    os.utime(path, ns=(facts_before.st_atime_ns, facts_before.st_mtime_ns))
    os.chmod(path, 0o444)


def _add(folder: Path) -> None:
    os.chmod(folder, 0o755)
    (folder / "more").write_text("")


def _remove(folder: Path) -> None:
    os.chmod(folder, 0o755)
    (folder / "README.md").unlink()


@pytest.mark.parametrize("change", [_rewrite, _add, _remove])
def test_whatever_changes_ends_the_trust_and_preflight_reads_and_tells(
    toy: Toy, base: Version, change: Callable[[Path], None]
) -> None:
    change(toy.home.models / base.name)
    assert not trusted(toy, base)
    _present, intact, problem = facts.check_base(toy.keeper, base)
    assert not intact and problem


def test_only_the_newest_few_are_remembered_and_no_life_inherits_them(toy: Toy, base: Version) -> None:
    for number in range(4):
        folder = toy.home.staging / f"other{number}"
        folder.mkdir()
        note_proven(toy.keeper, folder, "x")
    assert not trusted(toy, base)
    note_proven(toy.keeper, toy.home.models / base.name, base.sums_sha256)
    assert not trusted(toy.again(), base)


def test_a_birth_is_read_back_once_and_the_next_job_does_not_read_it_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    inner = birth.hash_folder_steps
    for module in (birth, facts):
        monkeypatch.setattr(module, "hash_folder_steps",
                            lambda folder, skip=("SHA256SUMS",): read.append(folder.name) or inner(folder, skip))  # fmt: skip
    toy.drop("a.jsonl", chat_of(30))
    toy.settle()
    ours = [name for name in read if name in ("out", "v002_a")]
    assert ours == ["out", "out", "out"], "the proof, our own two files, and all of it after the sync"
    read.clear()
    toy.drop("b.jsonl", chat_of(30, seed=500))
    toy.settle()
    assert "v002_a" not in read and toy.versions()["v003_b"] == "sealed"
