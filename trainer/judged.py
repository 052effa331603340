"""How a job's parent and child do on the held-out sets the job names, and a few words of the child: for the gate.

The parent's losses are kept in staging, so that a resumed job need not measure them twice. Not here: the verdict, which
is the daemon's, and one set's loss (`trainer/evaluate.py`).
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
from trainer.evaluate import evaluate
from trainer.generate import distinct_ratio, generate
from trainer.model import Decoder
from trainer.objectives import find_objective
from trainer.tokenizer import Tokenizer, require_same_tokenizer

__all__ = ["compared", "losses", "parent_losses", "spoken"]

Job = Mapping[str, Any]
SAMPLES = 2
SAMPLE_TOKENS = 64
PROMPT_TOKENS = 16


def losses(job: Job, model: Decoder, tokenizer: Tokenizer, stop: Callable[[], bool]) -> list[dict[str, Any]]:
    """The loss of `model` on every set the job names, in the job's order. Raises CheckFailed for another tokenizer's set."""
    rows = []
    for wanted in job.get("evaluation") or ():
        dataset = open_dataset(wanted["dataset"])
        require_same_tokenizer(tokenizer.state(), dataset.tokenizer_state, "the model", f"the set {wanted.get('name')}")
        split = dataset.split(wanted["split"])
        found = evaluate(model, split, find_objective(wanted["stage"]), max_tokens=int(wanted["max_tokens"]),
                         use_mask=wanted["stage"] == "sft", stop=stop)  # fmt: skip
        rows.append(found.as_dict())
    return rows


def parent_losses(
    job: Job, model: Decoder, tokenizer: Tokenizer, parent_weights: str, stop: Callable[[], bool]
) -> list[dict[str, Any]]:
    """The parent's losses, from the note an interrupted run of this very job left, or measured now."""
    note = Path(job["staging"]) / "parent_losses.json"
    asked = {"parent": parent_weights, "sets": job.get("evaluation") or []}
    if note.exists():
        kept = orjson.loads(note.read_bytes())
        if kept["asked"] == json.loads(json.dumps(asked)):
            known: list[dict[str, Any]] = kept["losses"]
            return known
    found = losses(job, model, tokenizer, stop)
    write_json(note, {"asked": asked, "losses": found})
    return found


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
