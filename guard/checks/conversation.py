"""A list of turns as a conversation: what stands before the first user turn, whose turn it is, which call a result answers.

System and developer come first, each once; then user and assistant in turn. After an assistant turn with calls the tool
speaks, at most once for each call, and the assistant again. A whole conversation ends with the assistant, the beginning
of one (a prefix) with the user. Not here: single turns (`turns.py`) and the other fields of a row (`sft_rows.py`).
"""

from __future__ import annotations

from typing import Any

from guard.checks.field_faults import below
from guard.checks.jsonl import Fault
from guard.checks.turns import Turn, read_turn

__all__ = ["FRAME", "read_conversation"]

FRAME = ("system", "developer")


def read_conversation(messages: Any, *, ends_with: str = "assistant") -> tuple[dict[str, str], list[Turn], list[Fault]]:
    """(the system and developer text that stand before it, the turns, what is wrong); `ends_with` assistant or user."""
    if not isinstance(messages, list):
        return {}, [], [Fault("messages", "Field 'messages' must be a list", "a list of user and assistant turns")]
    if not messages:
        return {}, [], [Fault("messages", "Field 'messages' is empty", "a list of user and assistant turns")]
    turns: list[Turn] = []
    faults: list[Fault] = []
    for place, message in enumerate(messages):
        turn = read_turn(message)
        if isinstance(turn, list):
            faults += below(f"messages[{place}]", turn)
        else:
            turns.append(turn)
    if faults:
        return {}, [], faults
    frame: dict[str, str] = {}
    for turn in turns[:2]:
        if turn["role"] not in FRAME or turn["role"] in frame:
            break
        frame[turn["role"]] = turn["content"]
    fault = _order_fault(turns, len(frame), ends_with) or _answer_fault(turns)
    return (frame, turns[len(frame) :], []) if fault is None else ({}, [], [fault])


def _order_fault(turns: list[Turn], start: int, ends_with: str) -> Fault | None:
    """The first turn that is not whose turn it is. `start`: how many turns are system or developer."""
    if start == len(turns):
        return Fault("messages", f"there is only a {turns[0]['role']} turn", "a user turn and an assistant turn")
    before = ""
    for place in range(start, len(turns)):
        role = turns[place]["role"]
        reason, expected = "", ""
        if role in FRAME:
            reason, expected = f"a {role} turn after the first turn", f"{role} first only"
        elif role == "tool":
            if before != "tool" and not (before == "assistant" and turns[place - 1].get("tool_calls")):
                reason, expected = "a tool turn and no call before it", "an assistant turn with tool_calls before it"
        elif role == before:
            reason, expected = f"two turns from the {role} in a row", "user and assistant in turn"
        elif role == "user" and before == "tool":
            reason, expected = "a user turn after a tool turn", "an assistant turn after the tool's"
        if reason:
            return Fault(f"messages[{place}].role", reason, expected)
        before = role
    if turns[start]["role"] == "assistant":
        return Fault(f"messages[{start}].role", "the first turn is from the assistant", "a user turn first")
    if before != ends_with:
        expected = "an answer at the end" if ends_with == "assistant" else "a user turn at the end"
        return Fault(f"messages[{len(turns) - 1}].role", f"the last turn is from the {before}", expected)
    return None


def _answer_fault(turns: list[Turn]) -> Fault | None:
    """The first tool turn that answers no open call. Where its id says which call it answers, its name says nothing more."""
    calls: list[dict[str, str]] = []
    for place, turn in enumerate(turns):
        if turn["role"] == "assistant":
            calls = list(turn.get("tool_calls", ()))
        if turn["role"] != "tool":
            continue
        identity, name = turn.get("tool_call_id"), turn.get("name")
        by_id = identity is not None and any("id" in call for call in calls)
        key, told = ("tool_call_id", identity) if by_id else ("name", name)
        fitting = [call for call in calls if told is None or call.get("id" if by_id else "name") == told]
        if not calls:
            return Fault(f"messages[{place}].role", "more tool turns than calls", "one for each call")
        if not fitting:
            return Fault(f"messages[{place}].{key}", f"no open call before it has the {key.removeprefix('tool_call_')} "
                         f"{str(told)[:40]!r}", "that of a call of the assistant turn before")  # fmt: skip
        if by_id and name is not None:
            if fitting[0]["name"] != name:
                return Fault(f"messages[{place}].name", f"the call it answers is to {fitting[0]['name'][:40]!r}", "the same name")
            del turn["name"]
        calls.remove(fitting[0])
    return None
