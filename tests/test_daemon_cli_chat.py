"""`chat`, `search` and `prepare` with a tiny real model and a tiny real index; no home is trained for it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_help import SHAPE

from daemon.cli import chat
from daemon.cli.main import main
from trainer.model import Decoder
from trainer.model_config import ModelConfig
from trainer.tokenizer import load_tokenizer
from trainer.version_files import write_version_files


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions") / "v001_baseline"
    torch.manual_seed(1)
    model = Decoder(ModelConfig.from_recipe(SHAPE | {"block_size": 256}))
    write_version_files(folder, model, load_tokenizer("char"), {}, None)
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    docs = tmp_path_factory.mktemp("docs")
    (docs / "foxes.md").write_text("# Foxes\n\nThe quick brown fox jumps over the lazy dog.\n")
    (docs / "ships.md").write_text("# Ships\n\nA ship sails on the sea.\n")
    assert main(["index", "build", "--docs_dir", str(docs), "--out_dir", str(docs.parent / "an index")]) == 0
    return docs.parent / "an index"


@pytest.fixture
def told(version: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    record = {"tokenizer_hash": load_tokenizer("char").content_hash}
    monkeypatch.setattr(chat, "_version", lambda _caller, _text: (version.name, version, record))
    return record


def _ask(capsys: pytest.CaptureFixture[str], index: Path, *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["chat", "-p", "what does the fox do?", "--index-dir", str(index), "--max-tokens", "8", "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_one_question_gets_one_answer_with_its_sources(
    told: dict[str, Any], index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _ask(capsys, index)
    assert (found["schema"], found["version"], found["index"]) == (1, "v001_baseline", "an index")
    assert isinstance(found["answer"], str)
    assert (found["citations"][0]["number"], found["citations"][0]["file"]) == (1, "foxes.md")
    assert _ask(capsys, index, "--seed", "0") == found
    assert _ask(capsys, index, "--no-rag")["citations"] == []


def test_the_sources_stand_numbered_under_the_answer(
    told: dict[str, Any], index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["chat", "-p", "what does the fox do?", "--index", str(index), "--max_tokens=8"])
    assert [line[:12] for line in capsys.readouterr().out.splitlines()[-3:]] == ["", "[1] foxes.md", "[2] ships.md"]


def test_a_conversation_goes_on_until_the_input_ends(
    told: dict[str, Any], index: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("fox?\n\nship?\n"))
    assert main(["chat", "--index-dir", str(index), "--max-tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert out.index("foxes.md") < out.index("ships.md") and out.count("> ") == 4


def test_another_tokenizer_than_the_sealed_one_is_refused(
    told: dict[str, Any], index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told["tokenizer_hash"] = "0" * 64
    assert main(["chat", "-p", "hi", "--no-rag"]) == 3
    assert "tokenizer" in capsys.readouterr().err


def test_search_tells_where_the_words_stand(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["search", "ship on the sea", "-k", "1", "--index", str(index), "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["results"]
    assert set(hit) == {"file", "text", "score", "chunk_id", "page", "start_line", "end_line"} and hit["file"] == "ships.md"


def test_prepare_takes_several_files_and_both_spellings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]} for n in range(40)]
    for name, part in (("a.jsonl", rows[:20]), ("b.jsonl", rows[20:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    line = ["prepare", "chat", "--input", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--tokenization=char"]
    assert main([*line, "--output_dir", str(tmp_path / "out"), "--val_split", "0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["train"]["examples"] + found["val"]["examples"] == 40 and len(found["files"]) == 2
    assert (tmp_path / "out" / "train" / "shard_00000_mask.bin").is_file()
    assert main([*line, "--output-dir", str(tmp_path / "out")]) == 2
