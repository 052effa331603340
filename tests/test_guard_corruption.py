"""Seeded corruptions of any file of a home: every one is found and named, and nothing damaged is ever loaded.

A hundred in `make test`, a thousand in the sweep. Files are changed as a failing disk does: without touching mode or
time. Found means: by the very function behind `heirloom verify --all --backup`, or by the refusal to open at all.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import SETTINGS, Toy, chat_of, text_of

from daemon.facts import check_base
from guard import durable
from guard.clock import ManualClock
from guard.errors import Damage, HeirloomError
from guard.home import Home
from guard.names import parse_version_number
from guard.settings_read import load_settings
from guard.store.closed_mark import mark_problem
from guard.store.keeper import Keeper, open_writer
from guard.store.ledger import Ledger
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.store.versions import all_versions, find_version
from trainer.dataset import verify_dataset

WAYS = ("bit", "truncated", "zeroed page", "right-size zeros", "swapped", "stale copy")
KINDS = ("version", "view", "ledger", "backup", "index", "original", "shard", "events")
QUICK, SWEEP = 96, 1000


@pytest.fixture(scope="module")
def home(shared_scratch: Path) -> Iterator[Home]:
    """Three versions, a document, an index, shards and a vault, closed; an older copy of all of it lies beside."""
    for key, value in SETTINGS.items():
        os.environ[f"HEIRLOOM_{key.replace('.', '__').upper()}"] = str(value)
    toy = Toy(shared_scratch / "corrupted").make_base()
    toy.drop("a.jsonl", chat_of(60))
    toy.drop("guide.md", "# Guide\n\nKeep the home on a disk of its own.\n")
    toy.settle()
    shutil.copytree(toy.home.root, shared_scratch / "corrupted.older", symlinks=True)
    toy.drop("pretrain/b.txt", text_of(2000))
    toy.drop("more.md", "# More\n\nAnd another copy elsewhere.\n")
    toy.settle()
    run_backup(toy.keeper)
    toy.die()
    yield toy.home


def kind_of(path: Path, home: Home) -> str | None:
    """Which of KINDS a file belongs to; None for what is no record of ours (the vault's marks, locks, settings)."""
    parts = path.relative_to(home.root).parts
    if parts[0] == "models":
        return "version" if parse_version_number(parts[1]) is not None else "view" if not parts[1].startswith(".") else None
    if parts[0] == "backups":
        return "backup" if parts[1] in ("versions", "files", "ledger") else None
    if parts[0] != "data":
        return None
    words = {"ledger.db": "ledger", "manifest.json": "view", "files": "original", "shards": "shard", "index": "index",
             "events": "events"}  # fmt: skip
    return words.get(parts[1])


def candidates(home: Home) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for path in sorted(home.root.rglob("*")):
        kind = kind_of(path, home) if path.is_file() and not path.is_symlink() and path.stat().st_size else None
        if kind and "latest" not in path.parts:
            found[kind].append(path)
    assert all(found.values())
    return found


def spoiled(data: bytes, way: str, dice: random.Random, other: bytes, older: bytes) -> bytes:
    """The bytes after one fault; equal to `data` where this fault does not show in this file."""
    if way == "bit":
        place = dice.randrange(len(data))
        return data[:place] + bytes([data[place] ^ (1 << dice.randrange(8))]) + data[place + 1 :]
    if way == "truncated":
        return data[: dice.randrange(len(data))]
    if way == "zeroed page":
        start = dice.randrange(len(data)) // 4096 * 4096
        return data[:start] + bytes(len(data[start : start + 4096])) + data[start + 4096 :]
    if way == "right-size zeros":
        return bytes(len(data))
    return other if way == "swapped" else older


def put(path: Path, data: bytes) -> None:
    facts, folder = path.stat(), path.parent.stat()
    os.chmod(path.parent, 0o755)
    os.chmod(path, 0o644)
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    os.chmod(path, facts.st_mode)
    os.chmod(path.parent, folder.st_mode)


def looked_at(home: Home, *, vault: bool = True) -> set[str]:
    """Everything that the verification names, as one word each; "ledger" alone when it cannot even be opened."""
    try:
        ledger = Ledger(home.ledger, clock=ManualClock(), read_only=True)
    except Damage:
        return {"ledger"}
    try:
        found = verify(Keeper(home, ledger, load_settings(home.root), ManualClock()), everything=True, backup=vault)
        return {f"{item.what} {item.name} {item.file}" for item in found.damage}
    except HeirloomError as error:
        return {f"{type(error).__name__} {error.message}"}
    finally:
        ledger.close()


def assert_not_loaded(home: Home, kind: str, path: Path) -> None:
    """What would be built on the damaged file refuses it."""
    if kind == "ledger":
        assert mark_problem(home.ledger)
        with pytest.raises(HeirloomError):
            open_writer(home, actor="tester")
    if kind == "version":
        ledger = Ledger(home.ledger, clock=ManualClock(), read_only=True)
        keeper = Keeper(home, ledger, load_settings(home.root), ManualClock())
        version = find_version(ledger, path.relative_to(home.models).parts[0])
        assert check_base(keeper, version)[1] is False
        ledger.close()
    if kind == "shard" and path.name != "tokenizer_state.json" and path.name != "dataset_metadata.json":
        with pytest.raises(HeirloomError):
            verify_dataset(home.shards / path.relative_to(home.shards).parts[0])


def corrupt_and_look(home: Home, numbers: range) -> int:
    """Each number is one seeded corruption; returns how many really changed something. All of them must be found."""
    files, changed = candidates(home), 0
    for number in numbers:
        dice = random.Random(number)
        kind, way = KINDS[number % len(KINDS)], WAYS[number // len(KINDS) % len(WAYS)]
        path = dice.choice(files[kind])
        other = dice.choice([item for item in files[kind] if item != path] or files["version"])
        older = home.root.with_name(f"{home.root.name}.older") / path.relative_to(home.root)
        sound = path.read_bytes()
        data = spoiled(sound, way, dice, other.read_bytes(), older.read_bytes() if older.exists() else sound[: len(sound) // 2])
        if data == sound:
            continue
        changed += 1
        put(path, data)
        try:
            found = looked_at(home, vault=kind == "backup")
            assert found, f"corruption {number}: {way} of {path.relative_to(home.root)} went unnoticed"
            assert_not_loaded(home, kind, path)
        finally:
            put(path, sound)
    return changed


def test_a_sound_home_gives_no_alarm(home: Home) -> None:
    assert looked_at(home) == set()
    ledger = Ledger(home.ledger, clock=ManualClock(), read_only=True)
    assert len(all_versions(ledger)) == 3
    ledger.close()


def test_every_one_of_a_hundred_corruptions_is_found_and_nothing_damaged_is_loaded(home: Home) -> None:
    assert corrupt_and_look(home, range(QUICK)) > QUICK * 0.8
    assert looked_at(home) == set()


@pytest.mark.sweep
def test_every_one_of_a_thousand_corruptions_is_found_and_nothing_damaged_is_loaded(home: Home) -> None:
    # Some draws change nothing (a page that is zero already, a copy that did not age): they are drawn anew.
    done, start = 0, QUICK
    while done < SWEEP:
        done += corrupt_and_look(home, range(start, start + 100))
        start += 100
    assert looked_at(home) == set()


def test_damage_names_the_file_its_version_and_every_descendant(home: Home) -> None:
    path = next(home.models.glob("v002*/model.safetensors"))
    sound = path.read_bytes()
    put(path, bytes(len(sound)))
    try:
        ledger = Ledger(home.ledger, clock=ManualClock(), read_only=True)
        (item,) = verify(Keeper(home, ledger, load_settings(home.root), ManualClock())).damage
        ledger.close()
    finally:
        put(path, sound)
    assert (item.what, item.name, item.file) == ("version", path.parent.name, path.name)
    assert [name[:4] for name in item.descendants] == ["v003"] and item.remedy == f"heirloom restore {path.parent.name}"
    assert durable.sha256_file(path)
