"""The index of stored examples: it answers like the sidecars, survives sudden deaths, and is never believed when damaged."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from homes import add_original, add_version, clone, keeper_of, make_home, small_family

from guard import failpoints
from guard.bitmap import pack_bitmap
from guard.columns import BLOCK_ROWS, Columns, write_columns_steps
from guard.errors import Damage
from guard.failpoints import Crash
from guard.key_columns import KEY_LAYOUT, KeyColumns, merged_chunks
from guard.key_runs import Rows, in_order, joined, key_rows, split_keys
from guard.steps import drain
from guard.store import known
from guard.store.keeper import Keeper
from guard.store.known import KnownIndex, LostSidecar, keep_index_steps, open_index, sidecar_bytes, uncovered
from guard.store.learnt import known_mask_steps, write_known
from guard.store.lost import lost_now
from guard.store.versions import find_version


def sidecar(count: int, seed: int, shared: list[bytes] | None = None) -> bytes:
    draw = random.Random(seed)
    return b"".join(draw.choice(shared) if shared and draw.random() < 0.1 else draw.randbytes(16) for _ in range(count))


def held(files: list[bytes]) -> int:
    return sum(map(len, files)) // 16


def sorted_rows(files: list[bytes]) -> Rows:
    return in_order(joined([key_rows(data, number) for number, data in enumerate(files)]))


def pieces(data: bytes) -> list[bytes]:
    return [data[start : start + 16] for start in range(0, len(data), 16)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """Two key folders over five files of 40,000 examples in all, with examples in common and repeated ones."""
    root = tmp_path_factory.mktemp("keys")
    shared = pieces(sidecar(50, 99))
    files = [sidecar(count, seed, shared) for seed, count in enumerate((15_000, 1, 9_000, 12_000, 4_000))]
    names = [f"{number:064x}" for number in range(5)]
    drain(write_columns_steps(root / "1", KEY_LAYOUT, held(files[:3]), [sorted_rows(files[:3])], names[:3]))
    drain(write_columns_steps(root / "2", KEY_LAYOUT, held(files[3:]), [sorted_rows(files[3:])], names[3:]))
    return root, files


def answers(folder: Path, questions: bytes) -> dict[int, set[tuple[str, int]]]:
    columns = Columns(folder)
    found: dict[int, set[tuple[str, int]]] = defaultdict(set)
    for hits in KeyColumns(columns).find(*split_keys(questions)):
        for question, file, ordinal in zip(*hits, strict=True):
            found[int(question)].add((columns.file(int(file)), int(ordinal)))
    return dict(found)


def wanted(files: dict[str, bytes], questions: bytes) -> dict[int, set[tuple[str, int]]]:
    places: dict[bytes, set[tuple[str, int]]] = defaultdict(set)
    for name, data in files.items():
        for ordinal, item in enumerate(pieces(data)):
            places[item].add((name, ordinal))
    return {place: places[item] for place, item in enumerate(pieces(questions)) if item in places}


def test_every_place_of_a_fingerprint_is_found_and_nothing_else(shelf: tuple[Path, list[bytes]]) -> None:
    root, files = shelf
    questions = sidecar(500, 7) + b"".join(random.Random(1).sample(pieces(b"".join(files)), 2_000)) + bytes(16) + b"\xff" * 16
    assert answers(root / "1", questions) == wanted({f"{n:064x}": files[n] for n in range(3)}, questions)
    assert answers(root / "2", questions) == wanted({f"{n:064x}": files[n] for n in (3, 4)}, questions)
    assert answers(root / "1", b"") == {}


def test_a_fingerprint_that_fills_whole_blocks_is_found_in_all_its_places(tmp_path: Path) -> None:
    same, low, high = b"\x80" * 16, bytes(16), b"\xff" * 16
    files = [low + same * (2 * BLOCK_ROWS) + high, same + high]
    drain(write_columns_steps(tmp_path / "1", KEY_LAYOUT, held(files), [sorted_rows(files)], ["00" * 32, "11" * 32]))
    assert answers(tmp_path / "1", same + low + high) == wanted({"00" * 32: files[0], "11" * 32: files[1]}, same + low + high)


def test_folders_joined_answer_as_they_did_apart(shelf: tuple[Path, list[bytes]], tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    root, files = shelf
    monkeypatch.setattr("guard.key_runs.MERGE_ROWS", 3_000)
    parts = [Columns(root / "1"), Columns(root / "2")]
    names = [name for part in parts for name in part.file_names()]
    drain(write_columns_steps(tmp_path / "both", KEY_LAYOUT, held(files), merged_chunks(parts), names))
    questions = sidecar(100, 8) + b"".join(random.Random(2).sample(pieces(b"".join(files)), 1_000))
    assert answers(tmp_path / "both", questions) == wanted({f"{n:064x}": files[n] for n in range(5)}, questions)


@pytest.mark.parametrize("name", ["columns.bin", "blocks.bin", "files.bin", "columns.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "zero page", "gone"])
def test_no_damage_to_a_folder_goes_unseen(name: str, how: str, shelf: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    files = shelf[1]
    names = ["11" * 32, "22" * 32, "33" * 32]
    drain(write_columns_steps(tmp_path / "1", KEY_LAYOUT, held(files[:3]), [sorted_rows(files[:3])], names))
    path = tmp_path / "1" / name
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 4
    elif how == "cut":
        del data[-2:]
    else:
        start = len(data) // 4096 // 2 * 4096
        data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data)
    with pytest.raises(Damage, match="index of known examples"):
        answers(tmp_path / "1", files[0])


# --- in a home -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four versions over three files, one file nobody learnt from, and a sister line."""
    keeper = small_family(tmp_path_factory.mktemp("family") / "home")
    lone = add_original(keeper, "lone.jsonl")
    add_version(keeper, "sister", "v002_syllo", line="sister", learnt={lone: range(4)}, tip=False)
    keeper.ledger.close()
    return keeper.home.root


