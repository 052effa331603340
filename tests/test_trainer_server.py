"""The torch server: forks that share nothing, exit codes as they were, and nobody left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trainer_help
from trainer_help import ServerClient, shared_server, wait_until

pytest.importorskip("torch")

from guard.errors import DataFault, EnvironmentFault, UsageError
from trainer.child import EXIT_FAULT, EXIT_LOCKED, EXIT_OK, fault_of, main
from trainer.loop import StopRequested
from trainer.server import Server


def _gone(pid: int) -> bool:
    """True when the process has ended (a zombie that nobody waits for yet counts as ended)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[Path]:
    """A staging folder whose lock somebody else holds: a child started on it waits, and lives until it is ended."""
    trainer_help.base_job(folder)
    with open(folder / "child.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture
def light() -> Iterator[ServerClient]:
    server = ServerClient(light=True)
    yield server
    server.close()


def _settled(folder: Path, pid: int) -> bool:
    """The child has done all that comes before its job: it now waits for the lock."""
    return (folder / "child.log").exists() and f"{folder}/child.lock" in _open_files(pid)


def _open_files(pid: int) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return []


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


def test_a_child_is_modest_has_its_own_session_and_no_tie_to_the_server(light: ServerClient, tmp_path: Path) -> None:
    with _held(tmp_path / "one"), _held(tmp_path / "two"):
        light.spawn(tmp_path / "one", lock_wait_seconds=60)
        _number, pid = light.spawn(tmp_path / "two", nice=3, oom_score_adj=500, lock_wait_seconds=60)
        wait_until(lambda: _settled(tmp_path / "two", pid))
        assert os.getpriority(os.PRIO_PROCESS, pid) >= 3
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"
        assert os.getsid(pid) == pid
        files = _open_files(pid)
        assert not [name for name in files if "socket" in name or "pidfd" in name or "eventpoll" in name], files


def test_signals_are_passed_on_and_statuses_told(light: ServerClient, tmp_path: Path) -> None:
    with _held(tmp_path):
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            number, pid = light.spawn(tmp_path, lock_wait_seconds=60)
            wait_until(lambda pid=pid: _settled(tmp_path, pid))
            light.send({"signal": number, "number": int(wanted)})
            assert light.ended() == -wanted


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


def test_two_children_never_work_in_one_staging_folder(light: ServerClient, tmp_path: Path) -> None:
    with _held(tmp_path):
        light.spawn(tmp_path, lock_wait_seconds=0)
        assert light.ended() == EXIT_LOCKED
        assert main(tmp_path, lock_wait_seconds=0) == EXIT_LOCKED, "also when it is started by hand"
        assert not (tmp_path / "error.json").exists() and not (tmp_path / "result.json").exists()


def test_a_staging_folder_that_is_gone_is_a_crash_and_the_server_lives(tmp_path: Path) -> None:
    assert shared_server().run(tmp_path / "nowhere") not in (EXIT_OK, EXIT_FAULT)
    trainer_help.base_job(tmp_path / "base")
    assert shared_server().run(tmp_path / "base") == EXIT_OK


def test_nonsense_on_the_line_is_answered_and_survived(light: ServerClient) -> None:
    light.channel.sendall(b'{"spawn": \n[1]\n{"id": 5}\n{"spawn": "/x"}\n')
    assert [bool(light.next()["error"]) for _ in range(4)] == [True] * 4
    light.send({"signal": 999_999, "number": 15})  # nobody of that number: it has ended, and that is no error


def test_children_end_with_their_server(light: ServerClient, tmp_path: Path) -> None:
    with _held(tmp_path):
        _number, pid = light.spawn(tmp_path, lock_wait_seconds=60)
        light.close()
        assert light.process.returncode == 0 and _gone(pid), "closing the channel ends both"


def test_children_die_when_their_server_is_killed(light: ServerClient, tmp_path: Path) -> None:
    with _held(tmp_path):
        _number, pid = light.spawn(tmp_path, lock_wait_seconds=60)
        wait_until(lambda: _settled(tmp_path, pid))
        light.process.kill()
        assert wait_until(lambda: _gone(pid))


def test_a_stopped_server_does_not_outlive_the_daemon_that_started_it() -> None:
    code = ("import signal; from daemon.children import TorchServer; from daemon.reactor import Reactor\n"
            "server = TorchServer(Reactor(), print); server.warm(); print(server.process.pid, flush=True); signal.pause()")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        server = int(daemon.stdout.readline())
        try:
            wait_until(lambda: _ignores(server, signal.SIGINT))  # it has done all that comes before importing torch
            os.kill(server, signal.SIGSTOP)
            daemon.kill()
            wait_until(lambda: _gone(server))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)


def _ignores(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored.split()[1], 16) >> (number - 1) & 1)


def test_a_server_whose_daemon_died_while_it_imported_ends_without_a_word() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.close()
    with theirs:
        Server(theirs).serve()


def test_whose_fault_it_was() -> None:
    assert fault_of(MemoryError()) == "environment" == fault_of(RuntimeError("can't start new thread"))
    assert fault_of(OSError(28, "No space left on device")) == "environment"
    assert fault_of(EnvironmentFault("no disk")) == "environment"
    assert fault_of(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")) == "environment"
    import torch

    assert fault_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")) == "environment"
    assert fault_of(RuntimeError("shapes cannot be multiplied")) == "bug"
    assert fault_of(DataFault("bad")) == "data"
    assert fault_of(UsageError("bad")) == fault_of(KeyError("x")) == fault_of(StopRequested("x")) == "bug"
