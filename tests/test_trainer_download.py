"""Downloads of pairs from folders in the hub's layout: the budget, what stops them, and that they go on with the same bytes."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hub_folders import hub

from guard import failpoints
from guard.errors import Busy, Damage, DataFault, EnvironmentFault, NotFound
from guard.failpoints import Crash
from trainer.pairs import download as downloads
from trainer.pairs import hub as hub_module
from trainer.pairs.download import REPEATED, Download, Request
from trainer.pairs.hub import Origin
from trainer.pairs.sources import SOURCES, Source, find_sources

POINTS = [name for name in failpoints.POINTS if name.startswith("prefs.")]


@pytest.fixture(scope="module")
def folders(shared_scratch: Path) -> Path:
    root = shared_scratch / "hub"
    root.mkdir()
    return hub(root)


class Plain:
    """The rows of a folder without `datasets`, which takes seconds to import: for tests that are not about it."""

    def __init__(self, source: Source, origin: Origin, split: str, _cache: Path, position: Mapping[str, Any] | None) -> None:
        files = sorted(path for path in Path(origin.place).rglob(f"{source.splits[split][0]}[.-]*") if ".git" not in path.parts)
        rows = [row for path in files for row in self.read(path)]
        self.place = int(position["row"]) if position else 0
        self.rows = iter(rows[self.place :])

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        if path.name.endswith(".gz"):
            return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        return pq.read_table(path).to_pylist()

    def __next__(self) -> Mapping[str, Any]:
        row = next(self.rows)
        self.place += 1
        return row

    def position(self) -> dict[str, Any]:
        return {"row": self.place}


@pytest.fixture
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "open_rows", Plain)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_ROWS_A_NOTE", 7)


def request(folders: Path, out: Path, budget: int = 90, **changes: Any) -> Request:
    return Request(**({"sources": find_sources([]), "out": out, "budget": budget, "folder": folders} | changes))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_source_gives_its_share_and_every_row_has_the_promised_shape(folders: Path, scratch: Path) -> None:
    report = Download(request(folders, scratch / "pairs_all.jsonl")).run()
    rows = rows_of(scratch / "pairs_all.jsonl")
    # 36 pairs of 40 rows, 14 of 15 rows; what they leave goes to the third.
    assert {name: item["pairs"] for name, item in report["sources"].items()} == {
        "hh-rlhf": 36, "ultrafeedback-binarized": 14, "stack-exchange-preferences": 40}  # fmt: skip
    assert report["pairs"] == len(rows) == 90 and len({row["id"] for row in rows}) == 90
    for row in rows:
        assert list(row) == ["id", "prefix", "chosen", "rejected", "src"] and row["src"] in SOURCES
        assert row["prefix"]["messages"][-1]["role"] == "user" and row["chosen"] != row["rejected"]
    assert not (scratch / "pairs_all.jsonl.partial").exists()


@pytest.mark.usefixtures("_plain")
def test_rows_that_give_no_pair_are_counted_and_listed_with_their_reasons(folders: Path, scratch: Path) -> None:
    found = Download(request(folders, scratch / "p.jsonl", 1000)).run()["sources"]["hh-rlhf"]
    assert found["refused"][REPEATED] == 2 and found["refused_rows"] == 4 and found["done"]
    assert [item["row"] for item in found["listed"]] == [4, 6, 24, 26]
    assert "Human" in found["listed"][0]["reason"]


@pytest.mark.usefixtures("_plain")
def test_the_first_rows_in_the_hubs_order_are_taken(folders: Path, scratch: Path) -> None:
    for budget in (30, 60):
        Download(request(folders, scratch / f"{budget}.jsonl", budget)).run()
    few, more = (rows_of(scratch / f"{budget}.jsonl") for budget in (30, 60))
    assert [row for row in more if row["src"] == "hh-rlhf"][:10] == few[:10]
    assert few[0]["prefix"]["messages"][0]["content"] == "harmless-base 0?"


@pytest.mark.usefixtures("_plain")
@pytest.mark.parametrize("visit", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_download_that_died_ends_with_the_bytes_of_one_run(folders: Path, scratch: Path, point: str, visit: int) -> None:
    whole = Download(request(folders, scratch / "whole.jsonl", 75)).run()
    if point in ("prefs.published", "prefs.dropped"):
        visit = 1  # once in a download
    asked, drops = request(folders, scratch / "cut.jsonl", 75), []
    failpoints.arm(point, "crash", visit)
    with pytest.raises(Crash):
        Download(asked).run(drops.append)
    assert failpoints.hits(point) == visit
    failpoints.disarm()
    again = Download(asked).run(drops.append)
    assert (scratch / "cut.jsonl").read_bytes() == (scratch / "whole.jsonl").read_bytes()
    assert again["sources"] == whole["sources"] and len(drops) == (2 if point == "prefs.dropped" else 1)


def test_dying_after_every_single_step_still_ends_with_the_same_bytes(folders: Path, scratch: Path) -> None:
    Download(request(folders, scratch / "whole.jsonl", 40)).run()
    asked, lives = request(folders, scratch / "cut.jsonl", 40), 0
    while not (scratch / "cut.jsonl").exists():
        failpoints.arm("prefs.noted", "crash")
        lives += 1
        try:
            Download(asked).run()
        except Crash:
            failpoints.disarm()
    assert lives > 5 and (scratch / "cut.jsonl").read_bytes() == (scratch / "whole.jsonl").read_bytes()


@pytest.mark.usefixtures("_plain")
def test_another_budget_goes_on_with_what_is_there(folders: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Download(request(folders, scratch / "whole.jsonl", 60)).run()
    failpoints.arm("prefs.published", "crash")
    with pytest.raises(Crash):
        Download(request(folders, scratch / "cut.jsonl", 30)).run()
    failpoints.disarm()
    rows: list[int] = []
    usual = downloads._Run._lines_of
    monkeypatch.setattr(downloads._Run, "_lines_of", lambda run, row: rows.append(run.state.rows) or usual(run, row))
    Download(request(folders, scratch / "cut.jsonl", 60)).run()
    assert (scratch / "cut.jsonl").read_bytes() == (scratch / "whole.jsonl").read_bytes()
    assert min(rows) > 1, "rows that were read before were read again"


@pytest.mark.usefixtures("_plain")
def test_a_folder_that_changed_meanwhile_is_read_anew(folders: Path, scratch: Path) -> None:
    copy = scratch / "hub"
    shutil.copytree(folders, copy)
    asked = request(copy, scratch / "p.jsonl", 30, sources=find_sources(["hh-rlhf"]))
    failpoints.arm("prefs.published", "crash")
    with pytest.raises(Crash):
        Download(asked).run()
    failpoints.disarm()
    (copy / "hh-rlhf" / "harmless-base" / "train.jsonl.gz").unlink()
    Download(asked).run()
    assert {row["prefix"]["messages"][0]["content"].split()[0] for row in rows_of(asked.out)} == {"helpful-base"}


@pytest.mark.usefixtures("_plain")
def test_caps_bound_a_source_and_the_test_split_is_another(folders: Path, scratch: Path) -> None:
    report = Download(request(folders, scratch / "p.jsonl", 60, caps={"hh-rlhf": 5, "stack-exchange-preferences": 6})).run()
    assert [item["pairs"] for item in report["sources"].values()] == [5, 14, 6]
    report = Download(request(folders, scratch / "t.jsonl", 60, split="test")).run()
    assert report["missing"] == ["stack-exchange-preferences"] and report["sources"]["hh-rlhf"]["pairs"] == 6


def test_what_is_not_there_is_said(folders: Path, scratch: Path) -> None:
    (scratch / "empty").mkdir()
    with pytest.raises(NotFound, match="hh-rlhf"):
        Download(request(scratch / "empty", scratch / "p.jsonl")).run()
    only = folders / "hh-rlhf"
    with pytest.raises(NotFound, match="hh-rlhf"):
        sources = find_sources(["hh-rlhf", "ultrafeedback-binarized"])
        Download(request(only, scratch / "p.jsonl", sources=sources, named=True)).run()
    sources = find_sources(["hh-rlhf"])
    assert Download(request(only, scratch / "p.jsonl", 5, sources=sources)).run()["pairs"] == 5


def test_a_pointer_of_git_lfs_is_not_taken_for_data(scratch: Path) -> None:
    path = scratch / "hub" / "hh-rlhf" / "harmless-base" / "train.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(DataFault, match="git-lfs") as told:
        Download(request(scratch / "hub", scratch / "p.jsonl")).run()
    assert "git lfs pull" in told.value.hint
    path.write_bytes(b"\x1f\x8b\x08\x00 this is no gzip")
    with pytest.raises(DataFault, match="hh-rlhf"):
        Download(request(scratch / "hub", scratch / "p.jsonl")).run()
    assert not (scratch / "p.jsonl").exists()


def test_without_a_network_it_says_what_to_type(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Refusing:
        def dataset_info(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "HfApi", Refusing)
    monkeypatch.setattr(hub_module, "_place_caches", lambda _: None)
    with pytest.raises(EnvironmentFault, match="Name or service not known") as told:
        Download(request(None, scratch / "p.jsonl")).run()  # type: ignore[arg-type]
    assert "--from DIR" in told.value.hint and told.value.exit_code == 3
    assert list(scratch.iterdir()) == []


def test_two_downloads_do_not_share_one_file_and_damage_is_said(folders: Path, scratch: Path) -> None:
    asked = request(folders, scratch / "p.jsonl", 9)
    with Download(asked).partial.hold(), pytest.raises(Busy):
        Download(asked).run()
    (scratch / "p.jsonl.partial").mkdir(exist_ok=True)
    (scratch / "p.jsonl.partial" / "progress.json").write_text("{")
    with pytest.raises(Damage, match=r"progress\.json"):
        Download(asked).run()
