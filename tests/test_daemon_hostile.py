"""Every file of `hostile.py` dropped at once on a daemon with real, limited reader children: A20-A24, A70-A80, C10.

Each must end in its verdict with a reason, in bounded memory; the daemon never falters, and a good file goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hostile import CONTROL, HOSTILE, Hostile, heavy
from toy import Toy, chat_of

from daemon.cli.files import story_lines
from daemon.readers import ReaderPool
from daemon.story import tell_story
from guard import durable
from guard.checks.rows import iter_examples
from guard.durable import sha256_bytes, sha256_file
from guard.names import safe_name
from guard.store.verify import verify
from trainer.template import encode_many
from trainer.tokenizer import load_tokenizer

MOST_MB = 900.0


@pytest.fixture
def toy(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    made = Toy(scratch / "home", backup__auto=False, intake__tail_grace_seconds=2, coalesce__after=2).make_base()
    with made.keeper.ledger.transaction():
        made.keeper.ledger.set_meta("validation_fraction", "0")  # nothing here is held out
        made.keeper.ledger.set_meta("paused", "1")
    made.engine.pool = made.engine.intake.pool = ReaderPool(made.reactor, made.keeper.settings.intake.memory_mb)
    yield made
    made.engine.pool.close()
    made.die()


def peak_mb(pool: ReaderPool) -> float:
    """The most memory that any living reader ever had."""
    peaks = [0.0]
    for reader in pool.readers:
        if reader.process is not None:
            try:
                text = Path(f"/proc/{reader.process.pid}/status").read_text()
            except OSError:
                continue
            peaks += [int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")]
    return max(peaks)


def work(toy: Toy, until: float) -> float:
    """Rounds until nothing is left; the clock runs fast only while no reader works. Returns the readers' peak in MiB."""
    peak, quiet = 0.0, 0
    while quiet < 5:
        assert time.monotonic() < until, f"still busy: {toy.engine.pool.queue} {toy.jobs()[-3:]}"
        reading = toy.engine.pool.busy
        toy.clock.advance(0.02 if reading else 0.5)
        toy.engine.loop(toy.clock.monotonic())
        toy.reactor.poll(0.02 if reading else 0.0)
        toy.server.deliver()
        peak = max(peak, peak_mb(toy.engine.pool))
        quiet = quiet + 1 if toy.engine.idle else 0
        if not reading and toy.engine.intake.settler.seen:
            toy.engine.hint()
    return peak


def drop_all(toy: Toy, table: Sequence[Hostile]) -> dict[bytes, str]:
    """Drop them; returns the SHA-256 of each by name."""
    dropped = {}
    for item in table:
        data = item.make()
        dropped[item.name] = sha256_bytes(data)
        with open(os.path.join(os.fsencode(toy.home.inbox), item.name), "wb") as handle:
            handle.write(data)
    toy.engine.hint()
    return dropped


def ended(toy: Toy, item: Hostile) -> tuple[str, str]:
    """What became of one file: a verdict in the ledger, or where and why it stays."""
    path = toy.home.inbox / os.fsdecode(item.name)
    row = toy.keeper.ledger.row("SELECT * FROM drops WHERE source = ? ORDER BY id DESC", (os.fsencode(path),))
    if row is not None:
        why = json.loads(row["verdict"]).get("why", "") if row["state"] == "rejected" else ""
        return str(row["state"]), f"{row['reason']} {why}"
    intake = toy.engine.intake
    if path in intake.last.ignored:
        return "ignored", intake.last.ignored[path]
    return "waiting", intake.settler.waiting().get(str(path), "")


def test_the_table_holds_what_was_promised() -> None:
    names = [item.name for item in (*HOSTILE, *heavy())]
    assert len(names) == len(set(names)) >= 200


def test_every_hostile_file_ends_in_its_verdict_and_a_good_one_beside_them_is_trained(toy: Toy) -> None:
    dropped = drop_all(toy, HOSTILE)
    toy.drop("good.jsonl.meta.yaml", "priority: 100\n")
    toy.drop("good.jsonl", chat_of(40, seed=7))
    peak = work(toy, time.monotonic() + 240)
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.set_meta("paused", "0")
    toy.settle()
    wrong = {item.name: found for item in HOSTILE
             if (found := ended(toy, item))[0] != item.verdict or item.words not in found[1]}  # fmt: skip
    assert not wrong, "\n".join(f"{name!r}: {found}" for name, found in wrong.items())
    assert peak < MOST_MB
    assert any("_good_and_" in name for name in toy.versions()), toy.versions()
    assert {row[2] for row in toy.jobs()} <= {"done", "cancelled"}, toy.jobs()
    for item in HOSTILE:  # nothing is lost: refused bytes lie in rejected/, with a word beside them that a terminal survives
        if item.verdict == "rejected":
            back = toy.keeper.ledger.value("SELECT returned_to FROM drops WHERE name = ?", (safe_name(item.name),))
            assert sha256_file(Path(back)) == dropped[item.name], item.name
            why = Path(back).with_name(Path(back).name + ".why.txt").read_text("utf-8")
            assert why.replace("\n", "").isprintable() and "Why: " in why, item.name
        if item.verdict in ("admitted", "rejected"):
            lines = story_lines(tell_story(toy.keeper, os.fsdecode(item.name), toy.home.inbox))
            assert all(line.isprintable() for line in lines), item.name
    assert verify(toy.keeper, everything=True).damage == ()


@pytest.mark.sweep
def test_the_heaviest_end_in_bounded_memory_too(toy: Toy) -> None:
    drop_all(toy, heavy())
    toy.drop("good.jsonl", chat_of(40, seed=7))
    work(toy, time.monotonic() + 280)
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.set_meta("paused", "0")
    toy.settle()
    wrong = {item.name: found for item in heavy() if (found := ended(toy, item))[0] != item.verdict or item.words not in found[1]}
    assert not wrong, "\n".join(f"{name!r}: {found}" for name, found in wrong.items())
    assert any(name.endswith("_good") or "_and_" in name for name in toy.versions())


@pytest.mark.parametrize("name", sorted(CONTROL))
def test_no_text_becomes_a_control_token(name: bytes, tmp_path: Path) -> None:
    """A76: with other words in the same places, the control tokens are the same ones."""
    tokenizer = load_tokenizer("char")
    first = min(tokenizer.special_tokens.values())
    mean, mild = tmp_path / "mean.jsonl", tmp_path / "mild.jsonl"
    mean.write_bytes(CONTROL[name]())
    mild.write_bytes(b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], '
                     b'"system": "s", "context": "c"}\n')  # fmt: skip
    kind = "pretrain" if name == b"token_text.jsonl" else "sft"
    examples = [example.fields for example in iter_examples(mean, kind)]
    assert examples
    if kind == "pretrain":
        assert all((ids < first).all() for ids in tokenizer.encode_batch([item["text"] for item in examples], 1))
        return
    found, wanted = (encode_many([item.fields for item in iter_examples(path, "sft")], tokenizer)[0].ids for path in (mean, mild))
    assert [int(one) for one in found if one >= first] == [int(one) for one in wanted if one >= first]
