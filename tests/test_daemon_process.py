"""Real processes: a real daemon with real training, killed with -9, ends in the very bits of an undisturbed one.

Slow by nature (torch is imported a few times), so this file holds few tests and each says a lot.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_daemon_remake import RealToy
from toy import chat_of, text_of

from guard.durable import sha256_file

COMMAND = str(Path(sys.executable).with_name("heirloom"))
RECIPES = {
    "pretrain/nano.yaml": "stage: pretrain\nmodel: {layers: 2, heads: 2, width: 32, block_size: 64}\n"
                          "training: {learning_rate: 2e-3, batch_sequences: 4}\n",
    "sft/nano.yaml": "stage: sft\ntraining: {learning_rate: 1e-3, batch_sequences: 4, epochs: 2}\n",
}  # fmt: skip
ENVIRONMENT = {
    "HEIRLOOM_DISK__RESERVE_GB": "0", "HEIRLOOM_INBOX__SETTLE_SECONDS": "0.3", "HEIRLOOM_VALIDATION__SALT": "fixed",
    "HEIRLOOM_TRAINING__SNAPSHOT_SECONDS": "0.3", "HEIRLOOM_TRAINING__THREADS": "1", "HEIRLOOM_GATE": "warn",
    "OMP_WAIT_POLICY": "PASSIVE",
}  # fmt: skip


def heirloom(home: Path, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([COMMAND, "--home", str(home), *arguments], text=True, capture_output=True, check=False,
                          env={**os.environ, **ENVIRONMENT}, timeout=180)  # fmt: skip
    assert code is None or done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def told(home: Path, *arguments: str) -> Any:
    return json.loads(heirloom(home, "--json", *arguments).stdout)


def make_home(root: Path) -> Path:
    recipe = root.parent / f"{root.name}-nano.yaml"
    recipe.write_text(RECIPES["pretrain/nano.yaml"])
    heirloom(root, "init", str(root), "--recipe", str(recipe), "--tokenization", "char")
    for name, text in RECIPES.items():
        (root / "configs" / name).write_text(text)
    return root


def drop_everything(home: Path) -> None:
    (home / "inbox" / "pretrain").mkdir(exist_ok=True)
    (home / "inbox" / "pretrain" / "text.txt").write_text(text_of(5000))


def start(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([COMMAND, "--home", str(home), "run", *arguments], env={**os.environ, **ENVIRONMENT},
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def until(happened: Any, seconds: float = 90.0) -> Any:
    """Look every twentieth of a second; real processes give us no clock to turn."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = happened()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def published(home: Path) -> str:
    """The state that a running daemon publishes: asking a command for it takes the processor from the daemon."""
    status = home / ".heirloom" / "status.json"
    return json.loads(status.read_text())["state"] if status.exists() else ""


def snapshots(home: Path) -> list[Path]:
    return [path for path in (home / "models" / ".staging").glob("job-*/snapshots/*") if not path.name.startswith(".")]


def weights(home: Path) -> dict[str, str]:
    return {path.parent.name: sha256_file(path) for path in sorted(home.glob("models/v*/model.safetensors"))}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with its base and a text in the inbox; tests take copies of it."""
    home = make_home(tmp_path_factory.mktemp("fresh") / "home")
    drop_everything(home)
    return home


@pytest.fixture(scope="module")
def undisturbed(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights of a home in which nothing ever went wrong; its children are forked from the tests' own process."""
    home = tmp_path_factory.mktemp("quiet") / "home"
    shutil.copytree(fresh, home, symlinks=True)
    toy = RealToy(home, gate="warn", training__threads=1)
    toy.settle()
    toy.die()
    return weights(home)


@pytest.fixture(scope="module")
def survivor(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A home whose child and whose daemon were killed in mid-run, and the next daemon, which finished the run and is idle."""
    home = tmp_path_factory.mktemp("survivor") / "home"
    shutil.copytree(fresh, home, symlinks=True)
    daemon = start(home, "--once")
    try:
        until(lambda: snapshots(home))
        progress = next((home / "models" / ".staging").glob("job-*/progress.json"))
        child = json.loads(progress.read_text())["pid"]
        os.kill(child, signal.SIGKILL)
        until(lambda: json.loads(progress.read_text()).get("pid") not in (None, child) if progress.exists() else False)
    finally:
        daemon.kill()
        daemon.wait()
    until(lambda: not Path(f"/proc/{child}").exists())
    daemon = start(home)
    try:
        until(lambda: list(home.glob("models/v002_*")) and published(home) == "idle")
        yield home, daemon
    finally:
        daemon.kill()
        daemon.wait()


def test_daemon_and_child_killed_with_9_end_in_the_bits_of_an_undisturbed_run(
    survivor: tuple[Path, subprocess.Popen[bytes]], undisturbed: dict[str, str]
) -> None:
    home, _daemon = survivor
    assert weights(home) == undisturbed and sorted(undisturbed) == ["v001_baseline", "v002_text"]
    record = told(home, "show", "v002")
    assert record["exactness"] == "RESUMED-EXACT" and record["metrics"]["resumes"] >= 1
    steps = [json.loads(line)["step"] for line in (home / "models" / record["name"] / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and len(steps) == record["metrics"]["steps"]
    assert told(home, "verify", "--all")["ok"]


def test_a_running_daemon_takes_commands_stops_politely_and_goes_on_later(survivor: tuple[Path, subprocess.Popen[bytes]]) -> None:
    home, daemon = survivor
    assert until(lambda: told(home, "status")["state"] == "idle")
    refused = heirloom(home, "run", code=11)
    assert f"pid {daemon.pid}" in refused.stderr
    (home / "inbox" / "chat.jsonl").write_text(chat_of(250))
    until(lambda: snapshots(home))
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(timeout=60) == 0
    assert told(home, "status")["state"] == "stopped"
    assert heirloom(home, "status", "--check", code=10)
    heirloom(home, "run", "--once")
    record = told(home, "show", "v003")
    assert record["stage"] == "sft" and record["parent"] == "v002_text" and record["replay"]["tokens"] > 0
    assert told(home, "verify", "--all")["ok"]
