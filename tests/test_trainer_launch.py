"""Another launcher in place of our own processes: what it is asked, how its end is taken, and that nothing outlives it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from kill_help import RECIPES, make_home, outcome, run_here
from trainer_help import shared_server, steps_logged, wait_until

torch = pytest.importorskip("torch")

from guard.errors import CheckFailed, DataFault, EnvironmentFault, UsageError  # noqa: E402
from trainer.launch import command_of, main, run_launched  # noqa: E402
from trainer.stopping import StopRequested  # noqa: E402

TORCHRUN = f"{sys.executable} -m torch.distributed.run --nproc-per-node {{processes}} --no-python {{command}}"


@pytest.fixture(scope="module")
def home(shared_scratch: Path) -> Path:
    return make_home(shared_scratch / "launch")


def _job(folder: Path, script: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {"staging": str(folder), "launch": f"sh -c '{script}' {folder}", "processes": 2, "threads": 1}


def test_the_template_is_filled_in_and_the_command_stands_where_it_is_named(tmp_path: Path) -> None:
    rank = [sys.executable, "-m", "trainer.launch", str(tmp_path), "m"]
    assert command_of("srun -n {processes} -c{threads}", tmp_path, Path("m"), 4, 2) == ["srun", "-n", "4", "-c2", *rank]
    assert command_of("a {command} 'b c'", tmp_path, Path("m"), 1, 1) == ["a", *rank, "b c"]


def test_the_end_of_a_launcher_is_taken_for_what_it_is(tmp_path: Path) -> None:
    result = run_launched(_job(tmp_path, 'echo "{\\"steps_executed\\": 3}" > $0/result.json'), lambda: False)
    assert result == {"steps_executed": 3}
    (tmp_path / "result.json").unlink()
    with pytest.raises(EnvironmentFault, match="ended with status 9") as told:
        run_launched(_job(tmp_path, "exit 9"), lambda: False)
    assert "child.log" in told.value.hint
    with pytest.raises(EnvironmentFault, match="cannot be started"):
        run_launched({**_job(tmp_path, ""), "launch": "no-such-launcher"}, lambda: False)
    for fault, kind in (("environment", EnvironmentFault), ("data", DataFault), ("bug", CheckFailed)):
        (tmp_path / "error.json").write_text(json.dumps({"fault": fault, "message": "told by rank 0", "hint": "h"}))
        with pytest.raises(kind, match="told by rank 0"):
            run_launched(_job(tmp_path, "exit 1"), lambda: False)


def test_a_stop_is_asked_for_by_a_file(tmp_path: Path) -> None:
    asked = itertools.chain([False], itertools.repeat(True))
    with pytest.raises(StopRequested):
        run_launched(_job(tmp_path, "while [ ! -e $0/stop.asked ]; do :; done; exit 1"), lambda: next(asked))


def test_a_launcher_that_starts_another_number_or_tells_no_rank_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RECIPES["processes"](home, home / "count")
    monkeypatch.setattr("trainer.launch.die_with", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="sets none of RANK"):
        main([str(home / "count"), "m"])
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    with pytest.raises(UsageError, match="started 3 processes"):
        main([str(home / "count"), "m"])


@pytest.mark.sweep
def test_torchrun_stopped_killed_and_resumed_ends_in_the_bits_of_one_process(home: Path) -> None:
    assert run_here(RECIPES["lanes"](home, home / "alone"))
    staging = home / "torchrun"
    job = RECIPES["processes"](home, staging) | {"launch": TORCHRUN}
    (staging / "job.json").write_text(json.dumps(job))
    _number, pid = shared_server().spawn(staging)
    wait_until(lambda: steps_logged(staging) >= 2)
    os.kill(pid, signal.SIGTERM)
    assert shared_server().ended() == 75
    _number, pid = shared_server().spawn(staging)
    done = steps_logged(staging)
    wait_until(lambda: steps_logged(staging) > done or (staging / "result.json").exists())
    ranks = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _is_rank(path, staging)]
    os.kill(pid, signal.SIGKILL)
    assert shared_server().ended() in (-signal.SIGKILL, 0)
    assert wait_until(lambda: not any(_is_rank(Path(f"/proc/{rank}"), staging) for rank in ranks))
    assert shared_server().run(staging) == 0
    assert outcome(staging) == outcome(home / "alone")


def _is_rank(process: Path, staging: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"trainer.launch" in words and os.fsencode(staging) in words
