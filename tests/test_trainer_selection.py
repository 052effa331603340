"""Selections: what is new, how it is cut into sequences, replay, and an order that is a function of a few integers."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trainer_data import chat_row, jsonl, make, store, text_rows

from guard.bitmap import pack_bitmap
from guard.errors import CheckFailed, Damage
from trainer.choose import Chosen, known_flags, select_new
from trainer.dataset import KEY_DTYPE, LENGTH, ORDINAL, Dataset
from trainer.packing import _conversation_pieces, _pack_stream, touches
from trainer.replay import ReplaySource, add_replay
from trainer.selection import Selection, load_selection, training_steps


def fed_tokens(selection: Selection, sequence: int, datasets: list[Dataset]) -> NDArray[np.uint16]:
    first, end = selection.sequences[sequence]
    return np.concatenate([datasets[d].train.tokens(int(start), int(n)) for d, start, n in selection.ranges[first:end]])


def plain(sequences: int) -> Selection:
    """A selection of one-range sequences, each the whole of one example."""
    each = np.arange(sequences)
    return Selection(("d",), np.stack([each * 0, each * 10, each * 0 + 10], 1), np.stack([each, each + 1], 1),
                     np.zeros(sequences, bool), np.stack([each * 0, each, each * 0 + 10], 1), np.stack([each, each], 1),
                     ("id",))  # fmt: skip


# --- packing ------------------------------------------------------------------------------------------------------

GAPS_AND_LENGTHS = st.lists(st.tuples(st.sampled_from([0, 0, 0, 3]), st.integers(1, 15)), max_size=12)


@settings(max_examples=40, deadline=None)
@given(examples=GAPS_AND_LENGTHS, block=st.integers(1, 9))
def test_every_token_of_the_stream_but_the_first_is_predicted_exactly_once(
    examples: list[tuple[int, int]], block: int
) -> None:
    starts, lengths, position = [], [], 0
    for gap, length in examples:
        starts.append(position + gap)
        lengths.append(length)
        position += gap + length
    packed = _pack_stream(np.array(starts, np.int64), np.array(lengths, np.int64), block, 0)
    stream = [start + i for start, length in zip(starts, lengths, strict=True) for i in range(length)]
    owner = [index for index, length in enumerate(lengths) for _ in range(length)]
    predicted, touching = [], set()
    for number, (first, end) in enumerate(packed.sequences):
        tokens = [int(start) + i for _d, start, length in packed.ranges[first:end] for i in range(length)]
        assert 2 <= len(tokens) <= block + 1
        # Neighbouring tokens of the stream stay neighbours; ranges of a sequence never touch on disk.
        place = stream.index(tokens[0])
        assert stream[place : place + len(tokens)] == tokens
        predicted += tokens[1:]
        touching |= {(number, owner[place + i]) for i in range(1, len(tokens))}
    assert predicted == stream[1:]
    found = {tuple(pair) for pair in touches(packed, np.arange(len(starts))).tolist()} if predicted else set()
    # An example that is the stream's single first token bears no loss; it then counts with the sequence it stands in.
    assert touching <= found and {pair for pair in found - touching} <= {(0, 0)}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 10), st.integers(0, 20), st.integers(2, 10)), min_size=1, max_size=6),
       st.integers(20, 30))  # fmt: skip
def test_a_long_conversation_loses_the_tail_of_its_context_and_nothing_else(
    shapes: list[tuple[int, int, int]], block: int
) -> None:
    rows, position = [], 5
    for before, context, after in shapes:
        length = before + context + after
        rows.append([0, 0, position, length, 1, before, context])
        position += length
    packed = _conversation_pieces(np.array(rows, np.int64), block, 3)
    assert len(packed.bounds) == len(rows)
    for (first, end), row, (before, context, after) in zip(packed.bounds, rows, shapes, strict=True):
        tokens = [int(start) + i for _d, start, length in packed.ranges[first:end] for i in range(length)]
        kept = min(context, block + 1 - before - after)
        head, tail = row[2] + before + kept, row[2] + before + context
        assert tokens == [*range(row[2], head), *range(tail, tail + after)]
        assert (packed.ranges[first:end, 0] == 3).all() and (packed.ranges[first:end, 2] > 0).all()


# --- new, known, repeated -----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(keys=st.lists(st.integers(0, 12), max_size=30), known=st.lists(st.integers(0, 12), max_size=8))
def test_known_and_repeated_keys(tmp_path_factory: pytest.TempPathFactory, keys: list[int], known: list[int]) -> None:
    # Keys that end in NULs or differ only after one: what numpy's strings could get wrong.
    def key(number: int) -> bytes:
        return bytes([number % 3]) + bytes(7) + bytes([number // 3]) + bytes(7)

    path = tmp_path_factory.mktemp("k") / "known.fp"
    path.write_bytes(b"".join(key(number) for number in known))
    array = np.frombuffer(b"".join(key(number) for number in keys), dtype=KEY_DTYPE)
    is_known, repeated = known_flags(array, path)
    assert is_known.tolist() == [number in known for number in keys]
    assert repeated.tolist() == [number in keys[:place] for place, number in enumerate(keys)]


@pytest.mark.parametrize("data", [None, b"x" * 15])
def test_a_missing_or_torn_list_of_known_examples_is_damage_and_not_an_empty_list(
    tmp_path: Path, data: bytes | None
) -> None:
    if data is not None:
        (tmp_path / "known.fp").write_bytes(data)
    with pytest.raises(Damage, match="missing or torn"):
        known_flags(np.zeros(1, KEY_DTYPE), tmp_path / "known.fp")


@pytest.fixture
def rows(tmp_path: Path) -> Dataset:
    data = jsonl([*text_rows(40), *text_rows(5)])
    return make(tmp_path / "rows", [store(tmp_path / "f", "a.jsonl", data, "pretrain")], fraction=0.2, shard=200)


@pytest.fixture
def chats(tmp_path: Path) -> Dataset:
    data = jsonl([chat_row(number, context_words=number * 4) for number in range(30)])
    return make(tmp_path / "chats", [store(tmp_path / "f", "c.jsonl", data, "sft")], "sft", shard=900)


def whole(dataset: Dataset) -> tuple[tuple[int, str], ...]:
    count = int(dataset.files[0]["examples"])
    return ((0, pack_bitmap(dataset.train.examples[:, ORDINAL].tolist(), count)),)


def partition_holds(chosen: Chosen) -> bool:
    keys = ("new", "known", "held_out", "repeated", "too_long", "too_short")
    return chosen.counts["examples"] == sum(chosen.counts[key] for key in keys)


def test_only_the_new_is_selected_and_every_example_is_accounted_for(rows: Dataset, tmp_path: Path) -> None:
    known = tmp_path / "known.fp"
    known.write_bytes(rows.train.fingerprints[[0, 3, 4]].tobytes())
    chosen = select_new(rows, stage="pretrain", known_fps=known, block_size=32)
    assert partition_holds(chosen) and chosen.counts["known"] >= 3
    assert chosen.counts["held_out"] == rows.val.count > 0 and chosen.counts["repeated"] > 0
    ordinals = chosen.selection.examples[:, 1].tolist()
    # First occurrences only: the repeated rows are the last five of the file.
    assert len(set(ordinals)) == len(ordinals) == chosen.counts["new"] and max(ordinals) < 40
    fed = Counter[int]()
    for number in range(len(chosen.selection.sequences)):
        fed.update(fed_tokens(chosen.selection, number, [rows])[1:].tolist())
    table = rows.train.examples[chosen.example_rows]
    expected = np.concatenate([rows.train.tokens(int(row[2]), int(row[LENGTH])) for row in table])
    assert fed == Counter(expected[1:].tolist())
    assert chosen.counts["tokens"] == len(expected) and chosen.counts["loss_tokens"] == len(expected) - 1


def test_nothing_new_is_an_answer(rows: Dataset, tmp_path: Path) -> None:
    known = tmp_path / "known.fp"
    known.write_bytes(rows.train.fingerprints.tobytes())
    chosen = select_new(rows, stage="pretrain", known_fps=known, block_size=32)
    assert chosen.counts["new"] == chosen.counts["sequences"] == 0 and partition_holds(chosen)
    assert training_steps(chosen.selection, 4, epochs=3, iterations=10) == 0
    again = select_new(rows, stage="pretrain", known_fps=known, block_size=32, allow_repeat=True)
    assert again.counts["known_again"] > 0 and len(again.selection.sequences) > 0
    # Trained again because it was asked, and never counted as learnt twice.
    assert len(again.selection.examples) == again.counts["tokens"] == 0


def test_conversations_are_cut_or_left_out_but_never_lose_an_answer(chats: Dataset) -> None:
    chosen = select_new(chats, stage="sft", known_fps=None, block_size=220)
    assert partition_holds(chosen) and (chosen.selection.sequence_lengths() <= 221).all()
    tight = select_new(chats, stage="sft", known_fps=None, block_size=40)
    assert tight.counts["too_long"] == tight.counts["examples"]
    texts = [bytes(fed_tokens(chosen.selection, number, [chats]).astype(np.uint8)) for number in range(30)]
    for number, text in enumerate(texts):
        answer = chat_row(number)["messages"][1]["content"].encode()
        assert answer in text and f"question {number}".encode() in text


def test_a_dataset_of_another_stage_is_refused(chats: Dataset) -> None:
    with pytest.raises(CheckFailed, match="for sft, the job is pretrain"):
        select_new(chats, stage="pretrain", known_fps=None, block_size=64)


# --- order, steps, what was learnt --------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), batch=st.integers(1, 9), seed=st.integers(0, 2**64), epoch=st.integers(0, 3))
def test_an_epoch_feeds_every_sequence_once(count: int, batch: int, seed: int, epoch: int) -> None:
    selection = plain(count)
    per_epoch = selection.steps_per_epoch(batch)
    fed = [selection.batch(seed, step, batch) for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)]
    assert sorted(np.concatenate(fed).tolist()) == list(range(count))
    assert all(1 <= len(ids) <= batch for ids in fed)


def test_the_order_does_not_move_with_releases() -> None:
    # From the Philox counter generator by definition: another answer would make every sealed version irreproducible.
    assert plain(8).order(1337, 0).tolist() == ORDER
    assert plain(8).order(1337, 1).tolist() != ORDER != plain(8).order(1338, 0).tolist()
    assert plain(5).consumed_hash(1, 7, 2) == CONSUMED


ORDER = [2, 4, 5, 6, 7, 3, 0, 1]
CONSUMED = "34e5741ccfc5c9da5fa9c4424cf46776765ba039ea1037cf683185832bee2803"


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 20), batch=st.integers(1, 6), steps=st.integers(0, 30))
def test_consumed_hash_and_learnt_examples_follow_the_batches(count: int, batch: int, steps: int) -> None:
    import hashlib

    selection = plain(count)
    digest, seen = hashlib.sha256(), set()
    for step in range(steps):
        ids = selection.batch(5, step, batch)
        digest.update(ids.astype("<i8").tobytes())
        seen |= set(ids.tolist())
    assert selection.consumed_hash(5, steps, batch) == digest.hexdigest()
    assert selection.learnt_examples(5, steps, batch).tolist() == [number in seen for number in range(count)]


def test_an_example_in_two_sequences_is_learnt_when_both_were_fed() -> None:
    selection = dataclasses.replace(plain(4), touches=np.array([[0, 0], [1, 0], [1, 1], [2, 1], [3, 3]]))
    first = selection.batch(9, 0, 1)[0]
    learnt = selection.learnt_examples(9, 1, 1).tolist()
    # Only example 3 stands in one sequence alone; example 2 bears no loss anywhere and is never learnt.
    assert learnt == [False, False, False, first == 3]
    assert selection.learnt_examples(9, 4, 1).tolist() == [True, True, False, True]


@pytest.mark.parametrize(("how", "steps"), [({"epochs": 1}, 3), ({"epochs": 4}, 12), ({"epochs": 4, "max_steps": 5}, 5),
                                            ({"epochs": 1, "iterations": 100}, 100),
                                            ({"epochs": 1, "iterations": 100, "max_steps": 7}, 7)])  # fmt: skip
def test_steps_of_a_job(how: dict[str, int], steps: int) -> None:
    assert training_steps(plain(10), 4, **how) == steps


# --- on disk ------------------------------------------------------------------------------------------------------


def test_a_saved_selection_comes_back_and_damage_is_found(tmp_path: Path) -> None:
    selection = plain(6)
    assert selection.save(tmp_path) == selection.content_hash() == load_selection(tmp_path).content_hash()
    assert load_selection(tmp_path).datasets == ("d",)
    moved = dataclasses.replace(selection, datasets=("elsewhere",))
    assert moved.content_hash() == selection.content_hash()
    assert dataclasses.replace(selection, dataset_ids=("other",)).content_hash() != selection.content_hash()
    for name in ("ranges", "sequences", "replay", "examples", "touches"):
        changed = getattr(selection, name).copy()
        changed.flat[0] = not changed.flat[0]
        assert dataclasses.replace(selection, **{name: changed}).content_hash() != selection.content_hash()
    dataclasses.replace(selection, replay=~selection.replay).save(tmp_path / "..")
    (tmp_path / "selection.npz").write_bytes((tmp_path / ".." / "selection.npz").read_bytes())
    with pytest.raises(Damage, match="hash differs"):
        load_selection(tmp_path)
    (tmp_path / "selection.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(Damage, match="cannot be read"):
        load_selection(tmp_path)


# --- replay -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_replay_is_about_the_fraction_and_counts_as_nothing_learnt(
    rows: Dataset, chats: Dataset, fraction: float
) -> None:
    chosen = select_new(chats, stage="sft", known_fps=None, block_size=2000)
    mixed = add_replay(chosen, [ReplaySource(rows, whole(rows))], fraction=fraction, block_size=2000, seed=1)
    selection, new_tokens = mixed.selection, int(chosen.selection.sequence_lengths().sum())
    available = rows.train.total_tokens
    target = min(fraction * new_tokens, available)
    longest = int(rows.train.examples[:, LENGTH].max())
    assert target - 1 <= mixed.counts["replay_tokens"] <= target + longest or mixed.counts["replay_tokens"] == available
    assert selection.replay.sum() > 0 and not selection.replay[: len(chosen.selection.sequences)].any()
    assert np.array_equal(selection.examples, chosen.selection.examples)
    assert not selection.replay[selection.touches[:, 0]].any()
    assert selection.datasets == (str(chats.folder), str(rows.folder)) and selection.dataset_ids == (chats.id, rows.id)
    assert mixed.counts["sequences"] == len(selection.sequences)


def test_replay_takes_only_what_was_learnt_and_fits(rows: Dataset, chats: Dataset) -> None:
    chosen = select_new(rows, stage="pretrain", known_fps=None, block_size=150)
    learnt = pack_bitmap([2, 5, 29], 30)
    mixed = add_replay(chosen, [ReplaySource(chats, ((0, learnt),))], fraction=5.0, block_size=150, seed=1)
    replayed = np.flatnonzero(mixed.selection.replay)
    texts = [bytes(fed_tokens(mixed.selection, int(number), [rows, chats]).astype(np.uint8)) for number in replayed]
    found = sorted(int(text.split(b"question ")[1].split(b"\x04")[0].split(b"\x05")[0][:2]) for text in texts)
    assert found == [2, 5, 29] and (mixed.selection.sequence_lengths()[replayed] <= 151).all()


def test_looking_into_originals_only_where_something_is_drawn_gives_what_looking_into_all_would(
    rows: Dataset, chats: Dataset, tmp_path: Path
) -> None:
    chosen = select_new(rows, stage="pretrain", known_fps=None, block_size=2000)
    content = [jsonl([chat_row(100 * name + row) for row in range(10)]) for name in range(6)]
    files = [store(tmp_path, f"{name}.jsonl", data, "sft") for name, data in enumerate(content)]
    earlier = make(tmp_path / "earlier", files, stage="sft")
    known = tuple((index, pack_bitmap(range(10), 10)) for index in range(6))
    table = earlier.train.examples
    for seed in range(8):
        asked: list[int] = []

        def look(index: int, seed: int = seed, asked: list[int] = asked) -> NDArray[np.bool_]:
            asked.append(index)
            return np.random.default_rng([seed, index]).random(10) < 0.6

        full = np.zeros(len(table), dtype=bool)
        for index in range(6):
            mine = np.flatnonzero(table[:, 0] == index)
            full[mine] = look(index)[table[mine, ORDINAL]]
        asked.clear()
        how: dict[str, Any] = {"fraction": 0.05, "block_size": 2000, "seed": seed}
        lazy = add_replay(chosen, [ReplaySource(earlier, known, look=look), ReplaySource(chats, whole(chats))], **how)
        whole_look = add_replay(chosen, [ReplaySource(earlier, known, full), ReplaySource(chats, whole(chats))], **how)
        assert lazy.selection.content_hash() == whole_look.selection.content_hash() and lazy.selection.replay.any()
        assert len(asked) == len(set(asked)), "each original is read at most once"


def test_the_draw_is_the_same_for_a_seed_and_another_for_another(rows: Dataset, chats: Dataset) -> None:
    chosen = select_new(chats, stage="sft", known_fps=None, block_size=2000)

    def draw(seed: int, sources: list[ReplaySource]) -> str:
        return add_replay(chosen, sources, fraction=0.05, block_size=2000, seed=seed).selection.content_hash()

    source = ReplaySource(rows, whole(rows))
    assert draw(1, [source]) == draw(1, [source]) != draw(2, [source])
    assert draw(1, [source]) != draw(1, []) == chosen.selection.content_hash()


def test_no_replay_without_new_data(rows: Dataset, chats: Dataset, tmp_path: Path) -> None:
    known = tmp_path / "known.fp"
    known.write_bytes(rows.train.fingerprints.tobytes())
    chosen = select_new(rows, stage="pretrain", known_fps=known, block_size=32)
    mixed = add_replay(chosen, [ReplaySource(chats, whole(chats))], fraction=0.5, block_size=32, seed=1)
    assert len(mixed.selection.sequences) == 0


def test_a_bitmap_of_another_file_is_damage(rows: Dataset, chats: Dataset) -> None:
    chosen = select_new(rows, stage="pretrain", known_fps=None, block_size=32)
    for known in (((0, pack_bitmap([77], 100)),), ((4, pack_bitmap([1], 30)),)):
        with pytest.raises(Damage):
            add_replay(chosen, [ReplaySource(chats, known)], fraction=0.5, block_size=32, seed=1)
