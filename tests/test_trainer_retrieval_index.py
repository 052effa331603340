"""An index is whole or it is nothing; its bytes depend on documents and settings; only new chunks are embedded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import guard.durable
from guard.errors import CheckFailed, Damage, EnvironmentFault, NotFound, UsageError
from guard.failpoints import Crash
from trainer.retrieval.build import Document, build_from_folder, build_index
from trainer.retrieval.embed import HashedNgramEmbedder
from trainer.retrieval.index import open_index, verify_index

GUIDE = (
    "# Install\n\nRun rustup to install Rust. It takes a minute.\n\n# Ownership\n\n" + "Each value has an owner. " * 30
)
FACTS = "Foxes are omnivorous mammals.\r\nThe quick brown fox jumps over the lazy dog.\r\n"


class CountingEmbedder(HashedNgramEmbedder):
    """Remembers what it was asked to embed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> Any:
        self.asked += texts
        return super().embed(texts)


def stored(folder: Path, name: str, content: str | bytes) -> Document:
    data = content.encode() if isinstance(content, str) else content
    digest = hashlib.sha256(data).hexdigest()
    path = folder / digest / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Document(digest, name, path)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def documents(tmp_path: Path) -> list[Document]:
    return [stored(tmp_path / "files", "guide.md", GUIDE), stored(tmp_path / "files", "facts.txt", FACTS)]


def test_the_folder_has_the_promised_form(tmp_path: Path, documents: list[Document]) -> None:
    report = build_index(documents, tmp_path / "v1", chunk_size=200, overlap=40)
    assert sorted(bytes_of(tmp_path / "v1")) == ["SHA256SUMS", "config.json", "embeddings.npy", "meta.jsonl"]
    embeddings = np.load(tmp_path / "v1" / "embeddings.npy", allow_pickle=False)
    rows = [orjson.loads(line) for line in (tmp_path / "v1" / "meta.jsonl").read_bytes().splitlines()]
    assert embeddings.shape == (report["chunks"], 256) == (len(rows), 256) and embeddings.dtype == np.float32
    assert report == {
        "chunks": len(rows),
        "documents": 2,
        "embedded_new": len(rows),
        "reused": 0,
        "skipped": [],
        "note": "",
    }
    texts = {document.sha256: Path(document.path).read_bytes().decode() for document in documents}
    for row in rows:
        source = row["source"]
        assert row["text"] == texts[source["sha256"]][source["start_char"] : source["end_char"]]
        assert source["page"] is None and 1 <= source["start_line"] <= source["end_line"]
    assert rows[0]["source"]["filename"] == "facts.txt" and rows[-1]["source"]["filename"] == "guide.md"
    assert len({row["chunk_id"] for row in rows}) == len(rows)
    np.testing.assert_array_equal(embeddings, HashedNgramEmbedder().embed([row["text"] for row in rows]))


