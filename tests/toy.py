"""A whole daemon in one thread, without processes and without torch: the stand-ins that tests of durability use.

`ToyServer` takes the torch server's place: preparation is the real one, "training" writes seeded noise that depends
only on parent, frozen list and recipe, so that a rebuilt or resumed version can be compared bit by bit.
`InlineReaders` takes the reader processes' place with their very code. Everything durable is the real thing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from homes import at_the_end

from daemon.engine import Engine
from daemon.reactor import Reactor
from guard.clock import ManualClock
from guard.durable import json_bytes, sha256_file, write_json
from guard.home import Home
from guard.identify_child import answer
from guard.settings_read import load_settings
from guard.store.create import create_home
from guard.store.estimate import forget_all
from guard.store.jobs import add_job
from guard.store.keeper import Keeper
from guard.store.ledger import Ledger
from guard.store.recovery import recover
from trainer.hardware import hardware_facts, library_versions
from trainer.hf_tokenizer import write_hf_tokenizer
from trainer.prepare_job import run_dataset, run_prepare
from trainer.templates.find import load_template
from trainer.tokenizer import load_tokenizer

SETTINGS: dict[str, object] = {"inbox.settle_seconds": 1, "disk.reserve_gb": 0, "validation.fraction": 0.05}
CONFIGS = Path(__file__).parent.parent / "configs"
RECIPE = {
    "name": "pretrain/micro", "stage": "pretrain",
    "model": {"layers": 1, "heads": 2, "width": 16, "block_size": 32},
    "training": {"learning_rate": 1e-3, "batch_sequences": 4},
}  # fmt: skip
HF_CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 16, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 320,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "hidden_act": "silu",
    "attention_bias": False, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


@functools.cache
def _machine() -> dict[str, Any]:
    """What the real child notes of the machine; it does not change in mid-test and costs 40 ms to look up."""
    return {"library_versions": library_versions(), "hardware": hardware_facts()}


class ToyServer:
    """Does a job at once when asked; tells the end at the next `deliver`."""

    def __init__(self, exited: Callable[[int, int], None]) -> None:
        self.exited = exited
        self.finished: list[tuple[int, int]] = []
        self.spoil: Callable[[dict[str, Any], dict[str, Any]], None] = lambda job, result: None
        """A test may change a result before it is written: zero steps, NaN, another parent."""
        self.statuses: list[int] = []
        """Exit statuses to give instead of doing the next jobs."""

    def spawn(self, job: int, folder: Path, nice: int = 0) -> None:
        if self.statuses:
            self.finished.append((job, self.statuses.pop(0)))
            return
        request = json.loads((folder / "job.json").read_text("utf-8"))
        {"prepare": run_prepare, "dataset": run_dataset, "train": self._train, "base": self._base}[request["task"]](request)
        self.finished.append((job, 0))

    def tick(self, now: float) -> None:
        """Nothing to look after: its jobs are done at once."""

    def warm(self) -> None:
        """Nothing to import."""

    def signal(self, job: int, number: int = 15) -> None:
        self.finished = [(item, 75 if item == job else status) for item, status in self.finished]

    def deliver(self) -> None:
        waiting, self.finished = self.finished, []
        for job, status in waiting:
            self.exited(job, status)

    def close(self) -> None:
        self.finished.clear()

    def _write_out(self, job: Mapping[str, Any], seed: str) -> dict[str, str]:
        out = Path(job["staging"]) / "out"
        out.mkdir(exist_ok=True)
        (out / "config.json").write_bytes(json_bytes(HF_CONFIG))
        (out / "model.safetensors").write_bytes(random.Random(seed).randbytes(4000))
        if job["tokenization"] == "hf":
            folder = job["tokenizer_folder"]
            write_hf_tokenizer(load_tokenizer("hf", folder), out, 32, load_template(folder))
        else:
            (out / "tokenizer_state.json").write_bytes(json_bytes(load_tokenizer(job["tokenization"]).state()))
        return {path.name: sha256_file(path) for path in sorted(out.iterdir())}

    def _base(self, job: dict[str, Any]) -> None:
        files = self._write_out(job, f"base {job['seed']}")
        self._finish(job, {"files": files, "weights_sha256": files["model.safetensors"], "finite": True, "parameters": 1000,
                           "exactness": "EXACT", "exactness_reason": "toy"})  # fmt: skip

    def _train(self, job: dict[str, Any]) -> None:
        parent = sha256_file(Path(job["base"]["path"]) / "model.safetensors")
        files = self._write_out(job, f"{parent} {job['consumed_sha256']} {job['recipe_hash']}")
        evaluation = [{**{key: row[key] for key in ("name", "role", "dataset", "split", "stage")}, "parent_loss": 3.0,
                       "child_loss": 2.0 if row["role"] != "ancestry" else 2.02, "tokens": 900, "loss_tokens": 900,
                       "examples": 9} for row in job["evaluation"]]  # fmt: skip
        self._finish(job, {
            "files": files, "weights_sha256": files["model.safetensors"], "parent_weights_sha256": parent, "finite": True,
            "weights_changed": True, "steps_executed": job["steps"], "consumed_sha256": job["consumed_sha256"],
            "final_loss": 2.0, "tokens": 10, "fed_tokens": 20, "loss_tokens": 10, "replay_tokens": 0, "wall_seconds": 1.0,
            "resumes": 0, "exactness": "EXACT", "exactness_reason": "toy", "evaluation": evaluation,
            "generation": [{"prompt": "a", "text": "b", "distinct_ratio": 0.5}],
        })  # fmt: skip

    def _finish(self, job: dict[str, Any], result: dict[str, Any]) -> None:
        result |= _machine()
        self.spoil(job, result)
        write_json(Path(job["staging"]) / "result.json", result)


class InlineReaders:
    """The reader children's code, called in place."""

    def __init__(self) -> None:
        self.queue: list[tuple[dict[str, Any], Callable[[dict[str, Any]], None]]] = []

    @property
    def busy(self) -> bool:
        return bool(self.queue)

    def submit(self, body: Mapping[str, Any], size: int, done: Callable[[dict[str, Any]], None]) -> None:
        self.queue.append((dict(body), done))

    def tick(self, now: float) -> None:
        waiting, self.queue = self.queue, []
        for body, done in waiting:
            done(answer(json.dumps(body).encode()))
        forget_all()  # a reader's process would end with its life

    def close(self) -> None:
        self.queue.clear()


