"""Tiny homes for tests: a ledger, originals and sealed version folders made directly, without training anything.

A version here holds a few kilobytes of seeded weights that drift from version to version; its
SHA256SUMS, its modes and its rows are those of a real one. Not a test of births: those go through `guard/store/birth.py`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import signal
import struct
import subprocess
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from guard import durable
from guard.bitmap import pack_bitmap, unpack_bitmap
from guard.clock import ManualClock
from guard.durable import json_bytes, seal_tree, sha256_bytes
from guard.home import Home
from guard.names import version_name
from guard.seal import open_shelf
from guard.settings_read import load_settings
from guard.store import views
from guard.store.birth import hash_folder, sums_text
from guard.store.create import create_home
from guard.store.files import with_sidecars
from guard.store.keeper import Keeper
from guard.store.known import sidecar_bytes
from guard.store.ledger import Ledger
from guard.store.versions import learnt_by, reserve_number

__all__ = [
    "add_job_row",
    "add_original",
    "add_version",
    "clone",
    "copy_home",
    "keeper_of",
    "at_the_end",
    "make_home",
    "no_syncing",
    "places_of",
    "remember_learnt",
    "run_as_ordinary_user",
    "set_tip",
    "settings_from_outside",
    "small_family",
    "toy_weights",
    "within",
]

NOBODY = 65534
at_the_end: list[Callable[[], None]] = []
"""What gives back whatever a test opened and did not close itself: `conftest.py` calls a test's own when it ends."""


def make_home(root: Path) -> Keeper:
    """A home with settings and no version yet."""
    recipes = root.parent / f"{root.name}-recipes"
    (recipes / "pretrain").mkdir(parents=True)
    (recipes / "pretrain" / "tiny.yaml").write_text("stage: pretrain\n")
    create_home(Home(root), clock=ManualClock(), recipes=recipes)
    return keeper_of(root)


def keeper_of(root: Path, **settings: object) -> Keeper:
    """A writing keeper of an existing home; the environment's settings are left out."""
    home, clock = Home(root), ManualClock()
    flags = {name.replace("__", "."): value for name, value in settings.items()}
    ledger = Ledger(home.ledger, clock=clock, actor="tester")
    at_the_end.append(ledger._db.close)
    ledger._db.execute("PRAGMA synchronous=OFF")
    keeper = Keeper(home, ledger, load_settings(root, {}, flags), clock)
    at_the_end.append(keeper.memory.clear)  # maps of indexes
    return keeper


def clone(template: Path, root: Path) -> Keeper:
    """A copy of a finished home, modes and links included: cheaper than making one again."""
    return keeper_of(copy_home(template, root))


def copy_home(template: Path, root: Path) -> Path:
    """A copy that nobody has opened yet; returns `root`."""
    # Some 180 tests start from a copy; `cp` takes a fifth of what shutil.copytree takes.
    subprocess.run(["cp", "-a", "--", template, root], check=True)
    return root


def no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A death inside one process leaves the page cache; what syncing is for is tested with a real power cut."""
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)


def settings_from_outside(monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, object]) -> None:
    """These settings in the environment: for whatever opens a home by itself, as commands do."""
    for key, value in settings.items():
        monkeypatch.setenv(f"HEIRLOOM_{key.replace('.', '__').upper()}", str(value))


def add_original(keeper: Keeper, name: str, rows: int = 10, kind: str = "pretrain") -> str:
    """Admit a file of so many examples; returns its SHA-256."""
    data = b"".join(orjson.dumps({"text": f"{name} row {row}"}) + b"\n" for row in range(rows))
    sha256 = sha256_bytes(data)
    folder = keeper.home.files / sha256
    folder.mkdir()
    record = {"sha256": sha256, "name": name, "kind": kind, "size_bytes": len(data), "examples": rows,
              "tokens_approx": rows * 8, "stored_as": name}  # fmt: skip
    (folder / name).write_bytes(data)
    (folder / "examples.fp").write_bytes(random.Random(name).randbytes(16 * rows))
    (folder / "record.json").write_bytes(json_bytes(record))
    seal_tree(folder)
    record = with_sidecars(keeper.home, record)
    with keeper.ledger.transaction():
        keeper.ledger.run(
            "INSERT INTO files (sha256, name, kind, size_bytes, examples, tokens_approx, first_seen, record) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (sha256, name, kind, len(data), rows, rows * 8, keeper.clock.utc(),
             orjson.dumps(record).decode()))  # fmt: skip
    return sha256


def remember_learnt(keeper: Keeper, version: int, sha256: str, first: int, count: int) -> None:
    """Note inside a transaction that a version learnt the `first` so many of a file's `count` examples."""
    bits = np.packbits(np.arange(count) < first, bitorder="little").tobytes()
    bitmap = base64.b64encode(zlib.compress(bits)).decode()
    keeper.ledger.run("INSERT INTO learnt VALUES (?, ?, 'pretrain', ?, ?)", (version, sha256, first, bitmap))


