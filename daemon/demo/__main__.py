"""`make demo`: the whole path on real text, step by step, each step checked; exit 0 only when all held.

The pretraining text is the Python language reference that ships inside every Python (`pydoc_data.topics`); the
conversations about Heirloom and the documents lie beside this file. The home is left behind to be looked at.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

from daemon.demo.stage import DemoFailed, Stage

HERE = Path(__file__).parent
QUESTION = "How do I restore a version from the trash?"


def language_reference() -> str:
    """The topics of Python's own reference, about half a megabyte of English and code."""
    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def make_home(stage: Stage) -> None:
    stage.step("make a home; its base is sealed before init returns")
    stage.run("init", str(stage.home), "--recipe", "pretrain/micro", "--tokenization", "gpt2")
    versions = stage.versions()
    stage.check("v001_baseline is active and locked", versions[1]["name"] == "v001_baseline" and versions[1]["active"],
                versions[1]["locked"])  # fmt: skip
    stage.start_daemon()
    stage.check("the daemon runs", stage.status()["state"] == "idle")
    stage.run("run", code=11)
    stage.check("a second daemon is refused", True)


def pretrain(stage: Stage) -> None:
    stage.step("drop the Python language reference as pretraining text; kill -9 the training child on the way")
    stage.drop(language_reference(), "pretrain/python_reference.txt")
    found = stage.wait("training to get going", lambda: _training_past_snapshot(stage), 180)
    os.kill(found, signal.SIGKILL)
    stage.check("the training child was killed with -9", True, f"pid {found}")
    stage.wait("v002", lambda: 2 in stage.versions())
    shown = stage.json("show", stage.versions()[2]["name"])
    metrics = shown["metrics"]
    stage.check("v002 was born all the same, resumed exactly", shown["exactness"] == "RESUMED-EXACT", shown["name"])
    new = next(row for row in metrics["evaluation"] if row["role"] == "new_held_out")
    stage.check("its loss on held-out text fell", new["child_loss"] < new["parent_loss"],
                f"{new['parent_loss']:.2f} -> {new['child_loss']:.2f} nat per token")  # fmt: skip


def _training_past_snapshot(stage: Stage) -> int | None:
    """The child's pid once a snapshot of its training exists."""
    import json

    for folder in (stage.home / "models" / ".staging").glob("job-*"):
        snapshots = [path for path in (folder / "snapshots").glob("*") if not path.name.startswith(".")]
        if snapshots and (folder / "progress.json").exists():
            return int(json.loads((folder / "progress.json").read_text("utf-8"))["pid"])
    return None


def chat_data(stage: Stage) -> None:
    stage.step("drop conversations about Heirloom: fine-tuning, answers only")
    stage.drop(HERE / "about_heirloom.jsonl", "about_heirloom.jsonl")
    stage.wait("v003", lambda: 3 in stage.versions())
    shown = stage.json("show", stage.versions()[3]["name"])
    descends = shown["parent"] == stage.versions()[2]["name"] and shown["gate"]["verdict"] == "passed"
    stage.check("v003 descends from v002 and passed the gate", descends, shown["name"])
    stage.check("it replayed some of the earlier text", shown["replay"]["tokens"] > 0, f"{shown['replay']['tokens']} tokens")


def refusals(stage: Stage) -> None:
    stage.step("drop the same file under another name, and a broken one")
    stage.drop(HERE / "about_heirloom.jsonl", "the_same_again.jsonl")
    stage.drop(HERE / "broken.jsonl", "broken.jsonl")
    inbox = stage.home / "inbox"
    stage.wait("the duplicate to come back", lambda: (inbox / "duplicates" / "the_same_again.jsonl.why.txt").exists(), 60)
    stage.wait("the broken one to come back", lambda: (inbox / "rejected" / "broken.jsonl.why.txt").exists(), 60)
    why = (inbox / "rejected" / "broken.jsonl.why.txt").read_text("utf-8")
    stage.check("the rejection names the lines", "line 4" in why, why.strip().splitlines()[2])
    stage.check("nothing was trained from either", len(stage.versions()) == 3)


