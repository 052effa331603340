"""Views: the seeds' shapes to the letter, read through TinyDB, never believed and always made again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from homes import add_job_row, add_original, add_version, copy_home, keeper_of, no_syncing, small_family
from tinydb import Query

from guard import durable, failpoints
from guard.failpoints import Crash
from guard.store import views
from guard.store.keeper import Keeper
from guard.store.recovery import recover
from guard.store.trash import delete
from guard.store.view_memory import Remembered

UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture(scope="module")
def template(shared_scratch: Path) -> Path:
    small_family(shared_scratch / "views-template").ledger.close()
    return shared_scratch / "views-template"


@pytest.fixture
def keeper(template: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    no_syncing(monkeypatch)
    copy_home(template, scratch / "home")
    opened = keeper_of(scratch / "home")
    yield opened
    opened.ledger.close()


def test_the_registry_has_the_seed_s_shape_keyed_by_name(keeper: Keeper) -> None:
    registry = json.loads(keeper.home.registry.read_text())
    assert list(registry) == ["v001_baseline", "v002_syllo", "v003_reasoning", "v004_full_stack"]
    entry = registry["v004_full_stack"]
    assert {"name", "parent", "training_data", "created", "metrics", "active"} <= set(entry)
    assert (entry["name"], entry["parent"], entry["active"]) == ("v004_full_stack", "v003_reasoning", True)
    assert entry["metrics"] == {"final_loss": 1.5, "steps": 3} and UTC.fullmatch(entry["created"])
    assert [sorted(item) for item in entry["training_data"]] == [["file", "hash", "tokens"]] * 2
    assert {item["file"]: item["tokens"] for item in entry["training_data"]} == {"reasoning.jsonl": 24, "math.jsonl": 80}
    base = registry["v001_baseline"]
    assert base["parent"] is None and base["training_data"] == [] and base["active"] is False


def test_the_manifest_has_the_seed_s_shape_keyed_by_hash(keeper: Keeper) -> None:
    add_original(keeper, "waiting.jsonl")
    views.refresh(keeper)
    manifest = json.loads(keeper.home.manifest.read_text())
    by_name = {entry["filename"]: entry for entry in manifest.values()}
    assert all(key == entry["hash"] and len(key) == 64 for key, entry in manifest.items())
    entry = by_name["reasoning.jsonl"]
    assert {"filename", "hash", "size_bytes", "num_examples", "tokens_approx", "first_seen", "trained_in", "status"} <= set(entry)
    assert entry["trained_in"] == ["v003_reasoning", "v004_full_stack"] and entry["status"] == "trained"
    assert (entry["num_examples"], entry["tokens_approx"]) == (10, 80) and UTC.fullmatch(entry["first_seen"])
    assert by_name["waiting.jsonl"]["trained_in"] == [] and by_name["waiting.jsonl"]["status"] == "registered"


@pytest.mark.parametrize("job, status", [
    ("queued", "queued"), ("held", "queued"), ("training", "queued"), ("parked", "parked"), ("failed", "failed"),
    ("quarantined", "quarantined"), ("cancelled", "registered"), ("done", "registered"),
])  # fmt: skip
def test_a_file_s_status_follows_its_job(keeper: Keeper, job: str, status: str) -> None:
    sha256 = add_original(keeper, "new.jsonl")
    number = add_job_row(keeper, job)
    with keeper.ledger.transaction():
        keeper.ledger.run("INSERT INTO job_files VALUES (?, 0, ?)", (number, sha256))
    assert views.render_manifest(keeper)[sha256]["status"] == status


def test_a_trained_file_in_a_new_job_is_queued_again(keeper: Keeper) -> None:
    sha256 = keeper.ledger.value("SELECT sha256 FROM files WHERE name = 'math.jsonl'")
    number = add_job_row(keeper, "queued")
    with keeper.ledger.transaction():
        keeper.ledger.run("INSERT INTO job_files VALUES (?, 0, ?)", (number, sha256))
    assert views.render_manifest(keeper)[sha256]["status"] == views.file_status(keeper, sha256) == "queued"


def test_the_registry_is_read_and_queried_through_tinydb(keeper: Keeper) -> None:
    table = views.open_registry(keeper.home.registry)
    assert len(table) == 4 and table.search(Query().name == "v003_reasoning")[0]["parent"] == "v002_syllo"
    assert table.get(doc_id="v002_syllo")["name"] == "v002_syllo"  # type: ignore[call-overload]
    assert all(isinstance(item.doc_id, str) for item in table)
    assert [item.doc_id for item in table.search(Query().active == True)] == ["v004_full_stack"]  # noqa: E712
    assert [item["name"] for item in table.search(Query().training_data.any(Query().file == "syllo.jsonl"))] == ["v002_syllo"]


def test_a_table_that_is_open_sees_what_changed_meanwhile(keeper: Keeper) -> None:
    table = views.open_registry(keeper.home.registry)
    wanted = Query().line == "policy"
    assert len(table.search(wanted)) == 4
    add_version(keeper, "more", "v004_full_stack")
    views.refresh(keeper)
    assert len(table.search(wanted)) == 5 and table._query_cache.capacity == 0


def test_a_thousand_versions_are_listed_in_the_order_of_their_numbers(keeper: Keeper) -> None:
    with keeper.ledger.transaction():
        for number in (999, 1000, 1001):
            keeper.ledger.run("INSERT INTO versions VALUES (?, ?, 4, 'policy', 'sealed', NULL, 'now', 0, 0, '', '{}')",
                              (number, f"v{number}_x"))  # fmt: skip
    assert list(views.render_registry(keeper))[-3:] == ["v999_x", "v1000_x", "v1001_x"]


def test_a_trashed_version_leaves_the_registry(keeper: Keeper) -> None:
    leaf = add_version(keeper, "leaf", "v004_full_stack", tip=False)
    views.refresh(keeper)
    assert leaf in json.loads(keeper.home.registry.read_text())
    delete(keeper, leaf, force=True)
    assert leaf not in json.loads(keeper.home.registry.read_text())


def test_the_readme_for_people_says_what_stands_on_what(keeper: Keeper) -> None:
    text = (keeper.home.models / "README.md").read_text()
    assert "| v004_full_stack | v003_reasoning | reasoning.jsonl, math.jsonl | ACTIVE on policy | - |" in text
    assert "| v001_baseline | - | nothing yet (base) | sealed | v002_syllo |" in text


def test_a_file_name_cannot_break_out_of_the_readme_s_table(keeper: Keeper) -> None:
    sha256 = add_original(keeper, "x |\n# <script>`.jsonl")
    add_version(keeper, "odd", "v004_full_stack", learnt={sha256: range(3)})
    row = next(line for line in views.render_readme(keeper).decode().splitlines() if "v005_odd" in line)
    assert row.count("|") == 6 and "<" not in row and "`" not in row


# --- never believed -----------------------------------------------------------------------------------------------


def test_views_that_show_the_ledger_are_not_written_again(keeper: Keeper) -> None:
    assert views.stale(keeper) == []
    before = [path.stat().st_ino for path in (keeper.home.registry, keeper.home.manifest)]
    views.refresh(keeper)
    assert [path.stat().st_ino for path in (keeper.home.registry, keeper.home.manifest)] == before


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace("v003_reasoning", "v003_forged"))


@pytest.mark.parametrize("spoil", [edit, Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["models/registry.json", "data/manifest.json", "models/README.md"])
def test_an_edited_missing_or_torn_view_is_found_and_made_again(
    keeper: Keeper, name: str, spoil: Callable[[Path], object]
) -> None:
    path = keeper.home.root / name
    good = path.read_bytes()
    spoil(path)
    assert [problem.split()[0] for problem in views.stale(keeper)] == [name]
    views.refresh(keeper)
    assert path.read_bytes() == good and views.stale(keeper) == []


def test_views_older_than_the_ledger_are_found_and_recovery_makes_them_again(keeper: Keeper) -> None:
    add_version(keeper, "more", "v004_full_stack")
    assert len(views.stale(keeper)) == 2, "the registry and the README lack it; the manifest does not change"
    recover(keeper)
    assert views.stale(keeper) == [] and "v005_more" in keeper.home.registry.read_text()


def test_the_note_says_which_event_the_views_reflect(keeper: Keeper) -> None:
    add_version(keeper, "more", "v004_full_stack")
    views.refresh(keeper)
    notes = json.loads((keeper.home.state / "views.json").read_text())
    assert {note["sequence"] for note in notes.values()} == {keeper.ledger.sequence()}
    assert notes["registry"]["sha256"] == durable.sha256_file(keeper.home.registry)


@pytest.mark.parametrize("point", ["view.rendered", "view.written", "view.noted"])
def test_a_death_between_the_views_leaves_none_torn(keeper: Keeper, point: str) -> None:
    add_version(keeper, "more", "v004_full_stack")
    failpoints.arm(point)
    with pytest.raises(Crash):
        views.refresh(keeper)
    failpoints.disarm()
    json.loads(keeper.home.registry.read_text())
    json.loads(keeper.home.manifest.read_text())
    views.refresh(keeper)
    assert views.stale(keeper) == []


def test_remembered_entries_give_the_very_bytes_of_the_whole_object() -> None:
    awkward = {"plain": {"a": 1}, 'quo"te': {"b": ['x",\n  "y', {"c": []}]}, "": {}, "ünï": {"z": None}, "v10": {"d": "\\"},
               "v9": [1, 2]}  # fmt: skip
    view = Remembered()
    assert view.json({}, lambda facts: facts) == durable.json_bytes({})
    assert view.json(awkward, lambda facts: facts) == durable.json_bytes(awkward) and len(view) == len(awkward)
    changed = {**awkward, "plain": {"a": 2}, "new": {"e": 'b",\n  "c'}}
    del changed["v9"]
    shaped: list[object] = []
    assert view.json(changed, lambda facts: shaped.append(facts) or facts) == durable.json_bytes(changed)
    assert shaped == [changed["new"], changed["plain"]], "what did not change is not made again"
