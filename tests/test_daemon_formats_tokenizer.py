"""A home whose model speaks with a foreign tokenizer and template: from init over drops and forks to its records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hf_help import corpus, foreign_folder
from homes import no_syncing
from toy import RECIPE, Toy, chat_of, text_of

from daemon.cli.sample import sample_lines, sample_of
from daemon.training import _kept_folder
from guard.errors import CheckFailed, NotFound
from guard.store.files import find_file
from guard.store.jobs import add_job
from guard.store.versions import all_versions
from trainer.dataset import open_dataset
from trainer.hf_tokenizer import keep_tokenizer
from trainer.prepare_folder import prepare_folder
from trainer.templates.find import load_template
from trainer.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_syncing(monkeypatch)


def toy_of(root: Path, source: Path) -> Toy:
    """A home with its base, made with the tokenizer of a folder that is gone afterwards, as a stick may be."""
    toy = Toy(root / "home", backup__auto=False)
    recipe = {**RECIPE, "model": {**RECIPE["model"], "block_size": 128}}  # type: ignore[dict-item]
    kept = keep_tokenizer(source, toy.home.configs / "tokenizers")
    with toy.keeper.ledger.transaction():
        add_job(toy.keeper.ledger, kind="base", stage="base", line="policy", slug="baseline",
                request={"recipe": recipe, "tokenization": "hf", "origin": "init",
                         "tokenizer_folder": str(kept.relative_to(toy.home.root))})  # fmt: skip
    return toy.settle()


def test_the_whole_line_speaks_the_bases_template_with_its_tokenizer(tmp_path: Path) -> None:
    source = foreign_folder(tmp_path / "hf")
    toy = toy_of(tmp_path, source)
    source.rename(tmp_path / "gone")
    toy.drop("chat.jsonl", chat_of(40))
    toy.drop("pretrain/text.txt", text_of(600))
    toy.settle()
    base, *heirs = all_versions(toy.keeper.ledger)
    assert len(heirs) == 2 and {item.state for item in heirs} == {"sealed"}
    for version in (base, *heirs):
        folder = toy.home.models / version.name
        tokenizer = load_tokenizer("hf", folder)
        assert version.record["tokenizer_hash"] == tokenizer.content_hash
        assert version.record["template"] == "chat_template"
        assert version.record["template_hash"] == load_template(folder).hash == base.record["template_hash"]
    chat = next(item for item in heirs if item.record["stage"] == "sft")
    dataset = open_dataset(toy.home.shards / chat.record["dataset"]["id"])
    assert dataset.metadata["template"] == "chat_template"
    ids = dataset.train.tokens(0, int(dataset.train.examples[0, 3])).tolist()
    assert load_tokenizer("hf", toy.home.models / base.name).decode(ids).startswith("<|im_start|>user\nwhat is 1 plus ")
    toy.die()


def test_a_sample_is_what_the_active_model_sees(tmp_path: Path) -> None:
    toy = toy_of(tmp_path, foreign_folder(tmp_path / "hf"))
    row = {"context": "keeps learning " * 60, "messages": [{"role": "user", "content": "q <|im_end|>"},
                                                           {"role": "assistant", "content": "a"}]}  # fmt: skip
    toy.drop("chat.jsonl", chat_of(20) + json.dumps(row) + "\n")
    toy.settle()
    file = find_file(toy.keeper.ledger, "chat.jsonl")
    found = sample_of(toy.keeper, file, 2)
    parts, about = found["sample"], found["sample_about"]
    assert "".join(part["text"] for part in parts if part["trained"]) == "2<|im_end|>"
    assert [part["text"] for part in parts if part["control"]] == ["<|im_start|>", "<|im_end|>"] * 2
    assert (about["template"], about["tokenization"], about["version"], about["trained_tokens"]) == (
        "chat_template", "hf", "v002_chat", 2)  # fmt: skip
    assert about["tokens"] > 10 and not about["cut_tokens"]
    cut = sample_of(toy.keeper, file, 21)
    assert cut["sample_about"]["tokens"] - cut["sample_about"]["cut_tokens"] == 129 and not cut["sample_about"]["too_long"]
    told = sample_lines(cut["sample"], cut["sample_about"], lambda text, *names: text)
    assert any(line.startswith("⟦a<|im_end|>⟧") for line in told) and any("are cut to fit 128" in line for line in told)
    with pytest.raises(NotFound, match="no example 22"):
        sample_of(toy.keeper, file, 22)
    toy.die()


def test_one_dataset_serves_two_models_with_the_same_tokenizer(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        toy = toy_of(tmp_path / name, foreign_folder(tmp_path / name / "hf"))
        if made:  # what the other home prepared
            source = made[0]
            source.rename(toy.home.shards / source.name)
        toy.drop("chat.jsonl", chat_of(40))
        toy.settle()
        version = all_versions(toy.keeper.ledger)[1]
        made.append(toy.home.shards / version.record["dataset"]["id"])
        told = json.loads(toy.keeper.ledger.value("SELECT plan FROM jobs WHERE kind = 'train'"))
        assert told["train"]["prepared"]["dataset_made"] == (name == "one")
        toy.die()
    assert made[0].name == made[1].name


def test_a_hand_made_dataset_finds_the_tokenizer_this_home_has(tmp_path: Path) -> None:
    source = foreign_folder(tmp_path / "hf")
    toy = toy_of(tmp_path, source)
    corpus(tmp_path / "a.txt")
    for name, folder in (("same", source), ("other", foreign_folder(tmp_path / "other-hf", ("<a>", "<b>"), ""))):
        prepare_folder("text", [tmp_path / "a.txt"], tmp_path / name, "hf", 0.0, tokenizer_folder=folder)
    found = _kept_folder(toy.keeper, open_dataset(tmp_path / "same"))
    assert found is not None and found.parent == toy.home.configs / "tokenizers"
    with pytest.raises(CheckFailed, match="is in no version here"):
        _kept_folder(toy.keeper, open_dataset(tmp_path / "other"))
    toy.die()
