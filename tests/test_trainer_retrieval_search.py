"""Questions find their chunks; order is decided by the question and the index and by nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from guard.errors import NotFound
from trainer.retrieval.build import Document, build_index
from trainer.retrieval.index import Index, open_index
from trainer.retrieval.search import CANDIDATES, search

DOCUMENTS = {
    "install.md": "# Installation\n\nThe first step is to install Rust. We download it through rustup, a small tool.",
    "ownership.md": "Ownership is a set of rules that govern how a program manages memory. Each value has an owner.",
    "threads.md": "A mutex allows only one thread to access some data at any given time; lock it before you read.",
    "errors.md": "The question mark operator returns the error to the calling code; panic ends the program.",
    "foxes.txt": "Foxes are omnivorous mammals. The quick brown fox jumps over the lazy dog near the river.",
    "panthers.zh.txt": "黑豹队的防守只丢了三百零八分，在联赛中排名第六，同时也以二十四次拦截领先。",
    "paris.txt": "Paris is the capital of France. It has a population of about two million people.",
}
QUESTIONS = [
    ("How do I install Rust?", "install.md"),
    ("Who owns a value, and what are the rules about memory?", "ownership.md"),
    ("How do several threads share data with a mutex lock?", "threads.md"),
    ("What does the ? operator do with an error?", "errors.md"),
    ("What do foxes eat, are they omnivores?", "foxes.txt"),
    ("黑豹队的防守丢了多少分？", "panthers.zh.txt"),
    ("What is the capital of France?", "paris.txt"),
]


def index_of(folder: Path, documents: dict[str, str], **settings: int) -> Index:
    stored = []
    for name, text in documents.items():
        path = folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        stored.append(Document(hashlib.sha256(text.encode()).hexdigest(), name, path))
    build_index(stored, folder / "index", **settings)
    return open_index(folder / "index")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return index_of(tmp_path_factory.mktemp("search"), DOCUMENTS)


@pytest.mark.parametrize(("question", "file"), QUESTIONS)
def test_a_question_finds_its_document_first(index: Index, question: str, file: str) -> None:
    hits = search(index, question, 3)
    assert hits[0]["file"] == file
    assert 1 >= hits[0]["score"] > hits[1]["score"] >= hits[2]["score"]


def test_a_hit_says_where_it_stands(index: Index) -> None:
    hit = search(index, "install rustup", 1)[0]
    assert set(hit) == {"file", "text", "score", "chunk_id", "page", "start_line", "end_line"}
    assert (hit["page"], hit["start_line"], hit["end_line"]) == (None, 1, 3)
    assert hit["text"] == DOCUMENTS["install.md"]


def test_a_folder_serves_as_well_as_an_open_index(index: Index) -> None:
    assert search(index.folder, "mutex", 2) == search(str(index.folder), "mutex", 2) == search(index, "mutex", 2)
    with pytest.raises(NotFound):
        search(index.folder / "nowhere", "mutex", 2)


@pytest.mark.parametrize("query", ["", "  \n", "?!"])
def test_a_question_without_words_finds_nothing(index: Index, query: str) -> None:
    assert search(index, query, 5) == []


@pytest.mark.parametrize(("k", "found"), [(0, 0), (-1, 0), (1, 1), (1000, len(DOCUMENTS))])
def test_there_are_at_most_k_hits_and_at_most_as_many_as_chunks(index: Index, k: int, found: int) -> None:
    hits = search(index, "what is the capital", k)
    assert len(hits) == found == len({hit["chunk_id"] for hit in hits})


def test_an_empty_index_finds_nothing(tmp_path: Path) -> None:
    assert search(index_of(tmp_path, {}), "anything", 5) == []


def test_equal_chunks_are_ordered_by_their_id_also_beyond_the_candidates(tmp_path: Path) -> None:
    many = {
        f"copy{number:03d}.txt": f"The same words about foxes.{' ' * number}\n" for number in range(CANDIDATES + 30)
    }
    hits = search(index_of(tmp_path, many), "foxes", 7)
    ids = [hit["chunk_id"] for hit in search(tmp_path / "index", "foxes", 1000)]
    assert len(ids) == CANDIDATES + 30 and ids == sorted(ids)
    assert [hit["chunk_id"] for hit in hits] == ids[:7]


def test_a_rare_word_counts_for_more_than_common_ones(tmp_path: Path) -> None:
    texts = {f"{n}.txt": f"The server answers requests and the server logs requests, part {n}." for n in range(30)}
    texts["rare.txt"] = "A short note: the server uses zstandard."
    hits = search(index_of(tmp_path, texts), "does the server compress requests with zstandard", 3)
    assert hits[0]["file"] == "rare.txt"
