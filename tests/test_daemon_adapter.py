"""Adapter versions in a home: planned, really trained, sealed, made again, verified, kept in the vault, and their base kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_daemon_remake import RealToy, real_child
from toy import Toy, chat_of, text_of

from daemon.remake import remake
from guard.durable import sha256_file
from guard.errors import Protected
from guard.store.keeper import Keeper
from guard.store.lineage import needed_to_load
from guard.store.restore import restore
from guard.store.trash import delete
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.store.versions import find_version
from guard.weights import ADAPTER, FULL
from trainer.version_files import load_version

RECIPE = """
lora: {rank: 4, alpha: 8, target_modules: [q_proj, v_proj, down_proj]}
training: {learning_rate: 0.01, weight_decay: 0.0, batch_sequences: 2}
"""


def dropped(toy: Toy, name: str, content: str, recipe: str = "") -> None:
    if recipe:
        toy.drop(f"{name}.meta.yaml", f"recipe: {recipe}\n")
    toy.drop(name, content)
    toy.settle()


@pytest.fixture(scope="module")
def keeper(shared_scratch: Path) -> Iterator[Keeper]:
    """v001 base, v002 adapter of it (chat), v003 the same adapter trained on (text), v004 all weights on v003."""
    toy = RealToy(shared_scratch / "adapters", gate="warn", training__threads=1).make_base()
    (toy.home.configs / "lora").mkdir(exist_ok=True)
    (toy.home.configs / "lora" / "tiny.yaml").write_text(RECIPE)
    dropped(toy, "a.jsonl", chat_of(60), "lora/tiny")
    dropped(toy, "pretrain/b.txt", text_of(900), "lora/tiny")
    dropped(toy, "c.jsonl", chat_of(40, seed=3))
    assert [name.split("_")[1] for name in toy.versions()] == ["baseline", "a", "b", "c"], toy.jobs()
    yield toy.keeper
    toy.die()


def record(keeper: Keeper, name: str) -> dict[str, Any]:
    return find_version(keeper.ledger, name).record


def test_an_adapter_version_names_its_base_by_name_and_hash(keeper: Keeper) -> None:
    base = record(keeper, "v001")
    wanted = {"role": "adapter_base", "name": base["name"], "sha256": base["files"][FULL]}
    for name, parent in (("v002", "v001"), ("v003", "v002")):
        found = record(keeper, name)
        assert found["inputs"] == [wanted] and found["parent"] == record(keeper, parent)["name"]
        assert ADAPTER in found["files"] and FULL not in found["files"] and found["recipe"]["lora"]["rank"] == 4
        told = next(keeper.home.models.glob(f"{name}_*")) / "README.md"
        assert f"nothing without {base['name']}" in told.read_text() and "peft" in told.read_text()
    whole = record(keeper, "v004")
    assert whole["inputs"] == [] and FULL in whole["files"] and whole["parent"] == record(keeper, "v003")["name"]
    assert "loads as it is" in (keeper.home.models / whole["name"] / "README.md").read_text()
    assert whole["replay"]["datasets"], "what the adapters learnt is replayed like anything else"


@pytest.mark.parametrize("name", ["v002", "v003", "v004"])
def test_an_adapter_made_again_is_identical(keeper: Keeper, name: str) -> None:
    made = remake(keeper, name, child=real_child)
    assert made["verdict"] == "identical", made["reason"]
    assert made["files"][FULL if name == "v004" else ADAPTER] is True


def test_every_version_of_the_line_loads(keeper: Keeper) -> None:
    for name in ("v001", "v002", "v003", "v004"):
        model, _tokenizer = load_version(keeper.home.models / record(keeper, name)["name"])
        assert all(parameter.dim() > 0 for parameter in model.parameters())


def test_the_base_of_an_adapter_cannot_be_deleted_under_it(keeper: Keeper) -> None:
    assert needed_to_load(keeper.ledger, 1) == [record(keeper, name)["name"] for name in ("v002", "v003")]
    with pytest.raises(Protected):
        delete(keeper, "v002")


def test_an_adapter_comes_back_from_the_vault_as_it_was(keeper: Keeper) -> None:
    vault = keeper.home.vault(keeper.settings.backup.path)
    run_backup(keeper)
    name = record(keeper, "v003")["name"]
    assert (vault / "versions" / name / "adapter_model.frame").exists()
    folder = keeper.home.models / name
    before = sha256_file(folder / ADAPTER)
    folder.chmod(0o755)
    (folder / ADAPTER).chmod(0o644)
    (folder / ADAPTER).write_bytes(b"x")
    assert ADAPTER in {item.file for item in verify(keeper, versions=[name]).damage}
    restore(keeper, name, source="backup")
    assert sha256_file(folder / ADAPTER) == before and not verify(keeper, everything=True, backup=True).damage


def test_an_adapter_without_its_base_is_damage_that_verify_tells(keeper: Keeper) -> None:
    base = keeper.home.models / record(keeper, "v001")["name"]
    sums = base / "SHA256SUMS"
    text = sums.read_bytes()
    base.chmod(0o755)
    sums.chmod(0o644)
    sums.write_bytes(text.replace(record(keeper, "v001")["files"][FULL].encode(), b"0" * 64))
    found = [item for item in verify(keeper, versions=["v002"]).damage if item.name.startswith("v002")]
    sums.write_bytes(text)
    assert [(item.file, "not those it was trained on" in item.problem) for item in found] == [("adapter_base.json", True)]
    assert not verify(keeper, versions=["v002"]).damage
