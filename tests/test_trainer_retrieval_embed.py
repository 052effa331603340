"""Rows depend on their text and the settings alone, are of length 1, and similar texts are near each other."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from guard.errors import CheckFailed, UsageError
from trainer.retrieval.embed import HashedNgramEmbedder
from trainer.retrieval.words import words

TEXTS = [
    "Install Rust with rustup on Linux.",
    "A mutex guards shared data between threads.",
    "黑豹队的防守只丢了 308 分，在联赛中排名第六。",
    "fn main() { println!(\"{}\", my_value); }",
    "x" * 5000,
    "Überraschung im Café, naïve coöperation",
]  # fmt: skip


def test_rows_are_float32_of_length_one() -> None:
    rows = HashedNgramEmbedder().embed(TEXTS)
    assert rows.shape == (len(TEXTS), 256) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("text", ["", " \n\t ", "!?... --- ###", "\u00a0"])
def test_a_text_without_words_is_a_zero_row(text: str) -> None:
    row = HashedNgramEmbedder().embed([text, "word"])[0]
    assert not row.any() and not np.isnan(row).any()


def test_no_texts_give_no_rows() -> None:
    assert HashedNgramEmbedder().embed([]).shape == (0, 256)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    embedder = HashedNgramEmbedder()
    many = [f"{text} {number}" for number in range(60) for text in TEXTS if len(text) < 100]
    together = embedder.embed(many)
    alone = np.concatenate([embedder.embed([text]) for text in many[-12:]])
    assert together[-12:].tobytes() == alone.tobytes()


def test_the_bits_are_the_ones_of_version_one() -> None:
    """A golden hash: if this changes, every index must be embedded anew, so the embedder's version must be raised."""
    rows = HashedNgramEmbedder().embed(TEXTS)
    assert (
        hashlib.sha256(rows.tobytes()).hexdigest() == "08d8f8b59eb2f60b3c14bc3859ae03ef17d9a881ab6995eb0dd9d0450382e01b"
    )


def test_word_forms_are_near_and_other_words_are_not() -> None:
    rows = HashedNgramEmbedder().embed(
        ["the installer is installing packages", "installed a package", "weak pointers in cyclic graphs"]
    )
    assert rows[0] @ rows[1] > 0.4 > 0.2 > rows[0] @ rows[2]


def test_stop_words_change_nothing_unless_there_is_nothing_else() -> None:
    embedder = HashedNgramEmbedder()
    rows = embedder.embed(["What is the ownership of it?", "ownership", "to be or not to be"])
    assert rows[0].tobytes() == rows[1].tobytes()
    assert rows[2].any()


def test_words_fold_width_and_case_and_keep_identifiers_whole() -> None:
    assert words("ＲＵＳＴ Rust's my_value、漢字カナ mixed漢字") == [
        "rust",
        "rust",
        "my_value",
        "漢字カナ",
        "mixed",
        "漢字",
    ]
    assert words("plain ASCII_1 words") == ["plain", "ascii_1", "words"]


def test_settings_change_the_hash_and_come_back_from_the_config() -> None:
    embedder = HashedNgramEmbedder(64, (2, 4), 2, 3.0)
    same = HashedNgramEmbedder.from_config(embedder.config())
    assert same.content_hash == embedder.content_hash != HashedNgramEmbedder().content_hash
    assert same.embed(TEXTS).tobytes() == embedder.embed(TEXTS).tobytes()
    assert same.embed(TEXTS).shape[1] == 64


@pytest.mark.parametrize(
    "change", [{"version": 99}, {"stop_words_sha256": "0" * 64}, {"dimensions": None}, {"ngram_range": 3}]
)
def test_a_config_of_another_embedder_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckFailed, match="index"):
        HashedNgramEmbedder.from_config({**HashedNgramEmbedder().config(), **change})


@pytest.mark.parametrize(
    "settings", [(0, (3, 5), 4, 8.0), (8, (5, 3), 4, 8.0), (8, (3, 5), 0, 8.0), (8, (3, 5), 4, 0.0)]
)
def test_impossible_settings_are_refused(settings: tuple[int, tuple[int, int], int, float]) -> None:
    with pytest.raises(UsageError):
        HashedNgramEmbedder(*settings)
