"""Settling: our own watching on a monotonic clock decides, never what a file says of its own age."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from daemon.settle import Settler, Sighting

YEARS = 5 * 365 * 86400 * 10**9


def look_at(
    name: str = "a.jsonl", *, size: int = 10, inode: int = 1, mtime: int = 0, ctime: int = 0, problem: str = ""
) -> Sighting:
    return Sighting(Path(name), (1, inode, size, mtime, ctime), size, problem)


def names(ready: list[Sighting]) -> list[str]:
    return [str(item.path) for item in ready]


def test_a_file_is_settled_when_it_held_still_for_the_whole_time() -> None:
    settler, file = Settler(5), look_at()
    assert [names(settler.look([file], now)) for now in (0.0, 3.0, 4.9, 5.0)] == [[], [], [], ["a.jsonl"]]


def test_a_writer_that_pauses_and_goes_on_starts_the_time_again() -> None:
    settler = Settler(5)
    for now in range(0, 60, 4):
        assert settler.look([look_at(size=10 + now, mtime=now)], float(now)) == []
    assert settler.look([look_at(size=66, mtime=56)], 61.0) and settler.still_for(Path("a.jsonl"), 61.0) == 5.0


def test_every_part_of_the_signature_counts() -> None:
    file = look_at(mtime=5, ctime=5)
    for place in range(5):
        changed = replace(file, signature=tuple(value + (index == place) for index, value in enumerate(file.signature)))  # type: ignore[arg-type]
        settler = Settler(5)
        settler.look([file], 0.0)
        assert settler.look([changed], 5.0) == [] and settler.look([changed], 10.0) == [changed]


def test_a_file_found_at_start_up_waits_like_any_other_however_old_it_claims_to_be() -> None:
    for mtime in (-YEARS, 0, YEARS):
        settler = Settler(5)
        assert settler.look([look_at(mtime=mtime)], 1000.0) == []
        assert settler.look([look_at(mtime=mtime)], 1004.9) == []
        assert names(settler.look([look_at(mtime=mtime)], 1005.0)) == ["a.jsonl"]


def test_the_same_name_rewritten_twice_gives_the_last_bytes_once() -> None:
    settler = Settler(5)
    first, second, third = look_at(inode=1), look_at(inode=2), look_at(inode=3, size=20)
    assert settler.look([first], 0.0) == settler.look([second], 3.0) == settler.look([third], 6.0) == []
    assert settler.look([third], 10.9) == [] and settler.look([third], 11.0) == [third]
    settler.forget(third.path)
    assert settler.seen == {}


def test_an_empty_file_waits_and_says_so_and_is_taken_when_it_is_filled() -> None:
    settler = Settler(5)
    for now in (0.0, 100.0):
        assert settler.look([look_at(size=0)], now) == []
    assert settler.waiting() == {"a.jsonl": "it is empty"} and settler.next_due(100.0) is None
    settler.look([look_at(size=3)], 101.0)
    assert names(settler.look([look_at(size=3)], 106.0)) == ["a.jsonl"]


def test_an_unreadable_file_waits_with_its_reason_and_a_chmod_alone_settles_it() -> None:
    settler = Settler(5)
    settler.look([look_at(problem="unreadable")], 0.0)
    assert settler.look([look_at(problem="unreadable")], 50.0) == [] and settler.waiting() == {"a.jsonl": "unreadable"}
    settler.look([look_at(ctime=1)], 51.0)
    assert names(settler.look([look_at(ctime=1)], 56.0)) == ["a.jsonl"]


def test_a_file_that_went_is_forgotten_and_comes_back_as_a_new_one() -> None:
    settler = Settler(5)
    settler.look([look_at()], 0.0)
    assert settler.look([], 4.0) == [] and settler.waiting() == {}
    assert settler.look([look_at()], 6.0) == [] and names(settler.look([look_at()], 11.0)) == ["a.jsonl"]
    assert settler.still_for(Path("never seen"), 11.0) == 0.0


def test_settled_files_come_in_the_order_they_were_first_seen() -> None:
    settler = Settler(1)
    settler.look([look_at("b")], 0.0)
    settler.look([look_at("b"), look_at("c"), look_at("a")], 0.5)
    assert names(settler.look([look_at("c"), look_at("b"), look_at("a")], 9.0)) == ["b", "a", "c"]


def test_a_large_slow_file_holds_up_no_small_one() -> None:
    settler = Settler(5)
    small = [look_at(f"{number}") for number in range(100)]
    settler.look([look_at("giant", size=1), *small], 0.0)
    assert len(settler.look([look_at("giant", size=2), *small], 5.0)) == 100


def test_a_file_that_cannot_be_taken_yet_says_why_until_the_next_look() -> None:
    settler = Settler(5)
    settler.look([look_at()], 0.0)
    settler.look([look_at()], 5.0)
    settler.postpone(Path("a.jsonl"), "somebody still writes to it")
    settler.postpone(Path("gone"), "nothing")
    assert settler.waiting() == {"a.jsonl": "somebody still writes to it"}
    assert names(settler.look([look_at()], 6.0)) == ["a.jsonl"] and settler.waiting() == {}


def test_the_next_look_is_due_when_the_first_file_may_be_settled() -> None:
    settler = Settler(5)
    assert settler.next_due(0.0) is None
    settler.look([look_at("a")], 0.0)
    settler.look([look_at("a"), look_at("b")], 2.0)
    assert settler.next_due(2.0) == 3.0 and settler.next_due(9.0) == 0.0
