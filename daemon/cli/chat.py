"""`heirloom chat`: talk to a version, with what the documents say beside it.

Needs no daemon and no lock. Retrieved pieces become the conversation's context in the format the model was trained on;
under the answer stand the citations. Not here: sampling (`trainer/generate.py`), the format (`trainer/template.py`),
search (`trainer/retrieval/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.data import find_index, name_or_folder, place_of
from daemon.cli.output import visible
from daemon.loaded import load_sealed
from guard.errors import NotFound, UsageError

__all__ = ["add_to", "fitting_turns", "shown"]

# Tags, newlines and headings around the context; mypt needs 6, a template with a developer block more.
_CONTEXT_TAGS = 12
_LONGEST_ANSWER = 200
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
    template: Any
    index: Path | None
    pieces: int
    max_tokens: int
    temperature: float
    seed: int
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, question: str) -> tuple[str, tuple[Any, ...]]:
        """The model's answer, and the citations of the pieces of documents that it was given."""
        from trainer.generate import generate
        from trainer.template import encode_prompt, stop_ids

        self.messages.append({"role": "user", "content": question})
        room = max(1, self.model.config.block_size - self.max_tokens)
        turns = fitting_turns(self.messages, room // 2, self._prompt_tokens)
        context, citations = self._context(question, room - self._prompt_tokens(turns) - _CONTEXT_TAGS)
        prompt = encode_prompt(None, context, turns, self.tokenizer, self.template)
        ids = generate(self.model, prompt, max_tokens=self.max_tokens, ids_in_use=self.tokenizer.vocab_size,
                       stop_ids=stop_ids(self.template, self.tokenizer), temperature=self.temperature,
                       seed=self.seed + len(self.messages) // 2)  # fmt: skip
        text = self.template.answer(self.tokenizer.decode(ids)).strip()
        self.messages.append({"role": "assistant", "content": text})
        return text, citations

    def _prompt_tokens(self, turns: Sequence[Mapping[str, str]]) -> int:
        from trainer.template import encode_prompt

        return len(encode_prompt(None, None, turns, self.tokenizer, self.template))

    def _context(self, question: str, budget_tokens: int) -> tuple[str | None, tuple[Any, ...]]:
        if self.index is None or budget_tokens <= 0:
            return None, ()
        from trainer.retrieval.context import build_context
        from trainer.retrieval.search import search

        hits = search(self.index, question, self.pieces)
        built = build_context(hits, budget_tokens, lambda text: len(self.tokenizer.encode(text)))
        return built.text or None, built.citations


def fitting_turns(
    messages: Sequence[Mapping[str, str]], budget_tokens: int, measure: Callable[[Sequence[Mapping[str, str]]], int]
) -> list[Mapping[str, str]]:
    """The newest turns within the budget, oldest left out in pairs; the question itself always stays."""
    turns = list(messages)
    while len(turns) > 2 and measure(turns) > budget_tokens:
        turns = turns[2:]
    return turns


def chat(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(metavar="VERSION", help="The active one otherwise.")] = None,
    index: Annotated[str | None, typer.Option("--index", metavar="I", help="v002 of this home, or a folder.")] = None,
    index_dir: Annotated[str | None, typer.Option("--index-dir", help="An index folder.")] = None,
    model_name: Annotated[str | None, typer.Option("--model-name", help="The version, as an option.")] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="One question, one answer.")] = None,
    k: Annotated[int, typer.Option("-k", "--top-k", min=1, help="Pieces of documents to read first.")] = 3,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="The longest answer.")] = None,
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
    source = _index(caller, index, index_dir, no_rag)
    model, tokenizer, template = load_sealed(folder, record)
    # A small model has a small block: most of it belongs to what is read, not to the answer.
    longest = max_tokens or max(1, min(_LONGEST_ANSWER, model.config.block_size // 4))
    talk = _Talk(name, model, tokenizer, template, source, k, longest, temperature, seed)
    if prompt is not None:
        _one_shot(caller, talk, prompt)
    else:
        _converse(caller, talk)


def _version(caller: Caller, text: str | None) -> tuple[str, Path, Mapping[str, Any]]:
    """Name, folder and record of the version that was named, else of the active one."""
    from daemon.loaded import sound_version
    from guard.store.keeper import open_reader

    with open_reader(caller.home()) as keeper:
        found = sound_version(keeper, text)
    return found.name, keeper.home.models / found.name, found.record


def _index(caller: Caller, index: str | None, index_dir: str | None, no_rag: bool) -> Path | None:
    """The index to read; a home without one is no reason not to talk, a named one that is missing is."""
    if no_rag:
        return None
    if index_dir is not None:
        return find_index(caller, None, index_dir)
    if index is not None:
        return find_index(caller, *name_or_folder(index))
    try:
        return find_index(caller, None, None)
    except NotFound:
        return None


def _one_shot(caller: Caller, talk: _Talk, prompt: str) -> None:
    answer, citations = talk.answer(prompt)
    caller.console.emit({"answer": answer, "citations": [asdict(item) for item in citations], "version": talk.name,
                         "index": talk.index.name if talk.index else None})  # fmt: skip
    caller.console.say(*shown(answer, [asdict(item) for item in citations]))


def shown(answer: str, citations: Sequence[Mapping[str, Any]]) -> list[str]:
    """The answer (whatever the model wrote, safe to print) and its numbered sources."""
    lines = [visible(line) for line in answer.split("\n")] if answer.strip() else ["(the model said nothing)"]
    cited = [f"[{item['number']}] {visible(place_of(item))}" for item in citations]
    return [*lines, "", *cited] if cited else lines


def _converse(caller: Caller, talk: _Talk) -> None:
    """Question and answer until the input ends."""
    source = f", reading {talk.index.name}" if talk.index else ""
    caller.console.note(f"{visible(talk.name)}{source}. Ctrl-D ends.", "")
    while (question := caller.console.ask("> ")) is not None:
        if question.strip() in _LEAVE:
            return
        if question.strip():
            answer, citations = talk.answer(question)
            caller.console.say(*shown(answer, [asdict(item) for item in citations]), "")
