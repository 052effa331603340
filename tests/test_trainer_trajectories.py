"""Session logs of several programs as rows with tool calls: the same session gives the same row, unfinished ones none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.errors import DataFault, NotFound, UsageError
from trainer.trajectories.make import make_trajectories
from trainer.trajectories.session import NO_TOOLS

ROW = {
    "messages": [
        {"role": "user", "content": "Fix the failing test."},
        {"role": "assistant", "content": "", "thinking": "Look first.",
         "tool_calls": [{"id": "1", "name": "run_tests", "arguments": {"cmd": "cargo test", "jobs": 2}}]},
        {"role": "tool", "tool_call_id": "1", "content": "FAILED: test_parse"},
        {"role": "assistant", "content": "I mend it.", "tool_calls": [{"id": "2", "name": "edit", "arguments": {"line": 3}}]},
        {"role": "tool", "tool_call_id": "2", "content": "done"},
        {"role": "assistant", "content": "The issue was line 3."},
    ]
}  # fmt: skip
ARGUMENTS = '{"cmd": "cargo test", "jobs": 2}'


def openai_row() -> list[dict[str, Any]]:
    """A whole session in a row, calls nested as OpenAI has them."""
    calls = [{"id": "call_abc", "type": "function", "function": {"name": "run_tests", "arguments": ARGUMENTS}}]
    more = [{"id": "call_def", "type": "function", "function": {"name": "edit", "arguments": '{"line":3}'}}]
    return [{"messages": [
        {"role": "user", "content": "Fix the failing test."},
        {"role": "assistant", "content": None, "reasoning_content": "Look first.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_abc", "content": [{"type": "text", "text": "FAILED: test_parse"}]},
        {"role": "assistant", "content": "I mend it.", "tool_calls": more},
        {"role": "tool", "tool_call_id": "call_def", "content": "done"},
        {"role": "assistant", "content": "The issue was line 3."},
    ]}]  # fmt: skip


def block_events(session: str = "s1") -> list[dict[str, Any]]:
    """Event by event with content blocks, as Claude Code logs, with lines that are no part of what was said."""
    def event(kind: str, *blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"type": kind, "sessionId": session, "message": {"role": kind, "content": list(blocks)}, **more}

    return [
        {"type": "file-history-snapshot", "messageId": "m"},
        {"type": "user", "sessionId": session, "message": {"role": "user", "content": "Fix the failing test."}},
        event("user", {"type": "text", "text": "injected"}, isMeta=True),
        event("assistant", {"type": "thinking", "thinking": "Look first.", "signature": "x"}),
        event("assistant", {"type": "tool_use", "id": "toolu_1", "name": "run_tests", "input": {"cmd": "cargo test", "jobs": 2}}),
        event("user", {"type": "tool_result", "tool_use_id": "toolu_1", "content": "FAILED: test_parse"}),
        event("assistant", {"type": "text", "text": "a helper's words"}, isSidechain=True),
        event("assistant", {"type": "text", "text": "I mend it."}),
        event("assistant", {"type": "tool_use", "id": "toolu_2", "name": "edit", "input": {"line": 3}}),
        event("user", {"type": "tool_result", "tool_use_id": "toolu_2", "content": [{"type": "text", "text": "done"}]}),
        {"type": "system", "subtype": "turn_duration", "content": "5 s", "sessionId": session},
        event("assistant", {"type": "text", "text": "The issue was line 3."}),
    ]


def item_events() -> list[dict[str, Any]]:
    """Items of a responses interface, as Codex logs them."""
    def item(**payload: Any) -> dict[str, Any]:
        return {"timestamp": "2026-01-01T00:00:00Z", "type": "response_item", "payload": payload}

    return [
        {"type": "session_meta", "payload": {"id": "x", "cwd": "/"}},
        item(type="message", role="user", content=[{"type": "input_text", "text": "Fix the failing test."}]),
        {"type": "event_msg", "payload": {"type": "user_message", "message": "Fix the failing test."}},
        item(type="reasoning", summary=[{"type": "summary_text", "text": "Look first."}], encrypted_content="gAAA"),
        item(type="function_call", name="run_tests", arguments=ARGUMENTS, call_id="c1"),
        item(type="function_call_output", call_id="c1", output="FAILED: test_parse"),
        item(type="message", role="assistant", content=[{"type": "output_text", "text": "I mend it."}]),
        item(type="function_call", name="edit", arguments='{"line": 3}', call_id="c2"),
        item(type="function_call_output", call_id="c2", output={"content": "done", "success": True}),
        item(type="message", role="assistant", content=[{"type": "output_text", "text": "The issue was line 3."}]),
    ]


def simple_events() -> list[dict[str, Any]]:
    """One flat event a line, without ids."""
    return [
        {"type": "user", "content": "Fix the failing test."}, {"type": "thinking", "text": "Look first."},
        {"type": "tool_use", "name": "run_tests", "input": {"cmd": "cargo test", "jobs": 2}},
        {"type": "tool_result", "content": "FAILED: test_parse"}, {"role": "assistant", "content": "I mend it."},
        {"type": "tool_call", "name": "edit", "arguments": {"line": 3}}, {"type": "tool_result", "output": "done"},
        {"type": "assistant", "content": "The issue was line 3."},
    ]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("log", [openai_row, block_events, item_events, simple_events])
def test_every_spelling_of_a_session_gives_the_same_row(log: Any, scratch: Path) -> None:
    report = make_trajectories([write(scratch / "log.jsonl", log())], scratch / "out")
    assert rows_of(scratch / "out" / "trajectories.jsonl") == [ROW]
    assert (report["sessions"], report["rows"], report["left_out"]) == (1, 1, {})


def test_a_session_told_twice_is_written_once_and_two_runs_give_the_same_bytes(scratch: Path) -> None:
    logs = [write(scratch / f"{log.__name__}.jsonl", log()) for log in (openai_row, block_events, item_events, simple_events)]
    report = make_trajectories(logs, scratch / "a.jsonl")
    make_trajectories(logs, scratch / "b.jsonl")
    assert report["rows"] == 1 and report["repeated"] == 3
    assert (scratch / "a.jsonl").read_bytes() == (scratch / "b.jsonl").read_bytes()
    with pytest.raises(UsageError, match="exists"):
        make_trajectories(logs, scratch / "a.jsonl")


def session(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "9", "name": "ls", "arguments": "{}"}]}
RESULT = {"role": "tool", "tool_call_id": "9", "content": "files"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (session(USER, CALL), "a tool call was never answered"),
        (session(USER, CALL, USER, ANSWER), "a tool call was never answered"),
        (session(USER, CALL, RESULT), "no final answer"),
        (session(USER, CALL, RESULT, ANSWER, USER), "no final answer"),
        (session(USER, ANSWER), NO_TOOLS),
        (session(CALL, RESULT, ANSWER), "it does not begin with the user"),
        (session(USER, RESULT, ANSWER), "an answer of a tool that was not called"),
        (session(USER, CALL | {"tool_calls": [{"id": "1", "name": "ls", "arguments": "[1]"}]}), "no JSON object"),
        (session(USER, CALL | {"tool_calls": [{"id": "1", "name": "ls", "arguments": '{"a": NaN}'}]}), "no JSON object"),
        (session({"role": "user", "content": [{"type": "image", "source": {}}]}, ANSWER), "no text"),
        (session({"role": "narrator", "content": "x"}), "unknown role 'narrator'"),
    ],
)
def test_an_unfinished_or_odd_session_is_left_out_with_its_reason(row: dict[str, Any], reason: str, scratch: Path) -> None:
    log = write(scratch / "log.jsonl", [row, session(USER, CALL, RESULT, ANSWER)])
    report = make_trajectories([log], scratch / "out.jsonl")
    assert report["rows"] == 1 and sum(report["left_out"].values()) == 1
    assert reason in report["listed"][0]["reason"] and report["listed"][0]["line"] == 1
    with pytest.raises(DataFault, match="no session"):
        make_trajectories([write(scratch / "only.jsonl", [row])], scratch / "none.jsonl")
    assert not (scratch / "none.jsonl").exists()


def test_sessions_are_told_apart_and_the_first_ones_are_taken_in_order(scratch: Path) -> None:
    lines = []
    for pair in zip(block_events("a"), block_events("b"), strict=True):
        lines += pair
    for number, event in enumerate(lines):
        if event.get("type") == "user" and isinstance(event["message"]["content"], str):
            lines[number] = event | {"message": {"role": "user", "content": f"Task of {event['sessionId']}"}}
    log = write(scratch / "log.jsonl", [*lines, session(USER, CALL, RESULT, ANSWER)])
    make_trajectories([log], scratch / "all.jsonl")
    asked = [row["messages"][0]["content"] for row in rows_of(scratch / "all.jsonl")]
    assert asked == ["q", "Task of a", "Task of b"]
    assert make_trajectories([log], scratch / "two.jsonl", max_samples=2)["rows"] == 2
    assert rows_of(scratch / "two.jsonl") == rows_of(scratch / "all.jsonl")[:2]


def test_calls_at_the_same_time_are_one_turn_and_heads_are_kept(scratch: Path) -> None:
    both = CALL | {"tool_calls": [{"id": "x", "name": "ls", "arguments": {}}, {"id": "y", "name": "cat", "arguments": {}}]}
    results = [RESULT | {"tool_call_id": name, "content": name} for name in ("y", "x")]
    row = session({"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Rust."}, USER, both, *results,
                  ANSWER, tools=[{"type": "function", "function": {"name": "ls", "parameters": {}}},
                                 {"type": "function", "function": {"name": "cat", "parameters": {}}}])  # fmt: skip
    make_trajectories([write(scratch / "log.jsonl", [row])], scratch / "out.jsonl")
    found = rows_of(scratch / "out.jsonl")[0]
    assert (found["system"], found["developer"], len(found["tools"])) == ("Be brief.", "Rust.", 2)
    assert [turn.get("tool_call_id") for turn in found["messages"] if turn["role"] == "tool"] == ["2", "1"]


def test_plain_chats_only_when_asked_and_bad_lines_are_counted(scratch: Path) -> None:
    log = write(scratch / "log.jsonl", [session(USER, ANSWER)])
    log.write_bytes(log.read_bytes() + b'{"type": "user", "cont')
    report = make_trajectories([log], scratch / "out.jsonl", plain=True)
    assert report["rows"] == 1 and report["bad_lines"] == 1
    with pytest.raises(NotFound):
        make_trajectories([scratch / "none"], scratch / "x.jsonl")
    with pytest.raises(UsageError, match="form"):
        make_trajectories([log], scratch / "y.jsonl", form="xml")


def test_text_is_simplified_harmony(scratch: Path) -> None:
    make_trajectories([write(scratch / "log.jsonl", openai_row())], scratch / "out.jsonl", form="text")
    (row,) = rows_of(scratch / "out.jsonl")
    assert list(row) == ["text"] and row["text"].startswith("<|user|>") and row["text"].endswith("<|endoftext|>")
    tags = ("<|thinking|>", "<|tool_call|>", "<|tool_result|>", "<|assistant|>")
    assert [row["text"].count(tag) for tag in tags] == [1, 2, 2, 2]
