"""`heirloom verify VERSION --rebuild`: train a version once more from its lineage and compare the bytes (law 7).

    parent and data proven intact -> the data prepared again -> the frozen list compared -> trained by the real child in a
    scratch folder of its own -> every file compared with what was sealed -> the scratch folder removed

Reads the home and writes only the scratch folder, so it needs no lock and may run beside the daemon. A difference is
damage only where the bits are promised: on the same torch and the same processor. Not here: restoring anything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from daemon.facts import check_base
from daemon.inputs import placed
from daemon.planning import prepare_request, replay_sources, sealed_optimizer
from daemon.targets import Target
from guard.durable import make_dir, remove_tree, write_json
from guard.errors import CheckFailed, Damage, EnvironmentFault, NotFound
from guard.store.files import SIDECARS, StoredFile, get_file, original_hashes
from guard.store.jobs import Job
from guard.store.keeper import Keeper
from guard.store.learnt import write_known
from guard.store.sums import drain, listed_problem_steps
from guard.store.versions import Version, ancestors, named_version, version_by_id
from guard.weights import weights_sha256
from trainer.hardware import hardware_facts, library_versions
from trainer.recipe import parse_sealed

__all__ = ["remake", "run_child"]

_NOT_COMPARED = frozenset({"metrics.jsonl"})
"""Holds seconds and speeds of the run."""

Child = Callable[[Path], None]


def run_child(folder: Path) -> None:
    """Do the job of a staging folder in a process of its own. Raises EnvironmentFault or CheckFailed with its words."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    with (folder / "child.log").open("wb") as log:
        done = subprocess.run([sys.executable, "-m", "trainer.child", str(folder)], stdout=log, stderr=log, env=environment,
                              check=False)  # fmt: skip
    if done.returncode == 0:
        return
    try:
        fault = json.loads((folder / "error.json").read_text("utf-8"))
    except (OSError, ValueError):
        fault = {"message": f"the child ended with status {done.returncode}"}
    kind = EnvironmentFault if fault.get("fault") == "environment" else CheckFailed
    raise kind(f"the version could not be made again: {fault['message']}", subject=str(folder), hint="heirloom doctor")


def remake(keeper: Keeper, text: str, *, child: Child = run_child) -> dict[str, Any]:
    """Make a version again; returns version, verdict (identical, not comparable, different), reason, files {name: same}.

    Raises NotFound, Damage when the parent, the data or the sealed files are not what they were, CheckFailed for a
    record that does not say enough, EnvironmentFault when the machine could not do it.
    """
    version = named_version(keeper.ledger, text)
    present, intact, problem = check_base(keeper, version)
    if not (present and intact):
        raise Damage(f"{version.name} itself is damaged: {problem}", subject=version.name,
                     hint=f"heirloom restore {version.name}")  # fmt: skip
    scratch = keeper.home.staging / f"remake-{version.name}-{os.getpid()}"
    remove_tree(scratch)
    make_dir(scratch)
    try:
        again = _base if version.record.get("stage") == "base" else _fork
        made = again(keeper, version, scratch, child)
    finally:
        remove_tree(scratch)
    return _compare(version, made)


def _base(keeper: Keeper, version: Version, scratch: Path, child: Child) -> dict[str, Any]:
    record = version.record
    write_json(scratch / "job.json", {
        **{key: record[key] for key in ("tokenization", "recipe", "recipe_hash", "size", "seed", "block_size", "threads",
                                        "dtype", "template_hash", "tokenizer_hash")},
        "schema": 1, "job": 0, "task": "base", "stage": "base", "objective": "none", "staging": str(scratch),
        "tokenizer_folder": str(keeper.home.models / version.name),
    })  # fmt: skip
    child(scratch)
    return json.loads((scratch / "result.json").read_text("utf-8"))


def _fork(keeper: Keeper, version: Version, scratch: Path, child: Child) -> dict[str, Any]:
    record = version.record
    if "planned" not in record:
        raise CheckFailed(f"{version.name} was sealed by an earlier release and does not say how its data was chosen",
                          subject=version.name, hint="heirloom verify compares its hashes")  # fmt: skip
    base = _intact_parent(keeper, version)
    request = _prepare_request(keeper, version, base, scratch, child)
    write_json(scratch / "job.json", request)
    child(scratch)
    prepared = json.loads((scratch / "prepared.json").read_text("utf-8"))
    if prepared["selection_sha256"] != record["selection_sha256"]:
        # Nothing was trained from another list: the answer is known already.
        return {"differs": "the data gives another list of examples than the one that was trained", "files": {},
                "library_versions": library_versions(), "hardware": hardware_facts()}  # fmt: skip
    write_json(scratch / "job.json", _train_request(keeper, version, base, request, prepared))
    child(scratch)
    return json.loads((scratch / "result.json").read_text("utf-8"))


