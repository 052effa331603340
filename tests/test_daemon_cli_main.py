"""From a line to words and an exit code, against a home that was made by hand."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from homes import clone, small_family

from daemon.cli import main as cli
from guard.durable import remove_tree
from guard.errors import EnvironmentFault, HeirloomError, Interrupted
from guard.failpoints import Crash
from guard.home import Home
from guard.lock import home_lock

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("family") / "home"
    small_family(root).ledger.close()
    yield root
    remove_tree(root)


@pytest.fixture
def home(family: Path, tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "home"
    clone(family, root).ledger.close()
    yield root
    remove_tree(root)


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in [name for name in os.environ if name.startswith("HEIRLOOM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HEIRLOOM_HOME", str(home))

    def call(line: str, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        code = cli.main(line.split())
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    assert found["schema"] == 1
    return found


def test_alone_it_is_status(run: Run) -> None:
    code, out, _err = run("")
    assert code == 0 and "v004_full_stack (policy)" in out and "stopped" in out
    assert _object(run("--json")[1])["active"] == {"policy": "v004_full_stack"}


def test_status_has_its_promised_keys(run: Run) -> None:
    found = _object(run("status --json")[1])
    assert found["state"] == "stopped" and found["active"] == {"policy": "v004_full_stack"} and found["training"] is None
    assert {"queued", "running", "held", "failed", "done"} <= set(found["queue"])
    assert {"waiting", "rejected", "duplicates"} <= set(found["inbox"])
    assert {"free_bytes", "forks_left", "full_on"} <= set(found["disk"])
    assert set(found["tokens"]) == {"trained", "goal", "per_second", "eta"}


def test_check_without_a_daemon_is_ten(run: Run) -> None:
    assert run("status --check")[0] == 10
    code, out, _err = run("status --check --json")
    assert code == 10 and _object(out)["state"] == "stopped"


def test_the_home_by_flag_by_environment_and_from_inside(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEIRLOOM_HOME")
    assert run(f"lineage --home {home}")[0] == 0
    assert run(f"--home={home} lineage")[0] == 0
    monkeypatch.chdir(home / "data" / "files")
    assert run("lineage")[0] == 0
    monkeypatch.chdir("/")
    code, _out, err = run("lineage")
    assert code == 4 and "try: heirloom init" in err


def test_help_shows_what_there_is_and_no_more(run: Run) -> None:
    code, out, _err = run("--help")
    commands = {line.split()[0] for line in out.split("Commands:")[1].split("Everywhere")[0].strip().splitlines()}
    assert code == 0 and commands == {
        "init", "run", "status", "register", "plan", "queue", "why", "seen", "log", "lineage", "show", "rollback", "delete",
        "restore", "purge", "retention", "regrow", "verify", "backup", "doctor", "prepare", "index", "search", "chat",
        "eval", "train",
        "config", "prefs", "tokenizer",
    }  # fmt: skip


@pytest.mark.parametrize("line", ["nonsense", "plan --base v001", "queue move x --to 1", "status --frobnicate", "show"])
def test_usage_errors_are_two(run: Run, line: str) -> None:
    code, out, err = run(line)
    assert (code, out) == (2, "") and err.startswith("error: ") and "--help" in err
    code, out, err = run(f"{line} --json")
    assert (code, err) == (2, "") and _object(out)["error"] == "UsageError" and _object(out)["exit_code"] == 2


def test_the_program_tells_its_version(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEIRLOOM_HOME", "/nowhere")
    code, out, _err = run("--version")
    assert code == 0 and out.startswith("heirloom ") and out.count("\n") == 1
    assert _object(run("--json --version")[1])["version"] == out.split()[1]


@pytest.mark.parametrize("group", ["index", "config", "prepare", "prefs", "retention"])
def test_a_group_without_a_command_names_its_commands(run: Run, group: str) -> None:
    code, _out, err = run(group)
    assert code == 2 and err.startswith(f"error: heirloom {group} needs a command: ") and "Usage" not in err


def test_a_busy_home_names_its_holder_and_nothing_else(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.client.LOCK_SECONDS", 0.0)
    with home_lock(Home(home), command="heirloom run", since="2026"):
        code, _out, err = run("queue pause")
    assert code == 11 and "heirloom run (pid " in err and "could not be acquired" not in err and "why:" not in err


def test_errors_with_json_are_one_object_on_stdout(run: Run) -> None:
    code, out, err = run("show v099 --json")
    found = _object(out)
    assert (code, err, found["error"], found["exit_code"]) == (4, "", "NotFound", 4) and found["hint"]


def test_an_unexpected_error_is_short_and_with_debug_long(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_given: object) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("daemon.cli.commands.run", broken)
    code, _out, err = run("lineage")
    assert code == 1 and "ZeroDivisionError: oops" in err and "Traceback" not in err
    assert "Traceback" in run("lineage --debug")[2]


def test_what_is_no_error_of_ours_goes_on() -> None:
    assert cli.as_error(SystemExit(3)) is None and cli.as_error(Crash("x")) is None
    assert isinstance(cli.as_error(KeyboardInterrupt()), Interrupted)
    assert isinstance(cli.as_error(OSError(28, "No space left on device")), EnvironmentFault)
    assert cli.as_error(KeyError("x")).exit_code == 1  # type: ignore[union-attr]
    denied = cli.as_error(PermissionError(13, "Permission denied", "/home/x/data/ledger.db"))
    assert denied is not None and "/home/x/data/ledger.db" in str(denied) and "owner" in denied.hint
    known = HeirloomError("x")
    assert cli.as_error(known) is known


def test_lineage_as_tree_and_as_json(run: Run) -> None:
    assert run("lineage")[1].splitlines()[0] == "v001_baseline  LOCKED (base model)"
    versions = _object(run("lineage --json")[1])["versions"]
    assert [item["id"] for item in versions] == [1, 2, 3, 4]
    keys = {"name", "id", "parent", "line", "active", "locked", "training_data", "metrics", "created", "state"}
    assert keys <= set(versions[0])
    assert [item["name"] for item in _object(run("lineage v002 --json")[1])["versions"]][:2] == ["v001_baseline", "v002_syllo"]


def test_show_takes_a_version_or_a_file(run: Run) -> None:
    assert _object(run("show v004 --json")[1])["name"] == "v004_full_stack"
    found = _object(run("show math.jsonl --json")[1])
    assert found["filename"] == "math.jsonl" and found["trained_in"] == ["v004_full_stack"] and found["status"] == "trained"


def test_latest_is_the_active_version_where_one_only_looks(run: Run) -> None:
    run("rollback v003 --yes")
    assert _object(run("show latest --json")[1])["name"] == "v003_reasoning"
    assert _object(run("lineage latest --json")[1]) == _object(run("lineage v003 --json")[1])
    assert run("verify latest")[0] == 0
    for line in ("delete latest --force", "rollback latest --yes", "restore latest"):
        assert run(line)[0] == 4, "what moves a version wants its name"


def test_a_sample_marks_what_is_trained(run: Run) -> None:
    assert _object(run("show math.jsonl --sample --json")[1])["sample"] == [
        {"text": "math.jsonl row 0", "control": False, "trained": True}]
    assert "⟦math.jsonl row 0⟧" in run("show math.jsonl --sample")[1]
    assert "⟦math.jsonl row 3⟧" in run("show math.jsonl --sample 4")[1]
    assert run("show math.jsonl --sample 99")[0] == 4


def test_rollback_wants_the_whole_word(run: Run) -> None:
    for typed in ("", "y\n", "no\n", "YES\n"):
        code, _out, err = run("rollback v003", typed)
        assert code == 6 and "nothing was changed" in err
    assert _object(run("status --json")[1])["active"] == {"policy": "v004_full_stack"}
    code, out, _err = run("rollback v003 --reason bad", "yes\n")
    assert code == 0 and "math.jsonl" in out and "Proceed? [yes/no]: " in out
    assert _object(run("status --json")[1])["active"] == {"policy": "v003_reasoning"}


def test_a_dry_run_changes_nothing(run: Run) -> None:
    assert _object(run("rollback v003 --dry_run --json")[1])["changed"] is True
    run("rollback v003 --yes")
    assert run("delete v004 --force --dry-run")[0] == 0
    assert _object(run("lineage --json")[1])["versions"][3]["state"] == "sealed"


@pytest.mark.parametrize("line", ["v001 --force --confirm-lineage", "v004 --force", "v003", "v002 --force"])
def test_what_is_protected_is_refused_before_anything_is_asked(run: Run, line: str) -> None:
    code, out, err = run(f"delete {line}", "v003_reasoning\n")
    assert code == 5 and "orphan" not in out and "try: " in err


def test_a_version_that_others_stand_on_wants_its_name_typed(run: Run) -> None:
    for typed in ("", "v003\n", "v002_syllo \t x\n"):
        code, out, _err = run("delete v002 --force --confirm-lineage", typed)
        assert code == 6 and out.startswith("This will orphan v003_reasoning. Type model name to confirm:")
    assert run("delete v002 --force --confirm-lineage --confirm v002")[0] == 6
    code, out, _err = run("delete v002 --force --confirm-lineage --json", "v002_syllo\n")
    assert code == 0 and _object(out)["version"] == "v002_syllo" and _object(out)["dependants"] == ["v003_reasoning"]
    code, out, _err = run("restore v002")
    assert code == 0 and "is back from trash" in out


def test_restoring_what_is_there_is_refused(run: Run) -> None:
    assert run("restore v002")[0] == 3


def test_verify_finds_a_changed_byte(run: Run, home: Path) -> None:
    assert _object(run("verify --json")[1])["ok"] is True
    weights = home / "models" / "v002_syllo" / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    weights.chmod(0o444)
    code, out, _err = run("verify v002 --json")
    found = _object(out)
    assert code == 8 and found["checked"]["versions"] == 1 and found["damage"][0]["file"] == "model.safetensors"
    assert run("verify v003")[0] == 0
    assert "restore v002_syllo" in run("verify")[1]


def test_backup_run_and_status(run: Run) -> None:
    assert _object(run("backup status --json")[1])["present"] is False
    code, out, _err = run("backup run --json")
    assert code == 0 and "v004_full_stack" in _object(out)["copied"]
    assert "4 of 4 read back" in run("backup")[1]
    assert run("verify --backup")[0] == 0


def test_doctor_says_eight_only_for_damage(run: Run, home: Path) -> None:
    (home / "models" / "registry.json").write_text("{}")
    code, out, _err = run("doctor --json")
    failed = {check["name"] for check in _object(out)["checks"] if check["ok"] is False}
    assert code == 3 and "Views are current" in failed
    remove_tree(home / "models" / "v002_syllo")
    assert run("doctor")[0] == 8


def test_the_log_is_ordered_and_can_be_cut(run: Run) -> None:
    events = _object(run("log --json")[1])["events"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["seq"] for event in _object(run("log --limit 2 --json")[1])["events"]] == [len(events) - 1, len(events)]
    assert _object(run("log --since 1h --json")[1])["events"] == []
    assert run("log --since nonsense")[0] == 2


def test_settings_with_where_they_come_from(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEIRLOOM_DISK__RESERVE_GB", "7")
    assert any(line.split() == ["disk.reserve_gb", "7", "#", "environment"]
               for line in run("config show --origin")[1].splitlines())  # fmt: skip
    assert _object(run("config show --json")[1])["settings"]["disk.reserve_gb"] == 7
    monkeypatch.setenv("HEIRLOOM_NONSENSE", "7")
    assert run("status")[0] == 2


def test_wrong_settings_do_not_end_the_command_that_errors_about_them_name(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "configs" / "heirloom.yaml").write_text("gate: sometimes\ntraining: {max_steps: 1e30}\nnice: 7\n")
    monkeypatch.setenv("HEIRLOOM_NONSENSE", "7")
    code, _out, told = run("status")
    assert code == 2 and "heirloom config show --origin" in told
    code, out, _err = run("config show --origin")
    assert code == 2 and all(words in out for words in ("gate = 'sometimes'", "max_steps", "unknown setting nonsense", "nice"))
    found = _object(run("config show --json")[1])
    assert len(found["problems"]) == 3 and found["settings"]["gate"] == "enforce" and found["settings"]["nice"] == 7


def test_the_queue_is_shown_and_changed(run: Run) -> None:
    assert _object(run("queue --json")[1])["jobs"] == []
    assert _object(run("queue pause --json")[1])["paused"] is True
    assert run("queue resume")[0] == 0
    assert run("queue cancel 99")[0] == 4
    assert run("queue --follow 99")[0] == 4


def test_a_file_is_planned_by_its_bytes_and_never_by_its_name_alone(run: Run, tmp_path: Path) -> None:
    impostor = tmp_path / "math.jsonl"
    impostor.write_text('{"text": "something else"}\n')
    code, _out, err = run(f"plan --base v004 --data {impostor} --output x --dry-run")
    assert code == 4 and "heirloom register" in err


def test_files_are_named_before_anything_is_registered(run: Run, tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text('{"text": "a"}\n')
    assert run(f"register {tmp_path / 'there.jsonl'} {tmp_path / 'missing.jsonl'}")[0] == 4
    assert run(f"register {tmp_path}")[0] == 2
    assert run("why there.jsonl")[0] == 4


def test_registering_good_and_bad_files(run: Run, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("".join(json.dumps({"text": f"a new thing, number {number}"}) + "\n" for number in range(40)))
    bad.write_text("no JSON here\n")
    code, out, _err = run(f"register {good} --description x --json")
    found = _object(out)
    assert code == 0 and (found["kind"], found["examples"], found["status"]) == ("pretrain", 40, "registered")
    assert len(found["fingerprint"]) == 64 and good.exists()
    code, out, _err = run(f"register {bad} {good}")
    assert code == 3 and "❌ Rejected: bad.jsonl" in out and "line 1" in out and "✅ Data registered: good.jsonl" in out
    assert (found["bad_rows"], found["bad_row_list"], found["unusable_rows"]) == (0, [], 0)
    assert _object(run(f"why {found['fingerprint']} --json")[1])["status"] == "registered"
    out = run("why bad.jsonl")[1]
    assert out.startswith("bad.jsonl: rejected") and "line 1: not valid JSON" in out
    found = _object(run(f"register {bad} --json")[1])
    assert found["bad_rows"] == 1 and list(found["bad_row_list"][0]) == ["line", "field", "reason", "expected"]


def test_search_and_chat_without_an_index_say_what_to_do(run: Run) -> None:
    assert run("search words")[0] == 4 and run("index ls")[0] == 0
    assert run("chat --json")[0] == 2 and run("chat v099 -p hi")[0] == 4
    assert run("index build --docs-dir somewhere")[0] == 2


def _python(code: str, *, stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60)


def test_status_imports_nothing_heavy(home: Path) -> None:
    done = _python(
        "import sys\nfrom daemon.cli.main import main\n"
        f"assert main(['--home', {str(home)!r}, 'status', '-q']) == 0\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'transformers', 'rich', 'typer', 'pydantic', 'tinydb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert done.returncode == 0, done.stderr


def test_an_ascii_terminal_and_a_closed_pipe_end_no_command(home: Path) -> None:
    line = f"from daemon.cli.main import main; raise SystemExit(main(['--home', {str(home)!r}, 'lineage']))"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, timeout=60,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert done.returncode == 0 and b"\\u2514" in done.stdout
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done_quietly = _python(line, stdout=gone)
    assert (done_quietly.returncode, done_quietly.stderr) == (0, "")


def test_the_module_is_the_command_too() -> None:
    told = subprocess.run([sys.executable, "-m", "daemon.cli.main", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("heirloom ")


def test_a_tokenizer_is_trained_on_the_command_line_and_a_base_can_be_planned_with_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("heirloom keeps learning " * 200)
    told = _object(run(f"tokenizer train --input {tmp_path}/a.txt --vocab_size 300 --out_dir {tmp_path}/tok --json")[1])
    assert told["template"] == "mypt" and told["special_tokens"]["<|endoftext|>"] < told["vocab_size"] <= 300
    assert run(f"tokenizer train --input {tmp_path}/a.txt --out-dir {tmp_path}/tok")[0] == 2  # never over another one
    plan = f"init {tmp_path}/fresh --recipe pretrain/micro --dry-run --json --tokenization hf"
    found = _object(run(f"{plan} --tokenizer {tmp_path}/tok")[1])
    assert found["tokenization"] == "hf" and not (tmp_path / "fresh").exists()
    assert run(plan)[0] == 2 and run(f"{plan} --tokenizer {tmp_path}/nothing")[0] == 4
