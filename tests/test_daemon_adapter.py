"""Adapter versions in a home: planned, really trained, sealed, made again, verified, kept in the vault, and their base kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_daemon_remake import RealToy, real_child
from toy import Toy, chat_of, text_of

from daemon import training
from daemon.costs import cost_of
from daemon.facts import check_base, gather_facts
from daemon.inputs import inputs_of
from daemon.planning import prepare_request
from daemon.remake import remake
from daemon.targets import Target, numbers_of, shape_of
from guard.checks.preflight import preflight
from guard.durable import seal_tree, sha256_file
from guard.errors import NotFound, Protected
from guard.store.jobs import Job
from guard.store.keeper import Keeper
from guard.store.lineage import needed_to_load
from guard.store.restore import restore
from guard.store.trash import delete
from guard.store.vault import run_backup
from guard.store.verify import verify
from guard.store.versions import find_version
from guard.weights import ADAPTER, FULL
from trainer.dataset import open_dataset
from trainer.estimate import Correction
from trainer.objectives import OBJECTIVES, About
from trainer.recipe import parse_recipe
from trainer.version_files import load_version

RECIPE = """
lora: {rank: 4, alpha: 8, target_modules: [q_proj, v_proj, down_proj]}
training: {learning_rate: 0.01, weight_decay: 0.0, batch_sequences: 2, seal_optimizer: true}
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


def test_an_adapters_optimizer_goes_on_in_the_same_adapter_and_not_in_full_weights(keeper: Keeper) -> None:
    assert "optimizer.safetensors" in record(keeper, "v003")["files"]
    assert [record(keeper, name)["optimizer"] for name in ("v002", "v003", "v004")] == ["fresh", "parent's", "fresh"]


def test_every_version_of_the_line_loads(keeper: Keeper) -> None:
    for name in ("v001", "v002", "v003", "v004"):
        model, _tokenizer = load_version(keeper.home.models / record(keeper, name)["name"])
        assert all(parameter.dim() > 0 for parameter in model.parameters())


def test_the_base_of_an_adapter_cannot_be_deleted_under_it(keeper: Keeper) -> None:
    assert needed_to_load(keeper.ledger, 1) == [record(keeper, name)["name"] for name in ("v002", "v003")]
    with pytest.raises(Protected):
        delete(keeper, "v002")


def asked(keeper: Keeper, base: str, **changes: Any) -> Target:
    """A draft of a job on a version, with a recipe of the home's `tiny` adapter in which something may be changed."""
    lora = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **changes.pop("lora", {})}
    recipe = parse_recipe({"stage": "sft", "lora": lora, "training": {"learning_rate": 0.01, "batch_sequences": 2}})
    version = find_version(keeper.ledger, base)
    job = Job(0, "train", "planned", 0, "sft", "policy", version.id, "draft", None, None, changes, {}, "", 0, 0, "", "", ())
    return Target(job, version, recipe, ())


@pytest.mark.parametrize("base, lora, problem, remedy", [
    ("v001", {}, "", ""),
    ("v002", {}, "", ""),
    ("v002", {"rank": 8}, "is an adapter of rank 4", "or take a recipe without lora"),
    ("v002", {"target_modules": ["q_proj"]}, "on q_proj, v_proj, down_proj; the recipe asks", "set lora.rank"),
    ("v001", {"target_modules": ["q_proj", "gate_up_proj"]}, "the model has no gate_up_proj", "gate_proj and up_proj"),
])  # fmt: skip
def test_preflight_tells_what_an_adapter_recipe_cannot_do(
    keeper: Keeper, base: str, lora: dict[str, Any], problem: str, remedy: str
) -> None:
    facts = gather_facts(keeper, asked(keeper, base, lora=lora))
    (check,) = [item for item in preflight(facts).checks if item.name == "Other inputs"]
    assert check.ok is not bool(problem) and problem in check.detail and remedy in check.remedy
    assert facts.inputs == (record(keeper, "v001")["name"],)


