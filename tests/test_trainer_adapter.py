"""Adapters: only they are trained, they are what peft computes, and a version of them is loaded on its own base or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_help
from trainer_help import SHAPE, steps_logged

from guard.durable import sha256_file
from guard.errors import CheckFailed, Damage, HeirloomError, NotFound, UsageError
from guard.weights import ADAPTER, FULL
from trainer.adapter import adapter_tensors, merged, new_adapter, put_on
from trainer.adapter_config import AdapterConfig
from trainer.loop import StopRequested
from trainer.model import Decoder, new_model
from trainer.model_config import ModelConfig
from trainer.recipe import parse_recipe, recipe_hash, resolve
from trainer.recipe_files import load_recipe
from trainer.recipe_lora import LINEAR_MODULES
from trainer.train_job import run_base, run_train
from trainer.version_files import load_adapted, load_version

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": list(LINEAR_MODULES)}
CONFIG = AdapterConfig.from_recipe(LORA)
FAST = {"learning_rate": 0.02, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions side by side, as in models/: a base, and an adapter that really learnt conversations on it."""
    root = tmp_path_factory.mktemp("adapters")
    run_base(trainer_help.base_job(root / "job-base"))
    (root / "job-base" / "out").rename(root / "v001_base")
    data = trainer_help.make_dataset(root / "chat", "sft")
    run_train(lora_job(root, "v002_chat", data))
    (root / "job-v002_chat" / "out").rename(root / "v002_chat")
    return root


def lora_job(root: Path, name: str, data: Any, parent: str = "v001_base", lora: Any = LORA, **changes: Any) -> dict[str, Any]:
    job = trainer_help.train_job(root / f"job-{name}", root / parent, data, training=changes.pop("training", FAST), **changes)
    job["base"]["name"] = parent
    if lora is not None:
        base = root / "v001_base"
        job["recipe"]["lora"] = lora
        job["inputs"] = [{"role": "adapter_base", "name": base.name, "path": str(base), "sha256": sha256_file(base / FULL)}]
    (root / f"job-{name}" / "job.json").write_text(json.dumps(job))
    return job


@pytest.fixture
def data(home: Path) -> Any:
    from trainer.dataset import open_dataset

    return open_dataset(home / "chat" / "shards")


def result_of(home: Path, name: str) -> dict[str, Any]:
    return json.loads((home / f"job-{name}" / "result.json").read_text())


def test_an_adapter_learns_and_its_base_stays(home: Path) -> None:
    result, folder = result_of(home, "v002_chat"), home / "v002_chat"
    assert result["evaluation"][0]["child_loss"] < result["evaluation"][0]["parent_loss"] - 0.2
    assert result["weights_changed"] is True and result["finite"] is True
    assert result["inputs"] == [{"role": "adapter_base", "name": "v001_base", "sha256": sha256_file(home / "v001_base" / FULL)}]
    assert result["parent_weights_sha256"] == sha256_file(home / "v001_base" / FULL)
    assert ADAPTER in result["files"] and FULL not in result["files"] and result["weights_sha256"] == result["files"][ADAPTER]
    assert (folder / ADAPTER).stat().st_size < (home / "v001_base" / FULL).stat().st_size / 2
    adapted, _tokenizer = load_adapted(folder, home / "v001_base")
    base = dict(load_version(home / "v001_base")[0].named_parameters())
    kept = {name: tensor for name, tensor in adapted.named_parameters() if not tensor.requires_grad}
    assert kept.keys() == base.keys() and all(torch.equal(tensor, base[name]) for name, tensor in kept.items())
    assert sum(tensor.numel() for tensor in adapter_tensors(adapted).values()) == CONFIG.parameter_count(adapted.config)
    assert all(tensor.requires_grad for tensor in adapter_tensors(adapted).values())


def _ids() -> torch.Tensor:
    return torch.arange(40)[None] * 7 % 300


def _logits(model: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(_ids()))


@pytest.mark.parametrize("shape", [{}, {"architecture": "llama", "qk_norm": False, "tie_embeddings": False}])
def test_a_loaded_adapter_is_merged_and_computes_what_was_trained(home: Path, shape: dict[str, Any]) -> None:
    model = new_model(ModelConfig.from_recipe({**SHAPE, **shape}), 1)
    plain = _logits(model)
    put_on(model, CONFIG)
    new_adapter(model, 5)
    assert torch.equal(_logits(model), plain), "a fresh adapter changes nothing"
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.add_(0.05)
    trained = _logits(model)
    whole = merged(model)
    assert not adapter_tensors(whole) and not torch.allclose(trained, plain, atol=0.01)
    torch.testing.assert_close(_logits(whole), trained, rtol=1e-4, atol=1e-5)
    one, two = (load_version(home / "v002_chat")[0] for _ in range(2))
    assert all(torch.equal(first, second) for first, second in zip(one.parameters(), two.parameters(), strict=True))
    adapted, _tokenizer = load_adapted(home / "v002_chat", home / "v001_base")
    torch.testing.assert_close(_logits(one), _logits(adapted), rtol=1e-4, atol=1e-5)


