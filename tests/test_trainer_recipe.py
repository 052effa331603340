"""Recipes: the shipped ones are good, numbers as people write them, and errors that say what is allowed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from guard.errors import NotFound, UsageError
from trainer.model_config import ModelConfig
from trainer.recipe import Recipe, parse_recipe, recipe_hash, resolve
from trainer.recipe_files import find_recipe, load_recipe

CONFIGS = Path(__file__).parent.parent / "configs"
MINIMAL: dict[str, Any] = {"stage": "sft", "training": {"learning_rate": 0.001, "batch_sequences": 4}}
SHAPES = {"micro": (4, 4, 128, 512), "small": (6, 6, 384, 1024), "150M": (16, 12, 768, 1024)}


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("size", SHAPES)
def test_the_shipped_recipes_are_complete_and_make_models(stage: str, size: str) -> None:
    recipe = load_recipe(CONFIGS / stage / f"{size}.yaml")
    model = recipe.model
    assert model and (model.layers, model.heads, model.width, model.block_size) == SHAPES[size]
    assert (recipe.name, recipe.stage, recipe.seed) == (f"{stage}/{size}", stage, 1337)
    assert model.tie_embeddings and model.qk_norm and model.architecture == "qwen3"
    assert recipe.use_loss_mask == (stage == "sft")
    shape = ModelConfig.from_recipe({**recipe.as_dict()["model"], "vocab_size": 50304})
    assert shape.parameter_count() > 7_000_000
    assert "#" in (CONFIGS / stage / f"{size}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", SHAPES)
def test_both_stages_of_a_size_have_the_same_shape_and_sft_is_gentler(size: str) -> None:
    pretrain, sft = (load_recipe(CONFIGS / stage / f"{size}.yaml") for stage in ("pretrain", "sft"))
    assert pretrain.model == sft.model and sft.training.learning_rate < pretrain.training.learning_rate


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-3 as text, because it lacks a point.
    path = tmp_path / "r.yaml"
    path.write_text("stage: sft\ntraining: {learning_rate: 1e-3, batch_sequences: 4, epochs: 2.0}\nseed: 1e3\n")
    recipe = load_recipe(path)
    assert (recipe.training.learning_rate, recipe.training.epochs, recipe.seed) == (0.001, 2, 1000)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training": {"learning_rate": "fast", "batch_sequences": 4}}, ("training.learning_rate", "'fast'", "number")),
        ({"training": {"learning_rate": 0.1, "batch_sequences": True}}, ("batch_sequences", "True", "number")),
        ({"training": {"learning_rate": 0.1, "batch_sequences": 0}}, ("batch_sequences", "0", "greater")),
        ({"training": {"learning_rate": 0.1, "batch_sequences": 10**30}}, ("batch_sequences", "or equal to 2147483647")),
        ({"training": {"learning_rate": 0.1, "batch_sequences": 4, "warmup_steps": 10**30}}, ("warmup_steps", "2147483647")),
        ({"training": {"learning_rate": 0.1, "batch_sequences": 2.5}}, ("batch_sequences", "2.5", "integer")),
        ({"training": {"learning_rate": float("nan"), "batch_sequences": 4}}, ("learning_rate", "finite")),
        ({"training": {"batch_sequences": 4}}, ("training.learning_rate", "missing")),
        ({"training": {"learning_rat": 1, "batch_sequences": 4}}, ("unknown key training.learning_rat",)),
        ({"stage": "rl"}, ("stage", "'rl'", "'pretrain' or 'sft'")),
        ({"sed": 1}, ("unknown key sed",)),
        ({"ignored": ["x"]}, ("unknown key ignored",)),
        ({"stage": "pretrain", "use_loss_mask": True}, ("use_loss_mask",)),
        ({"training": {"learning_rate": 0.1, "batch_sequences": 4, "warmup_fraction": 0.6, "decay_fraction": 0.6}},
         ("warmup_fraction", "exceed 1")),
        ({"model": {"layers": 2, "heads": 3, "width": 128, "block_size": 64}}, ("multiple of heads",)),
        ({"model": {"layers": 2, "heads": 2, "width": 128, "block_size": 64, "architecture": "gpt2"}},
         ("model.architecture", "'qwen3' or 'llama'")),
    ],
)  # fmt: skip
def test_errors_name_key_value_and_what_is_allowed(change: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe({**MINIMAL, **change}, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ") and caught.value.hint
    for word in words:
        assert word in str(caught.value)


def test_a_misspelt_key_is_told_with_its_neighbour() -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe({"stage": "sft", "training": {"learning_rat": 0.1, "batch_sequences": 4}})
    assert "learning_rate" in caught.value.hint


@pytest.mark.parametrize(("name", "content"), [("a.yaml", "a: [1"), ("a.json", "{"), ("a.yaml", "- 1\n"),
                                               ("a.yaml", ""),
                                               ("a.yaml", "!!python/object:os.system {}\n")])  # fmt: skip
def test_files_that_are_no_recipe_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=r"a\.(yaml|json)"):
        load_recipe(tmp_path / name)


def test_the_older_flat_form_is_understood(tmp_path: Path) -> None:
    (tmp_path / "sft1").mkdir()
    path = tmp_path / "sft1" / "micro.json"
    path.write_text(json.dumps({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256, "vocab_size": 50304,
                                "batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 3e-4,
                                "min_lr": 3e-5, "max_iters": 5000, "warmup_iters": 500, "use_loss_mask": True,
                                "dropout": 0.1}))  # fmt: skip
    recipe = load_recipe(path)
    assert recipe.stage == "sft" and recipe.name == "sft/micro" and recipe.use_loss_mask
    assert recipe.model and (recipe.model.layers, recipe.model.width, recipe.model.vocab_size) == (4, 128, 50304)
    training = recipe.training
    assert (training.iterations, training.batch_sequences, training.warmup_fraction) == (5000, 16, 0.1)
    assert training.min_learning_rate_ratio == pytest.approx(0.1)
    assert recipe.ignored == ("dropout",) and "ignored" not in recipe.as_dict()


def test_a_flat_recipe_with_a_strange_key_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown key n_layers"):
        parse_recipe({"stage": "sft", "n_layers": 4, "batch_size": 8, "learning_rate": 0.1})
    with pytest.raises(UsageError, match="batch_size = 'many'"):
        parse_recipe({"stage": "sft", "batch_size": "many", "learning_rate": 0.1})


@pytest.fixture
def small() -> Recipe:
    return load_recipe(CONFIGS / "sft" / "small.yaml")


def test_a_resolved_recipe_survives_json_and_yaml(small: Recipe) -> None:
    for back in (json.loads(json.dumps(small.as_dict())), yaml.safe_load(small.to_yaml())):
        assert parse_recipe(back) == small and recipe_hash(parse_recipe(back)) == recipe_hash(small)


def test_overrides_change_what_they_name_and_are_checked(small: Recipe) -> None:
    changed = resolve(small, {"training.epochs": 5, "model": {"vocab_size": 320}})
    assert changed.model and small.model
    assert (changed.training.epochs, changed.model.vocab_size) == (5, 320)
    assert changed.training.learning_rate == small.training.learning_rate and changed.model.width == small.model.width
    assert recipe_hash(changed) != recipe_hash(small) == recipe_hash(resolve(small, {}))
    assert recipe_hash(resolve(small, {"name": "other"})) == recipe_hash(small)
    for wrong in ({"training.epoch": 5}, {"training": {"epochs": 0}}, {"speed": 1}):
        with pytest.raises(UsageError):
            resolve(small, wrong)


def test_recipes_are_found_by_stage_and_name_or_by_path(tmp_path: Path) -> None:
    (tmp_path / "sft1").mkdir()
    (tmp_path / "sft1" / "old.json").write_text("{}")
    assert find_recipe("pretrain/micro", [tmp_path, CONFIGS]) == CONFIGS / "pretrain" / "micro.yaml"
    assert find_recipe("150M", [CONFIGS], "sft") == CONFIGS / "sft" / "150M.yaml"
    assert find_recipe("sft/old", [tmp_path]) == find_recipe("old", [tmp_path], "sft") == tmp_path / "sft1" / "old.json"
    assert find_recipe(str(tmp_path / "sft1" / "old.json"), []) == tmp_path / "sft1" / "old.json"
    with pytest.raises(NotFound, match="'sft/huge'"):
        find_recipe("huge", [CONFIGS], "sft")
    with pytest.raises(NotFound):
        load_recipe(CONFIGS / "sft" / "huge.yaml")
