"""The torch server: forks that share nothing, exit codes as they were, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import trainer_help
from trainer_help import PYTHON, ROOT, ServerClient, shared_server, wait_until

pytest.importorskip("torch")

from guard.errors import DataFault, EnvironmentFault, UsageError  # noqa: E402
from trainer.child import EXIT_FAULT, EXIT_LOCKED, EXIT_OK, fault_of  # noqa: E402
from trainer.loop import StopRequested  # noqa: E402


def _gone(pid: int) -> bool:
    """True when the process has ended (a zombie that nobody waits for yet counts as ended)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _long_job(tmp_path: Path) -> Path:
    """A training job of so many steps that it runs until somebody ends it."""
    trainer_help.base_job(tmp_path / "base")
    assert shared_server().run(tmp_path / "base") == EXIT_OK
    dataset = trainer_help.make_dataset(tmp_path / "data")
    trainer_help.train_job(tmp_path / "job", tmp_path / "base" / "out", dataset, steps=100_000)
    return tmp_path / "job"


def test_a_job_is_done_in_a_fork_with_its_own_log_and_lock(tmp_path: Path) -> None:
    trainer_help.base_job(tmp_path)
    number, pid = shared_server().spawn(tmp_path, nice=3, oom_score_adj=500)
    assert shared_server().next(60) == {"exited": number, "pid": pid, "status": EXIT_OK}
    assert json.loads((tmp_path / "result.json").read_text())["finite"] is True
    assert (tmp_path / "child.lock").exists() and (tmp_path / "child.log").exists()


def test_the_server_has_a_single_thread_before_and_after_forking(tmp_path: Path) -> None:
    trainer_help.base_job(tmp_path)
    shared_server().run(tmp_path)
    assert len(os.listdir(f"/proc/{shared_server().process.pid}/task")) == 1


def test_a_child_is_modest_and_has_a_session_of_its_own(tmp_path: Path) -> None:
    folder = _long_job(tmp_path)
    _number, pid = shared_server().spawn(folder, nice=3, oom_score_adj=500)
    wait_until(lambda: trainer_help.steps_logged(folder) > 0)
    assert os.getpriority(os.PRIO_PROCESS, pid) >= 3
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
    assert os.getsid(pid) == pid
    os.kill(pid, signal.SIGKILL)
    assert shared_server().ended() == -signal.SIGKILL


def test_signals_are_passed_on_and_statuses_told(tmp_path: Path) -> None:
    folder = _long_job(tmp_path)
    number, _pid = shared_server().spawn(folder)
    wait_until(lambda: trainer_help.steps_logged(folder) > 0)
    shared_server().send({"signal": number, "number": int(signal.SIGTERM)})
    assert shared_server().ended() == 75
    assert not (folder / "result.json").exists() and not (folder / "error.json").exists()


def test_a_fault_is_told_in_error_json(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"schema": 1, "task": "dance", "staging": str(tmp_path)}))
    assert shared_server().run(tmp_path) == EXIT_FAULT
    told = json.loads((tmp_path / "error.json").read_text())
    assert told["fault"] == "bug" and "dance" in told["message"] and told["hint"]
    assert "UsageError" in (tmp_path / "child.log").read_text(), "the traceback is kept"


def test_a_job_that_was_moved_or_is_not_understood_is_refused(tmp_path: Path) -> None:
    for job in ({"schema": 1, "task": "base", "staging": "/elsewhere"}, {"schema": 99, "staging": str(tmp_path)}):
        (tmp_path / "job.json").write_text(json.dumps(job))
        assert shared_server().run(tmp_path) == EXIT_FAULT
        assert json.loads((tmp_path / "error.json").read_text())["fault"] == "bug"


def test_two_children_never_work_in_one_staging_folder(tmp_path: Path) -> None:
    folder = _long_job(tmp_path)
    first, pid = shared_server().spawn(folder)
    wait_until(lambda: trainer_help.steps_logged(folder) > 0)
    second, _pid = shared_server().spawn(folder, lock_wait_seconds=0)
    assert shared_server().next(60)["exited"] == second
    by_hand = subprocess.Popen([PYTHON, "-m", "trainer.child", str(folder)], cwd=ROOT, stderr=subprocess.PIPE)
    os.kill(pid, signal.SIGSTOP)  # still holds the lock: being stopped is not being gone
    assert by_hand.wait(60) == EXIT_LOCKED and b"another process" in by_hand.communicate()[1]
    os.kill(pid, signal.SIGKILL)
    assert shared_server().next(60)["exited"] == first


def test_a_staging_folder_that_is_gone_is_a_crash_and_the_server_lives(tmp_path: Path) -> None:
    assert shared_server().run(tmp_path / "nowhere") not in (EXIT_OK, EXIT_FAULT)
    trainer_help.base_job(tmp_path / "base")
    assert shared_server().run(tmp_path / "base") == EXIT_OK


def test_nonsense_on_the_line_is_answered_and_survived() -> None:
    server = shared_server()
    server.channel.sendall(b'{"spawn": \n[1]\n{"id": 5}\n{"spawn": "/x"}\n')
    assert [bool(server.next()["error"]) for _ in range(4)] == [True] * 4
    server.send({"signal": 999_999, "number": 15})  # nobody of that number: it has ended, and that is no error


def test_children_end_with_their_server(tmp_path: Path) -> None:
    folder = _long_job(tmp_path)
    server = ServerClient()
    _number, pid = server.spawn(folder)
    wait_until(lambda: trainer_help.steps_logged(folder) > 0)
    server.close()
    assert server.process.returncode == 0 and _gone(pid), "closing the channel ends both"


def test_children_die_when_their_server_is_killed(tmp_path: Path) -> None:
    folder = _long_job(tmp_path)
    server = ServerClient()
    _number, pid = server.spawn(folder)
    wait_until(lambda: trainer_help.steps_logged(folder) > 0)
    server.process.kill()
    assert wait_until(lambda: _gone(pid))
    server.close()


def test_whose_fault_it_was() -> None:
    assert fault_of(MemoryError()) == "environment"
    assert fault_of(OSError(28, "No space left on device")) == "environment"
    assert fault_of(EnvironmentFault("no disk")) == "environment"
    assert fault_of(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")) == "environment"
    assert fault_of(DataFault("bad")) == "data"
    assert fault_of(UsageError("bad")) == fault_of(KeyError("x")) == fault_of(StopRequested("x")) == "bug"
