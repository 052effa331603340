"""The text of a version: everything DESIGN 6 wants in version.json, put together from plan, result and verdict. Pure."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any

from guard.checks.verdict import Verdict
from guard.names import version_name
from guard.weights import input_identity

__all__ = ["base_record", "code_version", "forked_record", "learnt_of", "skipped"]


def code_version() -> str:
    """The version of this program."""
    return metadata.version("heirloom")


def learnt_of(prepared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the plan says the child learns, by file: sha256, count, bitmap over ordinals."""
    return [dict(item) for item in prepared["learnt"]]


def skipped(counts: Mapping[str, int]) -> dict[str, int]:
    """Rows that were not trained, with the reason as key."""
    found = {key: int(counts.get(key, 0)) for key in ("known", "held_out", "untouchable", "repeated", "too_long")}
    # Only where it happened: the template had no words for them.
    return found | ({"inexpressible": int(counts["inexpressible"])} if counts.get("inexpressible") else {})


def _machine(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "code_version": code_version(), "library_versions": result["library_versions"], "hardware": result["hardware"],
        "surroundings": dict(result.get("surroundings") or {}),
        "exactness": result["exactness"], "exactness_reason": result["exactness_reason"],
        "python": platform.python_version(),
    }  # fmt: skip


def _without_paths(row: Mapping[str, Any]) -> dict[str, Any]:
    """A home may be moved: a sealed record names datasets by their id, never by where they lay."""
    return {**row, "dataset": PurePosixPath(str(row.get("dataset", ""))).name}


def _gate(verdict: Verdict, mode: str) -> dict[str, Any]:
    passed = verdict.ok or mode != "enforce"
    return {"verdict": "passed" if verdict.ok else ("failed" if mode == "enforce" else f"failed ({mode})"),
            "mode": mode, "reason": "" if passed else verdict.reason, "checks": verdict.as_list()}  # fmt: skip


def _packing(prepared: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """How documents shared sequences: mode, documents, part used; and why they were fed one by one, where they were."""
    apart = result.get("fed_apart")
    return {**prepared.get("packing", {}), **({"fed_apart": apart} if apart else {})}


def _costs(plan: Mapping[str, Any], result: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What the job was estimated to cost beside what it did; a plan frozen by an earlier release estimated nothing."""
    if not plan.get("estimate"):
        return {}
    actual = {"seconds": seconds, "memory_bytes": result.get("peak_memory_bytes"),
              "tokens_per_second": result["fed_tokens"] / seconds if seconds > 0 else None}  # fmt: skip
    return {"estimate": dict(plan["estimate"]), "actual": actual}


def forked_record(
    plan: Mapping[str, Any], result: Mapping[str, Any], base: Mapping[str, Any], gate: Verdict, *,
    mode: str, line: str, created: str, files: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """version.json of a trained child. `files`: name, sha256, kind of the originals."""
    prepared = plan["prepared"]
    learnt = {item["sha256"]: item for item in prepared["learnt"]}
    data = [
        {"file": file["name"], "sha256": file["sha256"], "kind": file["kind"],
         "examples": learnt.get(file["sha256"], {}).get("count", 0),
         "tokens": learnt.get(file["sha256"], {}).get("tokens", 0),
         "bitmap": learnt.get(file["sha256"], {}).get("bitmap")}
        for file in files
    ]  # fmt: skip
    if len(data) == 1 and not data[0]["tokens"]:
        data[0]["tokens"] = int(prepared["tokens"])
    seconds = float(result["wall_seconds"])
    return {
        "schema": 1, "name": plan["output"]["name"], "id": plan["output"]["id"], "parent": plan["base"]["name"],
        "inputs": input_identity(plan.get("inputs") or ()), "line": line, "role": plan.get("role", "policy"), "created": created,
        "stage": plan["stage"],
        "objective": plan["objective"], "data": data, "skipped": skipped(prepared["counts"]),
        "replay": {"tokens": result["replay_tokens"], "datasets": prepared.get("replay_datasets", [])},
        "planned": plan.get("planned", {}), "packing": _packing(prepared, result),
        "dataset": {"id": plan["dataset"]["id"]}, "selection_sha256": plan["selection_sha256"],
        "consumed_sha256": result["consumed_sha256"], "anomalies": list(result.get("anomalies") or ()),
        "optimizer": "parent's" if result.get("parent_optimizer_sha256") else "fresh",
        "recipe": plan["recipe"], "recipe_hash": plan["recipe_hash"],
        "seed": plan["seed"], "threads": plan["threads"], "dtype": plan["dtype"],
        "micro_sequences": plan["micro_sequences"], "lanes": plan.get("lanes", 1), "processes": result.get("processes", 1),
        "compile": plan.get("compile", False), "device": plan.get("device", "cpu"),
        "numbers_from": plan.get("numbers_from", "table"), "block_size": plan["block_size"],
        "tokenization": plan["tokenization"], "tokenizer_hash": base["tokenizer_hash"],
        "template": base.get("template", "mypt"), "template_hash": base["template_hash"], "size": base.get("size"),
        "metrics": {
            "final_loss": result["final_loss"], "steps": result["steps_executed"],
            "steps_skipped": len(result.get("steps_skipped") or ()), "tokens": prepared["tokens"],
            "loss_tokens": prepared["loss_tokens"], "tokens_processed": result["fed_tokens"], "wall_seconds": seconds,
            "tokens_per_second": result["fed_tokens"] / seconds if seconds > 0 else None,
            "evaluation": [_without_paths(row) for row in result["evaluation"]], "resumes": result["resumes"],
        },
        **_costs(plan, result, seconds),
        "generation": result["generation"], "gate": _gate(gate, mode), "files": result["files"],
        **_machine(result),
    }  # fmt: skip


def base_record(
    job: Mapping[str, Any], result: Mapping[str, Any], *, line: str, created: str
) -> dict[str, Any]:
    """version.json of a base made from a recipe."""
    number, slug = job["output"]["id"], job["output"]["slug"]
    return {
        "schema": 1, "name": version_name(number, slug), "id": number, "parent": None, "inputs": [], "line": line,
        "role": "base", "created": created, "stage": "base", "objective": "none", "data": [], "skipped": {},
        "replay": {"tokens": 0, "datasets": []}, "dataset": None, "recipe": job["recipe"], "recipe_hash": job["recipe_hash"],
        "seed": job["seed"], "threads": job["threads"], "dtype": job["dtype"], "block_size": job["block_size"],
        "tokenization": job["tokenization"], "tokenizer_hash": job["tokenizer_hash"],
        "template": job.get("template", "mypt"), "template_hash": job["template_hash"], "size": job["size"],
        "metrics": {"final_loss": None, "steps": 0, "tokens": 0, "loss_tokens": 0, "parameters": result["parameters"]},
        "gate": {"verdict": "not applicable (base)", "mode": "off", "reason": "", "checks": []},
        "files": result["files"], **_machine(result),
    }  # fmt: skip
