"""A model's own chat template (Jinja2) as one of our templates: masks from its structure, contents never control tokens.

Every text of a conversation is rendered twice: as it is, and as a mark that stands for it. Only where both renderings are
the same but for the marks is it proven which characters are the template's and which are the record's; all else is refused
with the reason. What the assistant makes is what stands in `generation` blocks, else what lies between the prompt for a turn
and the end of that turn, both rendered by the template itself. Not here: the sandbox (`jinja_bounds.py`), token ids.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from guard.errors import CheckFailed
from trainer.templates.base import FROZEN_DATE, Example, Inexpressible, Part, Template, joined, unlearnt
from trainer.templates.conversation import Conversation, Turn, read_conversation
from trainer.templates.jinja_bounds import GENERATED_CLOSE, GENERATED_OPEN, environment_of
from trainer.templates.marks import Marks, Slot, matched, trained_places

__all__ = ["ChatTemplate"]

_PROBE: Example = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"},
                                {"role": "user", "content": "v"}, {"role": "assistant", "content": "b"}]}  # fmt: skip


class ChatTemplate(Template):
    """The template of a Hugging Face tokenizer folder.

    `source`: the Jinja text; `tokens`: eos_token and the like; `controls`: all control tokens of the tokenizer; `date`: today,
    for ever. Raises CheckFailed when the text cannot be used for training.
    """

    name = "chat_template"

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None, controls: Iterable[str] = (),
                 date: str = FROZEN_DATE) -> None:  # fmt: skip
        self.source, self.tokens, self.date = source, dict(tokens or {}), date
        self.controls = tuple(sorted(controls))
        longest = sorted(self.controls, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest))) if longest else None
        try:
            self._environment = environment_of(date)
            self._compiled = self._environment.from_string(source)
            probe = self.parts(_PROBE)
        except (TemplateError, ValueError, Inexpressible) as error:
            raise CheckFailed(f"the chat template cannot be used for training: {error}", subject=self.name,
                              hint="--template mypt, or another tokenizer") from error  # fmt: skip
        ends = [part.control for part in probe if part.control and part.trained]
        eos = self.tokens.get("eos_token", "")
        self.stop_names = tuple(dict.fromkeys([*ends[-1:], *([eos] if eos in self.controls else [])]))

    @property
    def options(self) -> dict[str, Any]:
        return {"date": self.date, "tokens": self.tokens, "controls": list(self.controls),
                "source_sha256": hashlib.sha256(self.source.encode()).hexdigest()}  # fmt: skip

    def jinja(self) -> str:
        return self.source

    def parts(self, example: Example) -> list[Part]:
        talk = read_conversation(example)
        marks = Marks(self._texts_of(talk), self.source)
        shape, made = self._made(talk, marks, prompt=False)
        return self._parts(talk, marks, shape, made, prompt=False)

    def prompt_parts(self, example: Example) -> list[Part]:
        talk = read_conversation(example)
        marks = Marks(self._texts_of(talk), self.source)
        try:
            shape, made = self._made(talk, marks, prompt=True)
        except Inexpressible:
            # Nobody can be trained on such a conversation; how its texts are cut is free then.
            shape, made = self._rendered(talk, _messages(talk, marks.mark), prompt=True), []
        return unlearnt(self._parts(talk, marks, shape, made, prompt=True))

    # --- rendering ---------------------------------------------------------------------------------------------------

    def _texts_of(self, talk: Conversation) -> dict[Slot, str]:
        """Every text that stands for itself; tools and calls become JSON and must be free of control tokens instead."""
        for where, text in _json_texts(talk):
            found = self._control.search(text) if self._control else None
            if found:
                raise Inexpressible(f"{where} contains the control token {found.group()}", subject=where)
        texts = {(-1, "system"): talk.system, (-1, "developer"): talk.developer, (-1, "context"): talk.context}
        for number, turn in enumerate(talk.turns):
            texts |= {(number, "content"): turn.content, (number, "thinking"): turn.thinking}
        return {slot: text for slot, text in texts.items() if text}

    def _rendered(self, talk: Conversation, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False,
                  generated: bool = False) -> str:  # fmt: skip
        tools = [{"type": "function", "function": dict(tool)} for tool in talk.tools] or None
        values = {**self.tokens, "messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt,
                  "marks_generated": generated}  # fmt: skip
        try:
            return self._environment.rendered(self._compiled, values)
        except TemplateError as error:
            raise Inexpressible(f"the model's chat template refuses it: {error}", subject="messages") from error
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
            raise Inexpressible(f"the model's chat template fails on it: {error}", subject="messages") from error

    def _made(self, talk: Conversation, marks: Marks, *, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        """The rendering with marks, and where the assistant's turns lie in it."""
        messages = _messages(talk, marks.mark)
        shape = self._rendered(talk, messages, prompt=prompt, generated=True)
        if GENERATED_OPEN not in shape:
            return shape, self._turns_of(talk, messages, shape)
        shape, spans = _generated(shape)
        return shape, spans if prompt else _learnt_spans(talk, marks, shape, spans)

    def _turns_of(self, talk: Conversation, messages: Sequence[Mapping[str, Any]], shape: str) -> list[tuple[int, int]]:
        """Where the assistant's turns lie in `shape`: from the end of the prompt for each to its own end."""
        offset = len(messages) - len(talk.turns)
        found = []
        for number, turn in enumerate(talk.turns):
            if turn.role != "assistant" or not turn.learnt:
                continue
            place = offset + number
            before = self._rendered(talk, messages[:place], prompt=True)
            if not shape.startswith(before):
                raise Inexpressible("the model's chat template writes the words before an answer differently once the answer is"
                                    " there", subject=f"messages[{number}]")  # fmt: skip
            end = self._end_of(talk, messages, place, turn, shape)
            found.append((len(before), max(end, len(before))))
        return found

    def _end_of(self, talk: Conversation, messages: Sequence[Mapping[str, Any]], place: int, turn: Turn, shape: str) -> int:
        """The end of a turn: behind its end token, without the white space that only joins it to the next."""
        until = self._rendered(talk, messages[: place + 1])
        if not shape.startswith(until):
            # Some templates write the last turn differently (an empty thought before it): then the turn ends with the
            # first control token behind its text.
            content = messages[place].get("content")
            if not content or turn.calls:
                raise Inexpressible("the model's chat template writes a turn differently when others follow it",
                                    subject=f"messages[{place}]")  # fmt: skip
            start = shape.index(content) + len(content)
            close = self._control.search(shape, start) if self._control else None
            return close.end() if close else start
        kept = until.rstrip()
        ends = any(kept.endswith(name) for name in self.controls)
        return len(kept) if ends else len(until)

    # --- parts ---------------------------------------------------------------------------------------------------------

    def _parts(self, talk: Conversation, marks: Marks, shape: str, trained: Sequence[tuple[int, int]], *,
               prompt: bool) -> list[Part]:  # fmt: skip
        real = self._rendered(talk, _messages(talk, lambda slot: marks.texts.get(slot, "")), prompt=prompt)
        pieces = matched(marks, shape, real)
        self._refuse_left_out(marks, {piece.slot for piece in pieces if piece.slot})
        parts: list[Part] = []
        for piece in pieces:
            if piece.slot:
                learnt = bool(trained_places(trained, piece.start, piece.start + 1)[0][2])
                parts.append(Part(piece.text, None, learnt, piece.slot[1] == "context"))
                continue
            for start, end, learnt in trained_places(trained, piece.start, piece.start + len(piece.text)):
                parts += self._split(piece.text[start - piece.start : end - piece.start], learnt)
        return joined(parts)

    def _split(self, text: str, learnt: bool) -> list[Part]:
        """The template's own text, its control tokens told apart."""
        parts, position = [], 0
        for found in self._control.finditer(text) if self._control else ():
            parts += [Part(text[position : found.start()], None, learnt), Part(found.group(), found.group(), learnt)]
            position = found.end()
        return [*parts, Part(text[position:], None, learnt)]

    def _refuse_left_out(self, marks: Marks, said: set[Slot | None]) -> None:
        """A template may forget thoughts of earlier turns; anything else that it leaves out is refused."""
        left = [slot for slot in marks.texts if slot not in said]
        thoughts = [slot for slot in marks.texts if slot[1] == "thinking"]
        for number, field in left:
            where = field if number < 0 else f"messages[{number}].{field}"
            if field != "thinking" or not any(slot in said for slot in thoughts):
                raise Inexpressible(f"the model's chat template leaves out {where}", subject=where)


