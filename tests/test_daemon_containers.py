"""Drops in every container, from the inbox to a trained version: the same rows, the same examples, told alike."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from toy import Toy, chat_of, text_of

from guard.checks.columns import Reading
from guard.checks.identify import Limits, identify
from guard.checks.kinds import container_of
from guard.checks.rows import iter_examples
from guard.checks.tail import tail_problem
from guard.store.files import find_file, stored_path, trained_in
from trainer.retrieval.documents import documents_below, read_document


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "home", coalesce__after=2, intake__max_unpacked_gb=0.001)


def pause(toy: Toy) -> None:
    with toy.keeper.ledger.transaction():
        toy.keeper.ledger.set_meta("paused", "1")


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def as_arrow(rows: list[dict[str, Any]]) -> bytes:
    out, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


MAKERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.jsonl": as_lines,
    "b.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "c.parquet": as_parquet,
    "d.arrow": as_arrow,
    "e.jsonl.gz": lambda rows: gzip.compress(as_lines(rows)),
    "f.JSON.ZST": lambda rows: zstandard.compress(json.dumps({"data": rows}).encode()),
    "g.parquet.gz": lambda rows: gzip.compress(as_parquet(rows)),
    "h.arrow.zst": lambda rows: zstandard.compress(as_arrow(rows)),
}
TEXTS = MAKERS | {"i.csv": as_csv, "j.tsv.gz": lambda rows: gzip.compress(as_csv(rows).replace(b",", b"\t"))}


def test_every_container_is_learnt_like_lines_of_json(toy: Toy) -> None:
    toy.make_base()
    for seed, (name, make) in enumerate(MAKERS.items()):
        toy.drop(f"chats/{name}", make(rows_of(chat_of(12, seed))))
    toy.drop("pretrain/words.txt.gz", gzip.compress(text_of(600).encode()))
    toy.settle()
    assert {state for _name, state, _reason in toy.drops()} == {"admitted"}
    assert set(toy.versions().values()) == {"sealed"}
    for name in MAKERS:
        file = find_file(toy.keeper.ledger, name)
        assert trained_in(toy.keeper.ledger, file.sha256)
        assert file.examples == 12 and file.record["container"] == container_of(name)
        found = list(iter_examples(stored_path(toy.home, file), file.kind))
        assert b"".join(example.fingerprint for example in found) == (toy.home.files / file.sha256 / "examples.fp").read_bytes()


def test_the_same_rows_in_another_container_are_nothing_new(toy: Toy, tmp_path: Path) -> None:
    rows = [{"text": f"the row with the number {n}"} for n in range(40)]
    prints = set()
    for name, make in TEXTS.items():
        (tmp_path / name).write_bytes(make(rows))
        found = identify(tmp_path / name, name, out_folder=tmp_path / "out" / name)
        assert (found.verdict, found.kind, found.examples, found.rows) == ("ok", "pretrain", 40, 40), name
        prints.add((tmp_path / "out" / name / "examples.fp").read_bytes())
    assert len(prints) == 1
    toy.make_base()
    toy.drop("a.jsonl", as_lines(rows))
    toy.settle()
    toy.drop("b.parquet", as_parquet(rows))
    toy.settle()
    assert toy.drops()[-1][1] == "duplicate" or len(toy.versions()) == 2


def test_a_side_file_maps_the_columns_of_every_container(toy: Toy) -> None:
    toy.make_base()
    pause(toy)
    side = "columns: {question: user, answer: assistant}\n"
    for seed, (name, make) in enumerate(TEXTS.items()):
        toy.drop(f"{name}.meta.yaml", side)
        toy.drop(name, make([{"question": f"{seed}: what is {n}?", "answer": str(n)} for n in range(5)]))
    toy.settle()
    assert {state for _name, state, _reason in toy.drops()} == {"admitted"}
    for seed, name in enumerate(TEXTS):
        file = find_file(toy.keeper.ledger, name)
        found = list(iter_examples(stored_path(toy.home, file), file.kind, Reading(**file.record["reading"])))
        assert found[4].fields["messages"][0]["content"] == f"{seed}: what is 4?" and len(found) == 5


@pytest.mark.parametrize(
    ("name", "data", "words", "hint"),
    [
        ("a.jsonl", as_parquet([{"text": "x"}]), "a parquet file, not text", ".parquet"),
        ("a.txt", gzip.compress(b"x"), "a gzip file", ""),
        ("a.csv", b'{"text": "x"}\n', "JSON", ".jsonl"),
        ("a.parquet", b"text\nx\n", "no Parquet file", ".csv"),
        ("a.jsonl.gz", b'{"text": "x"}\n', "no gzip file", "without .gz"),
        ("a.json", b'[{"text": "x"}, {"text": "y"}] tail', "line 1: something follows", ""),
        ("a.json", b'[{"text": "x"},\n{"text": "y", "text": "z"}]', "1 of 2 rows cannot be read", ""),
        ("a.csv", b"text,b\nx\n", "1 of 1 rows cannot be read", ""),
        ("a.csv", b"words\nx\n", "no kind of data has these columns: words", ".csv"),
        ("a.npy.gz", gzip.compress(b"x" * 50), "no .npy array", ""),
        ("a.json", b"[]", "no usable example", ""),
    ],
)
def test_a_wrong_name_or_form_is_told_with_what_to_do(tmp_path: Path, name: str, data: bytes, words: str, hint: str) -> None:
    (tmp_path / name).write_bytes(data)
    found = identify(tmp_path / name, name, limits=Limits(final=True))
    assert found.verdict == "reject" and words in found.reason and hint in found.hint
    assert found.sha256 and found.kind in ("", "docs", "pretrain")


@pytest.mark.parametrize("name", ["b.json", "c.parquet", "d.arrow", "e.jsonl.gz", "f.JSON.ZST", "h.arrow.zst", "i.csv"])
def test_a_file_that_is_cut_short_waits_and_is_then_rejected(tmp_path: Path, name: str) -> None:
    data = TEXTS[name]([{"text": f'row "{n}",', "more": "x"} for n in range(40)])
    (tmp_path / name).write_bytes(data[:-12])
    waiting, final = (identify(tmp_path / name, name, limits=Limits(final=final)) for final in (False, True))
    assert (waiting.verdict, waiting.wait_for) == ("wait", "truncated_tail")
    assert final.verdict == "reject" and final.reason.startswith("truncated")
    if name in ("b.json", "c.parquet"):
        assert tail_problem(tmp_path / name, name) == "its end is not there yet"
    (tmp_path / name).write_bytes(data)
    assert tail_problem(tmp_path / name, name) == "" and identify(tmp_path / name, name).verdict == "ok"


def test_faults_of_rows_without_lines_are_told_by_their_number(tmp_path: Path) -> None:
    from guard.checks.why import why_text

    (tmp_path / "a.parquet").write_bytes(as_parquet([{"text": "x"}] * 5 + [{"text": None}] * 5))
    text = why_text(identify(tmp_path / "a.parquet", "a.parquet"))
    assert "  row 6, text: Missing required field 'text'" in text


def test_a_bomb_is_rejected_and_the_setting_caps_what_is_none(toy: Toy, tmp_path: Path) -> None:
    bomb = gzip.compress(b'{"text": "' + b"0" * (10 << 20) + b'"}\n') * 8
    (tmp_path / "bomb.jsonl.gz").write_bytes(bomb)
    assert "decompression bomb" in identify(tmp_path / "bomb.jsonl.gz", "bomb.jsonl.gz").reason
    toy.drop("large.jsonl.zst", zstandard.compress(as_lines([{"text": f"a row, {n}" * 20} for n in range(9000)])))
    toy.settle()
    (drop,) = toy.drops()
    assert drop[1] == "rejected" and "unpacks to more than 0.001 GB" in drop[2]


def test_a_packed_document_is_searched_like_a_plain_one(tmp_path: Path) -> None:
    (tmp_path / "guide.md.zst").write_bytes(zstandard.compress(b"# A guide\n"))
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"text\nx\n"))
    documents, skipped = documents_below(tmp_path)
    assert [(item.name, read_document(item)) for item in documents] == [("guide.md.zst", "# A guide\n")]
    assert [item["name"] for item in skipped] == ["rows.csv.gz"]


def test_an_array_that_ends_in_zeroes_is_not_taken_for_one_that_was_never_written(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "a.npy", np.zeros((4, 8), np.int64))
    assert "zero-filled" not in identify(tmp_path / "a.npy", "a.npy").reason
    (tmp_path / "b.npy").write_bytes(b"\0" * 4096)
    assert "zero-filled" in identify(tmp_path / "b.npy", "b.npy").reason
