"""The runner: takes training jobs off the durable queue, one at a time, and brings each to its end.

    queued -> preparing (child) -> preflight -> training (child) -> committing -> done
                     held: the environment; tried again by itself        parked: waits for a person

What happens next is decided from the ledger and from what a child left in its staging folder, so a restart goes on
where the last life stopped. A death together with the daemon costs a job nothing; a child's own death costs one
attempt only when it made no progress. Not here: plans (`planning.py`), publication (`publish.py`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.children import TorchServer
from daemon.planning import Target, base_request, gather_facts, prepare_request, target_of, train_request
from daemon.publish import adopt_dataset, ensure_staging, publish_base, publish_child, read_result
from daemon.reactor import Reactor
from guard.checks.preflight import Facts, preflight
from guard.checks.verdict import Verdict
from guard.durable import remove_tree, write_json
from guard.errors import HeirloomError, NotFound, is_environment
from guard.failpoints import point
from guard.names import slugify, version_name
from guard.store.birth import finish_birth, set_birth_aside
from guard.store.jobs import Job, add_job, find_job, jobs_in, set_job
from guard.store.keeper import Keeper
from guard.store.learnt import write_known
from guard.store.versions import intend_number, number_is_free, reserve_number

__all__ = ["Runner", "read_progress"]

STOPPED = 75  # the child was asked to stop, and left a snapshot
LOCKED = 76  # a child of an earlier life still holds the staging folder
KINDS = ("train", "base")
HOLD_SECONDS = 30.0
CRASH_SECONDS = 1.0


def read_progress(staging: Path) -> dict[str, Any]:
    """What a child last told of itself; empty when it told nothing yet. Only ever a hint."""
    try:
        return json.loads((staging / "progress.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}


class Runner:
    """At most one training job at a time: it holds the device."""

    def __init__(self, keeper: Keeper, reactor: Reactor, born: Callable[[str], None]) -> None:
        self.keeper, self.born = keeper, born
        self.server = TorchServer(reactor, self._exited)
        self.current: int | None = None
        self.stopping = False
        self.troubled: set[int] = set()
        """Jobs that were held or failed in this life: `run --once` exits 3 over them."""
        self._not_before: dict[int, float] = {}
        self._facts: dict[int, Facts] = {}
        self._untidy: dict[int, float] = {}
        """Jobs whose version is recorded and whose views, seal or staging are not finished: when to try again."""
        self._on_stop: dict[int, str] = {}

    # --- choosing ------------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        return self.keeper.ledger.meta("paused") == "1"

    def tick(self, now: float) -> None:
        """Start the next thing when nothing runs."""
        if self.current is not None or self.stopping or self.paused:
            return
        for number in [number for number, due in self._untidy.items() if due <= now]:
            del self._untidy[number]
            self._guarded(find_job(self.keeper.ledger, number), self._finish)
        for job in jobs_in(self.keeper.ledger, "committing"):
            if job.kind in KINDS and self._not_before.get(job.id, 0.0) <= now:
                self._guarded(job, self._finish)
                return
        for job in jobs_in(self.keeper.ledger, "training", "preparing"):
            if job.kind in KINDS and self._not_before.get(job.id, 0.0) <= now:
                self._guarded(job, self._resume)
                return
        self._release_held(now)
        following = self._next()
        if following is not None:
            self._guarded(following, self._start)

    def _release_held(self, now: float) -> None:
        for job in jobs_in(self.keeper.ledger, "held"):
            if job.kind in KINDS and self._not_before.get(job.id, 0.0) <= now:
                with self.keeper.ledger.transaction():
                    set_job(self.keeper.ledger, job.id, "training" if "train" in job.plan else "queued", "tried again")

    def _next(self) -> Job | None:
        """The first queued job whose line is not waiting for a held or running one."""
        blocked = {job.line for job in jobs_in(self.keeper.ledger, "held", "preparing", "training", "committing")
                   if job.kind in KINDS}  # fmt: skip
        for job in jobs_in(self.keeper.ledger, "queued"):
            if job.kind in KINDS and job.line not in blocked:
                return self._coalesce(job)
        return None

    def _coalesce(self, first: Job) -> Job:
        """When many drops of one kind wait on one line, train what is queued as one version."""
        alike = [job for job in jobs_in(self.keeper.ledger, "queued") if _batchable(job, first)]
        if not _batchable(first, first) or len(alike) < self.keeper.settings.coalesce.after:
            return first
        ledger = self.keeper.ledger
        with ledger.transaction():
            place = len(first.files)
            for job in alike:
                if job.id == first.id:
                    continue
                ledger.run_many("INSERT INTO job_files VALUES (?, ?, ?)",
                                [(first.id, place + shift, sha256) for shift, sha256 in enumerate(job.files)])  # fmt: skip
                place += len(job.files)
                set_job(ledger, job.id, "cancelled", f"trained together with others as job {first.id}")
            ledger.run("UPDATE jobs SET slug = ? WHERE id = ?", (f"{first.slug}_and_{place - 1}_more", first.id))
            ledger.event("job.coalesced", f"job {first.id}", files=place, jobs=[job.id for job in alike if job.id != first.id])
        return find_job(ledger, first.id)

    # --- the steps of one job ------------------------------------------------------------------------------------

    def _guarded(self, job: Job, step: Callable[[Job], None]) -> None:
        """Run a step; what goes wrong in it becomes the job's state with a reason, never the daemon's end."""
        try:
            step(job)
        except Exception as error:  # noqa: BLE001 - reported: it becomes the job's reason, and the daemon lives on
            self.current = None
            job = find_job(self.keeper.ledger, job.id)
            told = str(error) if isinstance(error, OSError | HeirloomError) else f"{type(error).__name__}: {error}"
            if job.state in ("done", "quarantined"):
                # The version is recorded; only tidying up is left, and that is tried again.
                self._untidy[job.id] = self.keeper.clock.monotonic() + HOLD_SECONDS
            elif is_environment(error):
                self._hold(job.id, told)
            elif isinstance(error, NotFound):
                self._set(job.id, "parked", told)
            else:
                self._fail(job.id, told)

    def _start(self, job: Job) -> None:
        if job.kind == "base":
            self._start_base(job)
            return
        target = target_of(self.keeper, job)
        facts = gather_facts(self.keeper, target, wanted=job.wanted_id)
        verdict = preflight(facts)
        if not verdict.ok:
            self._refuse(job, verdict)
            return
        self._facts[job.id] = facts
        staging = self._clean_staging(job)
        known = staging / "known.fp"
        write_known(self.keeper, target.base.id, job.stage, known)
        request = prepare_request(self.keeper, target, known)
        write_json(staging / "job.json", request)
        with self.keeper.ledger.transaction():
            set_job(self.keeper.ledger, job.id, "preparing", plan={"request": request}, base_id=job.base_id)
        self._spawn(job.id, staging)

    def _clean_staging(self, job: Job) -> Path:
        """An empty staging folder: what an earlier attempt left belongs to another plan."""
        remove_tree(self.keeper.home.staging_of(job.id))
        return ensure_staging(self.keeper, job.id)

    def _start_base(self, job: Job) -> None:
        """Make a base from a recipe: no data, no parent, and so no preflight but the disk's."""
        staging = self._clean_staging(job)
        ledger = self.keeper.ledger
        intend_number(self.keeper, job.id, job.wanted_id)
        with ledger.transaction():
            number = reserve_number(self.keeper, job.wanted_id, job.id)
            point("start.numbered")
            output = {"id": number, "name": version_name(number, job.slug), "slug": job.slug}
            request = base_request(self.keeper, job, output)
            set_job(ledger, job.id, "training", plan={"train": request}, output_id=number)
        point("start.recorded")
        write_json(staging / "job.json", request)
        self._spawn(job.id, staging)

    def _resume(self, job: Job) -> None:
        """Go on with a job of an earlier life or after a death: from its frozen plan, or from its preparation."""
        if "train" in job.plan:
            staging = ensure_staging(self.keeper, job.id)
            write_json(staging / "job.json", job.plan["train"])
            self._spawn(job.id, staging)
        else:
            self._start(job)

    def _spawn(self, job: int, staging: Path) -> None:
        for name in ("error.json", "progress.json"):
            (staging / name).unlink(missing_ok=True)
        self.current = job
        self.server.spawn(job, staging, self.keeper.settings.nice)

    def _prepared(self, job: Job) -> None:
        """The data is ready: judge again with exact figures, take a number, freeze the plan, train."""
        staging = self.keeper.home.staging_of(job.id)
        prepared = adopt_dataset(self.keeper, job, read_result(staging, "prepared.json"))
        target = target_of(self.keeper, job)
        verdict = preflight(self._exact_facts(job, target, prepared))
        if not verdict.ok:
            self._refuse(job, verdict)
            return
        request = job.plan["request"]
        ledger = self.keeper.ledger
        intend_number(self.keeper, job.id, job.wanted_id)
        with ledger.transaction():
            number = reserve_number(self.keeper, job.wanted_id, job.id)
            point("start.numbered")
            output = {"id": number, "name": version_name(number, job.slug), "slug": job.slug}
            train = train_request(self.keeper, target, request, prepared, output)
            set_job(ledger, job.id, "training", plan={"request": request, "train": train}, output_id=number)
        point("start.recorded")
        write_json(staging / "job.json", train)
        self._spawn(job.id, staging)

    def _exact_facts(self, job: Job, target: Target, prepared: dict[str, Any]) -> Facts:
        estimate = self._facts.pop(job.id, None)
        if estimate is None:
            return gather_facts(self.keeper, target, prepared=prepared, wanted=job.wanted_id)
        taken = job.wanted_id is not None and not number_is_free(self.keeper, job.wanted_id, job.id)
        return dataclasses.replace(
            estimate, examples_new=_trainable(prepared),
            examples_too_long=int(prepared["counts"].get("too_long", 0)),
            free_bytes=self.keeper.home.free_bytes(), tokenizer_data=prepared.get("tokenizer_hash"),
            template_data=prepared.get("template_hash"), mask_ratio=prepared.get("mask_ratio"),
            output_problem=f"the number {job.wanted_id} was used meanwhile" if taken else "")  # fmt: skip

    def _refuse(self, job: Job, verdict: Verdict) -> None:
        self.current = None
        if verdict.environment_only:
            self._hold(job.id, verdict.reason)
            return
        if len(job.files) > 1 and any(check.name == "Data verified" for check in verdict.failures):
            self._fail(job.id, verdict.reason)  # one rotten file must not hold up the others of its batch
            return
        nothing_new = [check.name for check in verdict.failures] == ["No duplicates"]
        self._set(job.id, "cancelled" if nothing_new else "parked", verdict.reason)
        if nothing_new:
            remove_tree(self.keeper.home.staging_of(job.id))

    # --- the end of a child --------------------------------------------------------------------------------------

    def _exited(self, number: int, status: int) -> None:
        """A job's child has ended; called from the reactor."""
        if self.current == number:
            self.current = None
        job = find_job(self.keeper.ledger, number)
        wish = self._on_stop.pop(number, None)
        if wish is not None:
            self._stopped(job, wish)
        elif self.stopping and job.state == "preparing":
            return  # nothing is started any more; the preparation is taken up in the next life
        elif status == 0 and job.state in ("preparing", "training"):
            self._guarded(job, self._prepared if job.state == "preparing" else self._publish)
        elif status == STOPPED or self.stopping:
            return  # the job keeps its state and goes on in the next life or after `queue resume`
        elif status == LOCKED:
            self._not_before[number] = self.keeper.clock.monotonic() + CRASH_SECONDS
        elif job.state in ("preparing", "training"):
            self._died(job, status)

    def _publish(self, job: Job) -> None:
        if job.kind == "base":
            self.born(publish_base(self.keeper, job.id))
            return
        name, verdict = publish_child(self.keeper, job.id)
        if verdict != "passed":
            self.troubled.add(job.id)
        self.born(name)

    def _finish(self, job: Job) -> None:
        """An announced birth that the machine interrupted (a full disk): it is rolled forward, never trained again."""
        self.born(finish_birth(self.keeper, job.id))

    def _died(self, job: Job, status: int) -> None:
        staging = self.keeper.home.staging_of(job.id)
        fault = _read_fault(staging)
        if fault.get("fault") == "environment":
            self._hold(job.id, str(fault.get("message")))
            return
        if fault.get("fault") == "data":
            self._fail(job.id, str(fault.get("message")))
            return
        step = int(read_progress(staging).get("step") or 0)
        attempts = 1 if step > job.progress else job.attempts + 1
        reason = str(fault.get("message") or f"the training process ended with status {status}")
        with self.keeper.ledger.transaction():
            set_job(self.keeper.ledger, job.id, job.state, reason, attempts=attempts, progress=max(step, job.progress))
        if attempts >= self.keeper.settings.training.max_attempts and status == -9 and not fault:
            # Killed without a word: the kernel out of memory, or a person. The machine's doing, not the data's (law 10).
            self._hold(job.id, reason, HOLD_SECONDS * 2 ** min(attempts - 1, 7))
        elif attempts >= self.keeper.settings.training.max_attempts:
            self._fail(job.id, f"{reason} ({attempts} times without progress)")
        else:
            self._not_before[job.id] = self.keeper.clock.monotonic() + CRASH_SECONDS

    def waits(self, job: Job) -> bool:
        """Whether a job is only waiting for a better moment: what `run --once` does not wait for."""
        return job.state == "committing" and self._not_before.get(job.id, 0.0) > self.keeper.clock.monotonic()

    def finish_commits(self, line: str) -> None:
        """Roll the announced births of a line forward now, before somebody moves its tip."""
        for job in jobs_in(self.keeper.ledger, "committing"):
            if job.kind in KINDS and job.line == line:
                self._guarded(job, self._finish)

    def _hold(self, number: int, reason: str, seconds: float = HOLD_SECONDS) -> None:
        announced = find_job(self.keeper.ledger, number).state == "committing"
        self._set(number, "committing" if announced else "held", reason)
        self.troubled.add(number)
        self._not_before[number] = self.keeper.clock.monotonic() + seconds

    def _fail(self, number: int, reason: str) -> None:
        """A batch that failed is split before any file is blamed; a single file's job is failed with its reason."""
        set_birth_aside(self.keeper, number)
        job = find_job(self.keeper.ledger, number)
        if len(job.files) > 1 and job.request.get("origin") == "drop":
            ledger = self.keeper.ledger
            with ledger.transaction():
                for sha256 in job.files:
                    name = ledger.value("SELECT name FROM files WHERE sha256 = ?", (sha256,))
                    add_job(ledger, kind="train", stage=job.stage, line=job.line, slug=slugify(Path(name).stem),
                            files=[sha256], request={**job.request, "origin": "split"})  # fmt: skip
                set_job(ledger, number, "cancelled", f"split into single files after: {reason}")
            return
        self._set(number, "failed", reason)

    def _set(self, number: int, state: str, reason: str) -> None:
        with self.keeper.ledger.transaction():
            set_job(self.keeper.ledger, number, state, reason)
        if state in ("held", "failed", "parked"):
            self.troubled.add(number)

    # --- stopping ------------------------------------------------------------------------------------------------

    def stop_current(self, wish: str) -> int | None:
        """Ask the running job to snapshot and stop; `wish` is its state then (`parked`, `cancelled`, `paused`)."""
        if self.current is None:
            return None
        if wish != "paused" or self.current not in self._on_stop:  # a pause takes no cancellation back
            self._on_stop[self.current] = wish
        self.server.signal(self.current)
        return self.current

    def _stopped(self, job: Job, wish: str) -> None:
        if wish == "cancelled" and job.state == "cancelled":
            remove_tree(self.keeper.home.staging_of(job.id))
        elif wish == "parked" and job.state in ("preparing", "training"):
            self._set(job.id, "parked", "the line was rolled back under it")

    def begin_stop(self) -> None:
        """The daemon is asked to end: the running child finishes its step and takes a snapshot."""
        self.stopping = True
        if self.current is not None:
            self.server.signal(self.current)

    def close(self) -> None:
        self.server.close()


def _trainable(prepared: dict[str, Any]) -> int:
    """Examples a prepared job will train: the new ones, and known ones where repeating was asked for."""
    counts = prepared["counts"]
    return int(counts["new"]) + int(counts.get("known_again", 0)) if prepared["steps"] else 0


def _batchable(job: Job, first: Job) -> bool:
    """Plain drops of one stage on one line, nobody having asked for anything special about them."""
    plain = job.kind == "train" and job.request.get("origin") == "drop" and job.base_id is None
    return plain and (job.stage, job.line, job.request.get("recipe")) == (first.stage, first.line, first.request.get("recipe"))


def _read_fault(staging: Path) -> dict[str, Any]:
    try:
        return json.loads((staging / "error.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
