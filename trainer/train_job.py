"""The bodies of the child tasks `train` and `base`: from job.json to out/ and result.json in the staging folder.

    load and check the base -> judge it on the held-out sets (kept, so that a resumed job need not do it twice)
    -> train -> judge the child -> let it speak -> write out/ -> result.json, the proof of training (law 6)

Everything in the proof is taken from what was really done here, never copied from the plan; whether it equals the
plan is judged by the daemon. Not here: processes and signals (`trainer/child.py`), lineage, the gate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from guard.durable import remove_tree, write_json
from guard.errors import Damage
from trainer.adapter_config import AdapterConfig
from trainer.adapter_files import AdapterNote
from trainer.ahead import Ahead
from trainer.batches import Feed
from trainer.data_check import require_sound_data
from trainer.dealing import own_lanes
from trainer.device import Placed, device_facts, move_model, prepare_device
from trainer.distributed import Crew, forked_crew
from trainer.hardware import apply_numbers, hardware_facts, library_versions, peak_memory, require_compiler
from trainer.judged import compared, losses, parent_losses, spoken
from trainer.launch import run_launched
from trainer.leak_check import require_no_leak, rows_that_share, takes_documents
from trainer.loop import Outcome, StopRequested, train
from trainer.model import Decoder, new_model
from trainer.model_check import require_intended_base, require_sound_model, require_sound_rates, require_whole_model
from trainer.model_config import ModelConfig
from trainer.objectives import bind, find_objective
from trainer.optimizer import trained_parameters
from trainer.phases import Phases
from trainer.rewind import noted_anomalies
from trainer.run_check import require_sound_run
from trainer.run_plan import lanes_of, loop_plan, require_parents_moments, sealed_moments, surroundings_of
from trainer.scribe import tell_progress
from trainer.selection import Selection
from trainer.snapshot import told_by_newest
from trainer.student import Student, load_student
from trainer.surroundings import besides, surroundings
from trainer.template import stop_ids
from trainer.templates.base import Template
from trainer.templates.find import load_template
from trainer.tokenizer import Tokenizer, load_tokenizer, require_same_tokenizer
from trainer.version_files import WEIGHTS, weights_are_finite, write_version_files

__all__ = ["run_base", "run_train"]

Job = Mapping[str, Any]
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
    require_parents_moments(job)
    apart = not takes_documents(model)
    feed = _open_feed(child, tokenizer, objective, apart=apart)
    shared = rows_that_share(feed)
    before: list[dict[str, Any]] = []
    if not crew.rank:
        child.tell("checking data and model")
        _check_before(job, student, template, objective, feed)
        if shared and not apart:
            child.tell("checking that documents do not see one another")
            require_no_leak(model, find_objective(job["stage"]), shared)
        child.tell("judging the parent")
        before = parent_losses(job, model, tokenizer, parent_weights, stop)
    model.train()
    team = crew.meet()
    together.callback(team.close)
    feed.keep_lanes(own_lanes(lanes_of(job), team.size, team.rank))
    for one in (model, *student.frozen.values()):
        move_model(one, device)
    child.phases.begin("training")
    with Ahead(Placed(feed, device), int(job["steps"])) as ahead:
        run = train(model, ahead, objective, loop_plan(job, parent_weights),
                    stop=stop, clock=time.monotonic, team=team)  # fmt: skip
    move_model(model, "cpu")
    together.close()
    if crew.rank:
        return {}
    model.eval()
    require_sound_run(child.staging / "metrics.jsonl", int(job["steps"]), job["recipe"]["training"])
    child.tell("judging the child", run)
    evaluation = compared(job, before, losses(job, model, tokenizer, stop))
    child.phases.begin("letting it speak")
    generation = spoken(model, tokenizer, stop_ids(template, tokenizer), feed, job)
    child.tell("writing the version", run)
    files = _write_out(child, model, tokenizer, template, child.staging / "metrics.jsonl", student.adapter,
                       sealed_moments(job))  # fmt: skip
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
        "surroundings": besides(surroundings_of(job)),
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
        lanes=lanes_of(job),
    )  # fmt: skip
    for dataset in feed.datasets:
        require_same_tokenizer(tokenizer.state(), dataset.tokenizer_state, job["base"]["name"], str(dataset.folder))
    return feed


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
