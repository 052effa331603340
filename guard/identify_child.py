"""The child that reads dropped files: one JSON request a line on stdin, one JSON answer a line on stdout.

Request: {"id", "path", "name", "forced_kind", "out_folder", "limits"} (the last three may be left out or null); with
"home" the answer says as "novelty" what of the file is new to a line's tip (`guard/store/estimate.py`): the request's "line",
else the one its side file asks for, else the usual one; with
"task": "tails" only the ends of "files" (path and name of each) are looked at, before they are taken, and the answer is
{"id", "tails": for each its problem or ""}.
With "task": "meta" a side file is read before it is taken with its drop; the answer is {"id", "settings", "problem"}.
Where "path" is a folder it is packed into the file "packed" first (`guard/tars.py`), which is what is read; the answer says
as "folder" how many "files" went in, what was "left_out", and the "mark" of what was packed.
With "sync" the bytes of a sound drop and what was found are sealed and made durable; the answer says as "synced" whether
they are.
"side" and "reading" may go with an identification: the side file that was taken too, and a recorded way to read rows.
With "task": "near" request and answer are those of `guard/near_task.py`.
Answer: {"id", ...the identity, "why": the text for a person}
or {"id", "fault": "environment" | "bug", "error", "errno", "message"}.
It lives for many files and imports nothing heavy. It dies with its parent and protects nothing by itself: the
supervisor watches its memory and its time, and starts another. Every exception ends in an answer, not in a dead
child. JSON here is ASCII with escapes, so that file names that are not UTF-8 travel both ways.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

from guard.checks.columns import Reading
from guard.checks.identify import identify
from guard.checks.identity import Identity, Limits
from guard.checks.kinds import TRAINABLE_KINDS, stage_of
from guard.checks.tail import tail_problem
from guard.checks.why import why_text
from guard.durable import fsync_dir, seal_file
from guard.errors import DataFault, HeirloomError, UsageError, is_environment
from guard.parent_death import die_with

__all__ = ["answer", "main", "serve"]

_NICE = 5  # whoever asks for the status in the middle of a burst is answered first


def answer(line: bytes) -> dict[str, Any]:
    """The answer to one request; raises nothing but what ends a process on purpose."""
    request_id: Any = None
    try:
        request = json.loads(line)
        if isinstance(request, dict) and request.get("task") == "near":
            request_id = request.get("id")
            from guard.near_task import run_near  # numpy is heavy: a child that only identifies does without

            return {"id": request_id, **run_near(request)}
        if not isinstance(request, dict) or not {"id", "path", "name"} <= request.keys():
            raise UsageError("a request is an object with id, path and name")
        request_id = request["id"]
        if request.get("task") == "tails":
            return {"id": request_id, "tails": [_tail(path, name) for path, name in request["files"]]}
        if request.get("task") == "meta":
            return {"id": request_id, **_side(request["path"])}
        limits = Limits.from_dict(request.get("limits") or {})
        shown, packed = request["name"], dict[str, Any]()
        if stat.S_ISDIR(os.lstat(request["path"]).st_mode):
            request, packed = _packed(request)
            if "verdict" in packed:
                return {"id": request_id, **packed}
        identity = identify(request["path"], shown, request.get("forced_kind"), limits,
                            out_folder=request.get("out_folder"), side=request.get("side"),
                            reading=request.get("reading"), container="tar" if packed else "")  # fmt: skip
        held = _untouchable(request, identity) if identity.verdict == "ok" else {}
        why = "" if identity.verdict == "ok" else why_text(identity)
        found = {"id": request_id, **identity.as_record(), **held, **packed, "why": why}
        if identity.verdict == "ok" and request.get("home") and identity.kind in TRAINABLE_KINDS:
            # Heavy, and needed only beside a ledger: most tests and `prepare validate` never load it.
            from guard.store.estimate import estimate

            without = (held.get("untouchable") or {}).get("rows", "")
            meant = str(request.get("line") or identity.settings.get("line") or "")
            found["novelty"] = estimate(request["home"], meant, stage_of(identity.kind), Path(request["out_folder"]), without)
        if identity.verdict == "ok" and request.get("sync"):
            found["synced"] = _synced(Path(request["path"]), Path(request["out_folder"]))
        return found
    except Exception as error:  # noqa: BLE001  (reported in the answer: the child must live for the next file)
        return {"id": request_id, **_fault(error)}


def _packed(request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pack the folder that was claimed; (the request for the tar, what to tell of the packing: or a refusal's identity)."""
    from guard.tars import pack_folder

    target, name = str(request["packed"]), str(request["name"])
    try:
        folder = pack_folder(request["path"], target)
    except DataFault as fault:
        refused = Identity(name=name, verdict="reject", container="tar", reason=fault.message, hint=fault.hint)
        return request, {**refused.as_record(), "why": why_text(refused)}
    return {**request, "path": target, "name": f"{name}.tar"}, {"folder": folder}


