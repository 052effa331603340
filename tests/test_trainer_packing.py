"""Packing: best fit wastes little and cuts nothing twice, documents keep to themselves, older lists stay what they were."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trainer_data import chat_row, jsonl, make, sentence, store, text_rows

from guard.bitmap import pack_bitmap
from guard.errors import Damage, UsageError
from trainer.best_fit import best_fit, fit, fullest_bins
from trainer.choose import Chosen, select_new
from trainer.dataset import LENGTH, ORDINAL, START, Dataset
from trainer.packing import most_that_fit
from trainer.recipe import parse_recipe, parse_sealed, recipe_hash
from trainer.replay import ReplaySource, add_replay
from trainer.selection import Selection, load_selection

CHATS = Path(__file__).parent.parent.parent / "shared" / "data" / "gsm8k_chat.jsonl"


def plainly(sizes: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing as the books have it, item by item: the contents of the bins, sorted."""
    room: list[int] = []
    held: list[list[int]] = []
    for size in sorted(sizes, reverse=True):
        fitting = [(left, number) for number, left in enumerate(room) if left >= size]
        if not fitting:
            fitting = [(capacity, len(room))]
            room.append(capacity)
            held.append([])
        room[min(fitting)[1]] -= size
        held[min(fitting)[1]].append(size)
    return sorted(map(tuple, held))


CASES = st.integers(1, 30).flatmap(lambda most: st.tuples(st.just(most), st.lists(st.integers(1, most), max_size=50)))


def contents(sizes: list[int], bins: NDArray[np.int64]) -> list[tuple[int, ...]]:
    found = [tuple(sorted((size for size, mine in zip(sizes, bins, strict=True) if mine == number), reverse=True))
             for number in range(bins.max(initial=-1) + 1)]  # fmt: skip
    return sorted(found)


@settings(max_examples=40, deadline=None)
@given(CASES)
def test_best_fit_is_best_fit_decreasing(case: tuple[int, list[int]]) -> None:
    capacity, sizes = case
    assert contents(sizes, best_fit(np.array(sizes, np.int64), capacity)) == plainly(sizes, capacity)


@settings(max_examples=40, deadline=None)
@given(CASES)
def test_whichever_way_is_better_is_taken_and_bins_follow_the_data(case: tuple[int, list[int]]) -> None:
    capacity, sizes = case
    array = np.array(sizes, np.int64)
    for way in (best_fit, fullest_bins, fit):
        bins = way(array, capacity)
        held = contents(sizes, bins)
        assert sorted(size for one in held for size in one) == sorted(sizes)
        assert all(one and sum(one) <= capacity for one in held)
        assert [number for place, number in enumerate(bins) if number not in bins[:place]] == list(range(len(held)))
    assert bins.max(initial=-1) == min(way(array, capacity).max(initial=-1) for way in (best_fit, fullest_bins)) or (
        array.sum() >= 0.995 * capacity * (bins.max() + 1))  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(CASES)
def test_each_bin_is_filled_as_full_as_what_is_left_allows(case: tuple[int, list[int]]) -> None:
    capacity, sizes = case
    held = sorted(contents(sizes, fullest_bins(np.array(sizes, np.int64), capacity)), reverse=True)
    if held:
        first, rest = max(held, key=lambda one: (one[0], sum(one))), sorted(sizes, reverse=True)[1:]
        sums = {0}
        for size in rest:
            sums |= {total + size for total in sums if first[0] + total + size <= capacity}
        assert sum(first) == first[0] + max(sums)


def test_a_million_pieces_take_seconds_and_hardly_a_token_is_wasted() -> None:
    sizes = np.clip(np.random.default_rng(0).lognormal(5.2, 0.3, 1_000_000).astype(np.int64), 1, 768)
    held = np.bincount(fit(sizes, 768), weights=sizes)
    assert held.max() <= 768 and held.mean() / 768 > 0.995


def test_the_same_pieces_always_share_a_bin() -> None:
    sizes = np.random.default_rng(0).integers(1, 200, 5_000)
    assert all(np.array_equal(way(sizes, 256), way(sizes.copy(), 256)) for way in (best_fit, fullest_bins))


# --- what a sequence holds ----------------------------------------------------------------------------------------


