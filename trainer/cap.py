"""A step cap on a selection: train the beginning of what is new and leave the rest whole for the next job.

Without it a capped job would feed a random part of every example, and hardly one would be learnt to its end (law 4:
what a step cap leaves over stays trainable). Not here: choosing what is new (`choose.py`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from trainer.choose import Chosen

__all__ = ["keep_first"]


def keep_first(chosen: Chosen, count: int) -> Chosen:
    """Keep the first `count` sequences, and of the counted examples those that lie wholly within them.

    To be called before replay is added. The numbers of new examples stay as they were: they are still new.
    """
    selection = chosen.selection
    assert not selection.replay.any(), "the cap comes before replay"
    if count >= len(selection.sequences):
        return chosen
    beyond = selection.touches[:, 0] >= count
    whole = np.ones(len(selection.examples), dtype=bool)
    whole[selection.touches[beyond, 1]] = False
    kept = whole[selection.touches[:, 1]]
    renumbered = np.cumsum(whole) - 1
    touches = selection.touches[kept].copy()
    touches[:, 1] = renumbered[touches[:, 1]]
    sequences = selection.sequences[:count]
    last_range = int(sequences[-1, 1]) if count else 0
    documents = None if selection.documents is None else selection.documents[:last_range]
    shorter = dataclasses.replace(
        selection, sequences=sequences, ranges=selection.ranges[:last_range], replay=selection.replay[:count],
        documents=documents, touches=touches, examples=selection.examples[whole],
    )  # fmt: skip
    return Chosen(shorter, {**chosen.counts, "sequences": count}, chosen.example_rows[whole], chosen.example_loss_tokens[whole])
