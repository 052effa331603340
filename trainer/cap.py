"""A step cap on a selection: train the beginning of what is new and leave the rest whole for the next job.

Without it a capped job would feed a random part of every example, and hardly one would be learnt to its end (law 4:
what a step cap leaves over stays trainable). Not here: choosing what is new (`choose.py`), or what is replayed (`replay.py`).
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from trainer.choose import Chosen

if TYPE_CHECKING:
    from trainer.selection import Selection

__all__ = ["fit_replay", "keep_first", "room_for_new"]


def room_for_new(max_steps: int, batch_sequences: int, *, replay: float, stages: int = 1) -> int:
    """How many sequences of the block are left for what is new when `replay` times as many come beside them."""
    room = max(1, int(max_steps * batch_sequences / (1 + replay)))
    # The last step of a stage is seldom full.
    return max(1, room - (stages - 1) * batch_sequences)


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


def fit_replay(chosen: Chosen, max_steps: int, batch_sequences: int) -> Chosen:
    """Leave out as many replay sequences, spread evenly, as an epoch has too many for the cap.

    Replay comes as whole examples and fills its sequences less well, so that it may be more than was left for it. The steps
    beyond the cap would be missing at random: parts of new examples, which then were fed and not learnt.
    """
    selection = chosen.selection
    most = range(int(selection.replay.sum()) + 1)
    fits = bisect_right(most, max_steps, key=lambda count: _with_replay(selection, count).steps_per_epoch(batch_sequences))
    if fits == len(most):
        return chosen
    fitted = _with_replay(selection, max(0, fits - 1))
    tokens = int(fitted.sequence_lengths()[fitted.replay].sum())
    counts = {**chosen.counts, "replay_tokens": tokens, "sequences": len(fitted.sequences)}
    return dataclasses.replace(chosen, selection=fitted, counts=counts)


def _with_replay(selection: Selection, count: int) -> Selection:
    """The selection with `count` of its replay sequences, which all stand behind the new ones."""
    replay = np.flatnonzero(selection.replay)
    new = np.flatnonzero(~selection.replay)
    kept = np.concatenate([new, replay[np.arange(count) * len(replay) // max(1, count)]])
    sequences = selection.sequences[kept]
    sizes = sequences[:, 1] - sequences[:, 0]
    ends = np.cumsum(sizes)
    ranges = np.repeat(sequences[:, 0] - (ends - sizes), sizes) + np.arange(int(sizes.sum()))
    return dataclasses.replace(
        selection, sequences=np.stack([ends - sizes, ends], axis=1), ranges=selection.ranges[ranges],
        replay=selection.replay[kept],
        documents=None if selection.documents is None else selection.documents[ranges],
        stages=None if selection.stages is None else selection.stages[kept],
    )  # fmt: skip