@pytest.fixture
def keeper(family: Path, scratch: Path) -> Keeper:
    return clone(family, scratch / "home")


def everything(keeper: Keeper) -> bytes:
    rows = keeper.ledger.rows("SELECT sha256 FROM files ORDER BY rowid")
    return b"".join(sidecar_bytes(keeper.home.files / row[0]) for row in rows)


def masks(keeper: Keeper) -> dict[str, list[bool]]:
    """What each version knows of all stored examples, and of as many unknown ones."""
    questions = everything(keeper) + sidecar(40, 5)
    return {name: drain(known_mask_steps(keeper, questions, find_version(keeper.ledger, name).id, "pretrain")).tolist()
            for name in ("v001", "v002", "v004", "v005")}  # fmt: skip


def built(keeper: Keeper) -> Keeper:
    drain(keep_index_steps(keeper))
    assert uncovered(keeper, open_index(keeper)) == [] and open_index(keeper).keys == 40
    return keeper


def test_the_index_and_the_sidecars_know_the_same(keeper: Keeper) -> None:
    before = masks(keeper)
    assert [sum(mask) for mask in before.values()] == [0, 9, 27, 13]
    assert masks(built(keeper)) == before
    late = add_original(keeper, "late.jsonl")
    add_version(keeper, "late", "v004_full_stack", learnt={late: (0, 9)})
    questions = sidecar_bytes(keeper.home.files / late)
    assert drain(known_mask_steps(keeper, questions, 6, "pretrain")).nonzero()[0].tolist() == [0, 9]
    assert not drain(known_mask_steps(keeper, questions, 4, "pretrain")).any(), "only what the ancestry learnt is known"
    assert not drain(known_mask_steps(keeper, questions, 6, "sft")).any(), "under another objective it is new"


def test_only_the_known_examples_of_the_files_asked_about_are_written_out(keeper: Keeper, tmp_path: Path) -> None:
    first = keeper.ledger.value("SELECT sha256 FROM files WHERE name = 'syllo.jsonl'")
    folder = keeper.home.files / first
    for _ in range(2):
        assert write_known(keeper, [folder], 4, "pretrain", tmp_path / "known.fp") == 9
        assert (tmp_path / "known.fp").read_bytes() == sidecar_bytes(folder)[: 9 * 16]
        built(keeper)


@pytest.mark.parametrize("point", [name for name in failpoints.POINTS if name.startswith("known.")])
def test_a_death_while_the_index_is_written_costs_nothing(point: str, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "SMALLEST_TIER", 1)
    monkeypatch.setattr(known, "FAN_OUT", 2)
    before = masks(keeper)
    for at_visit in (1, 2):
        monkeypatch.setattr(known, "FLUSH_KEYS", 10)
        failpoints.arm(point, "crash", at_visit)
        with pytest.raises(Crash):
            drain(keep_index_steps(keeper))
        assert failpoints.hits(point) == at_visit
        failpoints.disarm()
        keeper.ledger.close()
        keeper = keeper_of(keeper.home.root)
        assert masks(keeper) == before
    assert masks(built(keeper)) == before
    folders = [entry.name for entry in (keeper.home.data / "known").iterdir() if entry.is_dir()]
    assert sorted(folders) == sorted(open_index(keeper).parts), "leftovers were cleared"


def test_small_folders_become_one_and_large_ones_are_left(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "FLUSH_KEYS", 1)
    monkeypatch.setattr(known, "SMALLEST_TIER", 10)
    monkeypatch.setattr(known, "FAN_OUT", 2)
    built(keeper)
    sizes = sorted(part.columns.rows for part in open_index(keeper).parts.values())
    assert sizes == [40]
    add_original(keeper, "more.jsonl", rows=3)
    drain(keep_index_steps(keeper))
    assert sorted(part.columns.rows for part in open_index(keeper).parts.values()) == [3, 40]
    joined = masks(keeper)
    (keeper.home.data / "known" / "index.json").unlink()
    keeper.memory.clear()
    assert masks(keeper) == joined


