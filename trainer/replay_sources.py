"""Where a job may replay from: earlier datasets with what was learnt of them, less what it may not or trains anyhow.

Not here: the draw (`trainer/replay.py`), and what is barred for an evaluation set (`trainer/barred.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import HeirloomError
from guard.untouchable import KeyList
from trainer.barred import barred_rows, look_for
from trainer.data_check import require_same_template
from trainer.dataset import LENGTH, START, Dataset, open_dataset
from trainer.replay import ReplaySource
from trainer.templates.base import Template
from trainer.tokenizer import Tokenizer, require_same_tokenizer

__all__ = ["replay_sources", "without_ranges"]


def replay_sources(job: Mapping[str, Any], tokenizer: Tokenizer, template: Template,
                   keys: KeyList | None) -> tuple[list[ReplaySource], list[str]]:  # fmt: skip
    """Earlier datasets to replay from, each once, and a warning for each that cannot be used."""
    bitmaps: dict[str, list[tuple[int, str]]] = {}
    for item in (job.get("replay") or {}).get("datasets") or ():
        bitmaps.setdefault(str(item["path"]), []).extend((int(index), str(bits)) for index, bits in item["known"])
    sources: dict[str, ReplaySource] = {}
    warnings: list[str] = []
    for path, known in bitmaps.items():
        try:
            dataset = open_dataset(path)
            require_same_tokenizer(tokenizer.state(), dataset.tokenizer_state, "the base", f"the dataset {path}")
            require_same_template(dataset, template)
            if dataset.id not in sources:
                barred = barred_rows(dataset, keys) if keys else None
                sources[dataset.id] = ReplaySource(dataset, tuple(known), barred, look_for(job, dataset, keys, warnings))
        except HeirloomError as error:
            warnings.append(f"no replay from {path}: {error.message}")
    return [sources[key] for key in sorted(sources)], warnings


def without_ranges(source: ReplaySource, dataset: Dataset, ranges: NDArray[np.int64]) -> ReplaySource:
    """The source without the rows that the job trains anyhow, where it is the job's own dataset (`--allow-repeat`).

    `ranges` [n, 3]: what of the dataset the job feeds; neighbours share the token between them, which is no overlap.
    """
    if source.dataset.id != dataset.id or not len(ranges):
        return source
    order, table = np.argsort(ranges[:, 1], kind="stable"), dataset.train.examples
    starts, ends = ranges[order, 1], ranges[order, 1] + ranges[order, 2]
    place = np.searchsorted(ends, table[:, START] + 1, side="right")
    first = np.append(starts, np.iinfo(np.int64).max)[place]
    fed = first < table[:, START] + np.maximum(table[:, LENGTH], 2) - 1
    return dataclasses.replace(source, barred=fed if source.barred is None else source.barred | fed)
