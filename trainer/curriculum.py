"""Short sequences first: which rows of a job are fed in sequences of 512 tokens, which in 1,024, which in 2,048.

A job with a curriculum is one job: its frozen list holds the stages one after the other, shuffled inside each, and a step
feeds about the same tokens in all of them (`trainer/selection.py`). Every row belongs to one stage, so that it is learnt
once. Documents stand in the order of their length and are dealt out by the stages' shares of the tokens: short ones need
no long context, and long ones are not cut before the end (after "Dataset Decomposition", arXiv 2405.13226, which sorts by
length; there into powers of two, here into the lengths that somebody asked for). A folder that came with `train_512`,
`train_1024` ... says itself what belongs where. Not here: what shares a sequence (`trainer/packing.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.splits import recorded_splits
from trainer.dataset import LENGTH, ORDINAL, Dataset
from trainer.packing import Packed, document_starts, pack
from trainer.selection import Selection

__all__ = ["Curriculum", "curriculum_of", "folder_curriculum", "job_curriculum", "most_that_fit_stages", "pack_stages",
           "stage_table", "stage_warnings", "stages_of"]  # fmt: skip

Integers = NDArray[np.int64]
_MEMBER = re.compile(r"(?:^|/)train[-_](\d{1,9})(?:/|[-_.]|$)")


@dataclass(frozen=True)
class Curriculum:
    """The stages of a job, the shortest first."""

    lengths: tuple[int, ...]
    """Tokens that a sequence of the stage predicts, ascending, none above the block."""
    shares: tuple[float, ...]
    """Of the tokens; their sum is 1."""
    block_size: int
    given: tuple[tuple[int, int, int], ...] = ()
    """(stage, first ordinal, count) of dataset 0's only file, where its folder says which rows belong where."""

    def array(self) -> Integers:
        """[K, 2]: length and block, as a selection keeps them."""
        return np.array([[length, self.block_size] for length in self.lengths], dtype=np.int64)


def curriculum_of(training: Mapping[str, Any], block_size: int) -> tuple[Curriculum | None, list[str]]:
    """What a recipe's `training` section asks for on a base of that block, and what a person should know about it.

    None: sequences of the block, as without a curriculum. A length above the block is trained as the block.
    """
    wanted = training.get("curriculum")
    if not wanted:
        return None, []
    shares = training.get("curriculum_shares") or [1 / len(wanted)] * len(wanted)
    summed: dict[int, float] = {}
    for length, share in zip(wanted, shares, strict=True):
        summed[min(length, block_size)] = summed.get(min(length, block_size), 0.0) + share / sum(shares)
    above = [length for length in wanted if length > block_size]
    warnings = [f"the curriculum's sequences of {', '.join(f'{length:,}' for length in above)} tokens do not fit the base's block"
                f" of {block_size:,}: they are trained in sequences of {block_size:,}"] if above else []  # fmt: skip
    if list(summed) == [block_size]:
        return None, warnings
    return Curriculum(tuple(summed), tuple(summed.values()), block_size), warnings


def folder_curriculum(splits: Sequence[Mapping[str, Any]], block_size: int) -> Curriculum | None:
    """The stages that a folder's own names tell (`train_512/...`, `train_1024/...`), or None where they tell fewer than two.

    `splits`: as in the record of the original, {split, member, start, count} in ordinals. Shares are those of its tokens.
    """
    found = []
    for item in splits:
        match = _MEMBER.search(str(item["member"])) if item["split"] == "train" else None
        if item["split"] == "train" and (match is None or int(match[1]) < 2):
            return None
        if match and int(item["count"]):
            found.append((min(int(match[1]), block_size), int(item["start"]), int(item["count"])))
    lengths = sorted({length for length, _start, _count in found})
    if len(lengths) < 2:
        return None
    tokens = [sum(length * count for length, _start, count in found if length == one) for one in lengths]
    given = tuple((lengths.index(length), start, count) for length, start, count in found)
    return Curriculum(tuple(lengths), tuple(each / sum(tokens) for each in tokens), block_size, given)


def job_curriculum(job: Mapping[str, Any], training: Mapping[str, Any]) -> tuple[Curriculum | None, list[str]]:
    """The stages of a prepare job: those that its recipe asks for, else those that the folder it trains on names itself."""
    block_size = int(job["block_size"])
    if job["stage"] != "pretrain" or training["packing"] is None:
        return None, []
    if training.get("curriculum") is not None or not job.get("folder_stages") or len(job["files"]) != 1:
        return curriculum_of(training, block_size)
    return folder_curriculum(recorded_splits(job["files"][0].get("sidecar")).get("splits") or (), block_size), []


