"""Packing: the same conversations in rows without padding against rows padded to the longest, and how full sequences get.

Both sides train the very same tokens in the same number of optimiser steps: what is left is padding and attention. The
conversations are GSM8K's when a folder shared/data lies beside the checkout, else made up with lengths like theirs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, compare

__all__ = ["BENCHMARKS", "packed_against_padded", "sequences_full"]

CHATS = Path(__file__).parent.parent.parent / "shared" / "data" / "gsm8k_chat.jsonl"
VOCABULARY = 50304
CONVERSATIONS, EACH = 24, 8
SHAPES = {"micro, block 512": (4, 4, 128, 384, 512), "6 x 384, block 256": (6, 6, 384, 1024, 256)}


def _encoded() -> list[tuple[Any, Any]]:
    """Ids and mask of each conversation, in GPT-2's tokens."""
    import numpy as np
    import orjson

    from trainer.template import encode_many
    from trainer.tokenizer import load_tokenizer

    if CHATS.exists():
        rows = [orjson.loads(line) for line in CHATS.read_bytes().splitlines()]
        return [(item.ids, item.mask) for item in encode_many(rows, load_tokenizer("gpt2"), 1)]
    dice = np.random.default_rng(0)
    lengths = np.clip(dice.lognormal(5.07, 0.3, 3000), 70, 440).astype(int)
    return [(dice.integers(0, 50257, length), (np.arange(length) > length // 2).astype(np.uint8)) for length in lengths]


def _stepper(shape: tuple[int, int, int, int, int], batches: Sequence[Any]) -> Callable[[], None]:
    """One optimiser step over all the batches, on a model of its own."""
    import torch

    from trainer.loss import next_token_loss
    from trainer.model import new_model
    from trainer.model_config import ModelConfig

    layers, heads, width, hidden, block = shape
    model = new_model(ModelConfig(layers=layers, heads=heads, width=width, hidden=hidden, block_size=block,
                                  vocab_size=VOCABULARY), 1)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        for batch in batches:
            next_token_loss(model, batch, torch.float32).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def packed_against_padded(runs: int) -> list[Figure]:
    """Trained input tokens per second, each shape with conversations drawn as they come."""
    from trainer.batches import pad, side_by_side
    from trainer.objectives.sft import rows

    encoded = [rows(*item) for item in _encoded()]
    figures = []
    for name, shape in SHAPES.items():
        fitting = [row for row in encoded if len(row[0]) <= shape[-1]]
        chosen = random.Random(1).sample(fitting, CONVERSATIONS)
        # As a step does it: sorted by length, so that rows of one batch are alike.
        in_order = sorted(chosen, key=lambda row: len(row[0]))
        groups = [in_order[start : start + EACH] for start in range(0, CONVERSATIONS, EACH)]
        as_drawn = [chosen[start : start + EACH] for start in range(0, CONVERSATIONS, EACH)]
        tokens = sum(len(row[0]) for row in chosen)
        packed = _stepper(shape, [side_by_side(group) for group in as_drawn])
        figures.append(compare(f"packing {name}, one step of 8 padded", "tokens/s", tokens, packed, "padded, 8 as drawn",
                               _stepper(shape, [pad(group) for group in as_drawn]), runs))  # fmt: skip
        figures.append(compare(f"packing {name}, 24 sorted, padded", "tokens/s", tokens, packed, "padded, sorted by length",
                               _stepper(shape, [pad(group) for group in groups]), runs))  # fmt: skip
    return figures


def sequences_full(runs: int) -> list[Figure]:
    """Percent of the tokens that sequences could hold and do: best fit against one conversation in each."""
    import numpy as np

    from trainer.best_fit import fit

    sizes = np.array([len(ids) - 1 for ids, _mask in _encoded()])
    figures = []
    for block in (256, 512, 1024):
        fitting = sizes[sizes <= block]
        packed = 100 * fitting.sum() / (block * (fit(fitting, block).max() + 1))
        figures.append(Figure(f"packing, block {block}: sequences full", "percent", float(packed),
                              float(100 * fitting.mean() / block), "one each", 1))  # fmt: skip
    return figures


BENCHMARKS: dict[str, Callable[[int], Figure | list[Figure]]] = {
    "packing: sequences full": sequences_full,
    "packing: steps against padded batches": packed_against_padded,
}
