"""What `cargo mutants` leaves, as rows with the bug, what the tests said, and the sound code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guard.errors import CheckFailed, DataFault, EnvironmentFault, NotFound, UsageError
from trainer.mutations.make import make_mutations

SOURCE = "// Numbers.\n\nfn other() {}\n\nfn add(a: i32, b: i32) -> i32 {\n    let sum = a + b;\n    sum\n}\n\nfn last() {}\n"
DIFF = ("--- src/lib.rs\n+++ replace + with - in add\n@@ -4,5 +4,5 @@\n \n fn add(a: i32, b: i32) -> i32 {\n"
        "-    let sum = a + b;\n+    let sum = a - /* ~ changed by cargo-mutants ~ */ b;\n     sum\n }\n")  # fmt: skip
LOG = (
    "\n*** src/lib.rs:6:17: replace + with - in add\n\n*** mutation diff:\n{diff}\n"
    "*** /usr/bin/cargo test --no-run --verbose\n   Compiling x\n\n*** result: Success\n\n"
    "*** /usr/bin/cargo test --verbose\nrunning 1 test\ntest test_add ... FAILED\n\nfailures:\n\n---- test_add stdout ----\n"
    "thread 'test_add' ({thread}) panicked at /tmp/cargo-mutants-x-{thread}.tmp/src/lib.rs:9:5:\nassertion failed: 3 != -1\n\n\n"
    "failures:\n    test_add\n\ntest result: FAILED. 0 passed; 1 failed; finished in 0.{thread}s\n\n*** result: Failure(101)\n"
)  # fmt: skip


def outcome(number: int, summary: str = "CaughtMutant", **more: Any) -> dict[str, Any]:
    mutant = {"name": f"mutant {number}", "file": "src/lib.rs", "replacement": "-", "genre": "BinaryOperator",
              "function": {"function_name": "add", "span": {"start": {"line": 5, "column": 1}, "end": {"line": 8, "column": 2}}},
              "span": {"start": {"line": 6, "column": 17}, "end": {"line": 6, "column": 18}}}  # fmt: skip
    return {"scenario": {"Mutant": mutant}, "summary": summary, "log_path": f"log/{number}.log",
            "diff_path": f"diff/{number}.diff", "phase_results": []} | more  # fmt: skip


def repository(root: Path, outcomes: list[dict[str, Any]], thread: int = 71) -> Path:
    for name in ("src", ".git", "mutants.out/log", "mutants.out/diff"):
        (root / name).mkdir(parents=True)
    (root / "src" / "lib.rs").write_text(SOURCE)
    (root / ".git" / "config").write_text('[remote "origin"]\n\turl = git@github.com:example/math-utils.git\n')
    baseline = {"scenario": "Baseline", "summary": "Success", "log_path": "log/baseline.log"}
    (root / "mutants.out" / "outcomes.json").write_text(json.dumps({"outcomes": [baseline, *outcomes]}))
    for number in range(1, 9):
        diff = DIFF.replace("a - ", f"a - {number} * ") if number > 1 else DIFF
        (root / "mutants.out" / "log" / f"{number}.log").write_text(LOG.format(diff=diff, thread=thread))
        (root / "mutants.out" / "diff" / f"{number}.diff").write_text(diff)
    return root


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


ROW = {
    "buggy_code": "fn add(a: i32, b: i32) -> i32 {\n    let sum = a - b;\n    sum\n}",
    "error_message": "---- test_add stdout ----\nthread 'test_add' panicked at src/lib.rs:9:5:\nassertion failed: 3 != -1",
    "fixed_code": "fn add(a: i32, b: i32) -> i32 {\n    let sum = a + b;\n    sum\n}",
    "repo": "example/math-utils", "file": "src/lib.rs",
}  # fmt: skip


def test_a_caught_mutant_is_a_row_with_its_whole_function(scratch: Path) -> None:
    repo = repository(scratch / "repo", [outcome(1)])
    report = make_mutations([repo], [], scratch / "out")
    assert rows_of(scratch / "out" / "mutations.jsonl") == [ROW] and report["repos"][0]["mutants"] == 1


def test_two_runs_of_the_tool_give_the_same_bytes(scratch: Path) -> None:
    first = repository(scratch / "a" / "repo", [outcome(1), outcome(2)])
    second = repository(scratch / "b" / "repo", [outcome(2), outcome(1)], thread=902)
    make_mutations([first], [], scratch / "a.jsonl")
    make_mutations([], [second / "mutants.out"], scratch / "b.jsonl")
    assert (scratch / "a.jsonl").read_bytes() == (scratch / "b.jsonl").read_bytes()


def test_a_changed_source_leaves_the_lines_of_the_difference(scratch: Path) -> None:
    repo = repository(scratch / "repo", [outcome(1, diff_path=None)])
    (repo / "src" / "lib.rs").write_text("// all new\n")
    make_mutations([repo], [], scratch / "out.jsonl")
    row = rows_of(scratch / "out.jsonl")[0]
    assert row["fixed_code"].strip() == ROW["fixed_code"] and row["buggy_code"].strip() == ROW["buggy_code"]


def test_what_no_test_failed_over_is_left_out_and_counted(scratch: Path) -> None:
    outcomes = [outcome(1), outcome(2, "MissedMutant"), outcome(3, "Unviable"), outcome(4, "Timeout"),
                outcome(5, log_path="../../secret.log")]  # fmt: skip
    (scratch / "secret.log").write_text(LOG.format(diff=DIFF, thread=1))
    report = make_mutations([repository(scratch / "repo", outcomes)], [], scratch / "out.jsonl")
    reasons = ("no test noticed it", "it does not build", "its tests did not end", "its log shows no failing test")
    assert report["rows"] == 1 and report["left_out"] == dict.fromkeys(reasons, 1)
    with pytest.raises(DataFault, match="no mutant"):
        make_mutations([repository(scratch / "other", [outcome(1, "MissedMutant")])], [], scratch / "none.jsonl")
    assert not (scratch / "none.jsonl").exists()


def test_at_most_so_many_of_a_repository(scratch: Path) -> None:
    repo = repository(scratch / "repo", [outcome(number) for number in range(1, 9)])
    make_mutations([repo], [], scratch / "all.jsonl")
    assert make_mutations([repo], [], scratch / "some.jsonl", most=3)["rows"] == 3
    found, some = rows_of(scratch / "all.jsonl"), rows_of(scratch / "some.jsonl")
    assert [row for row in found if row in some] == some and len(found) == 8


def test_without_the_tool_it_says_what_to_type(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = scratch / "repo"
    repo.mkdir()
    monkeypatch.setenv("PATH", str(scratch))
    with pytest.raises(EnvironmentFault, match="cargo-mutants is not installed") as told:
        make_mutations([repo], [], scratch / "out.jsonl")
    assert "cargo install" in told.value.hint and list(scratch.iterdir()) == [repo]
    with pytest.raises(NotFound, match=r"outcomes\.json"):
        make_mutations([], [repo], scratch / "out.jsonl")
    with pytest.raises(UsageError):
        make_mutations([], [], scratch / "out.jsonl")


def test_the_tool_is_run_where_it_is(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = repository(scratch / "made", [outcome(1)])
    repo = repository(scratch / "repo", [])
    (repo / "mutants.out" / "outcomes.json").unlink()
    tool = scratch / "bin" / "cargo-mutants"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\n[ "$6 $7" = "--jobs 4" ] || exit 1\ncp -r {made}/mutants.out "$5"\nexit ${{END:-2}}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    make_mutations([repo], [], scratch / "out.jsonl", jobs=4)
    assert rows_of(scratch / "out.jsonl") == [ROW]
    monkeypatch.setenv("END", "4")
    with pytest.raises(CheckFailed, match="ended with 4"):
        make_mutations([repo], [], scratch / "no.jsonl", jobs=4)
