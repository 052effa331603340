"""Answers of a model to questions: prompts in its own template, greedy or seeded, those of one length together.

Prompts of equally many tokens are fed side by side with one key/value cache, so no padding and no mask is needed and each
answer is the one it would be alone, up to rounding. Deterministic: the same questions, options and threads give the same
answers. A prompt is never shortened: a question that leaves no room for an answer is told, not bent.
Not here: judging an answer (`guard/checks/answers.py`), talking (`generate.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from trainer.model import Decoder, KeyValueCache
from trainer.stopping import StopRequested
from trainer.template import stop_ids
from trainer.templates.base import Inexpressible, Template
from trainer.tokenizer import Tokenizer

__all__ = ["Answer", "Asking", "answer_all", "prompt_ids"]

_ROWS = 16
"""At most so many prompts side by side."""
_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class Asking:
    """How answers are made."""

    max_tokens: int = 256
    temperature: float = 0.0
    """0: always the likeliest token."""
    seed: int = 0
    raw: bool = False
    """The last user's turn as plain text without any template, for a model that never saw a conversation."""


@dataclass(frozen=True)
class Answer:
    """What became of one question."""

    text: str
    tokens: int
    problem: str = ""
    """Why there is no answer: the prompt does not fit, or the template has no words for it."""
    cut: bool = False
    """It ended at the limit, not by itself."""


def prompt_ids(prompt: Mapping[str, Any], tokenizer: Tokenizer, template: Template, *, raw: bool) -> list[int]:
    """Token ids up to where the answer begins. Raises Inexpressible for what the template cannot say."""
    if raw:
        return tokenizer.encode(str(prompt["messages"][-1]["content"]))
    ids: list[int] = []
    for part in template.prompt_parts(prompt):
        ids.extend([tokenizer.special(part.control)] if part.control else tokenizer.encode(part.text))
    return ids


def answer_all(
    model: Decoder, tokenizer: Tokenizer, template: Template, prompts: Sequence[Mapping[str, Any]],
    limits: Sequence[int | None], asking: Asking, *, stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:  # fmt: skip
    """The answer to each prompt (a conversation up to its answer), in their order; `limits`: a prompt's own most tokens.

    Raises StopRequested when `stop` says so.
    """
    answers: list[Answer | None] = [None] * len(prompts)
    waiting: list[tuple[int, int, list[int]]] = []
    for place, prompt in enumerate(prompts):
        try:
            ids = prompt_ids(prompt, tokenizer, template, raw=asking.raw)
        except Inexpressible as reason:
            answers[place] = Answer("", 0, f"the template has no words for it: {reason.message}")
            continue
        if not 0 < len(ids) < model.config.block_size:
            answers[place] = Answer("", 0, f"the question takes {len(ids):,} tokens, the model reads {model.config.block_size:,}")
            continue
        waiting.append((len(ids), place, ids))
    done = len(prompts) - len(waiting)
    stops = frozenset(stop_ids(template, tokenizer))
    for group in _side_by_side(sorted(waiting), model):
        if stop():
            raise StopRequested("stopped while answering")
        most = [min(limits[place] or asking.max_tokens, model.config.block_size - len(ids)) for _length, place, ids in group]
        seeds = [asking.seed * 1_000_003 + place for _length, place, _ids in group]
        found = _generate(model, [ids for _length, _place, ids in group], most, stops, tokenizer.vocab_size, asking, seeds)
        for (_length, place, _ids), (new, cut) in zip(group, found, strict=True):
            answers[place] = Answer(template.answer(tokenizer.decode(new)), len(new), cut=cut)
        done += len(group)
        progress(done)
    return [answer for answer in answers if answer is not None]


def _side_by_side(waiting: Sequence[tuple[int, int, list[int]]], model: Decoder) -> Iterator[list[tuple[int, int, list[int]]]]:
    """Prompts of one length, as many at once as the cache has room for."""
    config = model.config
    each = 8 * config.layers * config.kv_heads * config.head_dim * config.block_size  # keys and values in fp32
    rows = max(1, min(_ROWS, _CACHE_BYTES // each))
    for _length, same in groupby(waiting, key=lambda item: item[0]):
        prompts = list(same)
        yield from (prompts[at : at + rows] for at in range(0, len(prompts), rows))


@torch.no_grad()
def _generate(model: Decoder, prompts: Sequence[Sequence[int]], most: Sequence[int], stops: frozenset[int], ids_in_use: int,
              asking: Asking, seeds: Sequence[int]) -> list[tuple[list[int], bool]]:  # fmt: skip
    """New ids after each prompt (all of one length), and whether they ended at the limit."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    cache = KeyValueCache(model.config.layers)
    new: list[list[int]] = [[] for _ in prompts]
    open_ = set(range(len(prompts)))
    inputs = torch.tensor([list(prompt) for prompt in prompts], dtype=torch.int64)
    cut = [False] * len(prompts)
    while open_:
        scores = model.logits(model(inputs, cache)[:, -1])[:, :ids_in_use]
        chosen = scores.argmax(-1) if asking.temperature <= 0 else torch.cat(
            [torch.multinomial(torch.softmax(row / asking.temperature, dim=0), 1, generator=generator)
             for row, generator in zip(scores, generators, strict=True)])  # fmt: skip
        for row in sorted(open_):
            value = int(chosen[row])
            if value not in stops:
                new[row].append(value)
            cut[row] = value not in stops and len(new[row]) >= most[row]
            if value in stops or cut[row]:
                open_.discard(row)
        inputs = chosen[:, None]
    return list(zip(new, cut, strict=True))
