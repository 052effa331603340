"""Folders as the hub has them: the three public data sets of pairs, small, in their own layout. Not a test itself."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["hh_folder", "hub", "stack_exchange_folder", "stack_exchange_row", "ultrafeedback_folder"]


def _gz(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0))


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


def hh_row(number: int, part: str) -> dict[str, Any]:
    before = f"\n\nHuman: {part} {number}?\n\nAssistant: Well, {number}.\n\nHuman: And then?\n\nAssistant:"
    return {"chosen": f"{before} Good {number}.", "rejected": f"{before} Bad {number}.\nHuman: said so"}


def hh_folder(root: Path, rows: int = 20) -> Path:
    """`<part>/train.jsonl.gz` and `test.jsonl.gz`, and the attempts that are no pairs; every tenth row is odd."""
    folder = root / "hh-rlhf"
    for part in ("harmless-base", "helpful-base"):
        train = [hh_row(number, part) for number in range(rows)]
        train[3] = {"chosen": "no transcript", "rejected": "no transcript either"}
        train[5] = dict(train[4])
        _gz(folder / part / "train.jsonl.gz", train)
        _gz(folder / part / "test.jsonl.gz", [hh_row(number + 1000, part) for number in range(3)])
    _gz(folder / "red-team-attempts" / "red_team_attempts.jsonl.gz", [{"transcript": "\n\nHuman: hi"}])
    (folder / "README.md").write_text("---\nlicense: mit\ntags:\n- human-feedback\n---\n# Dataset card\n", "utf-8")
    (folder / ".git").mkdir()
    (folder / ".git" / "train.jsonl").write_text("not data\n", "utf-8")
    return folder


def ultrafeedback_folder(root: Path, rows: int = 15) -> Path:
    """`data/train_prefs-00000-of-00001.parquet` and its five siblings, as the card's configuration names them."""
    folder = root / "ultrafeedback_binarized"
    for name in ("train_prefs", "test_prefs", "train_sft", "test_sft", "train_gen", "test_gen"):
        found = [_ultrafeedback_row(number, name) for number in range(rows)]
        _parquet(folder / "data" / f"{name}-00000-of-00001.parquet", found)
    lines = "".join(f"  - split: {name}\n    path: data/{name}-*\n" for name in ("train_prefs", "train_sft", "test_prefs"))
    (folder / "README.md").write_text(f"---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n{lines}---\n# Card\n",
                                      "utf-8")  # fmt: skip
    return folder


def _ultrafeedback_row(number: int, name: str) -> dict[str, Any]:
    asked = {"content": f"{name} {number}", "role": "user"}
    sides = [[asked, {"content": f"{word} {number}", "role": "assistant"}] for word in ("fine", "poor")]
    return {"prompt": asked["content"], "prompt_id": f"{number:064x}", "chosen": sides[0], "rejected": sides[1],
            "messages": sides[0], "score_chosen": 8.5, "score_rejected": 9.0 if number == 2 else 4.0}  # fmt: skip


def stack_exchange_row(number: int, scores: list[int], selected: int = -1) -> dict[str, Any]:
    answers = [{"answer_id": 10 * number + place, "author": "A", "author_id": 1, "author_profile": "u", "pm_score": score,
                "selected": place == selected, "text": f"<p>Answer {number}.{place}</p>"}
               for place, score in enumerate(scores)]  # fmt: skip
    return {"qid": number, "question": f"<p>How does {number} <b>work</b>?</p>", "answers": answers, "date": "2020/01/01",
            "metadata": ["https://bricks.stackexchange.com"]}  # fmt: skip


def stack_exchange_folder(root: Path, rows: int = 30) -> Path:
    """`data/<site>/train-00000-of-00001.parquet`."""
    folder = root / "stack-exchange-preferences"
    for site in ("bricks.stackexchange.com", "stackoverflow.com"):
        start = 0 if site.startswith("b") else 1000
        found = [stack_exchange_row(start + number, [number % 3, 1, 4][: 2 + number % 2]) for number in range(rows)]
        _parquet(folder / "data" / site / "train-00000-of-00001.parquet", found)
    return folder


def hub(root: Path) -> Path:
    """All three beside one another."""
    hh_folder(root)
    ultrafeedback_folder(root)
    stack_exchange_folder(root)
    return root