def read(selection: Selection, datasets: list[Dataset]) -> list[list[list[int]]]:
    """The tokens of each document of each sequence."""
    assert selection.documents is not None
    found: list[list[list[int]]] = []
    for first, end in selection.sequences:
        documents: dict[int, list[int]] = {}
        for (source, start, length), number in zip(selection.ranges[first:end], selection.documents[first:end], strict=True):
            documents.setdefault(int(number), []).extend(datasets[source].train.tokens(int(start), int(length)).tolist())
        assert list(documents) == list(range(len(documents)))
        found.append(list(documents.values()))
    return found


@pytest.fixture
def rows(tmp_path: Path) -> Dataset:
    """Forty rows of text, one far longer than a block."""
    data = jsonl([*text_rows(40), {"text": sentence(999, 60)}])
    return make(tmp_path / "rows", [store(tmp_path / "f", "a.jsonl", data, "pretrain")], fraction=0.2, shard=200)


@pytest.fixture
def chats(tmp_path: Path) -> Dataset:
    data = jsonl([chat_row(number, context_words=number * 4) for number in range(30)])
    return make(tmp_path / "chats", [store(tmp_path / "f", "c.jsonl", data, "sft")], "sft", shard=900)


@pytest.fixture
def prose(tmp_path: Path) -> Dataset:
    """One plain text in many segments, some of them held out."""
    text = "\n\n".join(sentence(number, 40) for number in range(400)).encode()
    return make(tmp_path / "prose", [store(tmp_path / "f", "p.txt", text, "pretrain")], fraction=0.2, shard=5000)


def choose(dataset: Dataset, block: int, packing: str | None = "bestfit", **more: Any) -> Chosen:
    return select_new(dataset, stage=dataset.stage, known_fps=None, block_size=block, packing=packing, **more)


def expected_pairs(documents: list[NDArray[Any]]) -> Counter[tuple[int, int]]:
    return Counter(pair for tokens in documents for pair in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))


@pytest.mark.parametrize("packing", ["off", "bestfit"])
@pytest.mark.parametrize("block", [16, 64, 1000])
def test_every_token_of_a_document_but_its_first_is_predicted_once_and_none_across_a_border(
    rows: Dataset, packing: str, block: int
) -> None:
    chosen = choose(rows, block, packing)
    found = read(chosen.selection, [rows])
    table = rows.train.examples
    wanted = expected_pairs([rows.train.tokens(int(row[START]), int(row[LENGTH])) for row in table])
    pairs = expected_pairs([np.array(document) for sequence in found for document in sequence])
    assert pairs == wanted and chosen.counts["loss_tokens"] == sum(wanted.values()) == int(table[:, LENGTH].sum()) - len(table)
    assert all(sum(len(document) - 1 for document in sequence) <= block for sequence in found)
    assert packing == "bestfit" or all(len(sequence) == 1 for sequence in found)
    assert packing == "off" or block < 64 or any(len(sequence) > 1 for sequence in found)


def test_conversations_are_never_cut_and_their_masks_go_with_them(chats: Dataset) -> None:
    off, packed = choose(chats, 300, "off").selection, choose(chats, 300).selection
    alone = sorted(document for sequence in read(off, [chats]) for document in sequence)
    assert sorted(document for sequence in read(packed, [chats]) for document in sequence) == alone
    assert len(packed.sequences) < len(off.sequences) == len(alone)
    legacy = choose(chats, 300, None).selection
    assert np.array_equal(legacy.ranges, off.ranges) and np.array_equal(legacy.sequences, off.sequences)


def test_segments_of_one_text_are_one_document_until_something_is_left_out(prose: Dataset) -> None:
    assert prose.val.count > 1 and prose.train.count > 10
    ordinals = prose.train.examples[:, ORDINAL]
    stretches = 1 + int((np.diff(ordinals) > 1).sum())
    chosen = choose(prose, 100_000, "off")
    documents = [document for sequence in read(chosen.selection, [prose]) for document in sequence]
    assert len(documents) == stretches < prose.train.count
    assert chosen.counts["loss_tokens"] == prose.train.total_tokens - stretches
    # Side by side in a document means side by side in the file.
    text = (prose.folder.parent / "f" / prose.files[0]["sha256"] / "p.txt").read_bytes()
    assert all(bytes(tokens).rstrip(b"\x00") in text for tokens in (document[:-1] for document in documents))


