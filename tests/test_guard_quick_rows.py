"""The quick way and the careful way say the same of every row, or the quick way says nothing."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.checks.columns import Reading
from guard.checks.jsonl import read_rows
from guard.checks.quick_rows import QuickRows
from guard.checks.rows import validate
from guard.checks.scan import scan_jsonl
from guard.fingerprint import example_fingerprint

CHAT = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because é."}]}


def careful(kind: str, line: bytes) -> bytes | None:
    """The fingerprint that the rules give a line, None for a bad or unusable row."""
    rows = list(read_rows(BytesIO(line)))
    if len(rows) != 1 or rows[0].value is None:
        return None
    fields = validate(kind, rows[0].value)
    return None if isinstance(fields, list) else example_fingerprint(fields)


def quick(kind: str, line: bytes, reader: QuickRows | None = None, times: int = 9) -> bytes | None:
    """What the quick way says of a line that stands in a block many times, after a block from which it could learn."""
    reader = reader or QuickRows(kind)
    block = (line + b"\n") * times + b" " * 5000 + b"\n"
    reader.fingerprints(block)
    found = set(reader.fingerprints(block)[:times])
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("row", [
    CHAT,
    {**CHAT, "system": "Be kind.", "context": " A shelf. "},
    {"messages": [{"role": "system", "content": "Be \"kind\"."}, *CHAT["messages"]], "id": 7, "source": "s", "x": None},
    {"messages": CHAT["messages"] * 3, "score": 1.5, "ok": True},
    {**CHAT, "developer": "Be brief.", "tools": [], "context": "c"},
    {**CHAT, "meta": {"tags": ["a", "b \\"], "by": {"name": ""}}, "system": ""},
])  # fmt: skip
@pytest.mark.parametrize("times", [2, 9])
def test_rows_of_the_usual_shape_need_no_careful_look(row: dict[str, Any], times: int) -> None:
    for line in (json.dumps(row).encode(), json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()):
        assert quick("sft", line, times=times) == careful("sft", line) is not None
    for text in (" A line.\nAnother \"one\".", "\tA line.\nAnother\\\" one.", "\\", '"', "\u2019\n", "\\\\n"):
        line = json.dumps({"text": text, "id": "a"}).encode()
        assert quick("pretrain", line, times=times) == careful("pretrain", line) is not None


def test_rows_under_other_names_are_read_quickly_too() -> None:
    reading = Reading({"chat": "messages", "chat.from": "messages.role", "chat.value": "messages.content"},
                      {"gpt": "assistant"})  # fmt: skip
    row = {"chat": [{"from": "user", "value": "Why?"}, {"from": "gpt", "value": "So."}], "id": "1"}
    found = quick("sft", json.dumps(row).encode(), QuickRows("sft", reading))
    fields = validate("sft", reading.apply(row))
    assert isinstance(fields, dict) and found == example_fingerprint(fields)


@pytest.mark.parametrize(("kind", "row"), [
    ("sft", {"text": "<|user|>a<|assistant|>b", "id": "x"}), ("pretrain", {"input_ids": [1, 2], "id": "x"}),
    ("sft", {"messages": [CHAT["messages"][0], {"role": "assistant", "content": None, "tool_calls": [
        {"name": "a", "arguments": {"b": "c", "n": 1}}]}]}),
    ("sft", {**CHAT, "tools": [{"name": "a"}]}), ("sft", {"instruction": "a", "input": "b", "output": "c"}),
    ("sft", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, CHAT["messages"][1]]}),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "c"}),
])  # fmt: skip
def test_where_the_rules_look_into_a_text_the_quick_way_says_nothing(kind: str, row: dict[str, Any]) -> None:
    line = json.dumps(row).encode()
    assert careful(kind, line) is not None
    for times in (2, 9):
        assert quick(kind, line, times=times) is None


def test_parts_that_make_one_text_are_put_together_the_careful_way() -> None:
    reading = Reading({"c": "messages", "c.type": "messages.role", "c.said": "messages.content"}, {"text": "user"}, 2)
    row = {"c": [{"type": "text", "said": [{"type": "text", "text": "a "}, {"type": "text", "text": " b"}]},
                 {"type": "assistant", "said": "x"}]}  # fmt: skip
    fields = validate("sft", reading.apply(row))
    assert isinstance(fields, dict) and fields["messages"][0]["content"] == "a  b"
    assert quick("sft", json.dumps(row).encode(), QuickRows("sft", reading)) in (None, example_fingerprint(fields))


def test_rows_that_differ_in_their_numbers_are_built_alike() -> None:
    rows = [json.dumps({"text": f"t{n}", "score": n * 1.5 - 3, "at": [n, -n]}).encode() for n in range(3, 43)]
    reader = QuickRows("pretrain")
    found = reader.fingerprints(b"\n".join([*rows, b" " * 5000]))
    assert found[:2] == [None, None] and found[3:-1] == [careful("pretrain", row) for row in rows[3:]]


@pytest.mark.parametrize("text", [
    rb"a\u000d\nb", rb"a\u000D\u000Ab", rb"a\r\u000ab", rb"\u000d\n", rb"a\rb", rb"a\\u000d\nb", rb"a\u0000b",
])  # fmt: skip
def test_line_ends_are_folded_however_they_are_written(text: bytes) -> None:
    for row in (b'{"text": "%b"}' % text, b'{"text": "%b", "id": "x"}' % text):
        for times in (1, 9):
            reader = QuickRows("pretrain")
            quick("pretrain", row.replace(text, b"plain"), reader)
            assert quick("pretrain", row, reader, times=times) in (None, careful("pretrain", row))
    if b"0000" not in text and text != rb"\u000d\n":
        assert quick("pretrain", b'{"text": "%b"}' % text) is not None


@pytest.mark.parametrize("key", ["thinking", "tool_calls"])
def test_a_number_that_says_something_is_no_zero(key: str) -> None:
    turns = '{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "%s": %s}'
    row = [b'{"messages": [%b]}' % (turns % (key, number)).encode() for number in ("0", "512", "-0", "0.0", "1")]
    reader = QuickRows("sft")
    found = reader.fingerprints(b"\n".join([*[row[0]] * 20, *row, *[row[1]] * 20, b" " * 5000]))
    wanted = [careful("sft", line) for line in [*[row[0]] * 20, *row, *[row[1]] * 20]]
    assert all(answer in (None, right) for answer, right in zip(found, wanted, strict=False))
    assert found[19] is not None and careful("sft", row[1]) is None


def test_rows_of_long_keys_and_roles_are_not_remembered() -> None:
    reader = QuickRows("sft")
    for number in range(40):
        row = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "%b": {"role": "%b"}}'
        block = (row % (b"k" * (9000 + number), b"r")) + b"\n" + (row % (b"k", b"r" * (2000 + number))) + b"\n"
        reader.fingerprints(block * 2)
    assert reader._planner is not None and len(reader._planner.learnt) <= 1


@pytest.mark.parametrize("line", [
    b'{"text": "a", "text": "a"}', b'{"text": "a", "text" :"a"}', b'{"text":"\\":","text" :"b"}',
    b'{"text": "a\\\\", "text": "b\\""}', b'{"text": "a", "x": {"y": 1, "y": 1}}',
    b'{"text": ""}', b'{"text": " \\n"}', b'{"text": 7}', b'{"text": null}', b'{"text": ["a"]}', b'["text"]', b'"text"', b'{}',
    b'{"text": "a\\u0000"}', b'{"text": "\\ud800"}', b'{"text": "\xff"}', b'{"text": "a"} x', b'{"text": "a"}"', b'""',
    b'{"text": "a\x01"}', b'{"text": "a", "n": 01}', b'{"text": "a", "n": 1 2}', b'{"text": "a\\x"}', b'{"text": "a"}""',
    b'{"text": "a", "x": " \xff"}', b'{"te\\u0078t": "a", "text": "b"}', b'{\\"text": "a"}', b'{"text": "a", "x": "\\q"}',
    b'', b'  ', b'"', b'\\', b'{"text": "@1@"',
])  # fmt: skip
def test_what_is_doubtful_takes_the_careful_way_and_never_another_answer(line: bytes) -> None:
    assert quick("pretrain", line) is None or careful("pretrain", line) == quick("pretrain", line)
    assert careful("pretrain", line) is not None or quick("pretrain", line) is None
    assert quick("sft", line) is None


def test_a_row_like_a_good_one_with_a_key_written_twice_is_not_taken_for_it() -> None:
    reader = QuickRows("pretrain")
    good, bad = b'{"text": "a", "id": "b"}', b'{"text": "a", "text": "b"}'
    assert quick("pretrain", good, reader) is not None
    assert quick("pretrain", bad, reader) is None and quick("pretrain", bad + b"", reader, times=1) is None
    for like in (good + b'"', b'"' + good, good + b'"junk', good.replace(b": ", b"; "), good[:-1], good + b"}"):
        assert quick("pretrain", like, reader) is None


def test_what_is_remembered_of_rows_that_are_all_built_differently_is_bounded() -> None:
    reader = QuickRows("pretrain")
    for start in range(0, 12_000, 1000):
        rows = [b'{"text": "a", "k%d": "b"%s}' % (n, b" " * (n % 7)) for n in range(start, start + 1000)]
        reader.fingerprints(b"\n".join(rows * 2))
    assert reader._planner is not None
    builds = [build for frame in reader._planner._frames.values() if frame for build in frame.builds.values()]
    assert len(builds) <= 4000 and len(reader._planner.learnt) <= 4000
    assert quick("pretrain", b'{"text": "a", "other": 1}', reader) in (None, careful("pretrain", b'{"text": "a"}'))


_TEXTS = st.text(alphabet=st.sampled_from('ab é"\\:{}[], \n\t\r\0\u0301\u2028\U0001f600'), max_size=6)
_PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": _TEXTS}), max_size=2)
_CALLS = st.fixed_dictionaries({"name": _TEXTS, "arguments": st.one_of(
    st.dictionaries(_TEXTS, st.one_of(_TEXTS, st.integers()), max_size=2), st.sampled_from(["", "{}", '{"a": 1}', "x"]))},
    optional={"id": _TEXTS})  # fmt: skip
_TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool", ""]),
                               "content": st.one_of(_TEXTS, st.none(), st.integers(), st.lists(_TEXTS, max_size=1), _PARTS)},
                              optional={"name": _TEXTS, "thinking": st.sampled_from([0, 7, "", "x", None]),
                                        "tool_calls": st.lists(_CALLS, max_size=2), "tool_call_id": _TEXTS})  # fmt: skip
_ROWS = st.fixed_dictionaries({}, optional={
    "messages": st.one_of(st.lists(_TURN, max_size=5), _TEXTS, st.fixed_dictionaries({"0": _TURN})),
    "text": st.one_of(_TEXTS, st.integers(), _TEXTS.map(lambda text: f"<|user|>{text}<|assistant|>{text}")),
    "input_ids": st.lists(st.one_of(st.integers(), _TEXTS), max_size=3), "developer": _TEXTS,
    "tools": st.one_of(st.lists(st.fixed_dictionaries({"name": _TEXTS}), max_size=2), st.sampled_from(["", '[{"name":"a"}]'])),
    "conversations": st.lists(st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": _TEXTS}), max_size=2),
    "instruction": _TEXTS, "output": _TEXTS, "system": st.one_of(_TEXTS, st.none(), st.integers()), "context": _TEXTS,
    "id": st.one_of(_TEXTS, st.integers(), st.floats(allow_nan=False), st.none(), st.lists(_TEXTS, max_size=2),
                    st.fixed_dictionaries({"a": _TEXTS})),
})  # fmt: skip


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A row as JSON, sometimes with a key written twice, odd spacing, or a byte changed."""
    row = draw(_ROWS)
    pairs = list(row.items())
    if pairs and draw(st.booleans()):
        pairs.append(draw(st.sampled_from(pairs)))
    colon = draw(st.sampled_from([":", ": ", " :", "\t: "]))
    ascii_only = draw(st.booleans())
    body = ", ".join(f"{json.dumps(key)}{colon}{json.dumps(value, ensure_ascii=ascii_only)}" for key, value in pairs)
    if draw(st.booleans()):
        body = body.replace("\\r", "\\u000d").replace("\\n", "\\u000A")
    data = bytearray(f"{{{body}}}".encode())
    if data and draw(st.integers(0, 4)) == 0:
        data[draw(st.integers(0, len(data) - 1))] = draw(st.sampled_from(list(b'"\\,:{}[] a\xff\x00')))
    return bytes(data).replace(b"\n", b" ")