def _intact_parent(keeper: Keeper, version: Version) -> Version:
    if version.parent_id is None:
        raise NotFound(f"{version.name} has no parent here", subject=version.name, hint="heirloom lineage")
    base = version_by_id(keeper.ledger, version.parent_id)
    present, intact, problem = check_base(keeper, base)
    if not (present and intact):
        raise Damage(f"its parent {base.name} is not intact: {problem}", subject=base.name,
                     hint=f"heirloom restore {base.name}, or make that one again first")  # fmt: skip
    return base


def _originals(keeper: Keeper, version: Version) -> tuple[StoredFile, ...]:
    """The files a version was trained from, read and hashed."""
    files = []
    for item in version.record["data"]:
        file = get_file(keeper.ledger, item["sha256"])
        folder = keeper.home.files / item["sha256"]
        problems = drain(listed_problem_steps(folder, original_hashes(file), frozenset(SIDECARS))) \
            if file else [("", "is not known any more")]  # fmt: skip
        if file is None or problems:
            raise Damage(f"the original {item['file']} {problems[0][1]}", subject=item["sha256"],
                         hint="drop the same file again, or copy it back from the vault")  # fmt: skip
        files.append(file)
    return tuple(files)


def _prepare_request(keeper: Keeper, version: Version, base: Version, scratch: Path, child: Child) -> dict[str, Any]:
    """The request of the original preparation, with everything that decided about the list taken from the record."""
    record, planned = version.record, version.record["planned"]
    request = {key: planned[key] for key in ("allow_repeat", "iterations") if planned.get(key)}
    request["objective"] = record["objective"]
    job = Job(0, "train", "training", 0, record["stage"], version.line, base.id, "remake", None, None, request, {}, "", 0, 0,
              "", "", tuple(item["sha256"] for item in record["data"]))  # fmt: skip
    known = scratch / "known.fp"
    target = Target(job, base, parse_sealed(record["recipe"]), _originals(keeper, version))
    write_known(keeper, [keeper.home.files / file.sha256 for file in target.files], base.id, record["objective"], known)
    sources = _sources(keeper, base, planned["replay_sources"], scratch, child)
    asked = prepare_request(keeper, target, known, planned.get("untouchable_sets") or ())
    return {
        **asked, "job": 0, "staging": str(scratch), "recipe": record["recipe"],
        "device": "cpu",  # the micro-batch stands in the record: no GPU of today is tried, or missed
        "seed": record["seed"], "max_steps": planned["max_steps"], "shard_size_tokens": planned["shard_size_tokens"],
        "validation_fraction": planned["validation_fraction"], "threads": record["threads"],
        "folder_stages": bool(planned.get("folder_stages")),
        "replay": {**asked["replay"], "fraction": planned["replay_fraction"], "datasets": sources,
                   "rules": planned.get("replay_rules", 1)},
    }  # fmt: skip


def _sources(keeper: Keeper, base: Version, wanted: list[str], scratch: Path, child: Child) -> list[dict[str, Any]]:
    """The very datasets that replay was drawn from; one that was pruned since is prepared again from its originals."""
    # A plan looks at some of a long ancestry; a plan of an earlier release looked at all of it.
    candidates = [*replay_sources(keeper, base, wanted), *replay_sources(keeper, base)]
    found = {Path(item["path"]).name: item for item in candidates}
    family = [version_by_id(keeper.ledger, number) for number in ancestors(keeper.ledger, base.id)]
    for dataset in wanted:
        if dataset not in found:
            owner = next((item for item in family if (item.record.get("dataset") or {}).get("id") == dataset), None)
            if owner is None:
                raise Damage(f"the dataset {dataset[:12]} that was replayed belongs to no ancestor", subject=dataset,
                             hint="heirloom verify --all")  # fmt: skip
            found[dataset] = _prepared_again(keeper, owner, scratch / f"again-{dataset}", child)
    return [found[dataset] for dataset in wanted]


