"""What tests of admission share: a home with a base, files to drop there, and short ways to decide and to admit.

Not a test itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from homes import add_version, copy_home, keeper_of, make_home, no_syncing

from guard.checks.identify import identify
from guard.store.admission import finish_admission
from guard.store.decision import Decision, decide
from guard.store.intake import claim, drop_folder
from guard.store.keeper import Keeper

BASE = "v001_baseline"


@pytest.fixture(scope="module", name="template")
def _template(shared_scratch: Path) -> Path:
    root = Path(tempfile.mkdtemp(dir=shared_scratch)) / "home"  # each file that uses this fixture makes its own
    keeper = make_home(root)
    add_version(keeper, "baseline")
    with keeper.ledger.transaction():
        keeper.ledger.set_meta("validation_fraction", "0")
        keeper.ledger.set_meta("validation_salt", "fixed")
    keeper.ledger.close()
    return root


@pytest.fixture(name="keeper")
def _keeper(template: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    no_syncing(monkeypatch)
    copy_home(template, scratch / "home")
    opened = keeper_of(scratch / "home")
    yield opened
    opened.ledger.close()


def rows(*numbers: int) -> bytes:
    return b"".join(orjson.dumps({"text": f"row {number}"}) + b"\n" for number in numbers)


def drop(keeper: Keeper, name: str, content: bytes, **options: object) -> tuple[int, dict[str, Any]]:
    """Claim and identify a file; returns its drop and its record, as the daemon has them before it decides."""
    path = keeper.home.inbox / name
    path.write_bytes(content)
    number = claim(keeper, path, options=options)
    folder = drop_folder(keeper, number)
    kind = str(options.get("kind")) if options.get("kind") else None
    identity = identify(folder / "content", name, kind, out_folder=folder / "identity")
    assert identity.verdict == "ok", identity
    return number, {**identity.as_record(), "dropped_as": options.get("dropped_as", name)}


def judge(keeper: Keeper, name: str, content: bytes, **options: object) -> Decision:
    """Decide only."""
    number, record = drop(keeper, name, content, **options)
    return decide(keeper, record, options, drop_folder(keeper, number) / "identity")


def take(keeper: Keeper, name: str, content: bytes, **options: object) -> tuple[str, int | None]:
    """Decide and admit; returns the stored file's hash and its job."""
    number, record = drop(keeper, name, content, **options)
    decision = decide(keeper, record, options, drop_folder(keeper, number) / "identity")
    assert decision.verdict == "admit", decision
    row = keeper.ledger.row("SELECT * FROM drops WHERE id = ?", (number,))
    assert row is not None
    return str(record["sha256"]), finish_admission(keeper, row, {**record, "decision": asdict(decision)}, decision)
