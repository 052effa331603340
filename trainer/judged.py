"""How a job's parent and child do on the held-out sets the job names, and a few words of the child: for the gate.

What the parent was sealed with is not measured again on the same machine with the same libraries: its weights and the
set are the very bytes of then. Its other losses are kept in staging, so that a resumed job need not measure them twice.
Not here: the verdict, which is the daemon's, and one set's loss (`trainer/evaluate.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from guard.durable import write_json
from trainer.batches import Feed
from trainer.dataset import open_dataset
from trainer.evaluate import choose_examples, evaluate
from trainer.generate import distinct_ratio, generate
from trainer.model import Decoder
from trainer.objectives import find_objective
from trainer.surroundings import besides, surroundings
from trainer.tokenizer import Tokenizer, require_same_tokenizer

__all__ = ["compared", "losses", "parent_losses", "sealed_losses", "spoken"]

Job = Mapping[str, Any]
Known = Mapping[tuple[str, str, str], dict[str, Any]]
"""Rows of `losses` by the set's dataset id, split and stage."""
SAMPLES = 2
SAMPLE_TOKENS = 64
PROMPT_TOKENS = 16


def losses(
    job: Job, model: Decoder, tokenizer: Tokenizer, stop: Callable[[], bool], known: Known | None = None
) -> list[dict[str, Any]]:
    """The loss of `model` on every set the job names, in the job's order. Raises CheckFailed for another tokenizer's set.

    `known`: what is taken as it stands, where it was measured on as many examples as would be measured now.
    """
    rows = []
    for wanted in job.get("evaluation") or ():
        dataset = open_dataset(wanted["dataset"])
        require_same_tokenizer(tokenizer.state(), dataset.tokenizer_state, "the model", f"the set {wanted.get('name')}")
        split = dataset.split(wanted["split"])
        taken = (known or {}).get((Path(wanted["dataset"]).name, wanted["split"], wanted["stage"]))
        if taken and taken["examples"] == len(choose_examples(split, int(wanted["max_tokens"]))):
            rows.append(taken)
            continue
        found = evaluate(model, split, find_objective(wanted["stage"]), max_tokens=int(wanted["max_tokens"]),
                         use_mask=wanted["stage"] == "sft", stop=stop)  # fmt: skip
        rows.append(found.as_dict())
    return rows


def parent_losses(
    job: Job, model: Decoder, tokenizer: Tokenizer, parent_weights: str, stop: Callable[[], bool]
) -> list[dict[str, Any]]:
    """The parent's losses: from the note an interrupted run of this very job left, as it was sealed with, or measured now."""
    note = Path(job["staging"]) / "parent_losses.json"
    asked = {"parent": parent_weights, "sets": job.get("evaluation") or []}
    if note.exists():
        kept = orjson.loads(note.read_bytes())
        if kept["asked"] == json.loads(json.dumps(asked)):
            known: list[dict[str, Any]] = kept["losses"]
            return known
    found = losses(job, model, tokenizer, stop, sealed_losses(Path(job["base"]["path"]), parent_weights))
    write_json(note, {"asked": asked, "losses": found})
    return found


def sealed_losses(version: Path, weights_sha256: str) -> Known:
    """The losses in a version's own record, where those weights are its and nothing that arithmetic depends on has changed.

    Its folder was read and found as it was sealed before the job began (preflight).
    """
    try:
        record = orjson.loads((version / "version.json").read_bytes())
    except FileNotFoundError:
        return {}
    now = surroundings()
    # Judging is never compiled: with which compiler a version was trained is no matter here.
    then = {key: value for key, value in record.get("surroundings", {}).items() if key != "compiler"}
    processor = all(record["hardware"].get(key) == now["processor"][key] for key in ("cpu", "cpu_flags", "machine", "system"))
    libraries = {**record["library_versions"], "heirloom": record["code_version"]}  # another release may read a set otherwise
    if not processor or then != besides(now) or libraries != now["libraries"]:
        return {}
    if weights_sha256 not in record["files"].values():
        return {}
    return {
        (row["dataset"], row["split"], row["stage"]):
            {"loss": row["child_loss"], **{key: row[key] for key in ("tokens", "loss_tokens", "examples")}}
        for row in record["metrics"].get("evaluation") or () if row.get("child_loss") is not None
    }  # fmt: skip


def compared(job: Job, parent: list[dict[str, Any]], child: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per set: what the job said of it (name, role, ...), both losses, and how much was read."""
    rows = []
    for wanted, old, new in zip(job.get("evaluation") or (), parent, child, strict=True):
        told = {key: value for key, value in wanted.items() if key != "max_tokens"}
        rows.append({**told, "parent_loss": old["loss"], "child_loss": new["loss"], "tokens": new["tokens"],
                     "loss_tokens": new["loss_tokens"], "examples": new["examples"]})  # fmt: skip
    return rows


def spoken(model: Decoder, tokenizer: Tokenizer, stops: tuple[int, ...], feed: Feed, job: Job) -> list[dict[str, Any]]:
    """A few seeded continuations of the new data's own beginnings, for people and for the gate."""
    fresh = np.flatnonzero(~feed.selection.replay)
    chosen = fresh[np.linspace(0, len(fresh) - 1, num=min(SAMPLES, len(fresh)), dtype=np.int64)]
    heard = []
    for number, sequence in enumerate(chosen):
        tokens, mask = feed.documents(int(sequence))[0]
        # A conversation up to where the first answer begins; of a text, the first words.
        answer = 0 if mask is None else int(mask.argmax())
        prompt = tokens[: answer or PROMPT_TOKENS].tolist()
        new = generate(
            model, prompt, max_tokens=min(SAMPLE_TOKENS, model.config.block_size // 2), ids_in_use=tokenizer.vocab_size,
            stop_ids=() if mask is None else stops, seed=int(job["seed"]) + number,
        )  # fmt: skip
        heard.append({"prompt": tokenizer.decode(prompt), "text": tokenizer.decode(new), "tokens": len(new),
                      "distinct_ratio": distinct_ratio(new)})  # fmt: skip
    return heard
