"""Content-defined segments: nothing is lost, an insertion stays local, and any chunking gives the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.segment import MAX_BYTES, MIN_BYTES, iter_segments, segment_text


def prose(lines: int = 4000, seed: int = 1) -> str:
    dice = random.Random(seed)
    words = ["heir", "loom", "daemon", "guard", "lineage", "é", "the", "of", "a", "version", "\u4e2d\u6587"]
    return "".join(" ".join(dice.choices(words, k=dice.randrange(0, 14))) + "\n" for _ in range(lines))


def letters(count: int, alphabet: str) -> str:
    return "".join(random.Random(2).choices(alphabet, k=count))


GIANTS = {
    "one line of words": prose().replace("\n", " "),
    "no white space": letters(150_000, "ABCDEFGHIJKLMNOPabcdefghi0123456789+/"),
    "one character": "^" * 150_000,
    "ideographs": letters(60_000, "".join(map(chr, range(0x4E00, 0x5E00)))),
    "beyond the basic plane": "\U0001f600" * 40_000,
    "giant between lines": prose(300) + "x" * 140_000 + "\n" + prose(300, seed=3),
    "blank lines": "\n" * 30_000,
    "one line again and again": "abc def\n" * 20_000,
    "lines": prose(),
}


def chunked(text: str, seed: int) -> list[str]:
    dice, parts, position = random.Random(seed), [], 0
    while position < len(text):
        size = dice.choice([1, 100, 5000, 65_535, 65_536, 70_000, 200_000])
        parts.append(text[position : position + size])
        position += size
    return parts


@pytest.mark.parametrize("name", GIANTS)
def test_segments_joined_are_the_text_and_none_is_too_large(name: str) -> None:
    segments = segment_text(GIANTS[name])
    assert "".join(segments) == GIANTS[name]
    assert max(len(segment.encode()) for segment in segments) <= MAX_BYTES
    assert all(segments)


@pytest.mark.parametrize("name", GIANTS)
def test_any_chunking_gives_the_same_segments(name: str) -> None:
    for seed in range(3):
        assert list(iter_segments(chunked(GIANTS[name], seed))) == segment_text(GIANTS[name])


@pytest.mark.parametrize("name", GIANTS)
def test_crlf_copies_are_cut_at_the_same_places(name: str) -> None:
    crlf = segment_text(GIANTS[name].replace("\n", "\r\n"))
    assert [segment.replace("\r\n", "\n") for segment in crlf] == segment_text(GIANTS[name])


def test_decomposed_copies_are_cut_at_the_same_places() -> None:
    composed = prose()
    decomposed = segment_text(composed.replace("é", "e\u0301"))
    assert [segment.replace("e\u0301", "é") for segment in decomposed] == segment_text(composed)


@pytest.mark.parametrize("name", ["lines", "one line of words", "no white space", "ideographs"])
def test_an_insertion_changes_only_the_segments_around_it(name: str) -> None:
    text = GIANTS[name]
    middle = text.index(" ", len(text) // 2) if " " in text else len(text) // 2
    grown = segment_text(text[:middle] + " a new thought " + text[middle:])
    assert len(set(grown) - set(segment_text(text))) <= 6


def test_ordinary_text_is_cut_after_line_ends_near_the_target() -> None:
    segments = segment_text(GIANTS["lines"])
    assert all(segment.endswith("\n") for segment in segments)
    sizes = [len(segment.encode()) for segment in segments[:-1]]
    assert min(sizes) >= MIN_BYTES
    assert 1400 < sum(sizes) / len(sizes) < 2800


def test_boundaries_kept_for_ever_do_not_change() -> None:
    assert [len(segment) for segment in segment_text(prose(300, seed=9))] == [955, 2098, 1873, 1514, 2884]
    assert [len(segment) for segment in segment_text(prose(300, seed=9).replace("\n", " "))] == [
        652,
        638,
        541,
        1204,
        904,
        586,
        419,
        450,
        690,
        818,
        881,
        576,
        881,
        84,
    ]


def test_nothing_gives_nothing() -> None:
    assert segment_text("") == []
    assert list(iter_segments(["", ""])) == []


@given(st.lists(st.text(alphabet="a9 \r\n\u0301é", max_size=40), max_size=8))
def test_small_texts_survive_any_chunking(chunks: list[str]) -> None:
    assert "".join(iter_segments(chunks)) == "".join(chunks)
