"""Facts for preflight: every byte of base and data is read, and ledger, views and disk are compared.

Read in slices, since the daemon has one thread. Facts are only gathered here; the verdict is `guard/checks/preflight.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from daemon.costs import backup_bytes, job_cost, needed_bytes, tokens_approx
from daemon.inputs import adapter_base_of, input_problem, input_versions, objective_of
from daemon.targets import Target, base_of
from guard.checks.preflight import DataFact, Facts
from guard.durable import sha256_bytes, sha256_file
from guard.errors import HeirloomError
from guard.names import parse_version_number
from guard.settings import TrainingSettings
from guard.splits import val_keys
from guard.steps import Steps, drain
from guard.store import views
from guard.store.birth import hash_folder_steps, sums_text
from guard.store.files import StoredFile, stored_path
from guard.store.jobs import jobs_in
from guard.store.keeper import Keeper
from guard.store.known import sidecar_bytes
from guard.store.learnt import novelty_steps
from guard.store.proven import still_proven
from guard.store.sums import hash_steps
from guard.store.vault_room import vault_free_bytes
from guard.store.versions import GONE, Version, number_is_free
from trainer.hardware import has_cuda, usable_cores, usable_memory
from trainer.numbers import choose_device

__all__ = ["check_base", "fact_steps", "gather_facts", "parts_sha256"]

_THREADS_PER_CORE, _THREADS_ANYWHERE = 4, 16
"""Of all processes of a job together; more are held. A small machine may be asked for sixteen whatever it has."""


def _check_base(keeper: Keeper, base: Version) -> Steps[tuple[bool, bool, str]]:
    """(present, intact, problem) of a base, and of the one it stands on where it is an adapter."""
    own = yield from _check_folder(keeper, base)
    under = adapter_base_of(keeper, base)
    if under is None or not (own[0] and own[1]):
        return own
    present, intact, problem = yield from _check_base(keeper, under)
    return present, intact, "" if present and intact else f"{_adapter_of(under)}: {problem}"


def _adapter_of(under: Version) -> str:
    return f"it is an adapter of {under.name}"


def _check_folder(keeper: Keeper, base: Version) -> Steps[tuple[bool, bool, str]]:
    """The same of its own folder alone, by reading every byte of it, unless its birth did so a moment ago."""
    folder = keeper.home.models / base.name
    if not folder.is_dir() or base.state not in ("sealed", "quarantined"):
        return False, False, f"it is {base.state}" if base.state in GONE else "its folder is missing"
    if still_proven(keeper, folder, base.sums_sha256):
        return True, True, ""
    try:
        sums = (folder / "SHA256SUMS").read_text("utf-8")
        if sha256_file(folder / "SHA256SUMS") != base.sums_sha256:
            return True, False, "SHA256SUMS is not the one that was recorded"
        found = sums_text((yield from hash_folder_steps(folder)))
    except (OSError, HeirloomError, UnicodeDecodeError) as error:
        return True, False, str(error)
    if found != sums:
        wrong = sorted({line.split("  ", 1)[-1] for line in set(found.splitlines()) ^ set(sums.splitlines())})
        return True, False, f"changed or missing: {', '.join(wrong[:5])}"
    return True, True, ""


def _check_inputs(keeper: Keeper, target: Target) -> Steps[dict[str, Any]]:
    """What preflight is told of the versions a job loads besides its parent."""
    versions = input_versions(keeper, target)
    problem, hint = input_problem(target)
    for version in {item.id: item for _role, item in versions if item.id != target.base.id}.values():
        present, intact, reason = yield from _check_base(keeper, version)
        if not (present and intact) and not problem:
            problem, hint = f"{version.name}: {reason}", f"heirloom verify {version.name}, then heirloom restore {version.name}"
    return {"inputs": tuple(version.name for _role, version in versions), "inputs_problem": problem, "inputs_hint": hint}


def check_base(keeper: Keeper, base: Version) -> tuple[bool, bool, str]:
    """(present, intact, problem) of a base, all of it read now."""
    return drain(_check_base(keeper, base))


def _data_facts(keeper: Keeper, files: Sequence[StoredFile]) -> Steps[list[DataFact]]:
    facts = []
    for file in files:
        path = stored_path(keeper.home, file)
        found = None
        if path.is_file():
            found = yield from hash_steps(path)
        elif path.is_dir() and file.record.get("prepared"):
            found = parts_sha256((yield from hash_folder_steps(path, skip=())))
        facts.append(DataFact(file.name, file.sha256, found))
    return facts


def parts_sha256(parts: Mapping[str, str]) -> str:
    """The identity of a prepared dataset folder: the hash over the sorted hashes of its files."""
    return sha256_bytes(sums_text(parts).encode())


def gather_facts(
    keeper: Keeper, target: Target, *, prepared: Mapping[str, Any] | None = None, wanted: int | None = None
) -> Facts:
    """Everything preflight judges from. `prepared` is None for an estimate before the data is prepared."""
    return drain(fact_steps(keeper, target, prepared=prepared, wanted=wanted))


def fact_steps(
    keeper: Keeper, target: Target, *, prepared: Mapping[str, Any] | None = None, wanted: int | None = None
) -> Steps[Facts]:
    """`gather_facts` in slices."""
    base, job = target.base, target.job
    present, intact, problem = yield from _check_base(keeper, base)
    under = adapter_base_of(keeper, base)
    below = under.name if under is not None and problem.startswith(_adapter_of(under)) else ""
    sound = present and intact  # only then do its files say what shape it has
    data = yield from _data_facts(keeper, target.files)
    intended = job.base_id is not None or base_of(keeper, job) == base
    tokens = int(prepared["tokens"]) if prepared else tokens_approx(target)
    others = [f"job {item.id} ({item.state})" for item in jobs_in(keeper.ledger, "preparing", "training", "committing")
              if item.line == job.line and item.id != job.id and item.kind == "train"]  # fmt: skip
    return Facts(
        data=data, base=base.name, base_present=present, base_intact=intact,
        base_is_intended=intended, base_problem=problem or "the line's tip has moved", base_below=below,
        examples_new=(yield from _examples_new(keeper, target, prepared)),
        examples_too_long=int(prepared["counts"].get("too_long", 0)) if prepared else 0,
        examples_known=int(prepared["counts"].get("known", 0)) if prepared else 0,
        examples_untouchable=int(prepared["counts"].get("untouchable", 0)) if prepared else 0,
        repeat_allowed=bool(job.request.get("allow_repeat")),
        free_bytes=keeper.home.free_bytes(), needed_bytes=needed_bytes(keeper, target, tokens) if sound else None,
        vault_free_bytes=vault_free_bytes(keeper), vault_needed_bytes=backup_bytes(keeper, target, tokens) if sound else None,
        reserve_bytes=int(keeper.settings.disk.reserve_gb * 1e9), **_machine_facts(keeper, target, tokens, sound=sound),
        unfinished_jobs=others, inconsistencies=_inconsistencies(keeper),
        tokenizer_base=base.record.get("tokenizer_hash"),
        tokenizer_data=prepared.get("tokenizer_hash") if prepared else None,
        template_base=base.record.get("template_hash"),
        template_data=prepared.get("template_hash") if prepared else None,
        mask_ratio=prepared.get("mask_ratio") if prepared else None, mask_needed=job.stage == "sft",
        output_problem=_output_problem(keeper, wanted, job.id), **(yield from _check_inputs(keeper, target)),
    )  # fmt: skip


def _machine_facts(keeper: Keeper, target: Target, tokens: int, *, sound: bool) -> dict[str, Any]:
    """Memory and device, as `Facts` wants them; what cannot be found out stays away, which is a refusal."""
    device = choose_device(keeper.settings.training.device)
    # A GPU is this home's alone as far as we can see: training has the lease, and one job runs at a time.
    problem = "no NVIDIA driver, or a torch without CUDA; training.device: auto takes the CPU"
    problem = problem if device == "cuda" and not has_cuda() else _too_many(keeper.settings.training, usable_cores())
    facts: dict[str, Any] = {
        "device": "CPU" if device == "cpu" else device, "device_free": None if problem else True, "device_problem": problem,
    }  # fmt: skip
    with contextlib.suppress(OSError, ValueError, KeyError):
        whole, facts["memory_free"] = usable_memory()
        facts["memory_allowed"] = int(keeper.settings.training.memory_mb * (1 << 20)) or int(0.9 * whole)
    if sound:
        facts["memory_needed"] = job_cost(keeper, target, tokens).estimate.memory_bytes
    return facts


def _too_many(asked: TrainingSettings, cores: int) -> str:
    """A slip of the hand in the numbers of threads and processes brings a machine to a stand: it is held instead."""
    busy = asked.processes * max(1, asked.threads)
    if busy <= max(_THREADS_ANYWHERE, _THREADS_PER_CORE * cores) or asked.launch:
        return ""
    return (f"training.processes = {asked.processes} and training.threads = {asked.threads} are far more than its {cores}"
            f" core{'' if cores == 1 else 's'} can serve; heirloom config show --origin says where they stand")  # fmt: skip


def _output_problem(keeper: Keeper, wanted: int | None, job: int) -> str:
    if wanted is None or number_is_free(keeper, wanted, job):
        return ""
    return f"the number {wanted} was used before or lies below one that was"


def _inconsistencies(keeper: Keeper) -> list[str]:
    """Where ledger and disk disagree. A stale view is made again first and never believed (law 8)."""
    problems = []
    if views.outdated(keeper):
        views.refresh(keeper)
        problems = views.stale(keeper)
    known = {row[0] for row in keeper.ledger.rows("SELECT name FROM versions WHERE state IN ('sealed', 'quarantined')")}
    on_disk = {entry.name for entry in os.scandir(keeper.home.models)
               if entry.is_dir() and parse_version_number(entry.name) is not None}  # fmt: skip
    problems += [f"{name} is in the ledger and not in models/" for name in sorted(known - on_disk)]
    problems += [f"models/{name} is not in the ledger" for name in sorted(on_disk - known)]
    return problems


def _examples_new(keeper: Keeper, target: Target, prepared: Mapping[str, Any] | None) -> Steps[int]:
    repeat = bool(target.job.request.get("allow_repeat"))
    if prepared is not None:
        counts = prepared["counts"]
        return int(counts["new"]) + int(counts.get("known_again", 0)) if prepared["steps"] else 0
    sidecars = [sidecar_bytes(keeper.home.files / file.sha256) for file in target.files]
    # Of several files together: what one of them keeps for judging is taken for held out in all, which is an estimate.
    apart = b"".join(val_keys(file.record, keys) for file, keys in zip(target.files, sidecars, strict=True))
    novelty = yield from novelty_steps(keeper, b"".join(sidecars), target.base.id, objective_of(target), apart=apart)
    return novelty.new + (novelty.known if repeat else 0)
