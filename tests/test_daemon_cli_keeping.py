"""purge, retention and regrow as they are typed: what is asked, what counts as an answer, and the exit codes."""

from __future__ import annotations

import io
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import add_version, clone, keeper_of, small_family

from daemon.cli import main as cli
from daemon.cli.keeping import parse_days, regrow_lines, retention_lines
from daemon.cli.output import Console
from guard.durable import remove_tree
from guard.errors import UsageError
from guard.seal import loosen
from guard.store import views
from guard.store.versions import find_version

Run = Callable[..., tuple[int, str, str]]
LEAF = "v005_leaf"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("keeping") / "home"
    keeper = small_family(root)
    add_version(keeper, "leaf", "v003_reasoning", tip=False)
    views.refresh(keeper)
    keeper.ledger.close()
    return root


@pytest.fixture
def home(family: Path, tmp_path: Path) -> Iterator[Path]:
    clone(family, tmp_path / "home").ledger.close()
    yield tmp_path / "home"
    loosen(tmp_path / "home")
    remove_tree(tmp_path / "home")


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("HEIRLOOM_HOME", str(home))

    def call(line: str, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        code = cli.main(shlex.split(line))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    assert found["schema"] == 1
    return found


def _state(home: Path, name: str) -> str:
    keeper = keeper_of(home)
    try:
        return find_version(keeper.ledger, name).state
    finally:
        keeper.ledger.close()


def test_delete_undo_purge_and_back_from_the_vault(run: Run, home: Path) -> None:
    assert run("backup run -q")[0] == 0
    assert run("delete v005 --force")[0] == 0
    assert run("restore v005 --from trash")[0] == 0 and _state(home, LEAF) == "sealed"
    assert run("delete v005 --force")[0] == 0
    code, out, _err = run("purge v005 --yes")
    assert code == 0 and "✅ Erased: 1 folder" in out
    records = {item["name"]: item for item in _object(run("lineage --json")[1])["versions"]}
    assert records[LEAF]["state"] == "purged" and "PURGED" in run("lineage")[1]
    assert run("restore v005")[0] == 0 and run("verify --all --backup")[0] == 0


def test_purge_refuses_with_its_codes_and_erases_nothing(run: Run, home: Path) -> None:
    assert run("purge v005 --yes")[0] == 4  # not in the trash
    assert run("purge v004 --yes --no-backup --confirm v004_full_stack")[0] == 4
    assert run("purge v099 --yes")[0] == 4
    run("delete v005 --force")
    code, out, _err = run("purge v005 --yes --json")
    assert code == 3 and _object(out)["error"] == "CheckFailed" and "--no-backup" in _object(out)["hint"]
    assert run("purge v005 --no-backup --yes")[0] == 6
    assert run("purge v005 --no-backup", typed="v005\n")[0] == 6
    assert run("purge v005 --no-backup --confirm v005_lea")[0] == 6
    assert run("purge --no-backup --older-than 0d --yes")[0] == 6
    assert run("purge v005 --older-than soon")[0] == 2
    assert _state(home, LEAF) == "trashed" and (home / "models" / ".trash" / LEAF).is_dir()
    assert run("purge v005 --no-backup", typed=f"{LEAF}\n")[0] == 0 and _state(home, LEAF) == "purged"


def test_purge_asks_and_takes_only_the_whole_word(run: Run, home: Path) -> None:
    run("backup run -q")
    run("delete v005 --force")
    for typed in ("", "y\n", "no\n", "YES\n"):
        assert run("purge --older-than 0d", typed=typed)[0] == 6
    assert _state(home, LEAF) == "trashed"
    code, out, _err = run("purge --older-than 0d --dry-run --json")
    assert code == 0 and _object(out)["purged"][0]["folder"] == LEAF and _state(home, LEAF) == "trashed"
    code, out, _err = run("purge")
    assert code == 0 and "Nothing in the trash is that old" in out  # thirty days is the default
    assert run("purge --older-than 0d", typed="yes\n")[0] == 0 and _state(home, LEAF) == "purged"


def test_spans_of_time() -> None:
    assert [parse_days(text) for text in ("30d", "2w", "12h", "1y", "7", "0d", None)] == [30, 14, 0.5, 365, 7, 0, None]
    for text in ("", "d", "-1d", "3 fortnights"):
        with pytest.raises(UsageError):
            parse_days(text)


def test_retention_plan_gives_a_reason_for_every_version_and_changes_nothing(run: Run, home: Path) -> None:
    before = sorted(path.name for path in (home / "models").iterdir())
    found = _object(run("retention plan --newest 0 --json")[1])
    assert len(found["versions"]) == 5 and all(item["reason"] for item in found["versions"])
    assert found["archive"] == [LEAF] and found["confirm"] == "archive 1 versions"
    out = run("retention plan")[1]
    assert "it is a base" in out and "it is active on policy" in out
    assert sorted(path.name for path in (home / "models").iterdir()) == before


def test_retention_apply_needs_a_vault_elsewhere_and_the_words(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("backup run -q")
    words = _object(run("retention plan --newest 0 --json")[1])["confirm"]
    code, _out, err = run(f'retention apply --newest 0 --confirm "{words}"')
    assert code == 3 and "same device" in err
    assert run("retention apply --newest 9")[0] == 3  # nothing to archive
    monkeypatch.setattr("guard.store.archive.other_device", lambda *_: True)
    for wrong in ("", '--confirm "archive everything"', "--confirm yes"):
        assert run(f"retention apply --newest 0 {wrong}")[0] == 6
    assert run("retention apply --newest 0", typed="yes\n")[0] == 6
    assert run("retention apply --newest 0 --dry-run")[0] == 0
    plan = _object(run("retention plan --newest 0 --json")[1])
    code, out, _err = run("retention apply --newest 0 --json", typed=f"{words}\n")
    assert code == 0 and _object(out)["archived"] == plan["archive"] != []
    gone = plan["archive"][0]
    assert _state(home, gone) == "archived" and not (home / "models" / gone).exists() and "ARCHIVED" in run("lineage")[1]
    code, _out, err = run(f"plan --base {gone} --data math.jsonl --output x --allow-repeat")
    assert code != 0
    assert run(f"restore {gone} --from backup")[0] == 0 and _state(home, gone) == "sealed" and run("verify --all")[0] == 0


def test_regrow_knows_its_file_by_path_and_says_when_there_is_nothing_to_do(run: Run, home: Path, tmp_path: Path) -> None:
    assert run("regrow --without nobody.jsonl")[0] == 4
    (tmp_path / "stranger.jsonl").write_text('{"text": "x"}\n')
    assert run(f"regrow --without {tmp_path / 'stranger.jsonl'}")[0] == 4
    stored = next((home / "data" / "files").glob("*/math.jsonl"))
    assert run(f"regrow --without {stored} --line nowhere")[0] == 2


def test_the_plan_of_a_regrow_is_a_table_with_estimates() -> None:
    plan = {
        "file": "b.jsonl", "sha256": "b" * 64, "line": "policy", "new_line": "policy_without_b", "base": "v002_a",
        "affected": ["v003_b", "v004_c"], "skipped": ["v003_b"], "ok": True, "jobs": [],
        "steps": [{"replaces": "v004_c", "files": [{"file": "c.jsonl", "sha256": "c" * 64}], "stage": "sft", "seed": 1,
                   "recipe": "sft/small", "estimate": {"tokens": 50_000_000, "seconds": 21_600.0, "bytes": 10}}],
        "estimate": {"tokens": 50_000_000, "seconds": 21_600.0, "bytes": 10}, "checks": [],
    }  # fmt: skip
    text = "\n".join(regrow_lines(plan))
    assert "v004_c" in text and "c.jsonl" in text and "50M" in text and "6 hours" in text and "Left out" in text
    assert "Nothing to regrow" in regrow_lines({**plan, "affected": []})[0]
    assert "rollback v002_a" in regrow_lines({**plan, "steps": []})[-1]


def test_rollbacks_are_shown_with_who_when_from_to_and_why(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEIRLOOM_ACTOR", "ada")
    assert run('rollback v002 --yes --reason "the syllables were fine"')[0] == 0
    found = _object(run("lineage --json")[1])["rollbacks"]
    assert [(item["line"], item["from"], item["to"], item["why"]) for item in found] == [
        ("policy", "v004_full_stack", "v002_syllo", "the syllables were fine")]  # fmt: skip
    assert found[0]["actor"].startswith("ada") and found[0]["utc"].endswith("Z")
    for line in ("lineage", "show v002", "show v004"):
        out = run(line)[1]
        assert "v004_full_stack -> v002_syllo" in out and "the syllables were fine" in out and "ada" in out, line
    assert "syllables" not in run("show v003")[1] and "the syllables were fine" in run("log")[1]


def test_a_seal_that_cannot_be_had_is_refused_at_init(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEIRLOOM_STORAGE__SEAL", "immutable")
    monkeypatch.setattr("guard.seal._put_flag", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    monkeypatch.delenv("HEIRLOOM_HOME")
    code, _out, err = run(f"init {tmp_path / 'new'} --recipe pretrain/micro --tokenization char")
    assert code == 3 and "CAP_LINUX_IMMUTABLE" in err and "storage.seal: mode" in err
    assert not (tmp_path / "new" / ".heirloom" / "store-id").exists()


def test_words_for_an_empty_proposal() -> None:
    empty = {"versions": [], "archive": [], "bytes": 0, "problem": "no vault", "confirm": "archive 0 versions", "vault": "x"}
    assert retention_lines(empty)[0] == "Every version stays." and "no vault" in retention_lines(empty)[1]
    assert os.sep not in retention_lines(empty)[0]


def test_what_ages_before_the_answer_is_not_erased(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process: while the question stands there, one more version comes into the trash."""
    keeper = keeper_of(home)
    late = add_version(keeper, "late", "v004_full_stack", tip=False)
    views.refresh(keeper)
    keeper.ledger.close()
    run("backup run -q")
    run("delete v005 --force")

    def answer(_self: Console, _question: str) -> str:
        run(f"delete {late} --force")
        return "yes"

    monkeypatch.setattr(Console, "ask", answer)
    code, out, _err = run("purge --older-than 0d")
    assert code == 0 and _state(home, LEAF) == "purged" and _state(home, late) == "trashed"
    assert f"{late} stays: it was not in the list that was shown" in out


def test_what_becomes_old_between_the_list_and_the_words_is_not_archived(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guard.store.archive.other_device", lambda *_: True)
    made: list[str] = []

    def answer(_self: Console, _question: str) -> str:
        keeper = keeper_of(home)
        made.append(add_version(keeper, "late", "v003_reasoning", tip=False, state="quarantined"))
        views.refresh(keeper)
        keeper.ledger.close()
        run("backup run -q")
        return "archive 1 versions"

    run("backup run -q")
    monkeypatch.setattr(Console, "ask", answer)
    code, out, _err = run("retention apply --newest 0")
    assert code == 0 and _state(home, LEAF) == "archived" and _state(home, made[0]) == "quarantined"
    assert f"{made[0]} stays: it was not in the list that was shown" in out


def test_purge_exits_with_3_when_something_stays_for_want_of_a_copy(run: Run, home: Path) -> None:
    assert run("purge --older-than 0d --yes")[0] == 0  # there is nothing to purge
    run("delete v005 --force")
    for words in ("purge --older-than 0d --yes", "purge --older-than 0d --dry-run"):
        code, out, _err = run(words)
        assert code == 3 and f"{LEAF} stays" in out and "no vault" in out
    assert run("purge --yes")[0] == 0  # thirty days have not passed: nothing is asked of the vault
    assert run("restore v005")[0] == 0 and run("backup run -q")[0] == 0 and run("delete v005 --force")[0] == 0
    keeper = keeper_of(home)
    late = add_version(keeper, "late", "v004_full_stack", tip=False)
    views.refresh(keeper)
    keeper.ledger.close()
    run(f"delete {late} --force")
    code, out, _err = run("purge --older-than 0d --yes --json")
    told = _object(out)
    assert code == 3 and [item["folder"] for item in told["purged"]] == [LEAF]
    assert [item["folder"] for item in told["kept"]] == [late] and _state(home, late) == "trashed"


def test_purge_says_before_the_question_that_the_only_copy_is_on_the_same_disk(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("backup run -q")
    run("delete v005 --force")
    assert _object(run("purge v005 --dry-run --json")[1])["same_device"] is True
    code, out, _err = run("purge v005", typed="no\n")
    assert code == 6 and 0 < out.index("the same disk as models/") < out.index("Proceed?")
    with monkeypatch.context() as patch:
        patch.setattr("guard.store.purge.other_device", lambda *_: True)
        assert "same disk" not in run("purge v005 --dry-run")[1]
        assert _object(run("purge v005 --dry-run --json")[1])["same_device"] is False
    found = _object(run("purge v005 --no-backup --dry-run --json")[1])
    assert found["same_device"] is False and found["purged"][0]["copy"] == ""  # nothing is erased for that copy
    done = _object(run("purge v005 --yes --json")[1])
    assert done["same_device"] is True and done["purged"][0]["copy"] == "vault" and _state(home, LEAF) == "purged"
