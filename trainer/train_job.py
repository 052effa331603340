"""The bodies of the child tasks `train` and `base`: from job.json to out/ and result.json in the staging folder.

    load and check the base -> judge it on the held-out sets (kept, so that a resumed job need not do it twice)
    -> train -> judge the child -> let it speak -> write out/ -> result.json, the proof of training (law 6)

Everything in the proof is taken from what was really done here, never copied from the plan; whether it equals the
plan is judged by the daemon. Not here: processes and signals (`trainer/child.py`), lineage, the gate.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from safetensors.torch import load_file

from guard.durable import remove_tree, sha256_file, write_json
from guard.errors import Damage
from guard.weights import input_identity
from trainer.adapter_config import AdapterConfig
from trainer.adapter_files import AdapterNote
from trainer.ahead import Ahead
from trainer.batches import Feed
from trainer.data_check import require_sound_data
from trainer.dataset import open_dataset
from trainer.dealing import own_lanes
from trainer.device import Placed, device_facts, move_model, prepare_device
from trainer.distributed import Crew, forked_crew
from trainer.evaluate import evaluate
from trainer.generate import distinct_ratio, generate
from trainer.hardware import apply_numbers, hardware_facts, library_versions, peak_memory, require_compiler
from trainer.launch import run_launched
from trainer.leak_check import require_no_leak, rows_that_share, takes_documents
from trainer.loop import LoopPlan, Outcome, StopRequested, train
from trainer.model import Decoder, new_model
from trainer.model_check import require_intended_base, require_sound_model, require_sound_rates, require_whole_model
from trainer.model_config import ModelConfig
from trainer.objectives import bind, find_objective
from trainer.optimizer import trained_parameters
from trainer.phases import Phases
from trainer.rewind import noted_anomalies
from trainer.run_check import require_sound_run
from trainer.scribe import tell_progress
from trainer.selection import Selection
from trainer.snapshot import told_by_newest
from trainer.student import Student, load_student
from trainer.surroundings import besides, surroundings
from trainer.template import stop_ids
from trainer.templates.base import Template
from trainer.templates.find import load_template
from trainer.tokenizer import Tokenizer, load_tokenizer, require_same_tokenizer
from trainer.version_files import OPTIMIZER, WEIGHTS, weights_are_finite, write_version_files

__all__ = ["run_base", "run_train"]

Job = Mapping[str, Any]
SAMPLES = 2
SAMPLE_TOKENS = 64
PROMPT_TOKENS = 16
_FED_APART = "this model cannot be told which positions belong together, so each document was fed by itself"


@dataclass(frozen=True)
class _Child:
    """What the phases of one job share."""

    job: Job
    staging: Path
    stop: Callable[[], bool]
    phases: Phases = field(default_factory=Phases)
    rank: int = 0

    def tell(self, phase: str, run: Outcome | None = None) -> None:
        """Publish the phase and where the run stands; stop here when asked to. Only rank 0 tells, and only it is asked."""
        if self.rank:
            return
        self.phases.begin(phase)
        tell_progress(self.staging, run or self._saved(), self.job.get("steps"), phase)
        if self.stop():
            raise StopRequested(f"stopped before {phase}")

    def _saved(self) -> Outcome:
        """Where the run will go on: what the newest snapshot says, as far as it can be read."""
        known = {item.name for item in fields(Outcome)}
        told = told_by_newest(self.staging / "snapshots").get("run") or {}
        return Outcome(**{key: value for key, value in told.items() if key in known})


def run_base(job: Job, *, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Make a base from nothing but its recipe and seed; returns what result.json says."""
    child = _Child(job, Path(job["staging"]), stop)
    child.tell("making a base")
    apply_numbers(int(job["threads"]))
    folder = job.get("tokenizer_folder")
    tokenizer, template = load_tokenizer(job["tokenization"], folder), load_template(folder)
    shape = dict(job["recipe"]["model"])
    shape["vocab_size"] = shape.get("vocab_size") or tokenizer.padded_vocab_size
    model = new_model(ModelConfig.from_recipe(shape), int(job["seed"]))
    files = _write_out(child, model, tokenizer, template, metrics=None)
    result = {
        "files": files,
        "weights_sha256": files[WEIGHTS],
        "finite": weights_are_finite(model),
        "parameters": model.config.parameter_count(),
        "exactness": "EXACT",
        "exactness_reason": "a function of recipe and seed",
        "library_versions": library_versions(),
        "hardware": hardware_facts(),
        "surroundings": besides(surroundings()),
    }
    write_json(child.staging / "result.json", result)
    return result