class Toy:
    """One life of a toy daemon; `again()` is the next one after a sudden death."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.home, self.clock = Home(root), ManualClock()
        self.flags = SETTINGS | {key.replace("__", "."): value for key, value in settings.items()}
        if not self.home.store_id_file.exists():
            os.environ["HEIRLOOM_VALIDATION__SALT"] = "toy"  # the same rows are held out in every run of the tests
            create_home(self.home, clock=self.clock, recipes=CONFIGS)
            del os.environ["HEIRLOOM_VALIDATION__SALT"]
        self.begin()

    def begin(self) -> None:
        """Start a life: open the ledger, recover, build an engine."""
        ledger = Ledger(self.home.ledger, clock=self.clock, actor="toy")
        ledger._db.execute("PRAGMA synchronous=OFF")  # the power stays on here; the process is what dies
        self.keeper = Keeper(self.home, ledger, load_settings(self.home.root, {}, self.flags), self.clock)
        self.reactor, self.alive = Reactor(), True
        at_the_end.append(self._let_go)
        self.engine = Engine(self.keeper, self.reactor)
        self.engine.pool = self.engine.intake.pool = InlineReaders()  # type: ignore[assignment]
        self.engine.near.pool = InlineReaders()  # type: ignore[assignment]
        self.server = ToyServer(self.engine.runner._exited)
        self.engine.runner.server = self.server  # type: ignore[assignment]
        self.engine.index.launch = _build_toy_index  # type: ignore[assignment, method-assign]
        recover(self.keeper)

    def die(self) -> None:
        """End a life without any goodbye."""
        try:
            self.keeper.ledger.close()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self.alive:
            self.alive = False
            self.keeper.ledger._db.close()
            self.keeper.memory.clear()
            self.reactor.close()

    def again(self) -> Toy:
        self.die()
        self.begin()
        return self

    def step(self) -> None:
        """One round, half a second later."""
        self.clock.advance(0.5)
        self.engine.loop(self.clock.monotonic())
        self.server.deliver()

    def until(self, happened: Callable[[], object], rounds: int = 200) -> Toy:
        """Rounds until something is so; fails when it never is."""
        for _ in range(rounds):
            if happened():
                return self
            self.step()
        raise AssertionError(f"it did not happen in {rounds} rounds: {self.jobs()}")

    def settle(self, rounds: int = 200) -> Toy:
        """Rounds until nothing is left; fails when that never comes."""
        quiet = 0
        for _ in range(rounds):
            self.step()
            quiet = quiet + 1 if self.engine.idle else 0
            if quiet > 4:
                return self
        raise AssertionError(f"still busy after {rounds} rounds: {self.jobs()}")

    def make_base(self) -> Toy:
        with self.keeper.ledger.transaction():
            add_job(self.keeper.ledger, kind="base", stage="base", line="policy", slug="baseline",
                    request={"recipe": RECIPE, "tokenization": "char", "origin": "init"})  # fmt: skip
        return self.settle()

    def drop(self, name: str, content: str | bytes) -> Path:
        path = self.home.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.engine.hint()
        return path

    def jobs(self) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.keeper.ledger.rows("SELECT id, kind, state, reason FROM jobs ORDER BY id")]

    def versions(self) -> dict[str, str]:
        return {row[0]: row[1] for row in self.keeper.ledger.rows("SELECT name, state FROM versions ORDER BY id")}

    def drops(self) -> list[tuple[str, str, str]]:
        return [(row[0], row[1], row[2]) for row in self.keeper.ledger.rows("SELECT name, state, reason FROM drops ORDER BY id")]

    def weights(self) -> dict[str, str]:
        return {name: sha256_file(self.home.models / name / "model.safetensors") for name in self.versions()}


def _build_toy_index(staging: Path, exited: Callable[[int], None]) -> Any:
    """An "index" of the documents' hashes; the real one is tested where it lives."""
    request = json.loads((staging / "job.json").read_text("utf-8"))
    out = Path(request["out"])
    out.mkdir()
    text = json.dumps([item["sha256"] for item in request["documents"]])
    (out / "meta.jsonl").write_text(text, "utf-8")
    (out / "SHA256SUMS").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  meta.jsonl\n", "utf-8")
    write_json(staging / "result.json", {"chunks": 1, "embedded_new": 1, "reused": 0, "skipped": [], "seconds": 0.0,
                                         "documents": len(request["documents"])})  # fmt: skip
    exited(0)
    return None


def text_of(words: int, seed: int = 1) -> str:
    """Plain text with enough lines to have several segments."""
    dice = random.Random(seed)
    vocabulary = ["heirloom", "keeps", "one", "model", "learning", "for", "weeks", "and", "never", "loses", "any", "of", "it"]
    lines = [" ".join(dice.choice(vocabulary) for _ in range(12)) + f" {number}" for number in range(words // 12)]
    return "\n".join(lines) + "\n"


def chat_of(rows: int, seed: int = 1) -> str:
    """A chat JSONL of distinct rows."""
    return "".join(json.dumps({"messages": [{"role": "user", "content": f"what is {seed} plus {row}?"},
                                            {"role": "assistant", "content": f"{seed + row}"}]}) + "\n"
                   for row in range(rows))  # fmt: skip
