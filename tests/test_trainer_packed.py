"""A packed sequence trains exactly what its documents train alone: losses, gradients, targets, masks, whole jobs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_help
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from guard.errors import CheckFailed  # noqa: E402
from trainer.batches import Batch, Feed, Row, pad, side_by_side  # noqa: E402
from trainer.choose import select_new  # noqa: E402
from trainer.leak_check import require_no_leak, rows_that_share, takes_documents  # noqa: E402
from trainer.loss import next_token_loss  # noqa: E402
from trainer.model import Decoder, _layout, new_model  # noqa: E402
from trainer.model_config import ModelConfig  # noqa: E402
from trainer.objectives import find_objective  # noqa: E402
from trainer.train_job import run_base, run_train  # noqa: E402
from trainer.version_files import load_version  # noqa: E402

SFT = find_objective("sft")


def tiny(kind: type[Decoder] = Decoder) -> Decoder:
    model = new_model(ModelConfig.from_recipe(trainer_help.SHAPE), 1)
    with torch.no_grad():  # larger than at birth, so that attention looks somewhere
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    model.__class__ = kind
    return model


def document(seed: int, length: int) -> Row:
    dice = np.random.default_rng(seed)
    ids = dice.integers(0, 300, length + 1)
    return ids[:-1], ids[1:], (dice.random(length) > 0.3).astype(np.float32)


def gradients(model: Decoder, batches: list[Batch], dtype: torch.dtype = torch.float32) -> tuple[float, dict[str, Any]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = next_token_loss(model, batch, dtype)
        loss.backward()
        total += float(loss.detach())
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# --- the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
def test_packed_gradients_are_the_sum_of_those_of_the_documents_alone(dtype: torch.dtype, close: float) -> None:
    model, rows = tiny(), [document(seed, length) for seed, length in enumerate((20, 1, 7, 48, 13))]
    loss, packed = gradients(model, [side_by_side(rows)], dtype)
    alone_loss, alone = gradients(model, [pad([row]) for row in rows], dtype)
    assert loss == pytest.approx(alone_loss, rel=close)
    for name, wanted in alone.items():
        assert float((packed[name] - wanted).norm()) <= close * float(wanted.norm()), name


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=6), st.data())
def test_changing_one_document_never_changes_another_to_the_bit(lengths: list[int], data: Any) -> None:
    model, rows = tiny(), [document(seed, length) for seed, length in enumerate(lengths)]
    changed, kept = data.draw(st.permutations(range(len(rows))))[:2]
    others = [document(77 + number, len(row[0])) if number == changed else row for number, row in enumerate(rows)]
    found = []
    for version in (rows, others):
        only = [(x, y, w + 1 if number == kept else w * 0) for number, (x, y, w) in enumerate(version)]
        batch = side_by_side(only)
        given_out: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, out: torch.Tensor, given_out: list[torch.Tensor] = given_out) -> torch.Tensor:
            given_out.append(out.detach().requires_grad_())
            return given_out[0]

        hook = model.get_input_embeddings().register_forward_hook(keep)
        loss = next_token_loss(model, batch, torch.float32)
        (gradient,) = torch.autograd.grad(loss, given_out)
        hook.remove()
        mine = slice(sum(lengths[:kept]), sum(lengths[: kept + 1]))
        found.append((loss.detach(), gradient[0, mine].clone()))
        gradient[0, mine] = 0
        assert not gradient.any(), "nobody else's embedding moves this loss"
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_a_row_longer_than_the_block_is_fine_and_a_document_is_not() -> None:
    model = tiny()
    long = side_by_side([document(seed, 30) for seed in range(5)])
    assert model(long.inputs, documents=long.documents).shape == (1, 150, 32)
    with pytest.raises(AssertionError, match="49 positions"):
        tokens = torch.zeros(1, 60, dtype=torch.int64)
        model(tokens, documents=(torch.arange(60) >= 49).long()[None])


def test_rows_of_several_documents_and_padding_stand_beside_each_other() -> None:
    numbers = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, -1, -1]])
    positions, lengths = _layout(numbers)
    assert positions.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 0, 1]] and lengths == [3, 2, 1, 2, 2]
    model, tokens = tiny(), torch.randint(0, 300, (2, 5), generator=torch.Generator().manual_seed(1))
    packed = model(tokens, documents=numbers)
    torch.testing.assert_close(packed[0, 3:], model(tokens[:1, 3:])[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[1, 1:3], model(tokens[1:, 1:3])[0], rtol=1e-5, atol=1e-5)


# --- feeding ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    run_base(trainer_help.base_job(folder / "base"))
    return folder


@pytest.fixture(scope="module")
def chat(home: Path) -> Any:
    made = trainer_help.make_dataset(home / "chat", "sft")
    assert len(made.train.examples) and len(made.train.fingerprints)
    return made


def feed_of(dataset: Any, packing: str | None, batch: int, **how: Any) -> Feed:
    selection = select_new(dataset, stage=dataset.stage, known_fps=None, block_size=48, packing=packing).selection
    return Feed(selection, find_objective(dataset.stage), seed=3, batch_sequences=batch, micro_sequences=2,
                use_mask=dataset.stage == "sft", **how)  # fmt: skip


def pairs(feed: Feed) -> list[tuple[tuple[int, ...], int]]:
    """Every (context, target) that is trained in an epoch: what a position can see, and what it is to predict."""
    found = []
    for step in range(feed.selection.steps_per_epoch(4)):
        for batch in feed.step(step).micro_batches:
            numbers = torch.zeros_like(batch.inputs) if batch.documents is None else batch.documents
            for row, position in torch.nonzero(batch.weights).tolist():
                mine = torch.nonzero(numbers[row] == numbers[row, position]).flatten()
                context = batch.inputs[row, int(mine[0]) : position + 1]
                found.append((tuple(context.tolist()), int(batch.targets[row, position])))
    return sorted(found)


def test_packed_conversations_train_the_very_same_context_and_target_pairs(chat: Any) -> None:
    wanted = pairs(feed_of(chat, "off", 4))
    assert wanted == pairs(feed_of(chat, None, 4)) == pairs(feed_of(chat, "bestfit", 4))
    assert wanted == pairs(feed_of(chat, "bestfit", 4, apart=True)) and len(wanted) > 100
    assert len(feed_of(chat, "bestfit", 4).selection.sequences) < len(feed_of(chat, "off", 4).selection.sequences)


def test_packed_steps_have_no_padding_and_count_as_their_documents_do(chat: Any) -> None:
    feed, apart = feed_of(chat, "bestfit", 4), feed_of(chat, "bestfit", 4, apart=True)
    for step in range(feed.selection.steps_per_epoch(4)):
        packed, alone = feed.step(step), apart.step(step)
        assert sum(batch.inputs.numel() for batch in packed.micro_batches) == packed.tokens
        assert (packed.tokens, packed.loss_tokens, packed.weight) == (alone.tokens, alone.loss_tokens, alone.weight)
        assert max(batch.inputs.numel() for batch in alone.micro_batches) <= 2 * 48
        assert all(batch.documents is None for batch in alone.micro_batches)


def test_a_step_is_the_same_to_rounding_whether_its_documents_are_packed_or_apart(chat: Any) -> None:
    model = tiny()
    loss, packed = gradients(model, feed_of(chat, "bestfit", 4).step(0).micro_batches)
    alone_loss, alone = gradients(model, feed_of(chat, "bestfit", 4, apart=True).step(0).micro_batches)
    assert loss == pytest.approx(alone_loss, rel=1e-5)
    assert all(float((packed[name] - wanted).norm()) <= 2e-5 * float(wanted.norm()) for name, wanted in alone.items())


# --- the check before step 1 --------------------------------------------------------------------------------------


class Blind(Decoder):
    """Takes the documents and does not care."""

    def forward(self, tokens: Any, cache: Any = None, documents: Any = None) -> Any:
        return super().forward(tokens[:, -48:], cache)


class Counting(Decoder):
    """Keeps documents apart, but counts their positions through: an absolute position added to what is embedded."""

    def forward(self, tokens: Any, cache: Any = None, documents: Any = None) -> Any:
        hidden = super().forward(tokens, cache, documents)
        return hidden * (1 + 0.05 * torch.arange(tokens.shape[1])[None, :, None])


class Unable(Decoder):
    """Knows nothing of documents, as most models of `transformers`."""

    def forward(self, tokens: Any, cache: Any = None) -> Any:  # type: ignore[override]
        return super().forward(tokens, cache)


def test_the_check_passes_a_sound_model_and_touches_nothing(chat: Any) -> None:
    model, feed = tiny(), feed_of(chat, "bestfit", 4)
    rows, before = rows_that_share(feed), [parameter.clone() for parameter in model.parameters()]
    assert len(rows) >= 2
    require_no_leak(model, SFT, rows)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert rows_that_share(feed_of(chat, "off", 4)) == rows_that_share(feed_of(chat, None, 4)) == []


def test_a_newborn_model_is_seen_to_leak_too() -> None:
    model = new_model(ModelConfig.from_recipe(trainer_help.SHAPE), 1)
    rows = [document(1, 12), document(2, 9)]
    require_no_leak(model, SFT, rows)
    model.__class__ = Blind
    with pytest.raises(CheckFailed, match=r"packing leak: document 2 .* depends on the token at position 1 of another"):
        require_no_leak(model, SFT, rows)


def test_positions_that_are_counted_through_are_found() -> None:
    with pytest.raises(CheckFailed, match="packing leak: document 2 of a sequence is not trained as it is alone"):
        require_no_leak(tiny(Counting), SFT, [document(1, 12), document(2, 9)])


# --- jobs ---------------------------------------------------------------------------------------------------------


def packed_job(home: Path, dataset: Any, name: str, **changes: Any) -> dict[str, Any]:
    """`trainer_help.train_job` on a packed list."""
    job = trainer_help.train_job(home / name, home / "base" / "out", dataset, **changes)
    chosen = select_new(dataset, stage=dataset.stage, known_fps=None, block_size=48, packing="bestfit").selection
    steps = changes.get("steps") or chosen.steps_per_epoch(4)
    return trainer_help.write_job(home / name, {
        **job, "steps": steps, "selection_sha256": chosen.save(home / name),
        "consumed_sha256": chosen.consumed_hash(1337, steps, 4)})  # fmt: skip


def test_a_packed_job_proves_what_it_did_and_learns(home: Path, chat: Any) -> None:
    job = packed_job(home, chat, "packed", steps=12)
    result = run_train(job)
    assert result["consumed_sha256"] == job["consumed_sha256"] and result["steps_executed"] == 12
    assert result["evaluation"][0]["child_loss"] < result["evaluation"][0]["parent_loss"] - 0.3
    assert result["generation"][0]["prompt"].endswith("<myPT_assistant>") and result["fed_apart"] == ""
    assert 0 < result["loss_tokens"] < result["fed_tokens"]


def test_a_held_out_set_has_the_same_loss_whatever_the_packing(home: Path, chat: Any) -> None:
    losses = [run_train(job)["evaluation"][0]["parent_loss"] for job in (
        packed_job(home, chat, "judged", steps=1),
        trainer_help.train_job(home / "judged-off", home / "base" / "out", chat, steps=1))]  # fmt: skip
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", [Blind, Unable])
def test_a_model_that_leaks_is_refused_and_one_that_cannot_pack_is_fed_apart(
    home: Path, chat: Any, kind: type[Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = packed_job(home, chat, kind.__name__, steps=3)

    def load(folder: Path) -> Any:
        model, tokenizer = load_version(folder)
        model.__class__ = kind
        return model, tokenizer

    monkeypatch.setattr("trainer.student.load_version", load)
    if kind is Blind:
        with pytest.raises(CheckFailed, match="packing leak"):
            run_train(job)
        assert not (home / "Blind" / "metrics.jsonl").exists(), "not a step was made"
        return
    assert not takes_documents(tiny(Unable)) and takes_documents(tiny())
    apart = run_train(job)
    assert "fed by itself" in apart["fed_apart"] and apart["consumed_sha256"] == job["consumed_sha256"]
    monkeypatch.undo()
    packed = run_train(packed_job(home, chat, "Able", steps=3))
    assert apart["final_loss"] == pytest.approx(packed["final_loss"], rel=1e-4)
    assert [apart[key] for key in ("fed_tokens", "loss_tokens", "tokens")] == [
        packed[key] for key in ("fed_tokens", "loss_tokens", "tokens")]  # fmt: skip


def test_a_packed_job_that_was_interrupted_ends_with_the_same_weights(home: Path, chat: Any) -> None:
    whole = run_train(packed_job(home, chat, "whole", steps=8))
    job = packed_job(home, chat, "torn", steps=8, snapshot={"every_steps": 2, "every_seconds": 0})
    asked = iter([False] * 9 + [True] * 100)
    with pytest.raises(Exception, match="stopped"):
        run_train(job, stop=lambda: next(asked))
    assert 0 < trainer_help.steps_logged(home / "torn") < 8
    result = run_train(job)
    assert result["weights_sha256"] == whole["weights_sha256"] and result["exactness"] == "RESUMED-EXACT"


def test_a_job_planned_by_an_earlier_release_trains_as_it_did_there(home: Path, chat: Any) -> None:
    job = trainer_help.train_job(home / "older", home / "base" / "out", chat, steps=4)
    assert json.loads((home / "older" / "selection.json").read_text())["schema"] == 1
    old = run_train(job)
    feed = feed_of(chat, "off", 4)
    without = dataclasses.replace(feed.selection, documents=None)
    assert without.content_hash() == job["selection_sha256"] and old["steps_executed"] == 4
