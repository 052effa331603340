"""OpenAI's own Harmony, the format of GPT-OSS: system and developer blocks, channels, recipients, `<|end|> <|return|> <|call|>`.

Thinking goes to the channel analysis, a tool call to commentary with its recipient, what is said before a call to commentary
too, an answer to final. A system text of a row is what Harmony calls the developer's instructions; its own system block says
who the model is, and its date stands still. Learnt is what the assistant makes after `<|start|>assistant`; the last answer of
a conversation ends with `<|return|>`, all others with `<|end|>`. Thoughts before the last answer are left out where a prompt
is rendered, and kept for training. Source: the published guide; checked against its renderings.
Not here: reading such text (`harmony_read.py`), types of tools (`typescript.py`).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from typing import Any

from guard.errors import UsageError
from trainer.templates.base import FROZEN_DATE, Example, Part, Template, joined, unlearnt
from trainer.templates.conversation import Call, Conversation, Turn, read_conversation
from trainer.templates.harmony_jinja import harmony_jinja
from trainer.templates.typescript import functions_section

__all__ = ["EFFORTS", "HARMONY_TOKENS", "HarmonyTemplate"]

HARMONY_TOKENS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")
EFFORTS = ("low", "medium", "high")
_TOOLS_HEADING = "# Tools\n"
_NAMESPACE = "functions."
_OF_A_BLOCK = ("\nKnowledge cutoff: ", "\n# Valid channels: ")


def is_system_block(text: str) -> bool:
    """Whether a row's system text is Harmony's own block, as in rows that were rendered before: it stands for ours then."""
    return all(words in text for words in _OF_A_BLOCK)


def _control(name: str, trained: bool) -> Part:
    return Part(name, name, trained)


def _message(header: list[Part], body: str | list[Part], end: str, *, trained: bool = False, opened: bool = True) -> list[Part]:
    """One message; `opened`: `<|start|>assistant` is the prompt's and is not learnt."""
    first = trained and not opened
    head = [_control("<|start|>", first), *(dataclasses.replace(part, trained=first) for part in header[:1]),
            *(dataclasses.replace(part, trained=trained) for part in header[1:])]  # fmt: skip
    content = body if isinstance(body, list) else [Part(body, None, trained)]
    return [*head, _control("<|message|>", trained), *content, _control(end, trained)]


def _channel(name: str, recipient: str = "", constrain: bool = False) -> list[Part]:
    """The header of an assistant's message."""
    parts = [Part("assistant"), *([Part(f" to={recipient}")] if recipient else []), _control("<|channel|>", False)]
    return [*parts, Part(f"{name} "), _control("<|constrain|>", False), Part("json")] if constrain else [*parts, Part(name)]


def _function(name: str) -> str:
    """The address of a tool; many rows write the namespace into the name already."""
    return f"{_NAMESPACE}{name.removeprefix(_NAMESPACE)}"


def _call(call: Call, opened: bool) -> list[Part]:
    try:
        json.loads(call.arguments)
        is_json = True
    except ValueError:
        is_json = False
    return _message(_channel("commentary", _function(call.name), is_json), call.arguments, "<|call|>", trained=True,
                    opened=opened)  # fmt: skip


def _assistant(turn: Turn, end: str) -> list[Part]:
    """Thinking, then what is said, then the calls; each begins a message of its own."""
    parts: list[Part] = []
    if turn.thinking:
        parts += _message(_channel("analysis"), turn.thinking, "<|end|>", trained=True)
    if turn.calls:
        if turn.content:
            parts += _message(_channel("commentary"), turn.content, "<|end|>", trained=True, opened=not parts)
        for number, call in enumerate(turn.calls):
            # Behind <|call|> the model has stopped: the next message is opened for it.
            parts += _call(call, opened=not parts or number > 0)
    elif turn.content or not turn.thinking:
        parts += _message(_channel("final"), turn.content, end, trained=True, opened=not parts)
    return parts


