"""Domain folders: the given val split is the one that is held out, whatever it holds, and training takes the dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_trainer_validate import arrow_folder
from toy import Toy
from toy_fixtures import *  # noqa: F403
from trainer_data import chat_row, jsonl, text_rows

from daemon.operations import perform
from guard.checks.rows import validate
from guard.errors import DataFault, NotFound, UsageError
from guard.fingerprint import example_fingerprint
from guard.heldout import held_out_mask
from trainer.dataset import Split, open_dataset, verify_dataset
from trainer.prepare_domain import prepare_domain


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def prints(rows: list[dict[str, object]]) -> set[bytes]:
    found = [validate("sft", row) for row in rows]
    return {example_fingerprint(fields) for fields in found if isinstance(fields, dict)}


def keys_of(split: Split) -> set[bytes]:
    data = split.fingerprints.tobytes()
    return {data[place : place + 16] for place in range(0, len(data), 16)}


@pytest.fixture(name="domains")
def _domains(scratch: Path) -> Path:
    root = scratch / "domain"
    write(root / "coding" / "train" / "a.jsonl", jsonl([chat_row(number) for number in range(60)]))
    write(root / "coding" / "train" / "b.jsonl", jsonl([chat_row(number) for number in range(60, 80)]))
    write(root / "coding" / "val" / "a.jsonl", jsonl([chat_row(number) for number in range(200, 212)]))
    return root


def test_the_given_val_is_held_out_and_nothing_else(domains: Path, scratch: Path) -> None:
    found = prepare_domain("coding", domains, scratch / "ds", "char")
    dataset = verify_dataset(scratch / "ds")
    assert keys_of(dataset.val) == prints([chat_row(number) for number in range(200, 212)])
    assert keys_of(dataset.train) == prints([chat_row(number) for number in range(80)])
    assert found["given_val"] and found["warnings"] == [] and found["kind"] == "sft"
    assert sorted(file["split"] for file in dataset.metadata["files"]) == ["train", "train", "val"]


def test_a_domain_may_lie_in_any_container(scratch: Path) -> None:
    rows = text_rows(30)
    arrow_folder(scratch / "domain" / "legal" / "train", rows[:20])
    pq.write_table(pa.Table.from_pylist(rows[20:25]), scratch / "domain" / "legal" / "train" / "more.parquet")
    lines = ["text", *(row["text"] for row in rows[25:]), ""]
    write(scratch / "domain" / "legal" / "val" / "a.csv", "\n".join(lines).encode())
    found = prepare_domain("legal", scratch / "domain", scratch / "ds", "char")
    assert (found["train"]["examples"], found["val"]["examples"], found["warnings"]) == (25, 5, [])


def test_the_same_files_the_other_way_round_are_another_dataset(domains: Path, scratch: Path) -> None:
    first = prepare_domain("coding", domains, scratch / "a", "char")["dataset_id"]
    assert prepare_domain("coding", domains, scratch / "b", "char")["dataset_id"] == first
    (domains / "coding" / "val").rename(domains / "coding" / "other")
    (domains / "coding" / "train").rename(domains / "coding" / "val")
    (domains / "coding" / "other").rename(domains / "coding" / "train")
    assert prepare_domain("coding", domains, scratch / "c", "char")["dataset_id"] != first


def test_without_val_a_share_is_drawn_and_rows_in_both_are_told(domains: Path, scratch: Path) -> None:
    write(domains / "coding" / "val" / "a.jsonl", jsonl([chat_row(1), chat_row(300)]))
    told = prepare_domain("coding", domains, scratch / "a", "char")["warnings"]
    assert len(told) == 1 and told[0].startswith("1 of 2 held-out examples are in train too")
    (domains / "coding" / "val" / "a.jsonl").unlink()
    found = prepare_domain("coding", domains, scratch / "b", "char", val_split=0.3)
    assert not found["given_val"] and 0 < found["val"]["examples"] < 40


def test_a_domain_of_mixed_kinds_or_none_is_refused(domains: Path, scratch: Path) -> None:
    write(domains / "coding" / "val" / "a.jsonl", jsonl(text_rows(3)))
    with pytest.raises(UsageError, match="different kinds"):
        prepare_domain("coding", domains, scratch / "a", "char")
    write(domains / "legal" / "train" / "a.jsonl", b'{"law": 1}\n')
    with pytest.raises(DataFault, match="no kind"):
        prepare_domain("legal", domains, scratch / "a", "char")
    with pytest.raises(NotFound):
        prepare_domain("medical", domains, scratch / "a", "char")
    with pytest.raises(UsageError, match="no name"):
        prepare_domain("../domain/coding", domains, scratch / "a", "char")
    assert not (scratch / "a").exists()


def test_training_takes_it_and_learns_nothing_of_the_given_val(begin: Callable[..., Toy], scratch: Path) -> None:
    write(scratch / "domain" / "law" / "train" / "a.jsonl", jsonl(text_rows(80)))
    write(scratch / "domain" / "law" / "val" / "a.jsonl", jsonl(text_rows(12, 200)))
    prepare_domain("law", scratch / "domain", scratch / "ds", "char")
    toy = begin()
    perform(toy.engine, "train", {"dataset_dir": str(scratch / "ds"), "model_name": "lawyer",
                                  "config_file": str(toy.home.configs / "pretrain" / "small.yaml"),
                                  "init_from_model": "v001"})  # fmt: skip
    toy.settle(200)
    record = json.loads((toy.home.models / "v002_lawyer" / "version.json").read_text())
    dataset = open_dataset(scratch / "ds")
    held = int(held_out_mask(dataset.train.fingerprints.tobytes(), toy.keeper.salt, 0.05).sum())  # the home's own rule
    assert dataset.val.count == 12 and record["data"][0]["examples"] == 80 - held > 60