def run_train(job: Job, *, stop: Callable[[], bool] = lambda: False, crew: Crew | None = None) -> dict[str, Any]:
    """Train one child of `job["base"]`; returns what result.json says, or {} in a rank that is not the first.

    `crew`: this process' place among those that a launcher started; else the job says how many there are to be.
    Raises StopRequested, DataFault, Damage, CheckFailed (tokenizers differ), EnvironmentFault (a process is lost), OSError.
    """
    if job.get("launch") and crew is None:
        return run_launched(job, stop)
    with ExitStack() as together:
        if crew is None:
            hang = float(job.get("hang_seconds") or 0.0)
            crew = together.enter_context(forked_crew(int(job.get("processes") or 1), Path(job["staging"]), hang))
        return _trained(job, stop, crew, together)


def _trained(job: Job, stop: Callable[[], bool], crew: Crew, together: ExitStack) -> dict[str, Any]:
    """All phases of a training; `together` is closed when what all processes do is done: helpers end there."""
    child = _Child(job, Path(job["staging"]), stop, rank=crew.rank)
    child.tell("loading")
    device = str(job.get("device", "cpu"))
    prepare_device(device)
    if job.get("compile"):
        require_compiler()
    apply_numbers(int(job["threads"]))
    base = Path(job["base"]["path"])
    student = load_student(job)
    model, tokenizer, parent_weights = student.model, student.tokenizer, student.parent_sha256
    template = load_template(base)
    objective = bind(job["objective"], student.frozen)
    _require_parents_moments(job, base)
    apart = not takes_documents(model)
    feed = _open_feed(child, tokenizer, objective, apart=apart)
    shared = rows_that_share(feed)
    parent_losses: list[dict[str, Any]] = []
    if not crew.rank:
        child.tell("checking data and model")
        _check_before(job, student, template, objective, feed)
        if shared and not apart:
            child.tell("checking that documents do not see one another")
            require_no_leak(model, find_objective(job["stage"]), shared)
        child.tell("judging the parent")
        parent_losses = _parent_losses(child, model, tokenizer, parent_weights)
    model.train()
    team = crew.meet()
    together.callback(team.close)
    feed.keep_lanes(own_lanes(_lanes(job), team.size, team.rank))
    for one in (model, *student.frozen.values()):
        move_model(one, device)
    child.phases.begin("training")
    with Ahead(Placed(feed, device), int(job["steps"])) as ahead:
        run = train(model, ahead, objective, _loop_plan(child, parent_weights, base),
                    stop=stop, clock=time.monotonic, team=team)  # fmt: skip
    move_model(model, "cpu")
    together.close()
    if crew.rank:
        return {}
    model.eval()
    require_sound_run(child.staging / "metrics.jsonl", int(job["steps"]), job["recipe"]["training"])
    child.tell("judging the child", run)
    evaluation = _compare(job, parent_losses, _losses(child, model, tokenizer))
    child.phases.begin("letting it speak")
    generation = _speak(model, tokenizer, stop_ids(template, tokenizer), feed, job)
    child.tell("writing the version", run)
    files = _write_out(child, model, tokenizer, template, child.staging / "metrics.jsonl", student.adapter,
                       _sealed_moments(child))  # fmt: skip
    result = {
        **_proof(run, feed.selection, job, device),
        "anomalies": noted_anomalies(child.staging),
        "fed_apart": _FED_APART if shared and apart else "",
        "parent_weights_sha256": parent_weights,
        "parent_optimizer_sha256": job["base"].get("optimizer_sha256"),
        "inputs": student.inputs,
        "weights_sha256": files[student.weights_name],
        "finite": weights_are_finite(model),
        "weights_changed": student.changed(),
        "evaluation": evaluation,
        "generation": generation,
        "library_versions": library_versions(),
        "hardware": hardware_facts() | device_facts(device),
        "surroundings": besides(_surroundings(job)),
        "processes": team.size,
        "files": files,
    }
    write_json(child.staging / "result.json", result)
    child.phases.tell(child.staging)
    return result


def _check_before(job: Job, student: Student, template: Template, objective: Any, feed: Feed) -> None:
    """What would go wrong without a complaint: refused before step 1. Raises CheckFailed, Damage."""
    require_intended_base(job, student.parent_sha256)
    pins = (job.get("prepared") or {}).get("pins") or {}
    require_sound_data(feed, student.tokenizer, template, pins, masked=bool(job["recipe"].get("use_loss_mask")))
    trained = trained_parameters(student.model)
    require_sound_rates(int(job["steps"]), job["recipe"]["training"], sum(weight.numel() for weight in trained.values()))
    require_whole_model(student.model, adapter=student.adapter is not None)
    require_sound_model(student.model, objective, feed)