def agree(line: bytes) -> None:
    for kind in ("sft", "pretrain"):
        for times in (1, 9):
            assert quick(kind, line, times=times) in (None, careful(kind, line))


@settings(max_examples=40, deadline=None)
@given(lines())
def test_both_ways_agree_on_whatever_is_written(line: bytes) -> None:
    agree(line)


@pytest.mark.sweep
@settings(max_examples=5000, deadline=None)
@given(lines())
def test_both_ways_agree_at_length(line: bytes) -> None:
    agree(line)


@settings(max_examples=40, deadline=None)
@given(st.lists(lines(), min_size=1, max_size=12), st.integers(1, 4))
def test_lines_of_one_block_do_not_change_each_others_answers(rows: list[bytes], times: int) -> None:
    for kind in ("sft", "pretrain"):
        reader, many = QuickRows(kind), rows * times
        for _ in range(3):
            found = reader.fingerprints(b"\n".join([*many, b" " * 5000]))[: len(many)]
            for row, answer in zip(many, found, strict=True):
                assert answer in (None, careful(kind, row))


def good_chats(count: int) -> list[bytes]:
    turns = [[{"role": "user", "content": f"Is it {n}?"}, {"role": "assistant", "content": f"{n}."}] for n in range(count)]
    return [json.dumps({"messages": messages, "id": number}).encode() for number, messages in enumerate(turns)]


