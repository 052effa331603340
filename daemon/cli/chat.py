"""`heirloom chat`: talk to a version, with what the documents say beside it.

Needs no daemon and no lock. Retrieved pieces become the conversation's context in the format the model was trained on;
under the answer stand the citations. Not here: sampling (`trainer/generate.py`), the format (`trainer/template.py`),
search (`trainer/retrieval/`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.data import find_index, place_of
from daemon.cli.output import visible
from guard.errors import CheckFailed, NotFound, UsageError

__all__ = ["add_to", "citations_of", "context_of"]

_LEAVE = {"/quit", "/exit", "exit", "quit"}


def add_to(app: typer.Typer) -> None:
    """Put the command on the command line."""
    app.command("chat", epilog=EPILOGUE)(chat)


@dataclass
class _Talk:
    """One conversation: the model, the index, and what was said so far."""

    name: str
    model: Any
    tokenizer: Any
    index: Path | None
    pieces: int
    max_tokens: int
    temperature: float
    seed: int
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, question: str) -> tuple[str, list[dict[str, Any]]]:
        """The model's answer and the pieces it was given."""
        from trainer.generate import generate
        from trainer.template import ASSISTANT_CLOSE, END_OF_TURN, encode_prompt

        found = self._search(question)
        self.messages.append({"role": "user", "content": question})
        tokenizer = self.tokenizer
        room = max(1, self.model.config.block_size - self.max_tokens)
        prompt = fitting_prompt(
            found, self.messages, lambda context, turns: encode_prompt(None, context, turns, tokenizer), room
        )
        stops = [tokenizer.special(ASSISTANT_CLOSE), tokenizer.special(END_OF_TURN), tokenizer.separator_id]
        ids = generate(self.model, prompt, max_tokens=self.max_tokens, ids_in_use=tokenizer.vocab_size, stop_ids=stops,
                       temperature=self.temperature, seed=self.seed + len(self.messages) // 2)  # fmt: skip
        text = tokenizer.decode(ids).strip()
        self.messages.append({"role": "assistant", "content": text})
        return text, found

    def _search(self, question: str) -> list[dict[str, Any]]:
        if self.index is None:
            return []
        from trainer.retrieval.search import search

        return [dict(item) for item in search(self.index, question, self.pieces)]


def fitting_prompt(
    found: list[dict[str, Any]], messages: Sequence[Mapping[str, str]], encode: Any, room: int
) -> list[int]:
    """The longest prompt that fits: old turns go first, then the weakest pieces; never the question.

    `found` loses the pieces that had to go, so that nothing is cited that the model did not see.
    """
    turns = list(messages)
    while True:
        prompt = encode(context_of(found), turns)
        if len(prompt) <= room:
            return prompt
        if len(turns) > 2:
            turns = turns[2:]
        elif found:
            found.pop()
        else:
            return prompt


def context_of(found: Sequence[Mapping[str, Any]]) -> str | None:
    """Pieces as the training data shows them: `[1] (file) text`."""
    return "\n".join(f"[{number}] ({item['file']}) {item['text']}" for number, item in enumerate(found, 1)) or None


def citations_of(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The pieces an answer was given, by number."""
    keys = ("file", "score", "chunk_id", "page", "start_line", "end_line", "text")
    return [{"number": number, **{key: item.get(key) for key in keys}} for number, item in enumerate(found, 1)]


def chat(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(metavar="[VERSION]", help="The active one otherwise.")] = None,
    index: Annotated[str | None, typer.Option("--index", metavar="I", help="v002 of this home, or a folder.")] = None,
    index_dir: Annotated[str | None, typer.Option("--index-dir", help="An index folder.")] = None,
    model_name: Annotated[str | None, typer.Option("--model-name", help="The version, as an option.")] = None,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="One question, one answer.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--top-k", min=1, help="Pieces of documents to read first.")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The longest answer.")] = 200,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 always takes the likeliest.")] = 0.8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same answer.")] = 0,
    no_rag: Annotated[bool, typer.Option("--no-rag", help="Without documents.")] = False,
) -> None:
    """Talk to a version; the documents are searched for every question."""
    caller: Caller = context.obj
    if version is not None and model_name is not None and version != model_name:
        raise UsageError(f"two versions were named: {visible(version)} and {visible(model_name)}", hint="name one")
    if caller.console.json and prompt is None:
        raise UsageError("--json needs one question", hint="heirloom chat -p TEXT --json")
    name, folder, record = _version(caller, version or model_name)
    talk = _Talk(
        name, *_load(folder, record), _index(caller, index, index_dir, no_rag), k, max_tokens, temperature, seed
    )
    if prompt is not None:
        _one_shot(caller, talk, prompt)
    else:
        _converse(caller, talk)


def _version(caller: Caller, text: str | None) -> tuple[str, Path, Mapping[str, Any]]:
    """Name, folder and record of the version that was named, else of the active one."""
    from guard.store.keeper import open_reader
    from guard.store.versions import DEFAULT_LINE, find_version, line_tip, tips

    with open_reader(caller.home()) as keeper:
        if text in (None, "latest"):
            found = line_tip(keeper.ledger, DEFAULT_LINE) or next(iter(tips(keeper.ledger).values()), None)
            if found is None:
                raise NotFound("this home has no version yet", hint="heirloom init makes the first one")
        else:
            found = find_version(keeper.ledger, str(text))
    if found.state == "trashed":
        raise NotFound(f"{found.name} is in the trash", subject=found.name, hint=f"heirloom restore {found.name}")
    return found.name, keeper.home.models / found.name, found.record


def _load(folder: Path, record: Mapping[str, Any]) -> tuple[Any, Any]:
    """Model and tokenizer; the tokenizer must be the one the version was sealed with (law 11)."""
    from trainer.version_files import load_version

    model, tokenizer = load_version(folder)
    sealed = record.get("tokenizer_hash")
    if sealed is None or tokenizer.content_hash != sealed:
        raise CheckFailed(f"{folder.name} was sealed with the tokenizer {str(sealed)[:16]}, this one is"
                          f" {tokenizer.content_hash[:16]}", subject=folder.name,
                          hint=f"heirloom verify {folder.name}")  # fmt: skip
    return model, tokenizer


def _index(caller: Caller, index: str | None, index_dir: str | None, no_rag: bool) -> Path | None:
    """The index to read; a home without one is no reason not to talk, a named one that is missing is."""
    from daemon.cli.data import _name_or_folder

    if no_rag:
        return None
    if index_dir is not None:
        return find_index(caller, None, index_dir)
    if index is not None:
        return find_index(caller, *_name_or_folder(index))
    try:
        return find_index(caller, None, None)
    except NotFound:
        return None


def _one_shot(caller: Caller, talk: _Talk, prompt: str) -> None:
    answer, found = talk.answer(prompt)
    caller.console.emit({"answer": answer, "citations": citations_of(found), "version": talk.name,
                         "index": talk.index.name if talk.index else None})  # fmt: skip
    caller.console.say(*_shown(answer, found))


def _shown(answer: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The answer (whatever the model wrote, safe to print) and its numbered sources."""
    lines = [visible(line) for line in answer.split("\n")]
    cited = [f"[{number}] {visible(place_of(item))}" for number, item in enumerate(found, 1)]
    return [*lines, *(["", *cited] if cited else [])]


def _converse(caller: Caller, talk: _Talk) -> None:
    """Question and answer until the input ends."""
    source = f", reading {talk.index.name}" if talk.index else ""
    caller.console.note(f"{visible(talk.name)}{source}. Ctrl-D ends.", "")
    while (question := caller.console.ask("> ")) is not None:
        if question.strip() in _LEAVE:
            return
        if question.strip():
            answer, found = talk.answer(question)
            caller.console.say(*_shown(answer, found), "")