def _prepared_again(keeper: Keeper, owner: Version, folder: Path, child: Child) -> dict[str, Any]:
    make_dir(folder)
    job = Job(0, "train", "training", 0, owner.record["stage"], owner.line, None, "remake", None, None, {}, {}, "", 0, 0, "",
              "", ())  # fmt: skip
    target = Target(job, owner, parse_sealed(owner.record["recipe"]), _originals(keeper, owner))
    request = prepare_request(keeper, target, folder / "known.fp", ()) | {
        "job": 0, "staging": str(folder), "replay": {"fraction": 0.0, "datasets": []}, "device": "cpu",
        "shard_size_tokens": owner.record["planned"]["shard_size_tokens"],
        "validation_fraction": owner.record["planned"]["validation_fraction"]}  # fmt: skip
    request.pop("known_fps")
    write_json(folder / "job.json", request)
    child(folder)
    final = folder / owner.record["dataset"]["id"]
    (folder / "prepare").rename(final)
    order = [item["sha256"] for item in json.loads((final / "dataset_metadata.json").read_text("utf-8"))["files"]]
    rows = keeper.ledger.rows("SELECT sha256, bitmap FROM learnt WHERE version_id = ? ORDER BY sha256", (owner.id,))
    return {"path": str(final), "known": [[order.index(row["sha256"]), row["bitmap"]] for row in rows if row["sha256"] in order]}


def _train_request(keeper: Keeper, version: Version, base: Version, request: Mapping[str, Any],
                   prepared: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
    """The frozen plan once more. Nothing is judged, and nothing that is judged has any part in the weights."""
    record = version.record
    path = Path(prepared["dataset_path"])
    return {
        **{key: request[key] for key in ("schema", "job", "stage", "staging", "tokenization", "tokenizer_folder", "files",
                                         "block_size", "recipe", "seed", "nice")},
        **{key: record[key] for key in ("objective", "threads", "dtype", "micro_sequences", "recipe_hash")},
        # A version sealed by an earlier release names neither: it was trained uncompiled, on the processor.
        "compile": record.get("compile", False), "device": record.get("device", "cpu"),
        "lanes": record.get("lanes", 1),  # and one process: how many there were is no part of the bits
        "task": "train", "dataset": {"id": prepared["dataset_id"], "path": str(path)},
        "base": {"name": base.name, "id": base.id, "path": str(keeper.home.models / base.name),
                 "weights_sha256": weights_sha256(base.record),
                 **(sealed_optimizer(base, parse_sealed(record["recipe"]), record["objective"])
                    if record.get("optimizer") == "parent's" else {})},
        "inputs": placed(keeper, record.get("inputs") or []),
        "steps": record["metrics"]["steps"] + record["metrics"].get("steps_skipped", 0),
        "selection_sha256": record["selection_sha256"],
        "consumed_sha256": record["consumed_sha256"], "evaluation": [],
        "snapshot": {"every_steps": None, "every_seconds": 0}, "output": {"id": version.id, "name": version.name},
    }  # fmt: skip


def _compare(version: Version, made: Mapping[str, Any]) -> dict[str, Any]:
    record = version.record
    names = sorted((record["files"].keys() | made["files"].keys()) - _NOT_COMPARED)
    same = {name: record["files"].get(name) == made["files"].get(name) for name in names if made["files"]}
    wrong = [name for name, equal in same.items() if not equal]
    if made["files"] and not wrong:
        return {"version": version.name, "verdict": "identical", "reason": "", "files": same}
    reason = made.get("differs") or f"{', '.join(wrong)} came out different"
    other = _other_surroundings(record, made)
    verdict = "not comparable" if other else "different"
    return {"version": version.name, "verdict": verdict, "reason": f"{other}; {reason}" if other else reason, "files": same}


def _other_surroundings(record: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """Why other bits are no damage here; "" when the very same ones are promised."""
    if record.get("exactness") == "DECLARED":
        return f"its bits were only declared: {record.get('exactness_reason')}"
    for key, word in (("library_versions", "libraries"), ("hardware", "processor")):
        if _essence(record.get(key)) != _essence(made.get(key)):
            return f"other {word} than when it was trained"
    # Of a version that an earlier release sealed, or where nothing was trained again, nobody knows them.
    for key in sorted((record.get("surroundings") or {}) if made.get("surroundings") else {}):
        then, now = record["surroundings"][key], made["surroundings"].get(key)
        if then != now:
            return f"other {key} than when it was trained ({then or 'none'}; now {now or 'none'})"
    return ""


def _essence(facts: Any) -> Any:
    """What decides about bits: versions of libraries, model and instructions of the processor."""
    if not isinstance(facts, dict):
        return facts
    return {key: value for key, value in facts.items() if key not in ("memory_bytes", "load", "cores", "hostname")}