def test_an_example_is_learnt_when_all_its_pieces_were_fed(rows: Dataset) -> None:
    chosen = choose(rows, 32)
    selection = chosen.selection
    carriers: dict[int, set[int]] = {}
    for sequence, example in selection.touches.tolist():
        carriers.setdefault(example, set()).add(sequence)
    spans = [(int(row[START]), int(row[START] + row[LENGTH])) for row in rows.train.examples[chosen.example_rows]]
    really: dict[int, set[int]] = {example: set() for example in range(len(spans))}
    for number, (first, end) in enumerate(selection.sequences):
        for _source, start, length in selection.ranges[first:end].tolist():
            owners = [example for example, (low, high) in enumerate(spans) if low <= start and start + length <= high]
            really[owners[0]].add(number)
    assert carriers == really and max(map(len, really.values())) > 2
    for steps in (1, 3, 7, 50):
        fed = {int(item) for step in range(steps) for item in selection.batch(5, step, 2)}
        learnt = selection.learnt_examples(5, steps, 2)
        assert learnt.tolist() == [really[example] <= fed for example in range(len(spans))]


def test_a_document_of_one_token_is_too_short_and_never_counts_as_learnt(tmp_path: Path) -> None:
    text = "\n\n".join(sentence(number, 40) for number in range(60)).encode()
    dataset = make(tmp_path / "d", [store(tmp_path / "f", "p.txt", text, "pretrain")], shard=5000)
    cut = dataset.train.examples.copy()
    cut[0, LENGTH] = 1
    dataset.train.__dict__["examples"] = cut  # as if the first segment were one token, with a gap behind it
    chosen = choose(dataset, 64)
    assert chosen.counts["too_short"] == 1 and chosen.counts["new"] == len(cut) - 1 == len(chosen.selection.examples)
    assert 0 not in chosen.example_rows
    assert set(chosen.selection.touches[:, 1].tolist()) == set(range(len(cut) - 1))


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_a_step_cap_packs_the_beginning_and_leaves_the_rest_whole(rows: Dataset, chats: Dataset, stage: str) -> None:
    dataset = rows if stage == "pretrain" else chats
    whole = choose(dataset, 300)
    for count in range(1, len(whole.selection.sequences) + 1):
        capped = choose(dataset, 300, at_most=count)
        taken = capped.example_rows
        assert len(capped.selection.sequences) <= count and np.array_equal(taken, np.arange(len(taken)))
        assert capped.selection.learnt_examples(1, 10_000, 4).all()
        every = np.arange(dataset.train.count)
        more = select_new(dataset, stage=stage, known_fps=None, block_size=300, packing="bestfit",
                          held_out=every > len(taken))  # fmt: skip
        assert len(more.selection.sequences) > count or len(taken) == dataset.train.count, "another one would have fitted"
        assert {key: value for key, value in capped.counts.items() if key != "sequences"} == {
            key: value for key, value in whole.counts.items() if key != "sequences"}  # fmt: skip


def test_one_row_too_large_for_the_cap_is_taken_all_the_same(rows: Dataset) -> None:
    table = rows.train.examples
    assert most_that_fit(rows, np.array([int(table[:, LENGTH].argmax())]), 16, 2) == 1


def test_replay_shares_sequences_with_replay_alone(rows: Dataset, chats: Dataset) -> None:
    chosen = choose(chats, 400)
    count = int(rows.files[0]["examples"])
    known = ((0, pack_bitmap(rows.train.examples[:, ORDINAL].tolist(), count)),)
    mixed = add_replay(chosen, [ReplaySource(rows, known)], fraction=0.2, block_size=400, seed=1, packing="bestfit").selection
    assert mixed.documents is not None and len(mixed.documents) == len(mixed.ranges) and mixed.replay.any()
    for number, (first, end) in enumerate(mixed.sequences):
        assert (mixed.ranges[first:end, 0] == int(mixed.replay[number])).all()
    replayed = [sequence for sequence, replay in zip(read(mixed, [chats, rows]), mixed.replay, strict=True) if replay]
    assert any(len(sequence) > 1 for sequence in replayed)


def test_at_least_98_of_100_tokens_are_used_on_chats_of_mixed_length(tmp_path: Path) -> None:
    data = jsonl([chat_row(number, context_words=number % 23) for number in range(400)])
    dataset = make(tmp_path / "c", [store(tmp_path / "f", "c.jsonl", data, "sft")], "sft", shard=10**6)
    for block in (256, 512, 1024):
        assert used(choose(dataset, block), block) >= 0.98
        assert used(choose(dataset, block, "off"), block) < 0.8