def test_an_adapter_needs_less_room_and_memory(keeper: Keeper) -> None:
    adapter = asked(keeper, "v001")
    whole = dataclasses.replace(adapter, recipe=adapter.recipe.model_copy(update={"lora": None}))
    costs = [cost_of(item.recipe, shape_of(keeper, item.base), numbers_of(keeper, item), 10_000, examples=10, iterations=None,
                     measured=None)[1] for item in (adapter, whole)]  # fmt: skip
    assert costs[0].memory_bytes < costs[1].memory_bytes and costs[0].version_bytes < costs[1].version_bytes
    assert costs[0].staging_bytes - costs[0].version_bytes < (costs[1].staging_bytes - costs[1].version_bytes) / 4
    assert shape_of(keeper, find_version(keeper.ledger, "v003")) == shape_of(keeper, find_version(keeper.ledger, "v001"))


def test_figures_of_adapters_correct_adapters_alone(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [record(keeper, name)["estimate"]["shape"] for name in ("v002", "v004")]
    assert "sft adapter" in str(shapes[0]) and "adapter" not in str(shapes[1])
    kinds: list[str] = []

    def seen(_keeper: object, kind: str) -> Correction:
        kinds.append(kind)
        return Correction()

    monkeypatch.setattr(training, "correction_for", seen)
    dataset = open_dataset(next(path for path in keeper.home.shards.iterdir() if open_dataset(path).stage == "sft"))
    base, recipe = find_version(keeper.ledger, "v001"), asked(keeper, "v001").recipe
    for item in (recipe, recipe.model_copy(update={"lora": None})):
        training._estimate(keeper, item, base, "", dataset, None)
    assert kinds[0].startswith("sft adapter ") and kinds[1].startswith("sft ") and "adapter" not in kinds[1]


def test_a_damaged_adapter_base_stops_a_job_on_the_adapter(keeper: Keeper) -> None:
    folder = keeper.home.models / record(keeper, "v001")["name"]
    for path in (folder, folder / "config.json"):
        path.chmod(path.stat().st_mode | 0o200)
    text = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(text + b" ")
    present, intact, problem = check_base(keeper, find_version(keeper.ledger, "v002"))
    checks = preflight(gather_facts(keeper, asked(keeper, "v002"))).checks
    (folder / "config.json").write_bytes(text)
    seal_tree(folder)
    assert present and not intact and problem.startswith(f"it is an adapter of {folder.name}: changed")
    (check,) = [item for item in checks if item.name == "Base model exists"]
    assert not check.ok and folder.name in check.detail and check.remedy == f"heirloom restore {folder.name}"
    assert check_base(keeper, find_version(keeper.ledger, "v002"))[:2] == (True, True)
    folder.rename(keeper.home.root / "aside")
    with pytest.raises(NotFound, match=f"{folder.name} is not whole") as told:
        shape_of(keeper, find_version(keeper.ledger, "v003"))
    found = verify(keeper, versions=["v003"]).damage
    (keeper.home.root / "aside").rename(folder)
    assert f"heirloom restore {folder.name}" in found[0].problem and told.value.hint == f"heirloom restore {folder.name}"


def test_an_objective_that_looks_at_others_gets_them_into_the_plan(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "margin", About("sft", inputs=("reference",), replay=False))
    given = asked(keeper, "v002", objective="margin", inputs={"reference": "v003"})
    base, parent, reference = (record(keeper, name) for name in ("v001", "v002", "v003"))
    found = inputs_of(keeper, given)
    assert [(item["role"], item["name"], item["sha256"]) for item in found] == [
        ("adapter_base", base["name"], base["files"][FULL]), ("reference", reference["name"], reference["files"][ADAPTER])]
    assert all(Path(item["path"]).is_dir() for item in found)
    unnamed = inputs_of(keeper, asked(keeper, "v002", objective="margin"))
    assert unnamed[1]["name"] == parent["name"], "a reference that nobody named is where training starts from"
    request = prepare_request(keeper, given, keeper.home.staging / "known.fp")
    assert request["objective"] == "margin" and request["replay"]["fraction"] == 0.0
    assert prepare_request(keeper, asked(keeper, "v002"), keeper.home.staging / "known.fp")["replay"]["fraction"] > 0.0


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
    seal_tree(base)
    assert [(item.file, "not those it was trained on" in item.problem) for item in found] == [("adapter_base.json", True)]
    assert not verify(keeper, versions=["v002"]).damage