def _tail(path: str, name: str) -> str:
    try:
        return tail_problem(path, name)
    except OSError:
        return ""  # it went, or cannot be read: whoever takes it finds that out, and the others are answered


def _side(path: str) -> dict[str, Any]:
    from guard.checks.side import read_side  # yaml is for those who bring a side file

    try:
        return {"settings": read_side(path), "problem": ""}
    except DataFault as fault:
        return {"settings": {}, "problem": f"{fault.message} ({fault.hint})"}


def _untouchable(request: dict[str, Any], identity: Identity) -> dict[str, Any]:
    """What of the file is in an evaluation set, and its own keys where it is to become one."""
    protected, keys_out = request.get("protected"), request.get("keys_out")
    if not protected and not keys_out:
        return {}
    from guard.bitmap import pack_bitmap
    from guard.durable import sha256_bytes, write_bytes
    from guard.untouchable import KeyList, keys_of_file, touched_in_file

    found: dict[str, Any] = {}
    kind, reading = identity.kind, Reading(**identity.reading)
    if keys_out:
        data, rows = keys_of_file(request["path"], request["name"], reading)
        write_bytes(keys_out, data)
        found["evaluation"] = {"rows": rows, "keys_sha256": sha256_bytes(data)}
    if protected and kind != "docs":
        keys = KeyList(protected["path"], protected["sha256"])
        sidecar = Path(request["out_folder"]) / "examples.fp" if kind == "pretrain" and request.get("out_folder") else None
        # A text asks nothing: its fingerprints were just written and say it all.
        sets = (keys.sets_of(sidecar.read_bytes()) if sidecar and sidecar.is_file() else
                touched_in_file(request["path"], kind, keys, request["name"], reading))  # fmt: skip
        names = [protected["sets"][number]["name"] for number in sorted(set(sets[sets >= 0].tolist()))]
        count = int((sets >= 0).sum())
        found["untouchable"] = {"examples": count, "sets": names,
                                "rows": pack_bitmap((sets >= 0).nonzero()[0].tolist(), len(sets)) if count else ""}  # fmt: skip
    return found


def _synced(content: Path, found: Path) -> bool:
    """Seal and sync a drop's bytes and what was found in them, so that the daemon's loop need not; False when a sync failed."""
    try:
        for item in (content, *found.iterdir()):
            seal_file(item)
        fsync_dir(found)
        fsync_dir(content.parent)
    except OSError:
        return False  # the daemon writes them once more: a failed fsync is never tried again (law 1)
    return True


def _fault(error: Exception) -> dict[str, Any]:
    """An OSError is about the place and not the content, so it is the environment's, whatever its number."""
    environment = isinstance(error, OSError) or is_environment(error)
    message = error.message if isinstance(error, HeirloomError) else str(error) or type(error).__name__
    return {
        "fault": "environment" if environment else "bug",
        "error": type(error).__name__,
        "errno": getattr(error, "errno", None),
        "message": message,
    }


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the requests end."""
    for line in requests:
        if line.strip():
            answers.write(json.dumps(answer(line)).encode("ascii") + b"\n")
            answers.flush()


def main() -> int:
    """The process: dies with its parent, keeps stdout for answers alone."""
    die_with(None, 0)
    os.nice(_NICE)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints by accident goes to stderr, not between the answers
    serve(sys.stdin.buffer, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