@pytest.mark.skipif(not CHATS.exists(), reason="the shared data is not here")
def test_at_least_98_of_100_tokens_are_used_on_gsm8k(tmp_path: Path) -> None:
    files = [store(tmp_path / "f", "c.jsonl", b"".join(CHATS.read_bytes().splitlines(True)[:600]), "sft")]
    dataset = make(tmp_path / "c", files, "sft", "gpt2", shard=10**6)
    assert used(choose(dataset, 512), 512) >= 0.98 and used(choose(dataset, 1024), 1024) >= 0.98
    # Two thirds of these conversations are longer than half of 256: no way of packing fills more (84.4 % at most).
    assert used(choose(dataset, 256), 256) >= 0.82


def used(chosen: Chosen, block: int) -> float:
    return chosen.selection.used(block)


def test_used_counts_predictions_and_not_the_token_that_pieces_share(rows: Dataset) -> None:
    selection = choose(rows, 32).selection
    predictions = sum(len(document) - 1 for sequence in read(selection, [rows]) for document in sequence)
    assert selection.used(32) == predictions / (32 * len(selection.sequences))
    assert selection.document_count() == sum(map(len, read(selection, [rows])))


# --- lists of earlier releases, recipes ---------------------------------------------------------------------------


def older(count: int) -> Selection:
    each = np.arange(count)
    return Selection(("d",), np.stack([each * 0, each * 10, each * 0 + 10], 1), np.stack([each, each + 1], 1),
                     np.zeros(count, bool), np.stack([each * 0, each, each * 0 + 10], 1), np.stack([each, each], 1),
                     ("id",))  # fmt: skip


def test_a_list_without_documents_is_written_and_hashed_as_earlier_releases_did(tmp_path: Path) -> None:
    assert older(6).save(tmp_path) == "f90402818e9b8591c466b94b2ab7237de831743a375802317faec04bea93f480"
    assert json.loads((tmp_path / "selection.json").read_text())["schema"] == 1
    assert load_selection(tmp_path).documents is None
    with np.load(tmp_path / "selection.npz") as arrays:
        assert sorted(arrays) == ["examples", "ranges", "replay", "sequences", "touches"]


def test_documents_are_part_of_what_is_written_and_hashed(tmp_path: Path) -> None:
    packed = dataclasses.replace(older(6), documents=np.zeros(6, np.int64))
    assert packed.save(tmp_path) == packed.content_hash() != older(6).content_hash()
    loaded = load_selection(tmp_path)
    assert loaded.documents is not None and np.array_equal(loaded.documents, packed.documents)
    assert dataclasses.replace(packed, documents=np.arange(6)).content_hash() != packed.content_hash()
    record = json.loads((tmp_path / "selection.json").read_text())
    (tmp_path / "selection.json").write_text(json.dumps({**record, "schema": 1}))
    with pytest.raises(Damage):
        load_selection(tmp_path)


TRAINING = {"learning_rate": 1e-3, "batch_sequences": 4}


@pytest.mark.parametrize(("said", "means"), [("bestfit", "bestfit"), ("off", "off"), (False, "off"), (None, None)])
def test_packing_in_a_recipe(said: object, means: str | None) -> None:
    recipe = parse_recipe({"stage": "sft", "training": {**TRAINING, "packing": said}})
    assert recipe.training.packing == means and parse_recipe(recipe.as_dict()).training.packing == means
    flat = parse_recipe({"stage": "sft", "batch_size": 4, "learning_rate": 1e-3, "packing": said})
    assert flat.training.packing == means


def test_packing_is_on_unless_said_otherwise_and_a_bare_yes_is_no_packing() -> None:
    assert parse_recipe({"stage": "pretrain", "training": TRAINING}).training.packing == "bestfit"
    with pytest.raises(UsageError, match="packing"):
        parse_recipe({"stage": "sft", "training": {**TRAINING, "packing": True}})


def test_a_recipe_sealed_before_there_was_packing_means_what_it_meant_and_keeps_its_hash() -> None:
    sealed = {"stage": "sft", "name": "x", "training": TRAINING}
    recipe = parse_sealed(sealed)
    assert recipe.training.packing is None and parse_sealed(recipe.as_dict()).training.packing is None
    assert recipe_hash(recipe) == "7e49963bb3f598b6b61f82d5eb1b9a5e090782751ce79f7de0932c6d40990b2d"
    assert recipe_hash(parse_recipe(sealed)) != recipe_hash(recipe)
    assert parse_sealed(parse_recipe(sealed).as_dict()).training.packing == "bestfit"
