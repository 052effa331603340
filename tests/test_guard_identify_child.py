"""The child that reads dropped files: one answer for every request, whatever the file or the machine does."""

from __future__ import annotations

import errno
import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guard import durable, identify_child
from guard.checks.identify import Identity


def chat_row(number: int) -> bytes:
    turns = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"It is {number}."}]
    return json.dumps({"messages": turns}).encode() + b"\n"


def chat_file(rows: int) -> bytes:
    return b"".join(chat_row(number) for number in range(rows))


def test_the_child_answers_every_request_and_survives_every_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "good.jsonl"
    good.write_bytes(chat_file(3))
    troubles = {
        "memory": MemoryError(),
        "recursion": RecursionError("too deep"),
        "disk": OSError(28, "No space left"),
        "bug": ValueError("what?"),
    }
    real = identify_child.identify

    def troubled(path: str, name: str, *rest: Any, **options: Any) -> Identity:
        if name in troubles:
            raise troubles[name]
        return real(path, name, *rest, **options)

    monkeypatch.setattr(identify_child, "identify", troubled)
    requests = [json.dumps({"id": name, "path": str(good), "name": name}).encode() for name in troubles]
    requests += [
        b"not json",
        b"[]",
        b'{"id": 9, "path": "/nowhere/x.jsonl", "name": "x.jsonl"}',
        json.dumps({"id": "limits", "path": str(good), "name": "x.jsonl", "limits": {"colour": 1}}).encode(),
        json.dumps({"id": "good", "path": str(good), "name": "good.jsonl"}).encode(),
    ]
    out = io.BytesIO()
    identify_child.serve(io.BytesIO(b"\n".join(requests) + b"\n"), out)
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [answer.get("fault") for answer in answers] == [
        "environment",
        "bug",
        "environment",
        "bug",
        "bug",
        "bug",
        "environment",
        "bug",
        None,
    ]
    assert (answers[2]["errno"], answers[6]["errno"], answers[7]["message"]) == (28, 2, "unknown limit 'colour'")
    assert (answers[-1]["id"], answers[-1]["verdict"], answers[-1]["examples"]) == ("good", "ok", 3)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "guard.identify_child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def ask(child: subprocess.Popen[bytes], **request: Any) -> dict[str, Any]:
    assert child.stdin and child.stdout
    child.stdin.write(json.dumps(request).encode() + b"\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


def test_one_child_lives_for_many_files_and_odd_names(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    name = os.fsdecode(b"-r\n\xff\xf0\x9f\x98\x80.jsonl")
    path = os.path.join(tmp_path, name)
    with open(path, "wb") as handle:
        handle.write(chat_file(2))
    answer = ask(child, id=1, path=path, name=name, forced_kind=None, out_folder=str(tmp_path / "out"), limits={})
    assert (answer["id"], answer["verdict"], answer["name"]) == (1, "ok", name)
    assert json.loads((tmp_path / "out" / "record.json").read_bytes())["name"] == name
    assert ask(child, id=2, path=str(tmp_path / "gone.jsonl"), name="gone.jsonl")["fault"] == "environment"
    deep = tmp_path / "deep.jsonl"
    deep.write_bytes(b'{"text": ' + b"[" * 200_000)
    assert ask(child, id=3, path=str(deep), name="deep.jsonl")["verdict"] == "reject"
    assert ask(child, id=4, path=path, name=name)["examples"] == 2
    assert child.stdin
    child.stdin.close()
    assert child.wait(timeout=60) == 0


def test_the_child_imports_nothing_heavy() -> None:
    code = "import sys, guard.identify_child; print(','.join(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(",")
    assert not {"numpy", "torch", "pydantic", "trainer", "daemon", "tinydb", "watchdog"} & set(modules)


def test_the_child_dies_with_its_parent() -> None:
    requests_read, requests_write = os.pipe()  # held open here, so that the child cannot see its requests end
    answers_read, answers_write = os.pipe()
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-m', 'guard.identify_child'],"
        f" stdin={requests_read}, stdout={answers_write}); print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(requests_read, answers_write),
    )
    assert parent.stdout and parent.stdin
    watched = os.pidfd_open(int(parent.stdout.readline()))
    os.write(requests_write, b"[]\n")
    assert b"a request is an object" in os.read(answers_read, 4096)
    with parent:
        parent.send_signal(signal.SIGKILL)
    assert select.select([watched], [], [], 10)[0]
    for descriptor in (watched, requests_read, requests_write, answers_read, answers_write):
        os.close(descriptor)


def test_a_sound_drop_is_sealed_and_synced_where_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "content").write_text('{"text": "one"}\n')
    os.chmod(drop / "content", 0o640)
    request = {"id": 1, "path": str(drop / "content"), "name": "a.jsonl", "out_folder": str(drop / "identity"), "sync": True}
    synced: list[int] = []
    monkeypatch.setattr(durable, "_fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    found = identify_child.answer(json.dumps(request).encode())
    assert found["synced"] is True
    parts = [drop / "content", *(drop / "identity").iterdir(), drop / "identity", drop]
    assert len(parts) == 5 and {path.stat().st_ino for path in parts} <= set(synced)
    assert all(path.stat().st_mode & 0o7777 == 0o444 for path in parts if path.is_file())

    def failing(_descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk lost it")

    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    monkeypatch.setattr(identify_child, "seal_file", failing)
    assert identify_child.answer(json.dumps(request).encode())["synced"] is False
