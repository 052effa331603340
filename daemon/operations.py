"""What a changing command does, once, whether it came over the socket or runs under the home lock.

Each operation takes the engine and plain JSON arguments and returns a plain JSON result, or raises a HeirloomError.
With `dry_run` among the arguments it judges as ever, changes nothing, and returns what the result would be.
Slow work (reading a registered file) is only begun here; the engine finishes it and the caller looks at the ledger.
Not here: confirming with a person (`daemon/cli/`) and the acts themselves (`guard/store/`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from daemon.costs import estimate
from daemon.engine import Engine
from daemon.facts import fact_steps
from daemon.regrow import regrow
from daemon.targets import Target, fork_recipe, recipe_for, resolve_base
from daemon.training import train
from guard.checks.preflight import preflight
from guard.errors import Busy, CheckFailed, Duplicate, NotFound, UsageError
from guard.names import safe_name, slugify, split_output
from guard.steps import Steps, drain
from guard.store.admission import queue_index
from guard.store.files import StoredFile, find_file
from guard.store.indexes import current_documents
from guard.store.intake import claim
from guard.store.jobs import Job, add_job, find_job, jobs_in, queued_with_file, set_job
from guard.store.keeper import Keeper
from guard.store.purge import purge
from guard.store.restore import restore
from guard.store.retention import retention_apply
from guard.store.rollback import rollback
from guard.store.trash import delete
from guard.store.vault import backup_steps, plan_backup
from guard.store.versions import Version, find_version, line_tip, tips
from trainer.retrieval.chunk import estimate_chunks

__all__ = ["OPERATIONS", "begin", "perform"]

Arguments = Mapping[str, Any]


def perform(engine: Engine, operation: str, arguments: Arguments) -> dict[str, Any]:
    """Do one operation by name, however long it takes. Raises UsageError for an unknown one."""
    return drain(begin(engine, operation, arguments))


def begin(engine: Engine, operation: str, arguments: Arguments) -> Steps[dict[str, Any]]:
    """`perform` in slices: what reads much yields between pieces of it, so that the daemon's loop goes on."""
    if operation not in OPERATIONS:
        raise UsageError(f"unknown operation {operation!r}", hint="daemon and command are of different versions?")
    result = OPERATIONS[operation](engine, arguments)
    if isinstance(result, Generator):
        result = yield from result
    engine.hint()
    return result


# --- versions -----------------------------------------------------------------------------------------------------