def _open_feed(child: _Child, tokenizer: Tokenizer, objective: Any, *, apart: bool) -> Feed:
    """The frozen list, proven to be the planned one, over datasets of the base's own tokenizer."""
    job = child.job
    selection = Selection.load(child.staging)
    if job.get("dataset"):  # the prepared folder was moved out of staging after the list was frozen
        selection = replace(selection, datasets=(job["dataset"]["path"], *selection.datasets[1:]))
    if selection.content_hash() != job["selection_sha256"]:
        raise Damage("the frozen list in staging is not the one that was planned", subject=str(child.staging),
                     hint="check the disk; the job can be retried from its start")  # fmt: skip
    feed = Feed(
        selection, objective, seed=int(job["seed"]),
        batch_sequences=int(job["recipe"]["training"]["batch_sequences"]),
        micro_sequences=int(job["micro_sequences"]), use_mask=bool(job["recipe"].get("use_loss_mask")), apart=apart,
        lanes=_lanes(job),
    )  # fmt: skip
    for dataset in feed.datasets:
        require_same_tokenizer(tokenizer.state(), dataset.tokenizer_state, job["base"]["name"], str(dataset.folder))
    return feed


def _sealed_moments(child: _Child) -> Path | None:
    """Where the run leaves the state of its optimiser for the version to keep; None where the recipe does not ask."""
    return child.staging / OPTIMIZER if child.job["recipe"]["training"].get("seal_optimizer") else None


def _require_parents_moments(job: Job, base: Path) -> None:
    """Raises Damage when the plan starts from the parent's sealed optimiser and that is not what the plan names."""
    wanted = job["base"].get("optimizer_sha256")
    if wanted and (not (base / OPTIMIZER).is_file() or sha256_file(base / OPTIMIZER) != wanted):
        raise Damage(f"{base / OPTIMIZER} is not the one that was planned with", subject=str(base),
                     hint="heirloom verify; heirloom restore brings a version back")  # fmt: skip


def _loop_plan(child: _Child, parent_weights: str, base: Path) -> LoopPlan:
    job = child.job
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
        **({"lanes": _lanes(job)} if _lanes(job) > 1 else {}),
    }
    moments = job["base"].get("optimizer_sha256")
    if moments:
        depends_on["optimizer"] = moments
    identity = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    often = job.get("snapshot") or {}
    return LoopPlan(
        steps=int(job["steps"]), training=dict(job["recipe"]["training"]), dtype=job["dtype"], staging=child.staging,
        identity=identity, snapshot_steps=int(often.get("every_steps") or 0),
        snapshot_seconds=float(often.get("every_seconds") or 0.0), lanes=_lanes(job),
        compile_tokens=int(job["micro_sequences"]) * int(job["block_size"]) if job.get("compile") else 0,
        start=lambda: trained_parameters(load_student(job).model),
        moments=(lambda: load_file(base / OPTIMIZER)) if moments else None, seal_to=_sealed_moments(child),
        surroundings=_surroundings(job),
    )  # fmt: skip


def _surroundings(job: Job) -> dict[str, Any]:
    return surroundings(device=str(job.get("device", "cpu")), compiled=bool(job.get("compile")))


def _lanes(job: Job) -> int:
    """A plan of an earlier release has one."""
    return int(job.get("lanes") or 1)


