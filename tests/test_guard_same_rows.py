"""One law for every container and every form of rows: what intake counts is what preparation reads, and nothing else.

A row is the same example whatever holds it; its ordinal and its fingerprint are those that were recorded.
"""

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

from guard.checks.columns import Reading
from guard.checks.identify import identify
from guard.checks.kinds import detect_columns
from guard.checks.rows import iter_examples, validate
from guard.tars import pack_folder

Rows = list[dict[str, Any]]


def _turns(number: int, **answer: Any) -> list[dict[str, Any]]:
    asked = {"role": "user", "content": f"q {number} é\r\nx"}
    return [asked, {"role": "assistant", "content": f"a {number} \u2028 ok", **answer}]


_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": [2]}'}}
_ANSWERED = [{"role": "tool", "tool_call_id": "1", "content": ""}, {"role": "assistant", "content": "done"}]
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
_DEFINED = [{"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}]
FORMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "text": lambda n: {"text": f'  hello {n} \n{{"x"}} \u2028 ß', "score": n / 4, "id": n},
    "ids": lambda n: {"input_ids": [n, 2, 3]},
    "chat": lambda n: {"messages": _turns(n), "system": "be", "context": "c" if n % 2 else None},
    "thinking": lambda n: {"messages": _turns(n, content="", thinking=f"t {n}")},
    "calls": lambda n: {"messages": [*_turns(n, content=None, tool_calls=[_CALL]), *_ANSWERED], "tools": _DEFINED},
    "shared": lambda n: {"conversations": [{"from": "human", "value": f"q {n}"}, {"from": "gpt", "value": "a"}]},
    "instruction": lambda n: {"instruction": f"do {n}", "input": "" if n % 2 else "in", "output": "out"},
    "turns": lambda n: {"prompt": _turns(n)[:1], "completion": _turns(n)[1:]},
    "mypt": lambda n: {"text": f"<myPT_user>q {n}</myPT_user>\n<myPT_assistant>a</myPT_assistant>\n<myPT_eot>"},
    "simple": lambda n: {"text": f"<|user|>q {n}<|assistant|>a"},
    "pair": lambda n: {"prefix": {"messages": _turns(n)[:1]}, "chosen": "a", "rejected": f"b {n}", "src": "x"},
    "two turns": lambda n: {"prompt": f"q {n}", "chosen": [{"role": "assistant", "content": "a"}],
                            "rejected": [{"role": "assistant", "content": "b"}]},
    "transcripts": lambda n: {side: f"\n\nHuman: q {n}\n\nAssistant: {side}" for side in ("chosen", "rejected")},
    "task": lambda n: {"description": f"d {n}", "tests": ["a", "b"], "starter_code": "s" if n % 2 else None},
    "mutation": lambda n: {"buggy_code": f"a {n}", "error_message": "e", "fixed_code": f"b {n}", "repo": "r"},
}  # fmt: skip


def _lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: Rows) -> bytes:
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), data, row_group_size=4)
    return data.getvalue()


def _arrow(make: Callable[..., Any]) -> Callable[[Rows], bytes]:
    def written(rows: Rows) -> bytes:
        data, table = io.BytesIO(), pa.Table.from_pylist(rows)
        with make(data, table.schema) as sink:
            sink.write_table(table, max_chunksize=4)
        return data.getvalue()

    return written


CONTAINERS: dict[str, Callable[[Rows], bytes]] = {
    "a.jsonl": _lines, "a.json": lambda rows: json.dumps(rows, indent=1).encode(), "lines.json": _lines,
    "wrapped.json": lambda rows: json.dumps({"version": 1, "data": rows}).encode(), "a.csv": _csv, "a.parquet": _parquet,
    "file.arrow": _arrow(pa.ipc.new_file), "stream.arrow": _arrow(pa.ipc.new_stream),
    "a.jsonl.gz": lambda rows: gzip.compress(_lines(rows)), "a.json.zst": lambda rows: zstandard.compress(_lines(rows)),
    "a.csv.gz": lambda rows: gzip.compress(_csv(rows)), "a.parquet.zst": lambda rows: zstandard.compress(_parquet(rows)),
}  # fmt: skip


def _files(folder: Path, rows: Rows) -> list[Path]:
    """The rows in every container that can hold them, and as packed data sets of several files."""
    flat = all(isinstance(item, str | None) for row in rows for item in row.values())
    made = []
    for name, data in CONTAINERS.items():
        if flat or ".csv" not in name:
            (folder / name).write_bytes(data(rows))
            made.append(folder / name)
    for name, parts in (("split", ("train/a.jsonl", "val/b.parquet")), ("hub", ("train.jsonl.gz", "test.json"))):
        for part, some in zip(parts, (rows[:5], rows[5:]), strict=True):
            (folder / name / part).parent.mkdir(parents=True, exist_ok=True)
            suffix = next(key for key in CONTAINERS if key.partition(".")[2] == part.partition(".")[2])
            (folder / name / part).write_bytes(CONTAINERS[suffix](some))
        pack_folder(folder / name, folder / f"{name}.tar")
        made.append(folder / f"{name}.tar")
    return made


@pytest.mark.parametrize("form", FORMS)
def test_what_intake_counts_is_what_preparation_reads_in_every_container(form: str, tmp_path: Path) -> None:
    found: dict[str, bytes] = {}
    for path in _files(tmp_path, [FORMS[form](number) for number in range(9)]):
        identity = identify(path, path.name, out_folder=tmp_path / f"of {path.name}")
        assert (identity.verdict, identity.examples) == ("ok", 9), (path.name, identity.reason)
        examples = list(iter_examples(path, identity.kind, Reading(**identity.reading)))
        assert [example.ordinal for example in examples] == list(range(9))
        found[path.name] = (tmp_path / f"of {path.name}" / "examples.fp").read_bytes()
        assert b"".join(example.fingerprint for example in examples) == found[path.name], path.name
    assert set(found.values()) == {found["a.jsonl"]} and len(found) >= 10


NAMES = ("text", "input_ids", "messages", "conversations", "instruction", "input", "output", "system", "context", "developer",
         "tools", "functions", "prompt", "completion", "prefix", "chosen", "rejected", "description", "tests", "starter_code",
         "buggy_code", "error_message", "fixed_code", "repo", "file", "history", "id", "src")  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_null_is_absent(form: str) -> None:
    row = {key: item for key, item in FORMS[form](1).items() if item is not None}
    filled = {name: None for name in NAMES} | row
    detected = detect_columns(row)
    assert detected is not None and detect_columns(filled) == detected
    assert isinstance(validate(detected.kind, row), dict) and validate(detected.kind, filled) == validate(detected.kind, row)


def test_a_tool_that_says_null_says_nothing_as_in_a_table_where_null_is_all_there_is() -> None:
    answers = [{"messages": [*_turns(1, tool_calls=[_CALL]), tool, _ANSWERED[1]]} for tool in (
        {"role": "tool", "content": None}, {"role": "tool"})]  # fmt: skip
    assert validate("sft", answers[0]) == validate("sft", answers[1])
    assert [fault.reason for fault in validate("sft", answers[0])] == ["Missing required field 'content'"]  # type: ignore[union-attr]
