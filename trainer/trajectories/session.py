"""The pieces of one session as a conversation with tool calls, or the reason why it is none.

Calls are numbered `1`, `2`, ... in place of the ids a log invents, so that the same session told twice is the same row.
What one speaker adds in a row becomes one turn. A session is used only when it is finished: every call answered, and the
assistant's answer at its end. Not here: reading logs (`events.py`) and writing rows (`make.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from guard.checks.rows import validate
from trainer.trajectories.events import Piece

__all__ = ["NO_TOOLS", "row_of"]

NO_TOOLS = "no tool was used"


class _Refused(Exception):
    """The session is no trajectory; the reason is its message."""


class _Session:
    """A conversation that grows piece by piece."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.head: dict[str, list[str]] = {"system": [], "developer": []}
        self.open: dict[str, str] = {}  # the log's id of a call that waits for its answer -> our number
        self.calls = 0

    def add(self, piece: Piece) -> None:
        """Take one piece. Raises _Refused."""
        if piece.kind in self.head:
            self._add_head(piece)
        elif piece.kind == "user":
            self._add_user(piece)
        elif piece.kind == "result":
            self._add_result(piece)
        else:
            self._add_assistant(piece)

    def _add_head(self, piece: Piece) -> None:
        if any(turn["role"] == "assistant" for turn in self.messages):
            raise _Refused(f"a {piece.kind} turn in the middle")
        if piece.text.strip():
            self.head[piece.kind].append(piece.text)

    def _add_user(self, piece: Piece) -> None:
        if not piece.text.strip():
            return
        self._all_answered()
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages[-1]["content"] += f"\n\n{piece.text}"
        else:
            self.messages.append({"role": "user", "content": piece.text})

    def _add_result(self, piece: Piece) -> None:
        known = piece.identity if piece.identity else next(iter(self.open), "")
        if known not in self.open:
            raise _Refused("an answer of a tool that was not called")
        self.messages.append({"role": "tool", "tool_call_id": self.open.pop(known), "content": piece.text})

    def _add_assistant(self, piece: Piece) -> None:
        if piece.kind != "call" and not piece.text.strip():
            return
        if not self.messages:
            raise _Refused("it does not begin with the user")
        if self.messages[-1]["role"] != "assistant":
            self._all_answered()
            self.messages.append({"role": "assistant", "content": ""})
        turn = self.messages[-1]
        if piece.kind == "call":
            self.calls += 1
            self.open[piece.identity or f"call {self.calls}"] = str(self.calls)
            call = {"id": str(self.calls), "name": piece.name, "arguments": piece.arguments or {}}
            turn.setdefault("tool_calls", []).append(call)
            return
        key = "thinking" if piece.kind == "thinking" else "content"
        turn[key] = f"{turn[key]}\n\n{piece.text}" if turn.get(key) else piece.text

    def _all_answered(self) -> None:
        if self.open:
            raise _Refused("a tool call was never answered")

    def finished(self, *, plain: bool) -> dict[str, Any]:
        """The row. Raises _Refused for a session that is not finished."""
        self._all_answered()
        if not self.messages:
            raise _Refused("nothing was said")
        last = self.messages[-1]
        if last["role"] != "assistant" or last.get("tool_calls") or not last["content"].strip():
            raise _Refused("no final answer")
        if not self.calls and not plain:
            raise _Refused(NO_TOOLS)
        return {key: "\n\n".join(texts) for key, texts in self.head.items() if texts} | {"messages": self.messages}


def row_of(pieces: Iterable[Piece], *, tools: Any = None, plain: bool = False) -> dict[str, Any] | str:
    """The row {"messages", "system"?, "developer"?, "tools"?} of a session, or why there is none.

    `tools`: the definitions of the tools it had; `plain`: also a session in which none was used.
    """
    session = _Session()
    try:
        for piece in pieces:
            session.add(piece)
        row = session.finished(plain=plain) | ({"tools": tools} if tools else {})
        json.dumps(row, ensure_ascii=False).encode()
    except _Refused as refused:
        return str(refused)
    except UnicodeEncodeError:
        return "half a character (a lone surrogate)"
    judged = validate("sft", row)
    return f"{judged[0].field}: {judged[0].reason}" if isinstance(judged, list) else row
