"""Chunks are exact pieces of the document, cut where its author would cut, and the same every time."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from guard.errors import UsageError
from trainer.retrieval.chunk import Chunk, chunk_text

PROSE = "The river rose in the night. Nobody had seen it coming! Was it the dam? It was. " * 12
PIECES = [
    "Some words here. ",
    "no-space-at-all" * 9,
    "\n",
    "\r\n",
    "\n\n",
    "# Title\n",
    "```\n",
    "~~~\r\n",
    "漢字。",
    "\t  ",
    "é",
    "- item\n",
]


def random_text(seed: int) -> str:
    choose = random.Random(seed)
    return "".join(choose.choice(PIECES) for _ in range(choose.randrange(70)))


def line_of(text: str, position: int) -> int:
    """Counted the slow way: CRLF, LF and CR each end one line."""
    before = (
        text[:position].replace("\r\n", "\n") if text[position - 1 : position + 1] != "\r\n" else text[: position - 1]
    )
    return before.count("\n") + before.count("\r") + 1


def test_chunks_are_exact_cover_everything_and_stay_within_the_size() -> None:
    for seed in range(60):
        check_the_laws(random_text(seed), seed)


def check_the_laws(text: str, seed: int) -> None:
    size = random.Random(seed).choice([1, 2, 7, 40, 200])
    chunks = chunk_text(text, size, size // 2 if seed % 2 else 0)
    covered = set()
    for chunk in chunks:
        assert chunk.text == text[chunk.start_char : chunk.end_char]
        assert 0 < len(chunk.text) <= size
        assert (chunk.start_line, chunk.end_line) == (
            line_of(text, chunk.start_char),
            line_of(text, chunk.end_char - 1),
        )
        covered.update(range(chunk.start_char, chunk.end_char))
    assert all(at in covered or text[at].isspace() for at in range(len(text)))
    assert all(before.end_char < after.end_char for before, after in pairwise(chunks)), (
        "a chunk must bring something new"
    )
    assert chunks == chunk_text(text, size, size // 2 if seed % 2 else 0)


def test_a_short_document_is_one_chunk_with_its_lines() -> None:
    assert chunk_text("\n\nfirst\nsecond\n\n", 100, 10) == [Chunk("first\nsecond", 3, 4, 2, 14)]


@pytest.mark.parametrize("text", ["", "   ", "\r\n\r\n", "\n \n\t\n", "\u00a0\u2003\n"])
def test_white_space_gives_no_chunk(text: str) -> None:
    assert chunk_text(text, 10, 2) == []


def test_a_heading_starts_a_chunk_and_nothing_is_shared_across_it() -> None:
    text = f"# One\n\n{'alpha beta. ' * 12}\n\n# Two\n\n{'gamma delta. ' * 12}"
    first, second = chunk_text(text, 200, 60)
    assert second.text.startswith("# Two")
    assert first.end_char <= second.start_char and "gamma" not in first.text


def test_a_hash_inside_a_code_fence_is_no_heading() -> None:
    code = "```sh\n" + "echo one\n" * 9 + "# a comment, not a heading\n" + "echo two\n" * 9 + "```\n"
    text = "Some words before.\n\n" + code + "\nWords after the code. " * 4
    assert not any(chunk.text.startswith("# a comment") for chunk in chunk_text(text, 140, 0))
    assert any(chunk.text.startswith("# a comment") for chunk in chunk_text(text.replace("```", ""), 140, 0))


def test_a_fence_is_closed_only_by_its_own_kind() -> None:
    text = "````\n```\n# inside\n````\n" + "word " * 8 + "\n# Outside\n" + "word " * 8
    starts = [chunk.text.split("\n")[0] for chunk in chunk_text(text, 70, 0)]
    assert "# Outside" in starts and "# inside" not in starts


def test_prose_is_cut_after_sentences_and_shares_whole_ones() -> None:
    chunks = chunk_text(PROSE, 200, 60)
    assert len(chunks) > 3
    assert all(chunk.text[-1] in ".!?" for chunk in chunks)
    for before, after in pairwise(chunks):
        shared = before.end_char - after.start_char
        assert 0 < shared <= 60
        assert PROSE[: after.start_char].rstrip()[-1] in ".!?"


def test_chinese_is_cut_after_its_full_stops() -> None:
    chunks = chunk_text("黑豹队的防守只丢了三百分。" * 20, 60, 20)
    assert all(chunk.text.endswith("。") for chunk in chunks)


def test_crlf_text_is_cut_like_lf_text() -> None:
    text = "# A\n\npara one. more.\n\n" * 20
    unix, windows = chunk_text(text, 120, 30), chunk_text(text.replace("\n", "\r\n"), 132, 30)
    assert unix[0].start_line == windows[0].start_line == 1
    assert all(not chunk.text.endswith("\r") and not chunk.text.startswith("\n") for chunk in windows)
    assert windows[-1].end_line == unix[-1].end_line


def test_one_endless_word_is_cut_by_length() -> None:
    assert [len(chunk.text) for chunk in chunk_text("x" * 250, 100, 0)] == [100, 100, 50]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (10, -1), (10, 6), (10, 10)])
def test_impossible_sizes_are_refused_with_what_to_type(size: int, overlap: int) -> None:
    with pytest.raises(UsageError) as caught:
        chunk_text("text", size, overlap)
    assert "--overlap" in caught.value.hint
