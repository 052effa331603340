"""The index builder as a process: a result or a fault, never silence, and no life after its parent."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

import trainer.retrieval.build
from trainer.retrieval.child import run_job
from trainer.retrieval.index import verify_index

TEXT = "Foxes are omnivorous mammals."


def make_job(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "fox.txt").write_text(TEXT)
    document = {"sha256": hashlib.sha256(TEXT.encode()).hexdigest(), "name": "fox.txt", "path": str(folder / "fox.txt")}
    job = {"documents": [document], "previous": None, "out": str(folder / "out"), "chunk_size": 800, "overlap": 120,
           "dimensions": 256, **changes}  # fmt: skip
    (folder / "job.json").write_bytes(orjson.dumps(job))
    return folder


def read(folder: Path, name: str) -> Any:
    return orjson.loads((folder / name).read_bytes())


def test_a_job_leaves_a_whole_index_and_its_figures(tmp_path: Path) -> None:
    folder = make_job(tmp_path / "job")
    (folder / "error.json").write_text("of an earlier attempt")
    assert run_job(folder) == 0
    result = read(folder, "result.json")
    assert result.pop("seconds") >= 0
    assert result == {"chunks": 1, "documents": 1, "embedded_new": 1, "reused": 0, "skipped": [], "note": ""}
    assert verify_index(folder / "out") == [] and not (folder / "error.json").exists()
    assert read(folder, "progress.json") == {"phase": "writing", "done": 1, "total": 1}


def test_a_missing_document_is_the_environments_fault(tmp_path: Path) -> None:
    folder = make_job(tmp_path / "job")
    (folder / "fox.txt").unlink()
    assert run_job(folder) == 1
    fault = read(folder, "error.json")
    assert fault["fault"] == "environment" and "fox.txt" in fault["message"] and fault["hint"]
    assert not (folder / "result.json").exists()


def test_a_full_disk_is_the_environments_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.retrieval.build, "write_bytes", full)
    folder = make_job(tmp_path / "job")
    assert run_job(folder) == 1
    assert read(folder, "error.json")["fault"] == "environment" and verify_index(folder / "out")


@pytest.mark.parametrize("change", [{"documents": None}, {"chunk_size": "many"}, {"overlap": 700}])
def test_a_job_nobody_can_understand_is_a_bug_and_told(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = make_job(tmp_path / "job", **change)
    assert run_job(folder) == 1
    assert read(folder, "error.json")["fault"] == "bug"


def test_the_process_loads_no_torch_and_nothing_heavy_before_it_embeds(tmp_path: Path) -> None:
    folder = make_job(tmp_path / "job", documents=[])
    code = (
        "import sys; from trainer.retrieval import child, context, search; status = child.main(sys.argv[1:]);"
        " heavy = {'torch', 'sklearn', 'transformers'} & sys.modules.keys(); sys.exit(status or ' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert verify_index(folder / "out") == []


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    folder = make_job(tmp_path / "job")
    (folder / "fox.txt").unlink()
    os.mkfifo(folder / "fox.txt")  # reading it blocks, and tells us that the child is at work
    code = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()"
    arguments = [sys.executable, "-c", code, sys.executable, "-m", "trainer.retrieval.child", str(folder)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        writers: list[int] = []
        opener = threading.Thread(target=lambda: writers.append(os.open(folder / "fox.txt", os.O_WRONLY)), daemon=True)
        opener.start()
        opener.join(60)
        assert not opener.is_alive(), "the child never came to read its document"
        os.kill(parent.pid, signal.SIGKILL)
        waiting = select.poll()
        waiting.register(child, select.POLLIN)
        ended = waiting.poll(60_000)
    for descriptor in (child, *writers):
        os.close(descriptor)
    assert ended