def _losses(child: _Child, model: Decoder, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The loss of `model` on every set the job names, in the job's order. Raises CheckFailed for another tokenizer's set."""
    rows = []
    for wanted in child.job.get("evaluation") or ():
        dataset = open_dataset(wanted["dataset"])
        require_same_tokenizer(tokenizer.state(), dataset.tokenizer_state, "the model", f"the set {wanted.get('name')}")
        split = dataset.split(wanted["split"])
        found = evaluate(model, split, find_objective(wanted["stage"]), max_tokens=int(wanted["max_tokens"]),
                         use_mask=wanted["stage"] == "sft", stop=child.stop)  # fmt: skip
        rows.append(found.as_dict())
    return rows


def _parent_losses(child: _Child, model: Decoder, tokenizer: Tokenizer, parent_weights: str) -> list[dict[str, Any]]:
    """The parent's losses, from the note an interrupted run of this very job left, or measured now."""
    note = child.staging / "parent_losses.json"
    asked = {"parent": parent_weights, "sets": child.job.get("evaluation") or []}
    if note.exists():
        kept = orjson.loads(note.read_bytes())
        if kept["asked"] == json.loads(json.dumps(asked)):
            losses: list[dict[str, Any]] = kept["losses"]
            return losses
    losses = _losses(child, model, tokenizer)
    write_json(note, {"asked": asked, "losses": losses})
    return losses


def _compare(job: Job, parent: list[dict[str, Any]], child: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per set: what the job said of it (name, role, ...), both losses, and how much was read."""
    rows = []
    for wanted, old, new in zip(job.get("evaluation") or (), parent, child, strict=True):
        told = {key: value for key, value in wanted.items() if key != "max_tokens"}
        rows.append({**told, "parent_loss": old["loss"], "child_loss": new["loss"], "tokens": new["tokens"],
                     "loss_tokens": new["loss_tokens"], "examples": new["examples"]})  # fmt: skip
    return rows


def _speak(model: Decoder, tokenizer: Tokenizer, stops: tuple[int, ...], feed: Feed, job: Job) -> list[dict[str, Any]]:
    """A few seeded continuations of the new data's own beginnings, for people and for the gate."""
    fresh = np.flatnonzero(~feed.selection.replay)
    chosen = fresh[np.linspace(0, len(fresh) - 1, num=min(SAMPLES, len(fresh)), dtype=np.int64)]
    spoken = []
    for number, sequence in enumerate(chosen):
        tokens, mask = feed.documents(int(sequence))[0]
        # A conversation up to where the first answer begins; of a text, the first words.
        answer = 0 if mask is None else int(mask.argmax())
        prompt = tokens[: answer or PROMPT_TOKENS].tolist()
        new = generate(
            model, prompt, max_tokens=SAMPLE_TOKENS, ids_in_use=tokenizer.vocab_size,
            stop_ids=() if mask is None else stops, seed=int(job["seed"]) + number,
        )  # fmt: skip
        spoken.append({"prompt": tokenizer.decode(prompt), "text": tokenizer.decode(new), "tokens": len(new),
                       "distinct_ratio": distinct_ratio(new)})  # fmt: skip
    return spoken


def _write_out(child: _Child, model: Decoder, tokenizer: Tokenizer, template: Template, metrics: Path | None,
               adapter: tuple[AdapterConfig, AdapterNote] | None = None,
               moments: Path | None = None) -> dict[str, str]:  # fmt: skip
    """The future version folder, made anew: an interrupted attempt may have left half of one."""
    out = child.staging / "out"
    if out.exists():
        remove_tree(out)
    return write_version_files(out, model, tokenizer, child.job["recipe"], metrics, template, adapter, moments)


def _proof(run: Outcome, selection: Selection, job: Job, device: str) -> dict[str, Any]:
    """What was done, counted where it was done."""
    label, reason = _exactness(run, device)
    batch = int(job["recipe"]["training"]["batch_sequences"])
    learnt = selection.learnt_examples(int(job["seed"]), run.step, batch, run.skipped)
    return {
        "steps_executed": run.step - len(run.skipped),
        "steps_skipped": [step + 1 for step in run.skipped],
        "consumed_sha256": run.consumed,
        "final_loss": run.loss,
        # first-pass input tokens of newly learnt examples: what counts towards the goal
        "tokens": int(selection.examples[learnt, 2].sum()),
        "fed_tokens": run.tokens,
        "loss_tokens": run.loss_tokens,
        "replay_tokens": run.replay_tokens,
        "wall_seconds": run.wall_seconds,
        "peak_memory_bytes": peak_memory(),
        "resumes": run.resumes,
        "exactness": label,
        "exactness_reason": reason,
        "notes": run.notes,
    }


def _exactness(run: Outcome, device: str) -> tuple[str, str]:
    if device != "cpu":
        return "DECLARED", f"trained on {device} with deterministic kernels; no two such runs were ever compared"
    if run.changed_surroundings:
        told = "; ".join(run.changes) or "libraries or processor"
        return "DECLARED", f"changed between two parts of the run: {told}"
    if run.resumes:
        times = "once" if run.resumes == 1 else f"{run.resumes} times"
        return "RESUMED-EXACT", f"resumed {times} from checked snapshots on the same processor and libraries"
    return "EXACT", "one uninterrupted run"
