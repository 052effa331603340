"""The commands that look at data and make pairs, trajectories and domain datasets: words, exit codes, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_folders import hub
from test_trainer_download import Plain
from trainer_data import chat_row, jsonl, text_rows

from daemon.cli import main as cli
from daemon.cli.prefs import drop_copy, parse_caps
from guard.checks.kinds import ignored_name
from guard.clock import ManualClock
from guard.errors import UsageError
from guard.home import Home
from guard.store.create import create_home
from trainer.pairs import download as downloads

Run = Callable[[str], tuple[int, str, str]]
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.fixture
def run(scratch: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(scratch)

    def call(line: str) -> tuple[int, str, str]:
        code = cli.main(line.split())
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jsonl(rows))


def test_validate_ends_with_three_and_names_the_row(run: Run, scratch: Path) -> None:
    write(scratch / "good.jsonl", [chat_row(1), chat_row(2)])
    write(scratch / "bad.jsonl", [chat_row(1), {"messages": "x"}])
    code, out, _err = run("prepare validate good.jsonl")
    assert code == 0 and "Columns: messages" in out and "Verdict: fine" in out and "Rows: 2" in out
    code, out, _err = run("prepare validate bad.jsonl good.jsonl")
    assert code == 3 and "line 2: messages: Field 'messages' must be a list" in out and "good.jsonl" in out
    code, out, _err = run("prepare validate bad.jsonl --json")
    found = json.loads(out)
    assert code == 3 and found["schema"] == 1 and not found["ok"] and found["faults"][0]["line"] == 2
    assert run("prepare validate nothing.jsonl")[0] == 4 and run("prepare validate good.jsonl --kind letters")[0] == 2
    assert sorted(path.name for path in scratch.iterdir()) == ["bad.jsonl", "good.jsonl"]


def test_pairs_of_several_spellings_become_one_file(run: Run, scratch: Path) -> None:
    before = "\n\nHuman: q\n\nAssistant:"
    rows = [PAIR | {"id": "mine", "src": "hand"}, PAIR, {"chosen": f"{before} a", "rejected": f"{before} c"},
            {"prompt": "q", "chosen": "a", "rejected": "a"}]  # fmt: skip
    write(scratch / "some.jsonl", rows)
    code, out, _err = run("prepare prefs --input some.jsonl --output-dir out")
    assert code == 0 and "2 pairs of 4 rows" in out and "Repeated: 1 row" in out and "Responses are identical" in out
    found = [json.loads(line) for line in (scratch / "out" / "pairs_all.jsonl").read_text().splitlines()]
    prefix = {"messages": [{"role": "user", "content": "q"}]}
    assert found[0] == {"id": "mine", "prefix": prefix, "chosen": "a", "rejected": "b", "src": "hand"}
    assert (found[1]["prefix"], found[1]["rejected"], found[1]["src"]) == (prefix, "c", "some") and len(found[1]["id"]) == 36
    code, _out, err = run("prepare prefs --input some.jsonl --output-dir out")
    assert code == 2 and "exists already" in err


def test_validating_pairs_writes_nothing(run: Run, scratch: Path) -> None:
    write(scratch / "some.jsonl", [PAIR, PAIR | {"chosen": ""}])
    code, out, _err = run("prepare prefs --input some.jsonl --output-dir out --validate-only --json")
    found = json.loads(out)
    assert code == 3 and (found["pairs"], found["faults_count"], found["output"]) == (1, 1, None)
    assert found["faults"][0]["reason"] == "Field 'chosen' is empty after stripping"
    assert [path.name for path in scratch.iterdir()] == ["some.jsonl"]
    write(scratch / "some.jsonl", [PAIR])
    assert run("prepare prefs --input some.jsonl --validate-only")[0] == 0
    write(scratch / "none.jsonl", [PAIR | {"chosen": ""}])
    code, _out, err = run("prepare prefs --input none.jsonl --output-dir out2")
    assert code == 3 and "no row can be used" in err and not (scratch / "out2" / "pairs_all.jsonl").exists()


def test_the_safety_filter_is_asked_unless_it_is_skipped(run: Run, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_home(Home(scratch / "home"), clock=ManualClock(), recipes=Path(__file__).parent.parent / "configs")
    (scratch / "home" / "configs" / "heirloom.yaml").write_text(
        "safety: {enabled: true, rules: [{name: no poison, pattern: poison, fields: [chosen]}]}\n")
    monkeypatch.setenv("HEIRLOOM_HOME", str(scratch / "home"))
    write(scratch / "some.jsonl", [PAIR, PAIR | {"chosen": "poison"}])
    found = json.loads(run("prepare prefs --input some.jsonl --output-dir a --json")[1])
    assert (found["pairs"], found["safety_filter"]) == (1, True)
    assert found["dropped"] == [{"file": "some.jsonl", "line": 2, "rule": "no poison"}]
    found = json.loads(run("prepare prefs --input some.jsonl --output-dir b --skip-safety-filter --json")[1])
    assert (found["pairs"], found["dropped"], found["safety_filter"]) == (2, [], False)


def test_trajectories_by_the_command(run: Run, scratch: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "name": "ls", "arguments": {}}]}
    turns = [{"role": "user", "content": "q"}, call, {"role": "tool", "tool_call_id": "1", "content": "x"},
             {"role": "assistant", "content": "a"}]  # fmt: skip
    write(scratch / "logs" / "log.jsonl", [{"messages": turns}, {"messages": turns[:3]}, {"messages": turns}])
    code, out, _err = run("prepare trajectories --input logs --output out --max_samples 5")
    assert code == 0 and "1 row of 3 sessions" in out and "no final answer" in out and "Repeated: 1 session" in out
    assert len((scratch / "out" / "trajectories.jsonl").read_text().splitlines()) == 1


@pytest.fixture
def home(scratch: Path) -> Home:
    home = Home(scratch / "home")
    create_home(home, clock=ManualClock(), recipes=Path(__file__).parent.parent / "configs")
    return home


def test_a_download_in_a_home_is_kept_and_dropped(run: Run, home: Home, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "open_rows", Plain)
    hub(scratch / "hub")
    line = f"--home {home.root} prefs download --from hub --budget 30"
    code, out, _err = run(f"{line} --dry-run --json")
    plan = json.loads(out)
    assert code == 0 and plan["dry_run"] and plan["sources"]["hh-rlhf"] == 10 and not (home.data / "pairs").exists()
    found = json.loads(run(f"{line} --json")[1])
    kept, dropped = home.data / "pairs" / "pairs_all.jsonl", home.inbox / "preference" / "pairs_all.jsonl"
    assert found["pairs"] == 30 and found["dropped"] == str(dropped) and kept.read_bytes() == dropped.read_bytes()
    assert kept.stat().st_ino != dropped.stat().st_ino, "what is dropped is moved and sealed: it must be another file"
    assert json.loads(run(f"{line} --no-drop --json")[1])["dropped"] is None
    code, out, _err = run(f"{line} --source hh-rlhf --out mine.jsonl --no-drop")
    assert code == 0 and "✅ 30 pairs" in out and "left out 2: " in out
    assert run(f"{line} --out mine.jsonl")[0] == 2 and run(f"{line} --split dev")[0] == 2
    assert run("prefs download --from nowhere")[0] == 4


def test_a_drop_never_overwrites_one_that_waits(home: Home, scratch: Path) -> None:
    path = scratch / "pairs_all.jsonl"
    path.write_text("new")
    folder = home.inbox / "preference"
    folder.mkdir(exist_ok=True)
    (folder / "pairs_all.jsonl").write_text("waits")
    first, again = drop_copy(home, path, "a" * 64), drop_copy(home, path, "a" * 64)
    assert (folder / "pairs_all.jsonl").read_text() == "waits" and first.read_text() == "new" and first == again
    assert sorted(item.name for item in folder.iterdir()) == [f"pairs_all-{'a' * 12}.jsonl", "pairs_all.jsonl"]
    assert ignored_name(".pairs_all.jsonl.dropping"), "half a copy must never be taken for a drop"


def test_caps_are_for_all_or_for_one() -> None:
    assert parse_caps(["5k", "hh-rlhf=7"]) == {"hh-rlhf": 7, "ultrafeedback-binarized": 5000, "stack-exchange-preferences": 5000}
    for words in (["x=5"], ["hh-rlhf="], ["none"]):
        with pytest.raises(UsageError):
            parse_caps(words)


def test_a_domain_is_prepared_with_its_own_val(run: Run, scratch: Path) -> None:
    write(scratch / "data" / "domain" / "coding" / "train" / "a.jsonl", text_rows(30))
    write(scratch / "data" / "domain" / "coding" / "val" / "b.jsonl", text_rows(4, 50))
    found = json.loads(run("prepare lora --domain coding --output-dir ds --tokenization char --json")[1])
    assert (found["train"]["examples"], found["val"]["examples"], found["given_val"]) == (30, 4, True)
    code, _out, err = run("prepare lora --domain legal --output-dir ds2")
    assert code == 4 and "there is coding" in err