@pytest.mark.sweep  # importing peft takes longer than all the others
def test_peft_loads_a_version_of_adapter_files_and_gives_the_same_logits(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(home / "v001_base", attn_implementation="eager").eval()
    theirs = peft.PeftModel.from_pretrained(base, home / "v002_chat").eval()
    ours, _tokenizer = load_adapted(home / "v002_chat", home / "v001_base")
    with torch.no_grad():
        torch.testing.assert_close(theirs(_ids()).logits, _logits(ours), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(_logits(load_version(home / "v001_base")[0]), _logits(ours), atol=0.05)
    # From the home's folder, as its README says, transformers finds the base by itself.
    monkeypatch.chdir(home.parent)
    (home.parent / "models").symlink_to(home)
    found = AutoModelForCausalLM.from_pretrained("models/v002_chat").eval()
    assert AutoTokenizer.from_pretrained("models/v002_chat").encode("ab") == _tokenizer.encode("ab")
    with torch.no_grad():
        torch.testing.assert_close(found(_ids()).logits, _logits(ours), rtol=1e-4, atol=1e-5)


def test_a_stopped_adapter_run_goes_on_and_ends_in_the_same_bytes(home: Path, data: Any) -> None:
    job = lora_job(home, "stopped", data)
    for done in (3, 6):
        with pytest.raises(StopRequested):
            run_train(job, stop=lambda done=done: steps_logged(home / "job-stopped") >= done)  # type: ignore[misc]
    run_train(job)
    snapshots = home / "job-stopped" / "snapshots"
    result = result_of(home, "stopped")
    assert result["resumes"] >= 1 and result["exactness"] == "RESUMED-EXACT"
    assert result["files"][ADAPTER] == result_of(home, "v002_chat")["files"][ADAPTER]
    (snapshot, *_more) = snapshots.iterdir()
    from safetensors import safe_open

    with safe_open(snapshot / FULL, framework="pt") as weights:
        assert all(".lora_" in name for name in weights.keys()), "the frozen base is not in snapshots"  # noqa: SIM118


def test_micro_batches_change_an_adapter_by_rounding_only(home: Path, data: Any) -> None:
    found = []
    for micro in (1, 4):
        run_train(lora_job(home, f"micro{micro}", data, micro_sequences=micro, steps=3))
        adapted, _tokenizer = load_adapted(home / f"job-micro{micro}" / "out", home / "v001_base")
        found.append(torch.cat([tensor.flatten() for tensor in adapter_tensors(adapted).values()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_training_all_weights_on_an_adapter_merges_it_first(home: Path, data: Any) -> None:
    result = run_train(lora_job(home, "full", data, "v002_chat", lora=None, steps=2))
    assert result["weights_changed"] is True and FULL in result["files"] and ADAPTER not in result["files"]
    assert result["parent_weights_sha256"] == sha256_file(home / "v002_chat" / ADAPTER) and result["inputs"] == []
    # Its parent is the adapter: it starts where that ended, and not at the base.
    ended = result_of(home, "v002_chat")["evaluation"][0]["child_loss"]
    assert result["evaluation"][0]["parent_loss"] == pytest.approx(ended, abs=1e-4)


def test_the_same_adapter_is_trained_on_and_another_one_is_refused(home: Path, data: Any) -> None:
    result = run_train(lora_job(home, "on", data, "v002_chat", steps=2))
    ended = result_of(home, "v002_chat")["evaluation"][0]["child_loss"]
    assert result["evaluation"][0]["parent_loss"] == pytest.approx(ended, abs=1e-6), "it goes on from the parent's adapter"
    assert json.loads((home / "job-on" / "out" / "adapter_base.json").read_text())["name"] == "v001_base"
    with pytest.raises(CheckFailed, match=r"rank 4, alpha 8 on q_proj.*asks for rank 2") as refused:
        run_train(lora_job(home, "other", data, "v002_chat", lora={**LORA, "rank": 2}, steps=2))
    assert "lora.rank" in str(refused.value.hint)


def test_an_adapter_is_never_put_on_other_weights(home: Path, tmp_path: Path, data: Any) -> None:
    for name in ("v001_base", "v002_chat"):
        shutil.copytree(home / name, tmp_path / name)
    run_base({**trainer_help.base_job(tmp_path / "job-other"), "seed": 2})
    shutil.copyfile(tmp_path / "job-other" / "out" / FULL, tmp_path / "v001_base" / FULL)
    with pytest.raises(CheckFailed, match=r"trained on v001_base with weights .*") as refused:
        load_version(tmp_path / "v002_chat")
    assert "heirloom verify v001_base" in str(refused.value.hint)
    job = lora_job(home, "planned", data)
    job["inputs"][0]["path"] = str(tmp_path / "v001_base")
    with pytest.raises(Damage, match="adapter base v001_base is not the one that was planned"):
        run_train(job)
    shutil.rmtree(tmp_path / "v001_base")
    with pytest.raises(NotFound, match="is an adapter of v001_base, which is not at"):
        load_version(tmp_path / "v002_chat")


@pytest.mark.parametrize("name, content, error", [
    ("adapter_base.json", b'{"name": "../v001_base", "sha256": "x"}', "does not name a version"),
    ("adapter_base.json", b"", "not JSON"),
    ("adapter_base.json", None, "missing"),
    ("adapter_config.json", b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": true}',
     "does not compute this adapter .use_dora"),
    ("adapter_config.json", b'{"peft_type": "IA3"}', "type IA3"),
    ("adapter_config.json", b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}',
     "does not hold this adapter"),
    ("adapter_config.json", b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}',
     "is for all-linear"),
    ("adapter_config.json", b'{"peft_type": "LORA", "lora_alpha": 8, "target_modules": ["q_proj"]}',
     "rank None and alpha 8"),
    ("adapter_config.json", b'{"peft_type": "LORA", "r": 0, "lora_alpha": 8, "target_modules": ["q_proj"]}',
     "rank 0 and alpha 8"),
    (ADAPTER, b"\xff" * 64, "not a sound safetensors"),
    (ADAPTER, None, "missing"),
])  # fmt: skip
def test_a_broken_adapter_is_told_and_not_loaded(
    home: Path, tmp_path: Path, name: str, content: bytes | None, error: str
) -> None:
    shutil.copytree(home / "v002_chat", tmp_path / "v002_chat")
    (tmp_path / "v001_base").symlink_to(home / "v001_base")
    (tmp_path / "v002_chat" / name).unlink()
    if content is not None:
        (tmp_path / "v002_chat" / name).write_bytes(content)
    with pytest.raises(HeirloomError, match=error):
        load_version(tmp_path / "v002_chat")


# --- the recipe ------------------------------------------------------------------------------------------------------------

PLAIN = {"stage": "sft", "training": {"learning_rate": 0.001, "batch_sequences": 2}}


def test_the_names_of_the_seeds_and_of_peft_mean_the_same() -> None:
    ours = parse_recipe({**PLAIN, "lora": {"rank": 8, "alpha": 16, "target_modules": ["v_proj", "q_proj"]}})
    theirs = parse_recipe({**PLAIN, "adapter": {"r": 8, "lora_alpha": 16, "lora_dropout": 0, "targets": ["q_proj", "v_proj"]}})
    assert ours == theirs and recipe_hash(ours) == recipe_hash(theirs)
    assert parse_recipe(ours.as_dict()) == ours and "lora" not in parse_recipe(PLAIN).as_dict()
    assert recipe_hash(ours) != recipe_hash(parse_recipe(PLAIN))
    assert resolve(ours, {"lora": {"rank": 4}}).lora.rank == 4  # type: ignore[union-attr]
    every = parse_recipe({**PLAIN, "lora": {"target_modules": "all-linear"}})
    assert every.lora is not None and every.lora.target_modules == LINEAR_MODULES


@pytest.mark.parametrize("lora, words", [
    ({"dropout": 0.1}, "must be 0"), ({"rank": 0}, "greater than or equal to 1"), ({"rnk": 4}, "did you mean rank"),
    ({"rank": True}, "not yes or no"), ({"target_modules": []}, "at least 1 item"),
])  # fmt: skip
def test_a_wrong_adapter_recipe_is_refused(lora: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_recipe({**PLAIN, "lora": lora})
    assert words in f"{refused.value} {refused.value.hint}"


def test_a_target_that_the_model_has_not_is_never_passed_over() -> None:
    recipe = parse_recipe({**PLAIN, "lora": {"target_modules": ["q_proj", "gate_up_proj"]}})
    with pytest.raises(UsageError, match="no gate_up_proj") as refused:
        AdapterConfig.from_recipe(recipe.as_dict()["lora"])
    assert "gate_proj and up_proj" in str(refused.value.hint)


@pytest.mark.parametrize("size", ["micro", "small"])
def test_the_shipped_adapter_recipes_take_the_stage_of_the_data(size: str) -> None:
    path = trainer_help.ROOT / "configs" / "lora" / f"{size}.yaml"
    for stage in ("pretrain", "sft"):
        recipe = load_recipe(path, stage)
        assert (recipe.name, recipe.stage, recipe.use_loss_mask) == (f"lora/{size}", stage, stage == "sft")
        assert recipe.lora is not None and recipe.model is None
    with pytest.raises(UsageError, match="stage is missing"):
        load_recipe(path)
