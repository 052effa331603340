"""The upkeep of near-duplicates in a toy home: many small files at once, and what lies in data/near that should not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_daemon_near import passage, rows, sha_of
from toy import Toy

from guard.near_file import SignatureFile
from guard.steps import drain
from guard.store.near import near_folder, near_hits, open_near, signature_folder
from guard.store.near_keep import _taken_in, keep_near_steps


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "home", backup__auto=False)


def test_the_loop_does_not_sleep_between_the_slices_of_the_upkeep(toy: Toy) -> None:
    toy.drop("a.jsonl", rows([passage(seed) for seed in range(3)]))
    toy.until(lambda: toy.engine.near.in_slices and not toy.engine.intake.stirring and not toy.engine.intake.backlog)
    assert toy.engine.wait_seconds(toy.clock.monotonic()) == 0.0
    toy.settle()
    assert not toy.engine.near.in_slices and toy.engine.wait_seconds(toy.clock.monotonic()) > 0.0


def test_a_request_goes_to_the_child_in_the_round_that_makes_it(toy: Toy) -> None:
    toy.drop("a.jsonl", rows([passage(1)]))
    toy.until(lambda: toy.engine.near._asked or toy.engine.near.in_slices)
    assert not toy.engine.near.pool.queue


def test_many_small_files_become_one_folder_in_few_pieces(toy: Toy) -> None:
    for number in range(20):
        toy.drop(f"f{number:02d}.jsonl", rows([passage(10 * number + row) for row in range(3)]))
    toy.settle()
    files = open_near(toy.keeper).loose()
    [chunk] = _taken_in(toy.home, files)
    assert len(chunk["file"]) == 60 and chunk["ordinal"].tolist() == [0, 1, 2] * 20
    drain(keep_near_steps(toy.keeper, all_of_it=True))
    [part] = open_near(toy.keeper).parts.values()
    assert part.file_names() == files
    for number in (0, 11, 19):
        [hit] = near_hits(toy.keeper, [passage(10 * number + 2)], 0.9)
        assert (hit["file"], hit["ordinal"]) == (f"f{number:02d}.jsonl", 2)


def test_an_index_of_another_size_is_opened_again_whatever_its_time_says(toy: Toy) -> None:
    toy.drop("a.jsonl", rows([passage(1)]))
    toy.settle()
    drain(keep_near_steps(toy.keeper, all_of_it=True))
    head = near_folder(toy.home) / "index.json"
    before, facts = open_near(toy.keeper), head.stat()
    head.write_bytes(head.read_bytes() + b"\n")
    os.utime(head, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert head.stat().st_ino == facts.st_ino and open_near(toy.keeper) is not before


def test_large_signatures_are_mapped_and_small_ones_read(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.drop("a.jsonl", rows([passage(seed) for seed in range(5)]))
    toy.settle()
    path = signature_folder(toy.home) / f"{sha_of(toy, 'a.jsonl')}.mh"
    read = SignatureFile(path, sha_of(toy, "a.jsonl")).all()
    monkeypatch.setattr("guard.near_file._MAPPED_BYTES", 10)
    assert (SignatureFile(path, sha_of(toy, "a.jsonl")).all() == read).all()
