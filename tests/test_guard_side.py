"""What a side file may say, and what it is told when it says anything else; rows read under other names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from homes import within
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.checks.columns import Reading, reading_of
from guard.checks.identify import identify
from guard.checks.rows import iter_examples
from guard.checks.side import KEYS, MAX_BYTES, parse_side, read_side
from guard.errors import DataFault
from guard.fingerprint import example_fingerprint
from guard.identify_child import answer


def test_every_key_may_be_said_and_comes_back_as_it_was_written() -> None:
    text = ("description: letters of 1890\nrecipe: sft/small\npriority: -3\nline: policy\nkind: sft\nqueue: false\n"
            "untouchable: true\ntokenization: gpt2\n"
            "max_steps: 7\ntraining: {epochs: 2, curriculum: [8, 16]}\n"
            "columns: {q: user, a: assistant}\nroles: {human: user}\n")  # fmt: skip
    values = parse_side(b"\xef\xbb\xbf" + text.encode())
    assert tuple(sorted(values)) == tuple(sorted(KEYS)) and values["queue"] is False
    assert values["training"] == {"epochs": 2, "curriculum": [8, 16]}


@pytest.mark.parametrize("data", [b"", b"# nothing yet\n", b"---\n...\n", b"{}\n"])
def test_a_side_file_that_sets_nothing_is_one(data: bytes) -> None:
    assert parse_side(data) == {}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8))  # fmt: skip
REFUSED: list[tuple[bytes, str]] = [
    (b"descripton: x\n", "did you mean description"),
    (b"xyz: 3\n", "the keys are description"),
    (b"description: 1890\n", "put it in quotes"),
    (b"description: 2024-01-01\n", "put it in quotes"),
    (b"description: [a]\n", "must be text"),
    (b'description: "\\e[31mred"\n', "control characters"),
    (b'description: "\\ud800"\n', "half a character"),
    (b"priority: high\n", "whole number"),
    (b"priority: true\n", "whole number"),
    (b"priority: 1.5\n", "whole number"),
    (b"priority: 1001\n", "whole number"),
    (b"priority: " + b"9" * 5000 + b"\n", ""),
    (b"line: ../x\n", "name of a line"),
    (b"recipe: /etc/passwd\n", "name of a recipe"),
    (b"recipe: ../../x\n", "name of a recipe"),
    (b"recipe: sft/small.yaml\n", "without .yaml"),
    (b"kind: chat\n", "must be one of pretrain"),
    (b"queue: maybe\n", "true or false"),
    (b"max_steps: 0\n", "whole number"),
    (b"training: 3\n", "mapping"),
    (b"training: {epochs: .inf}\n", "mapping"),
    (b"training: {epochs: .nan}\n", ""),
    (b"training: {epochs: [1]}\n", "mapping"),
    (b"training: {curriculum: [[1]]}\n", "mapping"),
    (b"columns: text\n", "must be a mapping"),
    (b"columns: {q: question}\n", "the fields are text"),
    (b"columns: {1: text}\n", "put both in quotes"),
    (b"columns: {a: text, b: text}\n", "both text"),
    (b"columns: {a: text, b: messages}\n", "do not go together"),
    (b"columns: {a: user}\n", "go together"),
    (b"columns: {a: system}\n", "nothing that can be trained on"),
    (b"columns: {a: messages, b.from: messages.role}\n", "does not lie below"),
    (b"columns: {a: user, b: assistant, c: messages}\n", "do not go together"),
    (b"columns: {" + b".".join([b"a"] * 40) + b": text}\n", "parts"),
    (b"roles: {human: person}\n", "the roles are"),
    (b"kind: pretrain\ncolumns: {a: user, b: assistant}\n", "take one of the two out"),
    (b"- a\n- b\n", "holds no keys"),
    (b"just words\n", "holds no keys"),
    (b"a: b: c\n", "not valid YAML at line 1"),
    (b"description: 'never closed\n", "not valid YAML"),
    (b"description: a\ndescription: b\n", "given twice"),
    (b"a: 1\n---\nb: 2\n", "not valid YAML"),
    (b"? [a]\n: b\n", "not valid YAML"),
    (b"!!python/object/apply:os.system ['true']\n", "not valid YAML"),
    (b"description: !!binary aGk=\n", "must be text"),
    (b"a: &x 1\nb: *x\n", "anchors or aliases"),
    (b"<<: {a: 1}\n", ""),
    (BOMB.encode(), "anchors or aliases"),
    (b"a: " + b"[" * 9000, "nested deeper"),
    (b"".join(b" " * i + b"a:\n" for i in range(150)), "nested deeper"),
    (b"x: " + b"y" * MAX_BYTES, "longer than"),
    ("description: x\n".encode("utf-16"), "UTF-16"),
    ("description: x\n".encode("utf-16-le"), "UTF-16"),
    ("description: x\n".encode("utf-32"), "UTF-32"),
    (b"description: \xff\n", "not UTF-8"),
    (b"description: a\0b\n", "not valid YAML"),
    (b"\x1f\x8b\x08\x00" + b"x" * 30, "gzip"),
    (b"%PDF-1.4\n", "PDF"),
]  # fmt: skip


@pytest.mark.parametrize("data, words", REFUSED)
def test_what_a_side_file_may_not_say_is_refused_at_once_with_what_to_type(data: bytes, words: str) -> None:
    with within(60), pytest.raises(DataFault) as told:
        parse_side(data)
    assert words in f"{told.value.message} {told.value.hint}" and told.value.hint
    assert len(told.value.message) < 300, "a hostile value is not repeated at length"


@settings(max_examples=75, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text("abc:&*[]{}!|>-'\"# \n\t0", max_size=120).map(str.encode)))
def test_any_bytes_end_in_settings_or_a_reason(data: bytes) -> None:
    try:
        values = parse_side(data)
    except DataFault as fault:
        assert fault.message and fault.hint
    else:
        assert set(values) <= set(KEYS)


def test_a_link_a_pipe_and_a_folder_are_no_side_files_and_block_nothing(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("description: x\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises(DataFault, match="regular file"):
            read_side(tmp_path / name)
    assert read_side(tmp_path / "real") == {"description": "x"}


def test_the_reader_child_answers_for_a_side_file_whatever_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("priority: soon\n")
    told = answer(json.dumps({"id": 4, "task": "meta", "path": str(path), "name": "s"}).encode())
    assert told["id"] == 4 and told["settings"] == {} and "whole number" in told["problem"]
    path.write_text("priority: 2\n")
    assert answer(json.dumps({"id": 5, "task": "meta", "path": str(path), "name": "s"}).encode()) == {
        "id": 5, "settings": {"priority": 2}, "problem": ""}  # fmt: skip


# --- columns ------------------------------------------------------------------------------------------------------

TURNS = {"messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}]}
SAME: list[tuple[dict[str, Any], dict[str, str], dict[str, str]]] = [
    ({"q": "what?", "a": "that", "source": "x"}, {"q": "user", "a": "assistant"}, {}),
    ({"pair": {"q": "what?"}, "answers": [{"text": "that"}]}, {"pair.q": "user", "answers.0.text": "assistant"}, {}),
    ({"q.a": "what?", "b": "that"}, {"q.a": "user", "b": "assistant"}, {}),
    ({"conversation": {"turns": TURNS["messages"]}}, {"conversation.turns": "messages"}, {}),
    ({"conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "that"}]},
     {"conversations": "messages", "conversations.from": "messages.role", "conversations.value": "messages.content"},
     {"human": "user", "gpt": "assistant"}),
    ({"messages": [{"role": "human", "content": "what?"}, {"role": "bot", "content": "that"}]}, {},
     {"human": "user", "bot": "assistant"}),
]  # fmt: skip


@pytest.mark.parametrize("row, columns, roles", SAME)
def test_the_same_conversation_under_other_names_is_the_same_example(
    row: dict[str, Any], columns: dict[str, str], roles: dict[str, str], tmp_path: Path
) -> None:
    path, side = tmp_path / "a.jsonl", tmp_path / "a.jsonl.meta.yaml"
    path.write_text(json.dumps(row) + "\n")
    side.write_text(json.dumps({key: value for key, value in (("columns", columns), ("roles", roles)) if value}))
    identity = identify(path, "a.jsonl", side=side, out_folder=tmp_path / "out")
    assert (identity.verdict, identity.kind, identity.examples) == ("ok", "sft", 1), identity
    reading = Reading(**identity.reading)
    again = list(iter_examples(path, "sft", reading))
    assert (tmp_path / "out" / "examples.fp").read_bytes() == again[0].fingerprint == example_fingerprint(TURNS)
    assert json.loads((tmp_path / "out" / "record.json").read_text())["reading"] == reading.as_dict()


def test_text_under_another_name_is_pretraining_even_when_it_opens_with_a_tag(tmp_path: Path) -> None:
    path, side = tmp_path / "a.jsonl", tmp_path / "s"
    path.write_text('{"body": "<|user|> says the manual", "chosen": 1, "rejected": 2}\n')
    side.write_text("columns: {body: text}\n")
    identity = identify(path, "a.jsonl", side=side)
    assert (identity.verdict, identity.kind, identity.examples) == ("ok", "pretrain", 1)


def test_a_row_without_the_named_column_is_a_fault_that_says_both_names(tmp_path: Path) -> None:
    path, side = tmp_path / "a.jsonl", tmp_path / "s"
    path.write_text('{"other": "x"}\n')
    side.write_text("columns: {body: text}\n")
    identity = identify(path, "a.jsonl", side=side)
    assert identity.verdict == "reject" and "body is text" in identity.unusable_rows[0].reason


def test_what_a_turn_holds_beside_the_named_parts_is_not_dropped_silently() -> None:
    reading = reading_of({"c": "messages", "c.from": "messages.role", "c.value": "messages.content"}, {"gpt": "assistant"})
    row = reading.apply({"c": [{"from": "gpt", "value": "x", "tool_calls": [1]}, "odd"]})
    assert row == {"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}, "odd"]}


def test_columns_beside_what_has_no_rows_and_against_the_folder_are_refused(tmp_path: Path) -> None:
    side = tmp_path / "s"
    side.write_text("columns: {body: text}\n")
    (tmp_path / "a.txt").write_text("x\n")
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    assert "plain text" in identify(tmp_path / "a.txt", "a.txt", side=side).reason
    assert "dropped as task" in identify(tmp_path / "a.jsonl", "a.jsonl", "task", side=side).reason


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.text(max_size=5) | st.integers(), lambda part: st.lists(part, max_size=3) | st.dictionaries(
    st.sampled_from(["a", "b", "from", "value", "a.b", "0"]), part, max_size=3), max_leaves=8))  # fmt: skip
def test_no_row_makes_a_reading_raise(value: Any) -> None:
    row = value if isinstance(value, dict) else {"a": value}
    for columns in ({"a.b.0": "text"}, {"a": "messages", "a.from": "messages.role"}, {"a": "user", "b.0": "assistant"}):
        assert set(reading_of(columns, {"x": "user"}).apply(row)) <= {"text", "messages", "user", "assistant"}