class HarmonyTemplate(Template):
    """Real Harmony. `date` (YYYY-MM-DD, or "" for none) and `effort` (low, medium, high) stand in the system block.

    Raises UsageError for another effort or what is no date.
    """

    name = "harmony"
    special_tokens = HARMONY_TOKENS
    stop_names = ("<|return|>", "<|call|>")

    def __init__(self, date: str = FROZEN_DATE, effort: str = "medium", cutoff: str = "2024-06",
                 identity: str = "You are ChatGPT, a large language model trained by OpenAI.",
                 channels: tuple[str, ...] | list[str] = ("analysis", "commentary", "final")) -> None:  # fmt: skip
        if effort not in EFFORTS:
            raise UsageError(f"unknown reasoning effort {effort!r}", subject="effort", hint=f"one of {', '.join(EFFORTS)}")
        if date:
            try:
                datetime.date.fromisoformat(date)
            except ValueError as error:
                raise UsageError(f"{date!r} is no date", subject="date", hint="such as 2025-06-28") from error
        self.date, self.effort, self.cutoff, self.identity = date, effort, cutoff, identity
        self.channels = tuple(channels)

    @property
    def options(self) -> dict[str, Any]:
        return {"date": self.date, "effort": self.effort, "cutoff": self.cutoff, "identity": self.identity,
                "channels": list(self.channels)}  # fmt: skip

    def jinja(self) -> str:
        return harmony_jinja(self.system_text(False))

    def system_text(self, tools: bool) -> str:
        """The system block."""
        today = [f"Current date: {self.date}"] if self.date else []
        lines = [self.identity, f"Knowledge cutoff: {self.cutoff}", *today, "", f"Reasoning: {self.effort}", "",
                 f"# Valid channels: {', '.join(self.channels)}. Channel must be included for every message."]  # fmt: skip
        if tools:
            lines.append("Calls to these tools must go to the commentary channel: 'functions'.")
        return "\n".join(lines)

    def _head(self, talk: Conversation) -> list[Part]:
        block = talk.system if is_system_block(talk.system) else ""
        wanted = "\n\n".join(text for text in ("" if block else talk.system, talk.developer) if text)
        text = wanted if not wanted or wanted.startswith(_TOOLS_HEADING) else f"# Instructions\n\n{wanted}"
        if talk.tools:
            text += ("\n\n" if text else "") + f"{_TOOLS_HEADING}\n{functions_section(talk.tools)}"
        # Tools may also stand in a developer text that was rendered before.
        has_tools = bool(talk.tools) or f"{_TOOLS_HEADING}\n## functions" in wanted
        parts = _message([Part("system")], block or self.system_text(has_tools), "<|end|>")
        body = [Part(text)] if text else []
        body += [Part(f"\n\n{talk.context}\n" if text else f"\n{talk.context}\n", cuttable=True)] if talk.context else []
        return parts + (_message([Part("developer")], body, "<|end|>") if body else [])

    def _turn(self, talk: Conversation, number: int, end: str) -> list[Part]:
        turn = talk.turns[number]
        if turn.role == "assistant":
            parts = _assistant(turn, end)
            return parts if turn.learnt else unlearnt(parts)
        if turn.role == "tool":
            header = [Part(_function(talk.called(number))), Part(" to=assistant"), _control("<|channel|>", False),
                      Part("commentary")]  # fmt: skip
            return _message(header, turn.content, "<|end|>")
        return _message([Part("user")], turn.content, "<|end|>")

    def parts(self, example: Example) -> list[Part]:
        talk = read_conversation(example)
        last = len(talk.turns) - 1
        parts = self._head(talk)
        for number in range(len(talk.turns)):
            parts += self._turn(talk, number, "<|return|>" if number == last else "<|end|>")
        return joined(parts)

    def prompt_parts(self, example: Example) -> list[Part]:
        talk = without_old_thoughts(read_conversation(example))
        parts = self._head(talk)
        for number in range(len(talk.turns)):
            parts += self._turn(talk, number, "<|end|>")
        return unlearnt(joined([*parts, _control("<|start|>", False), Part("assistant")]))

    def answer(self, generated: str) -> str:
        """The text of the channel final, else of the last message there is."""
        messages = generated.split("<|start|>assistant")
        final = [text for text in messages if text.startswith("<|channel|>final<|message|>")]
        text = (final or messages)[-1]
        for end in ("<|end|>", "<|return|>", "<|call|>"):
            text = text.split(end)[0]
        return text.split("<|message|>")[-1]


def without_old_thoughts(talk: Conversation) -> Conversation:
    """The conversation for a prompt: thoughts up to the last final answer are left out, those of an open turn stay."""
    finals = [number for number, turn in enumerate(talk.turns) if turn.role == "assistant" and turn.content and not turn.calls]
    last = finals[-1] if finals else -1
    turns = [dataclasses.replace(turn, thinking="") if number <= last else turn for number, turn in enumerate(talk.turns)]
    kept = tuple(turn for turn in turns if turn.role != "assistant" or turn.content or turn.calls or turn.thinking)
    return dataclasses.replace(talk, turns=kept)