def test_faults_keep_their_line_numbers_between_quick_rows(tmp_path: Path) -> None:
    rows = good_chats(5000)
    rows[0] = b"\xef\xbb\xbf" + rows[0]
    rows[2500], rows[4321], rows[3000] = b"{oops}", b'{"messages": []}', b"  \r"
    prints: list[bytes] = []
    tally = scan_jsonl(BytesIO(b"\r\n".join(rows)), "sft", 1 << 20, prints.append)
    assert (tally.rows, tally.examples, tally.bad, tally.unusable) == (4999, 4997, 1, 1)
    assert (tally.bad_rows[0].line, tally.unusable_rows[0].line) == (2501, 4322)
    wanted = [careful("sft", row.removeprefix(b"\xef\xbb\xbf")) for row in rows]
    assert b"".join(prints) == b"".join(item for item in wanted if item is not None)


def test_a_line_too_long_and_a_last_line_cut_off_are_found_among_quick_rows() -> None:
    rows = good_chats(3000)
    rows[1500] = b'{"text": "' + b"x" * (3 << 20) + b'"}'
    tally = scan_jsonl(BytesIO(b"\n".join(rows) + b'\n{"messages": [{"role": "us'), "sft", 1 << 20, lambda _data: None)
    assert (tally.rows, tally.examples, tally.bad) == (3001, 2999, 2)
    assert tally.bad_rows[0].line == 1501 and "longer than" in tally.bad_rows[0].reason and tally.truncated_line == 3001


def test_repeats_within_a_file_are_counted() -> None:
    rows = good_chats(200)
    assert scan_jsonl(BytesIO(b"\n".join(rows + rows[:30] + rows[:10])), "sft", 1 << 20, lambda _data: None).duplicates == 40


@pytest.mark.parametrize("first", ["1", "0", "0.0", "1.0"])
def test_rows_that_differ_in_a_weight_are_told_apart(first: str) -> None:
    row = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": %s}, ' \
          '{"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]}'  # fmt: skip
    rows = [(row % weight).encode() for weight in [first] * 30 + ["0", "1", "0.0", "1.0", "2", "0.5", "true"] * 9]
    reader = QuickRows("sft")
    wanted = [careful("sft", line) for line in rows]
    for _again in range(2):
        found = reader.fingerprints(b"\n".join([*rows, b" " * 5000]))
        assert all(answer in (None, right) for answer, right in zip(found, wanted, strict=False))
    assert len(set(wanted)) == 3 and None in wanted
