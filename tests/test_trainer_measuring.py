"""Losses per example and answers: the same figures by every way, and in bytes that compare across tokenizers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hf_help
import numpy as np
import pytest
import trainer_help

torch = pytest.importorskip("torch")

from guard.errors import CheckFailed  # noqa: E402
from guard.fingerprint import example_fingerprint  # noqa: E402
from trainer.answering import Asking, answer_all, prompt_ids  # noqa: E402
from trainer.dataset import Dataset, open_dataset  # noqa: E402
from trainer.evaluate import evaluate  # noqa: E402
from trainer.generate import generate  # noqa: E402
from trainer.measuring import Measured, compare, measure  # noqa: E402
from trainer.model import Decoder, new_model  # noqa: E402
from trainer.model_config import ModelConfig  # noqa: E402
from trainer.objectives import find_objective  # noqa: E402
from trainer.prepare import prepare_dataset  # noqa: E402
from trainer.prepare_folder import prepare_folder, source_of  # noqa: E402
from trainer.samples import Counted, FileSet, Sample, ShardSet, choose, samples_of  # noqa: E402
from trainer.stopping import StopRequested  # noqa: E402
from trainer.template import stop_ids  # noqa: E402
from trainer.templates.mypt import MYPT  # noqa: E402
from trainer.token_lengths import byte_lengths, control_ids  # noqa: E402
from trainer.tokenizer import load_tokenizer  # noqa: E402

CHAR = load_tokenizer("char")
TABLES = byte_lengths(CHAR), control_ids(CHAR)
MODEL = new_model(ModelConfig.from_recipe(trainer_help.SHAPE), 1).eval()
OTHER = new_model(ModelConfig.from_recipe(trainer_help.SHAPE), 2).eval()
WIDE = new_model(ModelConfig.from_recipe(trainer_help.SHAPE | {"vocab_size": 384}), 3).eval()
TEXT = "Ünï 🙂 codé\n\tfunctions: def f(x):  return x\u3000漢字 \u0301 end <|endoftext|> <myPT_user>"


@dataclass(frozen=True)
class Made:
    """A prepared folder; opened anew by each test, so that none keeps its maps open."""

    stage: str
    source: Path
    folder: Path

    def open(self) -> Dataset:
        return open_dataset(self.folder)


@pytest.fixture(scope="module", params=["pretrain", "sft"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "rows.jsonl"
    words = trainer_help.prose(600).split()
    rows = [json.dumps({"text": " ".join(words[at : at + 3 + at % 11])}) for at in range(0, 590, 12)]
    source.write_text(trainer_help.conversations(40) if request.param == "sft" else "\n".join(rows) + "\n", "utf-8")
    prepare_dataset([source_of(source, request.param)], CHAR, folder / "shards", stage=request.param,
                    shard_size_tokens=100_000, salt="salt", validation_fraction=0.1)  # fmt: skip
    return Made(request.param, source, folder / "shards")


def measured(source: Any, model: Decoder = MODEL, tokenizer: Any = CHAR, max_tokens: int = 0, **more: Any) -> Measured:
    tables = (byte_lengths(tokenizer), control_ids(tokenizer))
    return measure(model, choose(samples_of(source, tokenizer, MYPT, Counted()), max_tokens, **more), *tables)


@pytest.mark.parametrize("max_tokens", [300, 10**6])
def test_the_loss_is_the_one_the_gate_measures_on_the_very_same_examples(dataset: Made, max_tokens: int) -> None:
    objective = find_objective(dataset.stage)
    gate = evaluate(MODEL, dataset.open().train, objective, max_tokens=max_tokens, use_mask=dataset.stage == "sft")
    found = measured(ShardSet(dataset.folder, "train"), max_tokens=max_tokens).figures()
    assert found["loss"] == pytest.approx(gate.loss, rel=1e-5) and found["examples"] == gate.examples
    assert (found["tokens"], found["loss_tokens"]) == (gate.tokens, gate.loss_tokens)
    assert found["perplexity"] == pytest.approx(math.exp(gate.loss or 0), rel=1e-5)


def test_shards_and_the_files_they_were_made_from_give_the_same_held_out_rows(dataset: Made) -> None:
    held = FileSet((source_of(dataset.source, dataset.stage),), dataset.stage, "salt", 0.1)
    shards, files = measured(ShardSet(dataset.folder)), measured(held)
    assert shards.keys and sorted(shards.keys) == sorted(files.keys)
    same = files.at(shards.keys)
    assert same.nats == pytest.approx(shards.nats, rel=1e-5) and same.text_bytes == shards.text_bytes
    opened = dataset.open()
    everything = measured(FileSet((source_of(dataset.source, dataset.stage),), dataset.stage))
    assert len(everything.keys) == len(set(opened.train.fingerprints.tolist()) | set(opened.val.fingerprints.tolist()))


def test_bits_per_byte_are_the_nats_of_text_over_its_bytes() -> None:
    ids = np.array([*"né".encode(), CHAR.separator_id], dtype=np.uint16)
    found = measure(MODEL, [Sample(b"k" * 16, ids, None, (0, 0))], *TABLES)
    with torch.no_grad():
        scores = torch.log_softmax(MODEL.logits(MODEL(torch.from_numpy(ids[None, :-1].astype(np.int64)))[0]), -1)
    nats = [-float(scores[place, int(ids[place + 1])]) for place in range(len(ids) - 1)]
    assert found.nats == pytest.approx([sum(nats)]) and found.tokens == [3]
    assert found.text_bytes == [2] and found.text_nats == pytest.approx([sum(nats[:2])])  # the separator is no text
    assert found.figures()["bits_per_byte"] == pytest.approx(sum(nats[:2]) / 2 / math.log(2))


def test_what_is_masked_bears_no_loss_and_other_rows_of_the_batch_change_nothing() -> None:
    ids = np.frombuffer(b"question and answer", dtype=np.uint8).astype(np.uint16)
    mask = np.array([0] * 13 + [1] * 6, dtype=np.uint8)
    one = Sample(b"a" * 16, ids, mask, (0, 0))
    more = [Sample(bytes([n]) * 16, ids[: n + 2], None, (0, 0)) for n in range(12)]
    alone, among = measure(MODEL, [one], *TABLES), measure(MODEL, [*more, one], *TABLES)
    assert alone.tokens == [6] and among.tokens[-1] == 6
    assert among.nats[-1] == pytest.approx(alone.nats[0], rel=1e-5)


@pytest.mark.parametrize("name", ["char", "gpt2", "hf"])
def test_the_lengths_of_a_texts_ids_add_up_to_its_bytes(name: str, tmp_path: Path) -> None:
    folder = hf_help.trained_folder(tmp_path / "own") if name == "hf" else None
    tokenizer = load_tokenizer(name, folder)
    lengths = byte_lengths(tokenizer)
    assert int(lengths[tokenizer.encode_array(TEXT)].sum()) == len(TEXT.encode())
    assert not lengths[control_ids(tokenizer)].any() and tokenizer.separator_id in control_ids(tokenizer)


def test_two_tokenizers_are_compared_in_bits_per_byte_on_the_examples_both_have(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "keeps learning for weeks {n}"}}\n' for n in range(30)))
    own = load_tokenizer("hf", hf_help.trained_folder(tmp_path / "own"))
    source = FileSet((source_of(tmp_path / "text.jsonl", "pretrain"),), "pretrain")
    first = measured(source, max_tokens=300)
    second = measured(source, WIDE, own, only=set(first.keys))
    assert sorted(second.keys) == sorted(first.keys) and len(first.keys) < 30
    found = compare(first, second, same_tokenizer=False)
    assert found["by"] == "bits_per_byte" and found["loss"] is None and found["examples"] == len(first.keys)
    one, two = first.figures(), second.figures()
    assert found["bits_per_byte"] == pytest.approx(one["bits_per_byte"] - two["bits_per_byte"])


def test_a_comparison_with_itself_shows_no_difference_and_with_another_is_signed(dataset: Made) -> None:
    source = ShardSet(dataset.folder, "train")
    first, second = measured(source), measured(source, OTHER)
    same = compare(first, first, same_tokenizer=True)
    assert (same["loss"], same["verdict"]) == (0.0, "no difference seen")
    assert compare(first, second, same_tokenizer=True)["loss"] == -compare(second, first, same_tokenizer=True)["loss"]


def test_the_examples_with_the_lowest_keys_are_taken_each_once_and_never_none() -> None:
    def samples(*keys: int) -> Any:
        return iter([Sample(key.to_bytes(16, "big"), np.zeros(10, dtype=np.uint16), None, (0, 0)) for key in keys])

    for order in ((5, 1, 9, 3, 7), (9, 7, 5, 3, 1), (1, 3, 5, 7, 9)):
        assert [item.key[-1] for item in choose(samples(*order), 35)] == [1, 3, 5]
    assert [item.key[-1] for item in choose(samples(4, 2), 1)] == [2]
    assert [item.key[-1] for item in choose(samples(4, 2, 6), 0, only={(6).to_bytes(16, "big")})] == [6]
    assert len(list(choose(samples(4, 2), 0))) == 2


def test_shards_and_ids_of_another_tokenizer_are_refused(dataset: Made, tmp_path: Path) -> None:
    own = load_tokenizer("hf", hf_help.trained_folder(tmp_path / "own"))
    with pytest.raises(CheckFailed, match="tokenizer"):
        measured(ShardSet(dataset.folder), tokenizer=own)
    (tmp_path / "ids.jsonl").write_text('{"input_ids": [1, 2, 3]}\n')
    with pytest.raises(CheckFailed, match="token ids"):
        measured(FileSet((source_of(tmp_path / "ids.jsonl", "pretrain"),), "pretrain"))


def test_an_infinite_loss_is_no_figure_and_a_stop_is_heard(dataset: Made) -> None:
    broken = Measured([b"a"], [math.inf], [3], [math.inf], [3])
    assert broken.figures()["loss"] is None and broken.figures()["perplexity"] is None and not broken.figures()["finite"]
    assert Measured([b"a"], [9000.0], [3], [1.0], [3]).figures()["perplexity"] is None
    with pytest.raises(StopRequested):
        measure(MODEL, samples_of(ShardSet(dataset.folder, "train"), CHAR, MYPT, Counted()), *TABLES, stop=lambda: True)


# --- answers ---------------------------------------------------------------------------------------------------------


def _prompt(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def test_questions_side_by_side_get_the_answers_they_get_alone() -> None:
    prompts = [_prompt(f"{number}{'?' * (number % 3)}") for number in range(10)]
    stops = stop_ids(MYPT, CHAR)
    together = answer_all(MODEL, CHAR, MYPT, prompts, [None] * 10, Asking(max_tokens=12))
    for prompt, answer in zip(prompts, together, strict=True):
        ids = generate(MODEL, prompt_ids(prompt, CHAR, MYPT, raw=False), max_tokens=12, ids_in_use=CHAR.vocab_size,
                       stop_ids=stops, temperature=0.0)  # fmt: skip
        assert (answer.text, answer.tokens, answer.problem) == (CHAR.decode(ids), len(ids), "")
        assert answer.cut == (len(ids) == 12)


def test_a_seed_gives_the_same_answers_again_and_a_limit_of_its_own_counts() -> None:
    prompts = [_prompt("a?"), _prompt("b?")]
    warm = Asking(max_tokens=10, temperature=1.0, seed=3)
    first = answer_all(MODEL, CHAR, MYPT, prompts, [None, 2], warm)
    assert first == answer_all(MODEL, CHAR, MYPT, prompts, [None, 2], warm) and first[1].tokens <= 2
    assert first != answer_all(MODEL, CHAR, MYPT, prompts, [None, 2], Asking(max_tokens=10, temperature=1.0, seed=4))


def test_a_question_that_does_not_fit_is_told_and_not_shortened() -> None:
    long, short = answer_all(MODEL, CHAR, MYPT, [_prompt("x" * 100), _prompt("y")], [None, None], Asking(max_tokens=500))
    assert "takes" in long.problem and not long.text and not short.problem
    raw = answer_all(MODEL, CHAR, MYPT, [_prompt("x" * 40)], [None], Asking(max_tokens=500, raw=True))[0]
    assert not raw.problem and raw.tokens <= 8


def test_a_fingerprint_that_ends_in_zero_bytes_is_kept_whole(tmp_path: Path) -> None:
    text = next(f"row {n}" for n in range(100_000) if example_fingerprint({"text": f"row {n}"}).endswith(b"\0"))
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{text}"}}\n{{"text": "another"}}\n')
    prepare_folder("text", [tmp_path / "a.jsonl"], tmp_path / "out", "char", val_split=0.0)
    assert open_dataset(tmp_path / "out").train.count == 2
    assert example_fingerprint({"text": text}) in measured(ShardSet(tmp_path / "out", "train")).keys
