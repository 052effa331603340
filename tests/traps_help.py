"""What tests of traps share: a base with a text and conversations, a sound job to spoil, and what being caught is.

Not a test itself. The traps stand in `test_trainer_traps_data.py` and `test_trainer_traps_run.py`.
"""

from __future__ import annotations

import dataclasses
import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import trainer_help

from guard.durable import sha256_file
from guard.errors import CheckFailed, HeirloomError
from trainer.child import fault_of
from trainer.dataset import Dataset, open_dataset
from trainer.selection import Selection
from trainer.train_job import run_base, run_train

Job = dict[str, Any]


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a text and conversations, prepared."""
    folder = tmp_path_factory.mktemp("traps")
    run_base(trainer_help.base_job(folder / "base"))
    for stage in ("pretrain", "sft"):
        trainer_help.make_dataset(folder / stage, stage, amount=300 if stage == "pretrain" else 24)
    gc.collect()
    return folder


@pytest.fixture(name="dataset")
def _dataset(home: Path, tmp_path: Path, stage: str) -> Dataset:
    """A copy of its own, to be spoilt."""
    shutil.copytree(home / stage / "shards", tmp_path / "shards")
    return open_dataset(tmp_path / "shards")


@pytest.fixture(name="stage")
def _stage() -> str:
    return "sft"


@pytest.fixture(name="job")
def _job(home: Path, tmp_path: Path, dataset: Dataset) -> Job:
    """A sound job of two steps; what a plan freezes is frozen."""
    base = home / "base" / "out"
    made = trainer_help.train_job(tmp_path / "job", base, dataset, steps=2, evaluation=[],
                                  prepared={"pins": {dataset.id: dataset.pin}})  # fmt: skip
    made["base"]["weights_sha256"] = sha256_file(base / "model.safetensors")
    return made


def caught(job: Job, words: str, kind: type[HeirloomError] = CheckFailed, *, after: int = 0) -> HeirloomError:
    """The job is refused with these words and a remedy; nothing was published, and `after` steps were trained."""
    with pytest.raises(kind, match=words) as told:
        run_train(job)
    staging = Path(job["staging"])
    assert told.value.hint and told.value.subject and trainer_help.steps_logged(staging) == after
    assert not (staging / "out").exists() and not (staging / "result.json").exists()
    assert fault_of(told.value) == "bug", "no file of the person is blamed"
    return told.value


def relisted(job: Job, **changes: Any) -> Job:
    """The job with another frozen list, which agrees with the plan."""
    selection = dataclasses.replace(Selection.load(job["staging"]), **changes)
    for path in Path(job["staging"]).glob("selection.*"):
        path.unlink()
    job["selection_sha256"] = selection.save(job["staging"])
    return job
