"""What a `train` job says, as the plan of its run: what the run's identity hangs on, lanes, moments, surroundings.

A snapshot belongs to a plan by that identity, so a key is told only where it differs from what an earlier release did.
Not here: the run (`trainer/loop.py`), and what happens around it (`trainer/train_job.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from guard.durable import sha256_file
from guard.errors import Damage
from guard.weights import input_identity
from trainer.loop import LoopPlan
from trainer.optimizer import trained_parameters
from trainer.student import load_student
from trainer.surroundings import surroundings
from trainer.version_files import OPTIMIZER

__all__ = ["lanes_of", "loop_plan", "require_parents_moments", "sealed_moments", "surroundings_of"]

Job = Mapping[str, Any]


def loop_plan(job: Job, parent_weights: str) -> LoopPlan:
    """The plan of the run in `job["staging"]` that starts from weights of that hash."""
    staging, base = Path(job["staging"]), Path(job["base"]["path"])
    depends_on = {
        "parent": parent_weights,
        "selection": job["selection_sha256"],
        "training": job["recipe"]["training"],
        "use_loss_mask": job["recipe"].get("use_loss_mask"),
        **{key: job[key] for key in ("objective", "steps", "seed", "threads", "dtype", "micro_sequences")},
        # Only where there are any: the runs of earlier releases keep their identity.
        **({"lora": job["recipe"]["lora"]} if job["recipe"].get("lora") else {}),
        **({"inputs": input_identity(job["inputs"])} if job.get("inputs") else {}),
        # Only where they are not what they always were: a snapshot of an earlier release belongs to its plan still.
        **{key: job[key] for key, usual in (("compile", False), ("device", "cpu")) if job.get(key, usual) != usual},
        # One lane is what releases before lanes did; how many processes there are decides nothing.
        **({"lanes": lanes_of(job)} if lanes_of(job) > 1 else {}),
    }
    moments = job["base"].get("optimizer_sha256")
    if moments:
        depends_on["optimizer"] = moments
    identity = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    often = job.get("snapshot") or {}
    return LoopPlan(
        steps=int(job["steps"]), training=dict(job["recipe"]["training"]), dtype=job["dtype"], staging=staging,
        identity=identity, snapshot_steps=int(often.get("every_steps") or 0),
        snapshot_seconds=float(often.get("every_seconds") or 0.0), lanes=lanes_of(job),
        compile_tokens=int(job["micro_sequences"]) * int(job["block_size"]) if job.get("compile") else 0,
        start=lambda: trained_parameters(load_student(job).model),
        moments=(lambda: load_file(base / OPTIMIZER)) if moments else None, seal_to=sealed_moments(job),
        surroundings=surroundings_of(job),
    )  # fmt: skip


def surroundings_of(job: Job) -> dict[str, Any]:
    """What beside the plan steers the arithmetic of this job, as it is here and now."""
    return surroundings(device=str(job.get("device", "cpu")), compiled=bool(job.get("compile")))


def lanes_of(job: Job) -> int:
    """A plan of an earlier release has one."""
    return int(job.get("lanes") or 1)


def sealed_moments(job: Job) -> Path | None:
    """Where the run leaves the state of its optimiser for the version to keep; None where the recipe does not ask."""
    return Path(job["staging"]) / OPTIMIZER if job["recipe"]["training"].get("seal_optimizer") else None


def require_parents_moments(job: Job) -> None:
    """Raises Damage when the plan starts from the parent's sealed optimiser and that is not what the plan names."""
    base, wanted = Path(job["base"]["path"]), job["base"].get("optimizer_sha256")
    if wanted and (not (base / OPTIMIZER).is_file() or sha256_file(base / OPTIMIZER) != wanted):
        raise Damage(f"{base / OPTIMIZER} is not the one that was planned with", subject=str(base),
                     hint="heirloom verify; heirloom restore brings a version back")  # fmt: skip
