"""Children of the daemon: readers of dropped files are watched for time and memory, and training for signs of life.

`reader_stand_in.py` takes the real reader's place: it does what the file's name says. Not here: what a death costs the
file that was read (`test_daemon_deaths.py`).
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import children
from daemon import readers as reading
from daemon.children import JobChild, TorchServer, child_environment
from daemon.reactor import Reactor
from daemon.readers import DESK, TINY_BYTES, ReaderPool
from daemon.vigil import STALL_SECONDS, own_mb, resident_mb

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def _the_stand_in_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))


class Readers:
    """A pool of stand-ins with a clock of its own."""

    def __init__(self, memory_mb: int = 200) -> None:
        self.reactor, self.now = Reactor(), 0.0
        self.pool = ReaderPool(self.reactor, memory_mb, module="reader_stand_in")
        self.answers: dict[str, dict[str, Any]] = {}

    def submit(self, name: str, size: int = 0) -> None:
        def done(answer: dict[str, Any]) -> None:
            self.answers[name] = answer

        self.pool.submit({"id": name, "path": name, "name": name}, size, done)

    def work(self, until: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while not until():
            assert time.monotonic() < end, f"nothing came of it: {self.answers}"
            self.pool.tick(self.now)
            self.reactor.poll(0.02)

    def ask(self, name: str) -> dict[str, Any]:
        self.submit(name)
        self.work(lambda: name in self.answers)
        return self.answers[name]

    def pids(self) -> list[int]:
        return [reader.process.pid for reader in self.pool.readers if reader.process is not None]


@pytest.fixture
def readers() -> Iterator[Readers]:
    made = Readers()
    yield made
    pids = made.pids()
    made.pool.close()
    made.reactor.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_one_reader_serves_many_files(readers: Readers) -> None:
    assert readers.ask("fine 1")["verdict"] == "ok"
    before = readers.pids()
    readers.submit("fine 2")
    readers.submit("fine 3")
    assert readers.pool.busy
    readers.work(lambda: not readers.pool.busy)
    assert set(readers.answers) == {"fine 1", "fine 2", "fine 3"} and set(before) <= set(readers.pids())


def test_a_reader_that_dies_costs_its_file_an_attempt_and_the_next_file_gets_another(readers: Readers) -> None:
    answer = readers.ask("die")
    assert answer == {"fault": "crash", "message": "the reader ended with status -11"}
    assert readers.ask("fine")["verdict"] == "ok"


def test_a_reader_that_hangs_is_ended_when_its_time_is_over(readers: Readers) -> None:
    readers.submit("hang", size=int(reading.BYTES_PER_SECOND) * 10)
    readers.pool.tick(0.0)
    readers.now = reading.BASE_SECONDS + 9.9
    readers.pool.tick(readers.now)
    assert "hang" not in readers.answers and not any(reader.ended_because for reader in readers.pool.readers)
    readers.now += 0.2
    readers.work(lambda: "hang" in readers.answers)
    assert readers.answers["hang"] == {"fault": "crash", "message": "reading took too long"}


def test_a_stopped_reader_is_ended_too(readers: Readers) -> None:
    readers.ask("fine")
    readers.submit("hang")
    readers.pool.tick(0.0)
    for pid in readers.pids():
        os.kill(pid, signal.SIGSTOP)
    readers.now = reading.BASE_SECONDS + 1
    readers.work(lambda: "hang" in readers.answers)
    assert readers.answers["hang"]["fault"] == "crash"


def test_a_reader_that_grows_beyond_its_memory_is_ended(readers: Readers) -> None:
    answer = readers.ask("grow")
    assert answer["fault"] == "crash" and "MiB of memory" in answer["message"]


def test_of_many_tiny_files_on_its_desk_a_reader_dies_over_one_only(readers: Readers) -> None:
    names = [f"fine {number}" for number in range(40)]
    names[7], names[23] = "die 7", "die 23"
    for name in names:
        readers.submit(name)
    readers.pool.tick(0.0)
    assert [len(reader.requests) for reader in readers.pool.readers] == [DESK, DESK]
    readers.work(lambda: len(readers.answers) == 40)
    assert {name for name in names if readers.answers[name].get("fault")} == {"die 7", "die 23"}
    assert all(readers.answers[name]["id"] == name for name in names if name.startswith("fine"))


def test_a_large_file_shares_no_desk_and_waits_for_no_burst(readers: Readers) -> None:
    order: list[str] = []
    for name, size in [("fine 1", 0), ("fine large", TINY_BYTES + 1), *((f"fine {n}", 0) for n in range(2, 90))]:
        readers.pool.submit({"id": name, "path": name, "name": name}, size, lambda _answer, name=name: order.append(name))
    readers.pool.tick(0.0)
    general, small = readers.pool.readers
    assert [request.size for request in general.requests] == [0], "a large file is next: no tiny one is laid behind it"
    assert [request.size for request in small.requests] == [TINY_BYTES + 1]
    readers.work(lambda: len(order) == 90)
    assert "fine large" in order


def test_an_answer_that_cannot_be_read_is_a_crash_of_the_reader(readers: Readers) -> None:
    answer = readers.ask("babble")
    assert answer == {"fault": "crash", "message": "the reader gave an answer that cannot be read"}
    assert readers.ask("fine")["verdict"] == "ok"


def test_a_reader_that_died_while_idle_is_replaced_without_a_trace(readers: Readers) -> None:
    readers.ask("fine 1")
    descriptors = len(os.listdir("/proc/self/fd"))
    for round_number in range(3):
        reader = next(reader for reader in readers.pool.readers if reader.process is not None)
        assert reader.process is not None
        reader.process.kill()
        reader.process.wait()
        assert readers.ask(f"fine again {round_number}")["verdict"] == "ok"
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
    assert readers.reactor.poll(0) == 0, "no descriptor of a dead reader is left to wake us for ever"


def test_one_giant_never_starves_the_small_ones(readers: Readers) -> None:
    readers.submit("hang giant", size=20 << 30)
    readers.submit("hang giant 2", size=20 << 30)
    for number in range(5):
        readers.submit(f"fine {number}", size=100)
    readers.work(lambda: len(readers.answers) == 5)
    assert not any("giant" in name for name in readers.answers)


def test_what_a_child_inherits_says_nothing_of_our_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    environment = child_environment()
    assert "NOTIFY_SOCKET" not in environment and environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_no_reader_shares_our_terminal_s_group(readers: Readers) -> None:
    readers.ask("fine")
    assert readers.pids() and all(os.getsid(pid) == pid for pid in readers.pids())


def test_a_job_that_could_not_be_forked_ends_even_where_its_fault_cannot_be_written(tmp_path: Path) -> None:
    ends: list[tuple[int, int]] = []
    server = TorchServer(Reactor(), lambda job, status: ends.append((job, status)))
    server.waiting[7] = tmp_path / "gone"
    server._message({"error": "a line", "id": None})
    server._message({"error": "BlockingIOError: [Errno 11]", "id": 7})
    assert ends == [(7, children.NOT_STARTED)] and not server.waiting
    server.reactor.close()


class SilentServer(TorchServer):
    """A torch server whose messages come from the test; what is sent to it is kept."""

    def __init__(self, folder: Path, ends: list[tuple[int, int]]) -> None:
        super().__init__(Reactor(), lambda job, status: ends.append((job, status)))
        self.sent: list[dict[str, Any]] = []
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.spawn(7, folder)

    def _send(self, message: Any) -> None:
        self.sent.append(dict(message))


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[tuple[SilentServer, Path, list[tuple[int, int]]]]:
    ends: list[tuple[int, int]] = []
    server = SilentServer(tmp_path, ends)
    yield server, tmp_path, ends
    server.close()
    server.reactor.close()


def test_a_stopped_training_child_is_ended_with_its_reason_told(silent: Any) -> None:
    server, folder, ends = silent
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        os.kill(child.pid, signal.SIGSTOP)
        server._message({"started": 7, "pid": child.pid})
        for now in range(0, int(STALL_SECONDS) - 5, 5):
            server.tick(float(now))
        assert not server.sent[1:]
        for now in range(int(STALL_SECONDS) - 5, int(STALL_SECONDS) + 20, 5):
            server.tick(float(now))
        assert server.sent[1:] == [{"signal": 7, "number": 9}]
        child.kill()
    told = json.loads((folder / "error.json").read_text())
    assert told["fault"] == "hung" and "it did nothing for 12" in told["message"]
    server._message({"exited": 7, "status": -9})
    assert ends == [(7, -9)] and not server.vigils and not server.overdue


def test_a_server_that_does_not_start_a_child_or_end_one_is_ended_itself(silent: Any) -> None:
    server, _folder, _ends = silent
    server.tick(0.0)
    server.tick(children.START_SECONDS - 1)
    assert server.process.poll() is None
    server.tick(children.START_SECONDS + 1)
    assert server.process.wait(60) == -9


def test_resident_memory_is_told_in_mebibytes_and_nothing_is_none() -> None:
    assert 5 < resident_mb(os.getpid()) < 10_000 and resident_mb(2**22 + 1) == own_mb(2**22 + 1) == 0.0


def test_what_is_mapped_from_files_is_not_a_readers_own_memory(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(64 << 20))
    with (tmp_path / "big").open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = own_mb(os.getpid()), resident_mb(os.getpid())
        assert sum(mapped[place] for place in range(0, len(mapped), 4096)) == 0
        assert own_mb(os.getpid()) - before[0] < 16 and resident_mb(os.getpid()) - before[1] > 48
        held = bytearray(b"x" * (64 << 20))
        assert own_mb(os.getpid()) - before[0] > 48 and len(held) > 0


def test_a_one_shot_child_tells_its_end_and_leaves_its_words(tmp_path: Path) -> None:
    reactor = Reactor()
    ends: list[int] = []
    child = JobChild(reactor, ["-c", "print('words'); raise SystemExit(7)"], tmp_path, ends.append)
    child.start()
    end = time.monotonic() + 60
    while not ends and time.monotonic() < end:
        reactor.poll(0.1)
    assert ends == [7] and (tmp_path / "child.log").read_text() == "words\n"
    killed = JobChild(reactor, ["-c", "import time; time.sleep(60)"], tmp_path, ends.append)
    killed.start()
    killed.kill()
    reactor.poll(0)
    assert ends == [7] and killed.process is not None and killed.process.returncode == -9
    reactor.close()


def test_a_child_that_ended_just_before_it_is_ended_leaves_nothing_open_and_tells_nothing(tmp_path: Path) -> None:
    reactor = Reactor()
    before, ends = sorted(os.listdir("/proc/self/fd")), []  # type: ignore[var-annotated]
    child = JobChild(reactor, ["-c", "pass"], tmp_path, ends.append)
    child.start()
    assert child.process is not None and child.process.wait() == 0
    child.kill()
    child.kill()
    assert reactor.poll(0) == 0 and ends == [] and sorted(os.listdir("/proc/self/fd")) == before
    reactor.close()


def test_a_reader_killed_from_outside_costs_the_file_nothing(readers: Readers) -> None:
    readers.submit("hang")
    readers.pool.tick(0.0)
    for pid in readers.pids():
        os.kill(pid, signal.SIGKILL)
    readers.work(lambda: "hang" in readers.answers)
    assert readers.answers["hang"]["fault"] == "killed"
