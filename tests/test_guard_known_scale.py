"""The index at its size: ten million keys in little memory with right answers, and a process really killed while it is made."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from homes import add_original, add_version, keeper_of, make_home, remember_learnt

from guard.steps import drain
from guard.store.keeper import Keeper
from guard.store.known import keep_index_steps, open_index, uncovered
from guard.store.learnt import known_mask_steps

pytestmark = pytest.mark.sweep
FILES, EACH = 20, 500_000
ASKED = 100_000
MOST_BYTES = 2 << 30

ASK = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from homes import keeper_of
from guard.steps import drain
from guard.store.known import keep_index_steps, open_index
from guard.store.learnt import known_mask_steps
keeper = keeper_of(Path(sys.argv[2]))
keys = open_index(keeper).keys
if sys.argv[4] == "keep":
    print("begun", flush=True)
    for step, _ in enumerate(keep_index_steps(keeper)):
        if step == int(sys.argv[3]):
            print("there", flush=True)
            sys.stdin.read()  # the test kills this process here, or lets it go on
else:
    data = Path(sys.argv[3]).read_bytes()
    mask = drain(known_mask_steps(keeper, data, 2, "pretrain"))
    Path(sys.argv[3]).with_suffix(".answer").write_bytes(mask.tobytes())
# The kernel counts what the parent held at the fork into ru_maxrss; VmHWM is this program's own.
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
print(json.dumps({"keys": keys, "peak": peak, "own": own}), flush=True)
keeper.ledger.close()
"""


def sidecar(number: int) -> bytes:
    """The fingerprints of a file, the same every time."""
    return np.random.default_rng(number).integers(0, 256, EACH * 16, dtype=np.uint8).tobytes()


def learnt_part(number: int) -> int:
    """How many of a file's first examples the version learnt: nothing of every fifth file, two thirds of the others."""
    return 0 if number % 5 == 4 else EACH * 2 // 3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of ten million examples in all, and no index yet."""
    keeper = make_home(tmp_path_factory.mktemp("scale") / "home")
    base = add_version(keeper, "base")
    name = add_version(keeper, "learnt", base)
    assert name.startswith("v002")
    for number in range(FILES):
        store(keeper, number)
    keeper.ledger.close()
    return keeper.home.root


def store(keeper: Keeper, number: int) -> None:
    sha256 = add_original(keeper, f"{number}.jsonl", rows=1)
    folder = keeper.home.files / sha256
    folder.chmod(0o755)
    (folder / "examples.fp").chmod(0o644)
    (folder / "examples.fp").write_bytes(sidecar(number))
    with keeper.ledger.transaction():
        keeper.ledger.run("UPDATE files SET examples = ?, record = json_remove(record, '$.sidecars') WHERE sha256 = ?",
                          (EACH, sha256))  # fmt: skip
        if learnt_part(number):
            remember_learnt(keeper, 2, sha256, learnt_part(number), EACH)


def run(home: Path, what: str, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", ASK, str(Path(__file__).parent), str(home), what, mode], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


def ended(process: subprocess.Popen[str]) -> dict[str, int]:
    out, _ = process.communicate("")
    assert process.returncode == 0
    found: dict[str, int] = json.loads(out.splitlines()[-1])
    return found


def questions(folder: Path) -> tuple[Path, list[bool]]:
    """A hundred thousand questions of all kinds, and the answers by a plain set."""
    dice, known, asked = random.Random(5), set[bytes](), list[bytes]()
    for number in range(FILES):
        data, part = sidecar(number), learnt_part(number)
        known.update(data[16 * place : 16 * place + 16] for place in range(part))
        asked += [data[16 * place : 16 * place + 16] for place in dice.sample(range(EACH), ASKED * 9 // 10 // FILES)]
    asked += [dice.randbytes(16) for _ in range(ASKED - len(asked) - 100)] + asked[:100]
    dice.shuffle(asked)
    path = folder / "questions.fp"
    path.write_bytes(b"".join(asked))
    return path, [item in known for item in asked]


def folders(home: Path) -> list[str]:
    place = home / "data" / "known"
    return sorted(entry.name for entry in place.iterdir() if entry.is_dir()) if place.is_dir() else []


def test_ten_million_keys_survive_kills_answer_rightly_and_fit_into_two_gigabytes(home: Path, tmp_path: Path) -> None:
    keys = 0
    for step in (3, 17, 40, 150, 260):  # while a sidecar is sorted, merged, proven, published, and folders are joined
        process = run(home, str(step), "keep")
        assert process.stdout is not None and process.stdout.readline() == "begun\n" and process.stdout.readline() == "there\n"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        keeper = keeper_of(home)
        index = open_index(keeper)
        assert index.damaged == {} and index.keys >= keys, "what counted before counts still"
        keys = index.keys
        keeper.ledger.close()
        keeper.memory.clear()
    made = ended(run(home, "-1", "keep"))
    assert made["peak"] <= MOST_BYTES, f"making it took {made['peak'] / 1e9:.2f} GB"
    keeper = keeper_of(home)
    assert open_index(keeper).keys == FILES * EACH and uncovered(keeper, open_index(keeper)) == []
    assert folders(home) == sorted(open_index(keeper).parts), "what the dead left was cleared"
    keeper.ledger.close()
    keeper.memory.clear()
    path, expected = questions(tmp_path)
    asked = ended(run(home, str(path), "ask"))
    answers = np.frombuffer(path.with_suffix(".answer").read_bytes(), dtype=bool)
    assert answers.tolist() == expected and 40_000 < sum(expected) < 70_000
    assert asked["keys"] == FILES * EACH and asked["peak"] <= MOST_BYTES, f"asking took {asked['peak'] / 1e9:.2f} GB"
    print(f"\nmaking: {made['own'] / 1e6:.0f} MB at most; asking: {asked['own'] / 1e6:.0f} MB")


def test_a_folder_that_was_killed_in_the_middle_is_made_again_with_the_same_bytes(home: Path) -> None:
    keeper = keeper_of(home)
    drain(keep_index_steps(keeper))
    [largest] = [part.columns for part in open_index(keeper).parts.values() if part.columns.rows > EACH * FILES // 2]
    asked = sidecar(0)[: 16 * 1000]
    before = drain(known_mask_steps(keeper, asked, 2, "pretrain")).tolist()
    (largest.folder / "blocks.bin").unlink()
    keeper.memory.clear()
    assert drain(known_mask_steps(keeper, asked, 2, "pretrain")).tolist() == before, "from the sidecars themselves"
    keeper.ledger.close()
    process = run(home, "60", "keep")
    assert process.stdout is not None and process.stdout.readline() == "begun\n" and process.stdout.readline() == "there\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    keeper = keeper_of(home)
    drain(keep_index_steps(keeper))
    assert open_index(keeper).keys == FILES * EACH
    assert drain(known_mask_steps(keeper, asked, 2, "pretrain")).tolist() == before
    keeper.ledger.close()
    keeper.memory.clear()