def toy_weights(name: str, parent: Path | None = None) -> bytes:
    """A real safetensors file of 2,300 bf16 numbers; a child's differ from its parent's by little, as training does it."""
    noise, count = random.Random(name), 2300
    if parent is None or not parent.is_file():
        numbers = [noise.choice((0x3C00, 0xBC00)) + noise.randrange(0x180) for _ in range(count)]
    else:
        data = parent.read_bytes()[-2 * count :]
        numbers = [value ^ (noise.random() < 0.1) for value in struct.unpack(f"<{count}H", data)]
    header = orjson.dumps({"__metadata__": {"format": "pt"},
                           "w": {"dtype": "BF16", "shape": [23, 100], "data_offsets": [0, 2 * count]}})  # fmt: skip
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + struct.pack(f"<{count}H", *numbers)


def _write_folder(folder: Path, record: dict[str, Any]) -> str:
    """The files of a version, sealed; returns the SHA-256 of its SHA256SUMS."""
    folder.mkdir()
    noise = random.Random(record["name"])
    (folder / "config.json").write_bytes(json_bytes({"hidden_size": 8, "name": record["name"]}))
    parent = folder.parent / record["parent"] / "model.safetensors" if record["parent"] else None
    (folder / "model.safetensors").write_bytes(toy_weights(record["name"], parent))
    (folder / "tokenizer.json").write_bytes(noise.randbytes(600))
    (folder / "version.json").write_bytes(json_bytes(record))
    sums = sums_text(hash_folder(folder)).encode()
    (folder / "SHA256SUMS").write_bytes(sums)
    seal_tree(folder)
    return sha256_bytes(sums)


def add_version(
    keeper: Keeper, slug: str, parent: str | None = None, *, line: str = "policy", state: str = "sealed",
    tip: bool = True, learnt: dict[str, Iterable[int]] | None = None, inputs: Iterable[str] = (),
) -> str:  # fmt: skip
    """Seal a version with its rows, having learnt these ordinals of these files; returns its name."""
    ledger = keeper.ledger
    with ledger.transaction():
        number = reserve_number(keeper)
        name = version_name(number, slug)
        data = [_learnt_item(keeper, sha256, list(ordinals)) for sha256, ordinals in (learnt or {}).items()]
        gate = {"verdict": "passed" if state == "sealed" else "failed", "reason": "its loss rose"}
        record = {"name": name, "id": number, "parent": parent, "line": line, "role": "child" if parent else "base",
                  "created": keeper.clock.utc(), "data": data, "objective": "pretrain", "gate": gate,
                  "metrics": {"final_loss": 1.5, "steps": 3}}  # fmt: skip
        with open_shelf(keeper.home.models):
            sums = _write_folder(keeper.home.models / name, record)
        parent_id = ledger.value("SELECT id FROM versions WHERE name = ?", (parent,)) if parent else None
        ledger.run(
            "INSERT INTO versions (id, name, parent_id, line, state, created, tokens, size_bytes, sums_sha256, record) "
            "VALUES (?, ?, ?, ?, ?, ?, 100, 5600, ?, ?)",
            (number, name, parent_id, line, state, record["created"], sums, orjson.dumps(record).decode()))  # fmt: skip
        for item in data:
            ledger.run("INSERT INTO learnt VALUES (?, ?, 'pretrain', ?, ?)",
                       (number, item["sha256"], item["examples"], item["bitmap"]))  # fmt: skip
        for other in inputs:
            ledger.run("INSERT INTO version_inputs VALUES (?, (SELECT id FROM versions WHERE name = ?), 'reference')",
                       (number, other))  # fmt: skip
        if tip and state == "sealed":
            set_tip(keeper, line, name)
        ledger.event("version.sealed", name, parent=parent, line=line, sums=sums, gate=gate["verdict"])
    return name


