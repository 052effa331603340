"""The index builder as a process: read job.json, build, leave result.json or error.json, answer with an exit code.

    job.json      {documents: [{sha256, name, path}], previous, out, chunk_size, overlap, dimensions}
    progress.json {phase, done, total}: a hint, replaced in one step and not synced
    result.json   {chunks, documents, embedded_new, reused, skipped: [{name, reason}], note, seconds}
    error.json    {fault: environment | data | bug, error, message, hint}, and exit code 1

It dies with its parent and writes only its job folder and `out`. Nothing of a killed build is used again.
Started as `python -m trainer.retrieval.child JOB_FOLDER`.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path
from typing import Any

import orjson

from guard.durable import publish, write_json
from guard.errors import HeirloomError, UsageError
from guard.failpoints import arm_from_environment
from guard.parent_death import die_with
from trainer.child import EXIT_FAULT, EXIT_OK, fault_of
from trainer.retrieval.build import Document, build_index

__all__ = ["main", "run_job"]


def run_job(folder: Path | str) -> int:
    """Do the job of a folder; returns the exit code and never raises for a fault of the job."""
    folder = Path(folder)
    for name in ("result.json", "error.json"):  # of an earlier attempt: must not be taken for this one's
        (folder / name).unlink(missing_ok=True)
    started = time.monotonic()
    try:
        report = _build(folder, orjson.loads((folder / "job.json").read_bytes()))
        write_json(folder / "result.json", {**report, "seconds": round(time.monotonic() - started, 3)})
    except Exception as error:  # noqa: BLE001 (every fault is told in error.json; the process ends here)
        return _tell_fault(folder, error)
    return EXIT_OK


def _build(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    try:
        documents = [Document(item["sha256"], item["name"], item["path"]) for item in job["documents"]]
        out, previous = job["out"], job["previous"]
        chunk_size, overlap, dimensions = (int(job[key]) for key in ("chunk_size", "overlap", "dimensions"))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder / 'job.json'} is no job of the index builder: {error!r}", cause=error,
                         hint="it was written by another version of Heirloom") from error  # fmt: skip

    def tell(phase: str, done: int, total: int) -> None:
        publish(folder / "progress.json", orjson.dumps({"phase": phase, "done": done, "total": total}))

    return build_index(documents, out, previous=previous, chunk_size=chunk_size, overlap=overlap,
                       dimensions=dimensions, progress=tell)  # fmt: skip


def _tell_fault(folder: Path, error: Exception) -> int:
    traceback.print_exception(error)
    told = {
        "fault": fault_of(error),
        "error": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "hint": error.hint if isinstance(error, HeirloomError) else "the whole story is in child.log beside this file",
    }
    try:
        write_json(folder / "error.json", told)
    except OSError as failed:
        print(f"error.json could not be written either: {failed}", file=sys.stderr)
    return EXIT_FAULT


def main(arguments: list[str]) -> int:
    """The process. Raises SystemExit for wrong words."""
    if len(arguments) != 1:
        sys.exit("usage: python -m trainer.retrieval.child JOB_FOLDER")
    die_with(None, EXIT_FAULT)
    arm_from_environment()
    return run_job(arguments[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
