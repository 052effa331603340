"""What a refused file is told to do: done to the letter, it makes the file sound."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from guard.checks.identify import identify


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(("row", "kind"), [
    ({"Text": "a", "Label": "x"}, "pretrain"), ({"my text: all of it": "a"}, "pretrain"), ({"content": "a"}, "pretrain"),
    ({"question": "a", "answer": "b"}, "sft"), ({"prompt": "a", "completion": "b"}, "sft"),
    ({"system": "s", "question": "a", "chosen": "b", "rejected": "c"}, "preference"),
    ({"instruction": "a", "chosen": "b", "rejected": "c"}, "preference"),
])  # fmt: skip
def test_a_side_file_written_as_the_hint_says_makes_the_file_sound(row: dict[str, Any], kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([row] * 9))
    refused = identify(tmp_path / "a.jsonl", "a.jsonl")
    assert refused.verdict == "reject" and "FILE.meta.yaml" in refused.hint
    said = re.search(r"columns: \{.*?\}", refused.hint)
    assert said is not None
    (tmp_path / "a.jsonl.meta.yaml").write_text(said[0] + "\n")
    found = identify(tmp_path / "a.jsonl", "a.jsonl", side=tmp_path / "a.jsonl.meta.yaml")
    assert (found.verdict, found.kind, found.examples) == ("ok", kind, 9), found.reason


def test_text_of_another_encoding_is_told_how_to_become_utf8(tmp_path: Path) -> None:
    for name, data in (("a.csv", "text\nh\xe9llo\n"), ("a.jsonl", '{"text": "h\xe9"}\n')):
        (tmp_path / name).write_bytes(data.encode("cp1252"))
        found = identify(tmp_path / name, name)
        assert found.verdict == "reject" and "iconv -f WINDOWS-1252 -t UTF-8" in found.hint
        assert ("Excel" in found.hint) == name.endswith(".csv")
        (tmp_path / name).write_text(data, "utf-8")
        assert identify(tmp_path / name, name).verdict == "ok"


@pytest.mark.parametrize(("row", "word"), [
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "bing", "value": "a"}]}, "bing"),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "bard", "content": "a"}]}, "bard"),
])  # fmt: skip
def test_a_speaker_that_is_not_known_is_made_known_as_the_hint_says(row: dict[str, Any], word: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([row] * 9))
    refused = identify(tmp_path / "a.jsonl", "a.jsonl")
    said = re.findall(r"(?:columns|roles): \{.*?\}", refused.hint)
    assert refused.verdict == "reject" and said and f"{word}: assistant" in said[-1]
    (tmp_path / "a.jsonl.meta.yaml").write_text("\n".join(said) + "\n")
    found = identify(tmp_path / "a.jsonl", "a.jsonl", side=tmp_path / "a.jsonl.meta.yaml")
    assert (found.verdict, found.kind, found.examples) == ("ok", "sft", 9), found.reason


def test_a_table_with_the_line_ends_of_old_macs_is_told_how_to_be_saved(tmp_path: Path) -> None:
    for data in (b"text,n\rone,1\rtwo,2\r", b"text,n\none,1\rtwo,2\r"):
        (tmp_path / "a.csv").write_bytes(data)
        found = identify(tmp_path / "a.csv", "a.csv")
        told = f"{found.reason} {found.hint} {found.bad_rows}"
        assert found.verdict == "reject" and "CR without LF" in told and "save it with LF or CRLF line ends" in told
        assert "universal-newline" not in told
    (tmp_path / "a.csv").write_bytes(data.replace(b"\r", b"\r\n"))
    assert identify(tmp_path / "a.csv", "a.csv").examples == 2


def test_numbers_that_json_has_not_are_told_by_their_own_words(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "score": NaN}\n')
    assert "null" in identify(tmp_path / "a.jsonl", "a.jsonl").hint


def test_a_few_rows_too_many_are_told_how_to_be_found_and_how_to_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "a"}] * 8 + [{"text": " "}] * 2))
    hint = identify(tmp_path / "a.jsonl", "a.jsonl").hint
    assert "heirloom prepare validate FILE --all" in hint and "intake.max_unusable_rows" in hint
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": " "}] * 9))
    hint = identify(tmp_path / "a.jsonl", "a.jsonl", "pretrain").hint
    assert "heirloom prepare validate FILE --all" in hint and "intake.max_unusable_rows" not in hint


def test_a_file_without_rows_is_not_said_to_be_white_space(tmp_path: Path) -> None:
    for name, data, words in (("a.json", "[]", "there is no row in it"), ("a.csv", "text\n", "there is no row in it"),
                              ("a.jsonl", "\n", "only white space")):  # fmt: skip
        (tmp_path / name).write_text(data)
        assert words in identify(tmp_path / name, name).reason