def test_sha256sums_is_what_the_ordinary_tool_reads(tmp_path: Path, documents: list[Document]) -> None:
    build_index(documents, tmp_path / "v1")
    lines = (tmp_path / "v1" / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["config.json", "embeddings.npy", "meta.jsonl"]
    assert all(hashlib.sha256((tmp_path / "v1" / name).read_bytes()).hexdigest() == digest
               for digest, name in (line.split("  ") for line in lines))  # fmt: skip
    assert verify_index(tmp_path / "v1") == []


def test_only_new_chunks_are_embedded_and_the_bytes_do_not_tell(tmp_path: Path, documents: list[Document]) -> None:
    build_index(documents[:1], tmp_path / "v1", chunk_size=200, overlap=40)
    counting = CountingEmbedder()
    report = build_index(
        documents, tmp_path / "v2", previous=tmp_path / "v1", chunk_size=200, overlap=40, embedder=counting
    )
    assert counting.asked == [FACTS.strip()]
    assert report["embedded_new"] == 1 and report["reused"] == report["chunks"] - 1 > 1
    build_index(documents[::-1], tmp_path / "fresh", chunk_size=200, overlap=40)
    assert bytes_of(tmp_path / "v2") == bytes_of(tmp_path / "fresh")


def test_a_renamed_document_keeps_its_ids_and_its_rows(tmp_path: Path, documents: list[Document]) -> None:
    build_index(documents, tmp_path / "v1")
    renamed = Document(documents[0].sha256, "manual.md", documents[0].path)
    counting = CountingEmbedder()
    build_index([renamed, documents[1]], tmp_path / "v2", previous=tmp_path / "v1", embedder=counting)
    first, second = open_index(tmp_path / "v1"), open_index(tmp_path / "v2")
    assert counting.asked == []
    assert {first.row(n)["chunk_id"] for n in range(len(first))} == {
        second.row(n)["chunk_id"] for n in range(len(second))
    }


def test_rows_of_another_embedder_are_not_reused(tmp_path: Path, documents: list[Document]) -> None:
    build_index(documents, tmp_path / "v1", dimensions=64)
    report = build_index(documents, tmp_path / "v2", previous=tmp_path / "v1")
    assert report["reused"] == 0 and "other settings" in report["note"]


def test_a_damaged_previous_index_is_left_aside_and_said_so(tmp_path: Path, documents: list[Document]) -> None:
    build_index(documents, tmp_path / "v1")
    flip_a_bit(tmp_path / "v1" / "embeddings.npy")
    report = build_index(documents, tmp_path / "v2", previous=tmp_path / "v1")
    build_index(documents, tmp_path / "fresh")
    assert report["reused"] == 0 and "embeddings.npy its content changed" in report["note"]
    assert bytes_of(tmp_path / "v2") == bytes_of(tmp_path / "fresh")


def test_one_bad_document_does_not_stop_the_others(tmp_path: Path, documents: list[Document]) -> None:
    files = tmp_path / "files"
    bad = [
        stored(files, "latin.txt", "caf\xe9 ol\xe9".encode("latin-1")),
        stored(files, "utf16.txt", "\ufeffhello".encode("utf-16-le")),
        stored(files, "nul.txt", b"binary\0data"),
        stored(files, "blank.md", b"\n \n"),
        Document(documents[1].sha256, "zz_copy.txt", documents[1].path),
    ]
    report = build_index([*bad, *documents], tmp_path / "v1")
    reasons = {item["name"]: item["reason"] for item in report["skipped"]}
    assert report["documents"] == 2
    assert reasons["latin.txt"].startswith("latin.txt is not UTF-8: byte 3")
    assert "not UTF-8" in reasons["utf16.txt"] and "NUL" in reasons["nul.txt"] and "no text" in reasons["blank.md"]
    assert reasons["zz_copy.txt"] == "the same bytes as facts.txt"
    assert open_index(tmp_path / "v1").config["skipped"] == report["skipped"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    build_index([stored(tmp_path / "files", "bom.txt", b"\xef\xbb\xbfhello there")], tmp_path / "v1")
    assert open_index(tmp_path / "v1").row(0)["text"] == "hello there"


def test_a_document_that_vanished_or_changed_ends_the_build(tmp_path: Path, documents: list[Document]) -> None:
    Path(documents[0].path).write_text("something else")
    with pytest.raises(Damage, match=r"guide\.md"):
        build_index(documents, tmp_path / "v1")
    Path(documents[0].path).unlink()
    with pytest.raises(EnvironmentFault, match=r"guide\.md"):
        build_index(documents, tmp_path / "v2")
    assert verify_index(tmp_path / "v1") and verify_index(tmp_path / "v2")


def test_no_documents_make_an_empty_index(tmp_path: Path) -> None:
    build_index([], tmp_path / "v1")
    assert verify_index(tmp_path / "v1") == []
    assert len(open_index(tmp_path / "v1")) == 0


def crash_at(monkeypatch: pytest.MonkeyPatch, visit: int) -> None:
    """The `visit`-th sync of the build is the last thing that happens."""
    left = [visit]
    real = os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Crash("fsync")
        real(descriptor)

    monkeypatch.setattr(guard.durable, "_fsync", fsync)


def test_a_crash_anywhere_leaves_nothing_that_passes_for_an_index(
    tmp_path: Path, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished = 0
    for visit in range(1, 40):
        out = tmp_path / f"v{visit}"
        crash_at(monkeypatch, visit)
        try:
            build_index(documents, out)
            break
        except Crash:
            # Once SHA256SUMS has its name every other file is whole; before, nothing may be accepted.
            named = (out / "SHA256SUMS").exists()
            assert (verify_index(out) == []) == named
            unfinished += not named
    else:
        pytest.fail("the build never ended")
    assert unfinished >= 8
    assert verify_index(out) == []


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["config.json", "embeddings.npy", "meta.jsonl", "SHA256SUMS"])
def test_a_flipped_bit_is_found_and_named(tmp_path: Path, documents: list[Document], name: str) -> None:
    build_index(documents, tmp_path / "v1")
    flip_a_bit(tmp_path / "v1" / name)
    problems = verify_index(tmp_path / "v1")
    assert problems
    if name != "SHA256SUMS":
        assert problems == [(name, "its content changed")]


def test_a_missing_or_additional_file_is_found(tmp_path: Path, documents: list[Document]) -> None:
    build_index(documents, tmp_path / "v1")
    (tmp_path / "v1" / "meta.jsonl").unlink()
    (tmp_path / "v1" / "extra").write_text("x")
    assert sorted(verify_index(tmp_path / "v1")) == [("extra", "does not belong there"), ("meta.jsonl", "is missing")]
    assert verify_index(tmp_path / "nowhere") == [("", "the folder is missing")]


def test_parts_that_do_not_fit_are_refused_on_opening(tmp_path: Path, documents: list[Document]) -> None:
    build_index(documents, tmp_path / "v1")
    folder = tmp_path / "v1"
    embeddings, meta = folder / "embeddings.npy", folder / "meta.jsonl"
    whole = {path: path.read_bytes() for path in (embeddings, meta)}

    def refused(match: str) -> None:
        with pytest.raises(Damage, match=match) as caught:
            open_index(folder, hashed=False)
        assert caught.value.hint.startswith("heirloom index build")
        for path, data in whole.items():
            path.write_bytes(data)

    meta.write_bytes(whole[meta] + whole[meta].splitlines(keepends=True)[0])
    refused("lines")
    meta.write_bytes(whole[meta][:-1])
    refused("middle of a line")
    embeddings.write_bytes(whole[embeddings][:-8])
    refused("cannot be read")
    np.save(embeddings, np.load(embeddings)[:-1])
    refused("lines")
    np.save(embeddings, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused("cannot be read")
    np.save(embeddings, np.load(embeddings).astype(np.float64))
    refused("float32")
    meta.unlink()
    refused("cannot be read")
    assert len(open_index(folder)) > 0


def test_opening_what_is_no_index_or_a_newer_one_says_so(tmp_path: Path, documents: list[Document]) -> None:
    with pytest.raises(NotFound):
        open_index(tmp_path)
    build_index(documents, tmp_path / "v1")
    config = tmp_path / "v1" / "config.json"
    config.write_bytes(orjson.dumps({**orjson.loads(config.read_bytes()), "schema": 2}))
    with pytest.raises(CheckFailed, match="format 2"):
        open_index(tmp_path / "v1")
    config.write_bytes(b"{}")
    with pytest.raises(Damage, match=r"config\.json"):
        open_index(tmp_path / "v1")


def test_a_broken_line_is_damage_and_not_a_crash(tmp_path: Path, documents: list[Document]) -> None:
    build_index(documents[1:], tmp_path / "v1")
    (tmp_path / "v1" / "meta.jsonl").write_bytes(b'{"text": "x"}\n')
    with pytest.raises(Damage, match="line 1"):
        open_index(tmp_path / "v1", hashed=False).row(0)


@pytest.mark.parametrize("name", ["meta.jsonl", "embeddings.npy"])
def test_one_changed_byte_is_never_searched(tmp_path: Path, documents: list[Document], name: str) -> None:
    build_index(documents, tmp_path / "v1")
    data = bytearray((tmp_path / "v1" / name).read_bytes())
    data[-20] ^= 1
    (tmp_path / "v1" / name).write_bytes(data)
    with pytest.raises(Damage, match=f"{name} its content changed"):
        open_index(tmp_path / "v1")


# --- a folder of documents ---------------------------------------------------------------------------------------


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "guide.md").write_text(GUIDE)
    (folder / "deep" / "FACTS.TXT").write_bytes(FACTS.encode())
    (folder / "paper.pdf").write_bytes(b"%PDF")
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "draft.md~").write_text("not this")
    (folder / ".hidden.md").write_text("nor this")
    (folder / "link.md").symlink_to(folder / "guide.md")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")
    return folder


def test_a_folder_is_walked_in_order_and_what_is_skipped_is_told(docs: Path, tmp_path: Path) -> None:
    report = build_from_folder(docs, tmp_path / "out")
    index = open_index(tmp_path / "out")
    assert [item["name"] for item in index.config["documents"]] == ["deep/FACTS.TXT", "guide.md"]
    assert [item["name"] for item in report["skipped"]] == ["paper.pdf", "rows.jsonl"]
    assert all(item["reason"] for item in report["skipped"])
    assert verify_index(tmp_path / "out") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "out"]
    build_from_folder(docs, tmp_path / "again")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "again")


def test_an_out_folder_that_holds_something_is_refused_untouched(docs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        build_from_folder(docs, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == {"mine.txt": b"precious"}
    with pytest.raises(UsageError, match="not a folder"):
        build_from_folder(docs, tmp_path / "out" / "mine.txt")
    with pytest.raises(NotFound):
        build_from_folder(tmp_path / "nowhere", tmp_path / "out2")


def test_a_failed_build_from_a_folder_leaves_the_out_folder_empty(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_at(monkeypatch, 6)
    with pytest.raises(Crash):
        build_from_folder(docs, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "out"]


def test_an_empty_folder_inside_the_documents_may_be_the_target(docs: Path) -> None:
    build_from_folder(docs, docs / "index")
    assert len(open_index(docs / "index").config["documents"]) == 2
