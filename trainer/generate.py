"""Text from a model: seeded sampling with temperature and top-k, a key/value cache, stop ids.

Deterministic: the same model, prompt and seed give the same ids on the same machine. Ids that no text can have (the
padding rows of the embedding) are never sampled. Not here: chat, templates, serving.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guard.errors import UsageError
from trainer.model import Decoder, KeyValueCache

__all__ = ["distinct_ratio", "generate"]


@torch.no_grad()
def generate(
    model: Decoder, prompt: Sequence[int], *, max_tokens: int, ids_in_use: int, stop_ids: Sequence[int] = (),
    temperature: float = 0.8, top_k: int = 50, seed: int = 0,
) -> list[int]:  # fmt: skip
    """Up to `max_tokens` new ids after `prompt`, without the stop id that ended them.

    `ids_in_use`: only ids below it are sampled. `temperature` 0 takes the likeliest id; `top_k` 0 means no cut.
    A prompt that leaves no room in the block loses its beginning. Raises UsageError for an empty prompt.
    """
    if not prompt:
        raise UsageError("the prompt has no tokens", hint="give at least one id, such as the document separator")
    block = model.config.block_size
    room = max(1, block - max_tokens)
    context = list(prompt)[-room:]
    generator = torch.Generator().manual_seed(seed)
    cache = KeyValueCache(model.config.layers)
    new: list[int] = []
    inputs = context
    while len(new) < min(max_tokens, block - len(context)):
        hidden = model(torch.tensor([inputs], dtype=torch.int64), cache)
        scores = model.logits(hidden[0, -1])[:ids_in_use]
        chosen = _choose(scores, temperature, top_k, generator)
        if chosen in stop_ids:
            break
        new.append(chosen)
        inputs = [chosen]
    return new


def _choose(scores: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """One id from fp32 scores [ids]."""
    if temperature <= 0:
        return int(scores.argmax())
    kept = None
    if 0 < top_k < scores.shape[0]:
        scores, kept = torch.topk(scores, top_k)
    chosen = int(torch.multinomial(torch.softmax(scores / temperature, dim=0), 1, generator=generator))
    return chosen if kept is None else int(kept[chosen])


def distinct_ratio(ids: Sequence[int]) -> float:
    """Distinct ids over all ids: near 0 when a model repeats itself without end; 1.0 for an empty answer."""
    return len(set(ids)) / len(ids) if ids else 1.0