def _learnt_item(keeper: Keeper, sha256: str, ordinals: list[int]) -> dict[str, Any]:
    row = keeper.ledger.row("SELECT name, examples, kind FROM files WHERE sha256 = ?", (sha256,))
    assert row is not None
    return {"file": row["name"], "sha256": sha256, "kind": row["kind"], "examples": len(ordinals),
            "tokens": len(ordinals) * 8, "bitmap": pack_bitmap(ordinals, row["examples"])}  # fmt: skip


def set_tip(keeper: Keeper, line: str, name: str) -> None:
    """Make a version a line's tip, in or outside a transaction."""
    with keeper.ledger.transaction():
        keeper.ledger.run("INSERT INTO lines VALUES (?, (SELECT id FROM versions WHERE name = ?), ?) "
                          "ON CONFLICT (name) DO UPDATE SET tip_id = excluded.tip_id",
                          (line, name, keeper.clock.utc()))  # fmt: skip


def add_job_row(
    keeper: Keeper, state: str, *, line: str = "policy", base: str | None = None, started: bool = False
) -> int:
    """A job in some state; `started`: it has its frozen plan and a number for its output."""
    now = keeper.clock.utc()
    with keeper.ledger.transaction():
        return keeper.ledger.run(
            "INSERT INTO jobs (kind, state, position, stage, line, base_id, slug, output_id, created, updated) VALUES "
            "('train', ?, 0, 'pretrain', ?, (SELECT id FROM versions WHERE name = ?), 'x', ?, ?, ?)",
            (state, line, base, 99 if started else None, now, now))  # fmt: skip


def small_family(root: Path) -> Keeper:
    """The family of seed 002: v001_baseline, v002_syllo, v003_reasoning, v004_full_stack (active), with three files."""
    keeper = make_home(root)
    first, second, third = (add_original(keeper, f"{stem}.jsonl") for stem in ("syllo", "reasoning", "math"))
    base = add_version(keeper, "baseline")
    syllo = add_version(keeper, "syllo", base, learnt={first: range(9)})
    reasoning = add_version(keeper, "reasoning", syllo, learnt={second: range(5)})
    add_version(keeper, "full_stack", reasoning, learnt={second: range(5, 8), third: range(10)})
    views.refresh(keeper)
    return keeper


def places_of(keeper: Keeper, name: str) -> list[str]:
    """Where a folder of that version lies: models, trash, staging."""
    home = keeper.home
    spots = {"models": home.models / name, "staging": home.staging / f"restore-{name}"}
    found = [word for word, path in spots.items() if os.path.lexists(path)]
    return found + [f"trash/{path.name}" for path in home.trash.iterdir() if path.name.split("~")[0] == name]


def run_as_ordinary_user(root: Path, act: Callable[[Keeper], None]) -> str:
    """Do something with the home at `root` as somebody whom mode bits bind; returns the traceback, "" when all is well.

    A fork and not a new interpreter: root's own Python may lie where nobody else can read it.
    """
    if os.geteuid() == 0:
        for place, names, files in os.walk(root):
            for path in [place, *(os.path.join(place, name) for name in (*names, *files))]:
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = ""
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            act(keeper_of(root))
        except BaseException:  # noqa: BLE001 - the parent reports it; a forked test must never return into pytest
            text = traceback.format_exc()
        finally:
            os.write(writer, text.encode()[-60_000:])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as handle:
        text = handle.read()
    _pid, status = os.waitpid(child, 0)
    return text or ("" if status == 0 else f"the child ended with status {status}")


def read_sidecar(folder: Path) -> list[bytes]:
    """The fingerprints beside a stored original, one for each ordinal."""
    data = sidecar_bytes(folder)
    return [data[start : start + 16] for start in range(0, len(data), 16)]


def known_fingerprints(keeper: Keeper, version_id: int, objective: str) -> list[bytes]:
    """Every fingerprint learnt by a version and its ancestors under an objective, read the long way: from the sidecars."""
    return [read_sidecar(keeper.home.files / row["sha256"])[ordinal]
            for row in learnt_by(keeper.ledger, version_id, objective) for ordinal in unpack_bitmap(row["bitmap"])]  # fmt: skip


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """What would wait for ever fails instead. Not a measure of speed: give many times what it takes on a busy machine."""

    def over(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