def _json_texts(talk: Conversation) -> Iterable[tuple[str, str]]:
    """What a template is given of tools and calls: as it was written, and every text in it as JSON reads it (`\\u003c`)."""
    for tool in talk.tools:
        yield from (("tools", text) for text in _leaves(tool))
    for number, turn in enumerate(talk.turns):
        for call in turn.calls:
            where = f"messages[{number}].tool_calls"
            yield where, f"{call.name} {call.id} {call.arguments}"
            yield from ((where, text) for text in _leaves(_arguments(call.arguments)))
        if turn.name or turn.call_id:
            yield f"messages[{number}]", f"{turn.name} {turn.call_id}"


def _leaves(value: Any) -> Iterable[str]:
    """Every text of a JSON value, names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield name
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)


def _messages(talk: Conversation, text: Any) -> list[dict[str, Any]]:
    """The conversation as `transformers` hands it to templates; `text(slot)` gives what stands for each text."""
    head = [text((-1, name)) for name in ("system", "developer", "context") if getattr(talk, name)]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "\n\n".join(head)}] if head else []
    for number, turn in enumerate(talk.turns):
        message: dict[str, Any] = {"role": turn.role, "content": text((number, "content")) if turn.content else ""}
        if turn.thinking:
            message |= {"thinking": text((number, "thinking")), "reasoning_content": text((number, "thinking"))}
        if turn.calls:
            message["tool_calls"] = [{"id": call.id, "type": "function",
                                      "function": {"name": call.name, "arguments": _arguments(call.arguments)}}
                                     for call in turn.calls]  # fmt: skip
        if turn.role == "tool":
            message |= {"tool_call_id": turn.call_id, "name": talk.called(number)}
        messages.append(message)
    return messages


def _arguments(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict) else text


def _learnt_spans(talk: Conversation, marks: Marks, shape: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The `generation` blocks without those of turns that are not learnt. Raises Inexpressible where it is not plain whose
    a block is."""
    turns = [number for number, turn in enumerate(talk.turns) if turn.role == "assistant"]
    if all(talk.turns[number].learnt for number in turns):
        return spans
    places = [(piece.start, piece.slot[0]) for piece in marks.split(shape) if piece.slot]
    spoken = [{number for place, number in places if first <= place < last} for first, last in spans]
    if len(spans) != len(turns) or any(said - {number} for said, number in zip(spoken, turns, strict=True)):
        raise Inexpressible("the model's chat template does not mark each answer by itself, and one of them has weight 0",
                            subject="messages")  # fmt: skip
    return [span for span, number in zip(spans, turns, strict=True) if talk.turns[number].learnt]


def _generated(shape: str) -> tuple[str, list[tuple[int, int]]]:
    """The rendering without the marks of `generation` blocks, and where those lay."""
    spans, pieces, length, start = [], [], 0, 0
    for piece in re.split(f"([{GENERATED_OPEN}{GENERATED_CLOSE}])", shape):
        if piece == GENERATED_OPEN:
            start = length
        elif piece == GENERATED_CLOSE:
            spans.append((start, length))
        else:
            pieces.append(piece)
            length += len(piece)
    return "".join(pieces), spans
