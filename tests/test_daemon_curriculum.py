"""A curriculum as a person gets it: by a side file, by a packed folder that is dropped, told by the version, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from toy import Toy, text_of

from guard.store.versions import find_version
from trainer.recipe_files import load_recipe
from trainer.selection import Selection, load_selection

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "home").make_base()


def seen_by(toy: Toy) -> list[tuple[dict[str, Any], Selection]]:
    """What the training children were given, as they come."""
    seen: list[tuple[dict[str, Any], Selection]] = []

    def keep(job: dict[str, Any], _result: object) -> None:
        if job["task"] == "train":
            seen.append((job, load_selection(job["staging"])))

    toy.server.spoil = keep
    return seen


def test_a_side_file_asks_for_a_curriculum_and_the_version_tells_its_stages(toy: Toy) -> None:
    seen = seen_by(toy)
    toy.drop("pretrain/a.txt.meta.yaml", "training: {curriculum: [8, 16, 32]}\n")
    toy.drop("pretrain/a.txt", text_of(2000))
    toy.settle()
    ((job, selection),) = seen
    record = find_version(toy.keeper.ledger, "v002").record
    told = record["packing"]["curriculum"]
    assert [row["length"] for row in told] == [8, 16, 32] and sum(row["steps"] for row in told) == job["steps"]
    assert [row["batch_sequences"] for row in told] == [16, 8, 4]
    assert record["recipe"]["training"]["curriculum"] == [8, 16, 32] and record["planned"]["folder_stages"] is True
    assert selection.curriculum is not None and job["consumed_sha256"] == selection.consumed_hash(1337, job["steps"], 4)
    assert job["estimate"]["tokens_per_second"] > 0.5 and job["estimate"]["seconds"] > 0


def _packed_folder(toy: Toy) -> None:
    dice = np.random.default_rng(5)
    for name in ("train_32/pretrain.npy", "train_8/pretrain.npy", "val_8/pretrain.npy"):
        length = int(name.split("/")[0].split("_")[1])
        path = toy.home.inbox / "packed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, dice.integers(0, 256, (40, length)))
    toy.engine.hint()


def test_a_dropped_folder_of_several_lengths_is_trained_from_the_shortest_to_the_longest(toy: Toy) -> None:
    seen = seen_by(toy)
    _packed_folder(toy)
    toy.settle()
    ((job, selection),) = seen
    assert selection.curriculum is not None and selection.curriculum.tolist() == [[8, 32], [32, 32]]
    lengths = selection.sequence_lengths()
    fed = [int(lengths[selection.batch(1337, step, 4)].max()) for step in range(job["steps"])]
    assert fed == sorted(fed) and set(fed) == {8, 32}
    # All of it but what the home holds out, each row once.
    learnt = toy.keeper.ledger.value("SELECT count(*) FROM learnt")
    assert learnt == 1 and len(selection.examples) > 60


def test_a_version_of_a_release_that_knew_no_stages_is_prepared_again_without_them(toy: Toy, tmp_path: Path) -> None:
    from daemon.remake import remake

    _packed_folder(toy)
    toy.settle()
    asked: list[dict[str, Any]] = []

    def child(folder: Path) -> None:
        asked.append(orjson.loads((folder / "job.json").read_bytes()))
        raise RuntimeError("far enough")

    for old in (False, True):
        row = toy.keeper.ledger.value("SELECT record FROM versions WHERE id = 2")
        record = orjson.loads(row)
        if old:
            del record["planned"]["folder_stages"]
            toy.keeper.ledger._db.execute("UPDATE versions SET record = ? WHERE id = 2", (orjson.dumps(record).decode(),))
        with pytest.raises(RuntimeError):
            remake(toy.keeper, "v002", child=child)
    assert [request["folder_stages"] for request in asked] == [True, False]


def test_a_shipped_recipe_has_a_curriculum_that_fits_its_model() -> None:
    recipe = load_recipe(CONFIGS / "pretrain" / "curriculum.yaml")
    assert recipe.model is not None and recipe.training.curriculum == (512, 1024, 2048) and recipe.model.block_size == 2048