def documents(stage: Stage) -> None:
    stage.step("drop documents: the retrieval index, and one more for the next index")
    for path in sorted(HERE.glob("doc_*.md")):
        if "extra" not in path.name:
            stage.drop(path, path.name)
    stage.wait("index v001", lambda: stage.status()["index"] is not None and _index_settled(stage), 120)
    first = stage.status()["index"]
    for path in sorted(HERE.glob("doc_extra_*.md")):
        stage.drop(path, path.name)
    stage.wait("the next index", lambda: stage.status()["index"] != first and _index_settled(stage), 120)
    stage.check("a new index is active, the old one kept", (stage.home / "data" / "index" / first).is_dir(),
                f"{first} -> {stage.status()['index']}")  # fmt: skip


def _index_settled(stage: Stage) -> bool:
    state = stage.status()
    return state["queue"]["queued"] == 0 and state["queue"]["running"] == 0 and state["inbox"]["waiting"] == 0


def ask(stage: Stage) -> None:
    stage.step("search, and chat with citations")
    found = stage.json("search", QUESTION, "-k", "3")["results"]
    stage.check("search finds the document on restoring", any("restoring" in hit["file"] for hit in found),
                ", ".join(f"{hit['file']}:{hit['start_line']}" for hit in found))  # fmt: skip
    told = stage.json("chat", "-p", QUESTION, "--max-tokens", "40")
    stage.check("the answer cites its sources", bool(told["citations"]), f"{told['version']} said: {told['answer'][:60]!r}")


def protect(stage: Stage) -> None:
    stage.step("try to delete a parent, roll back, and prove everything")
    parent = stage.versions()[2]["name"]
    stage.run("delete", parent, "--force", code=5)
    stage.check("deleting a parent is refused", (stage.home / "models" / parent).is_dir(), f"{parent} is locked")
    told = stage.json("rollback", parent, "--yes", "--reason", "the demo shows it")
    stage.check("rolled back", stage.status()["active"]["policy"] == parent,
                f"trainable again: {', '.join(item['file'] for item in told['trainable_again'])}")  # fmt: skip
    child = stage.versions()[3]["name"]
    stage.run("rollback", child, "--yes", "--reason", "and forward again")
    stage.wait("the backup of all versions", lambda: _backed_up(stage), 60)
    report = stage.json("verify", "--all")
    stage.check("verify --all finds every byte in place", report["ok"],
                f"{report['checked']['versions']} versions, {report['checked']['bytes'] / 1e6:.0f} MB")  # fmt: skip


def _backed_up(stage: Stage) -> bool:
    return all((stage.home / "backups" / "versions" / item["name"]).is_dir() for item in stage.versions().values())


def play(stage: Stage) -> None:
    """The whole demo. Raises DemoFailed at the first thing that does not hold."""
    make_home(stage)
    pretrain(stage)
    chat_data(stage)
    refusals(stage)
    documents(stage)
    ask(stage)
    protect(stage)
    stage.step("where things stand")
    stage.say(stage.run("status"))
    stage.say(stage.run("lineage"))
    stage.check("SIGTERM ends the daemon with 0", stage.stop_daemon() == 0)


def main() -> int:
    """Run the demo; returns the exit code."""
    stage = Stage(Path(tempfile.mkdtemp(prefix="heirloom-demo-")) / "home")
    try:
        play(stage)
    except DemoFailed as error:
        print(f"\nThe demo failed: {error}\nThe home is in {stage.home}", file=sys.stderr)
        return 1
    finally:
        stage.end()
    print(f"\nAll {stage.steps} steps held in {time.monotonic() - stage.begun:.0f} s. The home stays; look at it with:\n\n"
          f"    {stage.command} --home {stage.home} lineage\n"
          f"    {stage.command} --home {stage.home} why about_heirloom.jsonl\n"
          f"    {stage.command} --home {stage.home} chat\n")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