def stages_of(dataset: Dataset, rows: Integers, curriculum: Curriculum, dataset_index: int) -> Integers:
    """The stage of each row [n] of a train split (rows ascend).

    Of a plain text, which may be long, rows that stand side by side may fall into two stages; any other document into one.
    A conversation is never in a stage that would cut of it what the model's block would not.
    """
    table = np.asarray(dataset.train.examples[rows])
    if dataset_index == 0 and curriculum.given:
        stages = np.full(len(rows), len(curriculum.lengths) - 1, dtype=np.int64)
        for stage, start, count in curriculum.given:
            stages[(table[:, ORDINAL] >= start) & (table[:, ORDINAL] < start + count)] = stage
        return stages
    fresh = document_starts(dataset, table)
    document = np.cumsum(fresh) - 1
    tokens = np.bincount(document, weights=table[:, LENGTH]).astype(np.int64) if len(table) else np.empty(0, dtype=np.int64)
    order = np.argsort(tokens[document], kind="stable")
    lengths = table[order, LENGTH]
    middle = np.cumsum(lengths) - lengths / 2
    bounds = np.cumsum(curriculum.shares)[:-1] * lengths.sum()
    stages = np.empty(len(rows), dtype=np.int64)
    stages[order] = np.searchsorted(bounds, middle, side="right")
    if dataset.stage == "sft":
        whole = np.minimum(table[:, LENGTH], curriculum.block_size + 1) - 1
        least = np.searchsorted(np.array(curriculum.lengths), whole, side="left")
        stages = np.maximum(stages, np.minimum(least, len(curriculum.lengths) - 1))
    return stages


def _room(dataset: Dataset, curriculum: Curriculum, stage: int) -> int:
    """Predictions in a sequence of a stage. Conversations of the last one have the whole block, whatever it says."""
    last = stage == len(curriculum.lengths) - 1
    return curriculum.block_size if last and dataset.stage == "sft" else curriculum.lengths[stage]


def pack_stages(dataset: Dataset, rows: Integers, curriculum: Curriculum, dataset_index: int,
                packing: str | None) -> tuple[Packed, Integers]:  # fmt: skip
    """(`packing.pack` of each stage's rows, one stage behind the other; the stage of each sequence [S])."""
    assert packing is not None, "packing of earlier releases knows no curriculum"
    stage_of_row = stages_of(dataset, rows, curriculum, dataset_index)
    first, last = np.zeros(len(rows), dtype=np.int64), np.full(len(rows), -1, dtype=np.int64)
    begins = np.zeros(len(rows), dtype=bool)
    parts: list[Packed] = []
    stages: list[Integers] = []
    ranges = sequences = pieces = 0
    for stage in range(len(curriculum.lengths)):
        mine = stage_of_row == stage
        if not mine.any():
            continue
        part = pack(dataset, rows[mine], _room(dataset, curriculum, stage), dataset_index, packing)
        first[mine], begins[mine] = part.first + pieces, part.begins
        last[mine] = np.where(part.last >= part.first, part.last + pieces, -1)
        parts.append(replace(part, sequences=part.sequences + ranges, place=part.place + sequences))
        stages.append(np.full(len(part.sequences), stage, dtype=np.int64))
        ranges, sequences, pieces = ranges + len(part.ranges), sequences + len(part.sequences), pieces + len(part.place)
    if not parts:
        return pack(dataset, rows, curriculum.block_size, dataset_index, packing), np.empty(0, dtype=np.int64)
    joined = Packed(
        np.concatenate([part.ranges for part in parts]), np.concatenate([part.sequences for part in parts]),
        np.concatenate([part.documents for part in parts if part.documents is not None]),
        first, last, np.concatenate([part.place for part in parts]), begins)  # fmt: skip
    return joined, np.concatenate(stages)


def most_that_fit_stages(dataset: Dataset, rows: Integers, curriculum: Curriculum, packing: str | None, count: int) -> int:
    """How many of the rows, from the first on, fill no more than the tokens of `count` sequences of the block; at least one."""
    filled = np.cumsum(np.asarray(dataset.train.examples[rows])[:, LENGTH] - 1)
    low, high = 1, max(1, int(np.searchsorted(filled, count * curriculum.block_size, side="right")))
    lengths = np.array(curriculum.lengths)
    while low < high:
        middle = (low + high + 1) // 2
        _packed, stages = pack_stages(dataset, rows[:middle], curriculum, 0, packing)
        fits = int(lengths[stages].sum()) <= count * curriculum.block_size
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def stage_table(selection: Selection, batch_sequences: int) -> dict[str, Any]:
    """What a curriculum feeds, stage by stage, as prepared.json and version.json say it; {} without one."""
    if selection.stages is None or selection.curriculum is None:
        return {}
    figures = zip(selection.stage_counts.tolist(), selection.stage_steps(batch_sequences), strict=True)
    return {"curriculum": [{"length": int(selection.curriculum[stage, 0]), "sequences": count, "steps": steps,
                            "batch_sequences": selection.scaled(batch_sequences, stage)}
                           for stage, (count, steps) in enumerate(figures)]}  # fmt: skip


def stage_warnings(selection: Selection, batch_sequences: int, steps: int) -> list[str]:
    """Stages that so few steps never come to, in sentences."""
    done, sentences = 0, []
    for stage in stage_table(selection, batch_sequences).get("curriculum", ()):
        if stage["steps"] and done >= steps > 0:
            sentences.append(f"the {stage['sequences']:,} sequences of {stage['length']:,} tokens are not reached in"
                             f" {steps} steps")  # fmt: skip
        done += stage["steps"]
    return sentences