def _rollback(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    keeper = engine.keeper
    line = arguments.get("line") or find_version(keeper.ledger, arguments["version"]).line

    if not arguments.get("dry_run"):
        engine.runner.finish_commits(line)

    def park() -> int | None:
        running = engine.runner.current
        on_line = running is not None and find_job(keeper.ledger, running).line == line
        return engine.runner.stop_current("parked") if on_line else None

    return rollback(keeper, arguments["version"], line, str(arguments.get("reason") or ""),
                    dry_run=bool(arguments.get("dry_run")), park=park)  # fmt: skip


def _delete(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    return delete(engine.keeper, arguments["version"], force=bool(arguments.get("force")),
                  confirm_lineage=bool(arguments.get("confirm_lineage")), confirm=arguments.get("confirm"),
                  dry_run=bool(arguments.get("dry_run")))  # fmt: skip


def _restore(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    return restore(engine.keeper, arguments["version"], source=arguments.get("source"),
                   dry_run=bool(arguments.get("dry_run")))  # fmt: skip


def _purge(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    days = arguments.get("older_than_days")
    return purge(engine.keeper, arguments.get("version"), older_than_days=None if days is None else float(days),
                 no_backup=bool(arguments.get("no_backup")), confirm=arguments.get("confirm"),
                 yes=bool(arguments.get("yes")), dry_run=bool(arguments.get("dry_run")), shown=_names(arguments))  # fmt: skip


def _names(arguments: Arguments) -> list[str] | None:
    """What a person was shown before confirming; None when the caller showed no list."""
    return None if arguments.get("shown") is None else [str(name) for name in arguments["shown"]]


def _retention_apply(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    newest = arguments.get("newest")
    return retention_apply(engine.keeper, confirm=arguments.get("confirm"), newest=None if newest is None else int(newest),
                           dry_run=bool(arguments.get("dry_run")), shown=_names(arguments))  # fmt: skip


def _backup(engine: Engine, arguments: Arguments) -> Steps[dict[str, Any]]:
    if arguments.get("dry_run"):
        return plan_backup(engine.keeper)
    if engine.backup_by_hand:
        raise Busy("a backup is being made already", hint="heirloom backup status tells when it is done")
    engine.begin_backup_by_hand()  # two at once would take each other's staging away; this one copies what is missing
    try:
        report: dict[str, Any] = yield from backup_steps(engine.keeper, recheck=True)  # what `verify --backup` named is mended
        return report
    finally:
        engine.end_backup_by_hand()


def _drill(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    """Want a drill; how it ended is an event after number `after`."""
    return engine.drill.ask(arguments.get("into"))


# --- the queue ----------------------------------------------------------------------------------------------------


def _pause(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    if arguments.get("dry_run"):
        return {"state": "paused", "paused": True}
    with engine.keeper.ledger.transaction():
        engine.keeper.ledger.set_meta("paused", "1")
        engine.keeper.ledger.event("queue.paused", "queue")
    engine.runner.stop_current("paused")
    return {"state": "paused", "paused": True}


def _resume(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    if arguments.get("dry_run"):
        return {"state": "running", "paused": False}
    with engine.keeper.ledger.transaction():
        engine.keeper.ledger.set_meta("paused", "0")
        engine.keeper.ledger.event("queue.resumed", "queue")
    return {"state": "running", "paused": False}


def _cancel(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    job = find_job(engine.keeper.ledger, int(arguments["job"]))
    if job.state in ("done", "cancelled", "committing", "quarantined"):
        raise CheckFailed(f"job {job.id} is {job.state}; there is nothing to cancel", subject=f"job {job.id}",
                          hint="heirloom queue")  # fmt: skip
    result = {"job": job.id, "state": "cancelled", "paused": engine.runner.paused}
    if arguments.get("dry_run"):
        return result
    if engine.runner.current == job.id:
        engine.runner.stop_current("cancelled")
    # Recorded at once, also while its child still stops: a cancellation that was acknowledged outlives the daemon.
    with engine.keeper.ledger.transaction():
        set_job(engine.keeper.ledger, job.id, "cancelled", "cancelled by a person")
    return result


def _retry(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    """Queue a job again. A parked or held one with a frozen plan goes on where it stopped; others start afresh."""
    ledger = engine.keeper.ledger
    job = find_job(ledger, int(arguments["job"]))
    if job.state not in ("parked", "failed", "held", "cancelled", "quarantined"):
        raise CheckFailed(f"job {job.id} is {job.state}; there is nothing to try again", subject=f"job {job.id}",
                          hint="heirloom queue")  # fmt: skip
    goes_on = job.state in ("parked", "held") and "train" in job.plan
    state = "training" if goes_on else "queued"
    if arguments.get("dry_run"):
        number = None if job.state == "quarantined" else job.id
        return {"job": number, "state": state, "paused": engine.runner.paused}
    with ledger.transaction():
        if job.state == "quarantined":
            number = add_job(ledger, kind=job.kind, stage=job.stage, line=job.line, slug=job.slug, files=job.files,
                             request={**job.request, "origin": "retry"}, base_id=job.base_id)  # fmt: skip
            return {"job": number, "state": "queued", "paused": engine.runner.paused}
        # Whoever retries a job that waited for one before it wants it trained on the tip as it is.
        request = {key: value for key, value in job.request.items() if key != "after"}
        if goes_on:
            set_job(ledger, job.id, state, "tried again by a person", attempts=0)
        else:
            set_job(ledger, job.id, state, "tried again by a person", attempts=0, plan={}, progress=0, request=request,
                    output_id=None)  # fmt: skip
    return {"job": job.id, "state": state, "paused": engine.runner.paused}


def _move(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    """Put a queued job at place N (1: next)."""
    ledger = engine.keeper.ledger
    queued = jobs_in(ledger, "queued")
    number, place = int(arguments["job"]), int(arguments["to"])
    job = find_job(ledger, number)
    if job.state != "queued":
        raise CheckFailed(f"job {number} is {job.state}; only queued jobs can be moved", subject=f"job {number}",
                          hint="heirloom queue")  # fmt: skip
    if place < 1:
        raise UsageError(f"--to {place}: places are counted from 1", hint=f"heirloom queue move {number} --to 1")
    order = [item for item in queued if item.id != number]
    place = min(place, len(queued))
    order.insert(place - 1, job)
    result = {"job": number, "state": "queued", "place": place, "paused": engine.runner.paused}
    if arguments.get("dry_run"):
        return result
    with ledger.transaction():
        first = min(item.position for item in queued)
        for position, item in enumerate(order, start=first):
            ledger.run("UPDATE jobs SET position = ? WHERE id = ?", (position, item.id))
        ledger.event("queue.moved", f"job {number}", to=place)
    return result


# --- data ---------------------------------------------------------------------------------------------------------


def _register(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    """Begin to take copies of files; their verdicts are in the ledger when the reader is done."""
    drops = []
    options = {"description": str(arguments.get("description") or ""), "queue": bool(arguments.get("queue")),
               "again": True}  # fmt: skip
    if arguments.get("untouchable"):
        options |= {"untouchable": True, "queue": False}
    for text in arguments["paths"]:
        path = Path(text)
        if not path.is_absolute() or not path.is_file() or path.is_symlink():
            raise NotFound(f"{text} is not a regular file", subject=str(text), hint="heirloom register FILE")
        named = {**options, "dropped_as": safe_name(path.name)}
        drops.append(claim(engine.keeper, path, origin="register", move=False, forced_kind=arguments.get("kind"),
                           options=named))  # fmt: skip
    return {"drops": drops}


def _rebuild_index(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    if arguments.get("dry_run"):
        documents, sizes = current_documents(engine.keeper), engine.keeper.settings.index
        lengths = [Path(item["path"]).stat().st_size for item in documents]
        chunks = sum(estimate_chunks(length, sizes.chunk_size, sizes.overlap) for length in lengths)
        return {"job": None, "documents": len(documents), "bytes": sum(lengths), "chunks": chunks}
    with engine.keeper.ledger.transaction():
        return {"job": queue_index(engine.keeper)}


# --- plans --------------------------------------------------------------------------------------------------------


def _line_of_plan(keeper: Keeper, base: Version, asked: str | None, slug: str) -> str:
    """A plan on a tip goes on with its line; on anything else it gets a line of its own."""
    active: dict[int, str] = {}
    for name, version in tips(keeper.ledger).items():
        if version.id not in active or name in (version.line, "policy"):
            active[version.id] = name
    if asked:
        tip = line_tip(keeper.ledger, asked)
        if tip is not None and tip.id != base.id:
            raise CheckFailed(f"the tip of {asked} is {tip.name}, not {base.name}", subject=asked,
                              hint=f"--base {tip.name}, or another --line")  # fmt: skip
        return slugify(asked)
    if base.id in active:
        return active[base.id]
    free, number = slug, 1
    while line_tip(keeper.ledger, free) is not None:
        number += 1
        free = f"{slug}_{number}"
    return free


def _one_stage(files: list[StoredFile]) -> str:
    stages = {file.kind for file in files}
    if not files or len(stages) > 1 or not stages <= {"pretrain", "sft"}:
        shown = ", ".join(f"{file.name} ({file.kind})" for file in files) or "nothing"
        raise UsageError(f"one plan trains files of one kind, pretrain or sft; given: {shown}",
                         hint="plan each kind by itself")  # fmt: skip
    return stages.pop()


def _plan(engine: Engine, arguments: Arguments) -> Steps[dict[str, Any]]:
    """Judge a plan and, unless `dry_run`, queue it. Nothing is queued while a check fails."""
    keeper = engine.keeper
    base = resolve_base(keeper, str(arguments["base"]))
    files = [find_file(keeper.ledger, str(item)) for item in arguments["files"]]
    stage = _one_stage(files)
    wanted, slug = split_output(str(arguments["output"]))
    line = _line_of_plan(keeper, base, arguments.get("line"), slug)
    request = {key: arguments[key] for key in ("allow_repeat", "iterations") if arguments.get(key)}
    request |= {"recipe": str(arguments.get("recipe") or ""), "origin": "plan"}
    draft = Job(0, "train", "planned", 0, stage, line, base.id, slug, wanted, None, request, {}, "", 0, 0, "", "",
                tuple(file.sha256 for file in files))  # fmt: skip
    recipe = recipe_for(keeper, stage, request["recipe"], base, {})
    target = Target(draft, base, fork_recipe(recipe), tuple(files))
    verdict = preflight((yield from fact_steps(keeper, target, wanted=wanted)))
    queued = [job for file in files if (job := queued_with_file(keeper.ledger, file.sha256)) is not None]
    result = {
        "base": base.name, "output": arguments["output"], "line": line, "recipe": recipe.name,
        "data": [{"file": file.name, "sha256": file.sha256, "examples": file.examples, "tokens": file.tokens_approx}
                 for file in files],
        "estimate": estimate(keeper, target), "checks": verdict.as_list(), "ok": verdict.ok, "job": None,
    }  # fmt: skip
    if arguments.get("dry_run") or not verdict.ok:
        return result
    if queued and not arguments.get("allow_repeat"):
        raise Duplicate(f"these bytes are already in job {queued[0].id} ({queued[0].state})", subject=files[0].name,
                        hint=f"heirloom queue; heirloom queue cancel {queued[0].id}")  # fmt: skip
    with keeper.ledger.transaction():
        result["job"] = add_job(keeper.ledger, kind="train", stage=stage, line=line, slug=slug, wanted_id=wanted,
                                files=[file.sha256 for file in files], request=request, base_id=base.id)  # fmt: skip
    return result


def _regrow(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    return regrow(engine.keeper, str(arguments["without"]), str(arguments.get("line") or "policy"),
                  dry_run=bool(arguments.get("dry_run")))  # fmt: skip


OPERATIONS: dict[str, Callable[[Engine, Arguments], dict[str, Any] | Steps[dict[str, Any]]]] = {
    "rollback": _rollback,
    "delete": _delete,
    "restore": _restore,
    "purge": _purge,
    "retention.apply": _retention_apply,
    "backup.run": _backup,
    "backup.drill": _drill,
    "queue.pause": _pause,
    "queue.resume": _resume,
    "queue.cancel": _cancel,
    "queue.retry": _retry,
    "queue.move": _move,
    "register": _register,
    "index.rebuild": _rebuild_index,
    "regrow": _regrow,
    "plan": _plan,
    "train": train,
}