@pytest.mark.parametrize("name", ["columns.bin", "blocks.bin", "files.bin", "columns.json"])
def test_a_damaged_index_is_left_out_told_and_made_again(name: str, keeper: Keeper) -> None:
    before = masks(built(keeper))
    (folder,) = (path for path in (keeper.home.data / "known").iterdir() if path.is_dir())
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    keeper.memory.clear()
    assert masks(keeper) == before
    drain(keep_index_steps(keeper))
    assert open_index(keeper).damaged == {} and masks(built(keeper)) == before
    assert keeper.ledger.value("SELECT count(*) FROM events WHERE verb = 'known.damaged'") == 1


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 9}', b'{"schema": 1, "folders": ["00000077"]}'])
def test_a_manifest_that_says_nothing_is_no_index(content: bytes, keeper: Keeper) -> None:
    before = masks(built(keeper))
    (keeper.home.data / "known" / "index.json").write_bytes(content)
    keeper.memory.clear()
    assert masks(keeper) == before
    assert masks(built(keeper)) == before


@pytest.mark.parametrize(("how", "told"), [("cut", "torn"), ("other bytes", "not what was recorded"), ("gone", "missing"),
                                           ("a folder", "torn")])  # fmt: skip
def test_a_sidecar_that_rotted_is_not_taken_in_and_only_its_own_rows_are_not_known(how: str, told: str, keeper: Keeper,
                                                                                   tmp_path: Path) -> None:  # fmt: skip
    files = {row[0]: row[1] for row in keeper.ledger.rows("SELECT name, sha256 FROM files ORDER BY rowid")}
    questions, tip = everything(keeper), find_version(keeper.ledger, "v004").id
    before = drain(known_mask_steps(keeper, questions, tip, "pretrain"))
    sha256 = files["math.jsonl"]
    own = np.repeat([name == "math.jsonl" for name in files], 10)
    folder = keeper.home.files / sha256
    path = folder / "examples.fp"
    folder.chmod(0o755)
    path.chmod(0o644)
    data = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how != "gone":
        path.write_bytes(data[:-3] if how == "cut" else bytes(len(data)))
    drain(keep_index_steps(keeper))
    assert [item[0] for item in uncovered(keeper, open_index(keeper))] == [sha256]
    after = drain(known_mask_steps(keeper, questions, tip, "pretrain"))
    assert before[own].any() and not after[own].any() and np.array_equal(after[~own], before[~own])
    assert list(lost_now(keeper)) == [sha256] and told in lost_now(keeper)[sha256]
    if how != "other bytes":  # then the child that prepares the file compares them with its rows
        with pytest.raises(LostSidecar, match=r"examples\.fp"):
            write_known(keeper, [folder], tip, "pretrain", tmp_path / "known.fp")
    assert write_known(keeper, [keeper.home.files / files["syllo.jsonl"]], tip, "pretrain", tmp_path / "known.fp") == 9


def test_another_process_sees_the_index_as_it_became(keeper: Keeper) -> None:
    other = keeper_of(keeper.home.root)
    assert open_index(other).keys == 0
    built(keeper)
    assert open_index(other).keys == 40 and KnownIndex(keeper.home).keys == 40
    other.ledger.close()


def test_a_home_without_files_has_an_empty_index(scratch: Path) -> None:
    keeper = make_home(scratch / "empty")
    assert drain(keep_index_steps(keeper)) == 0 and not np.any(KnownIndex(keeper.home).covered)


def test_a_version_born_after_a_younger_one_is_known_at_once(keeper: Keeper) -> None:
    """A job that was held keeps its number: what it learnt comes to the ledger after what a higher number learnt."""
    masks(keeper)  # what this process remembers from now on
    late = add_original(keeper, "late.jsonl")
    name = add_version(keeper, "held", "v004_full_stack", tip=False)
    add_version(keeper, "younger", "v004_full_stack", learnt={late: (1,)})
    number = find_version(keeper.ledger, name).id
    questions = sidecar_bytes(keeper.home.files / late)
    assert not drain(known_mask_steps(keeper, questions, number, "pretrain")).any()
    held = add_original(keeper, "held.jsonl")
    with keeper.ledger.transaction():
        keeper.ledger.run("INSERT INTO learnt VALUES (?, ?, 'pretrain', 2, ?)", (number, held, pack_bitmap((0, 9), 10)))
    other = sidecar_bytes(keeper.home.files / held)
    assert drain(known_mask_steps(keeper, other, number, "pretrain")).nonzero()[0].tolist() == [0, 9]


def test_a_damaged_folder_too_large_to_be_compared_before_is_left_out_of_a_join(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "FLUSH_KEYS", 1)
    before = masks(built(keeper))
    folder = next(path for path in (keeper.home.data / "known").iterdir() if path.is_dir())
    data = bytearray((folder / "columns.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "columns.bin").write_bytes(data)
    keeper.memory.clear()
    monkeypatch.setattr(known, "PROVEN_ROWS", 0)
    monkeypatch.setattr(known, "FAN_OUT", 2)
    drain(keep_index_steps(keeper))
    assert masks(keeper) == before
    drain(keep_index_steps(keeper))
    assert masks(keeper) == before and uncovered(keeper, open_index(keeper)) == []
