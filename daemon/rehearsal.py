"""`register --dry-run`: what would become of files, judged as intake would and with nothing admitted.

Files are read in limited reader children (law 12) and decided about with a ledger that is only read; what the readers
write lies in a scratch folder that goes. Needs no lock and no daemon. Files of one line are judged each by itself: that
the second is a copy of the first is told only by the real thing. Not here: the judgement (`guard/store/decision.py`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from daemon.client import drop_result
from daemon.reactor import Reactor
from daemon.read_limits import read_limits
from daemon.readers import ReaderPool
from daemon.sides import only_beside, read_otherwise, wish_problem
from guard.errors import Damage, EnvironmentFault
from guard.folder_tree import list_tree, tree_bytes
from guard.home import Home
from guard.names import safe_name
from guard.store.decision import decide
from guard.store.evaluation import protected_for
from guard.store.keeper import Keeper, open_reader
from guard.store.views import file_status

__all__ = ["judge_registration", "rehearse_registration"]


def rehearse_registration(
    home: Home, *, paths: Sequence[str], kind: str | None = None, queue: bool = False,
    untouchable: bool = False,
) -> list[dict[str, Any]]:
    """What `client.call_register` would return for these files. Raises EnvironmentFault when one cannot be read now."""
    with open_reader(home) as keeper, tempfile.TemporaryDirectory(prefix="heirloom-") as scratch:
        folders = [Path(scratch) / str(number) for number in range(len(paths))]
        answers = _read_all(keeper, paths, folders, [{"forced_kind": kind} for _path in paths], untouchable=untouchable)
        for number, answer in enumerate(answers):
            otherwise = read_otherwise(keeper, {"forced_kind": kind}, answer)
            if isinstance(otherwise, dict):
                answers[number] = _read_all(keeper, paths[number : number + 1], folders[number : number + 1], [otherwise],
                                            untouchable=untouchable)[0]  # fmt: skip
            elif otherwise:
                answers[number] = {**answer, "verdict": "reject", "reason": otherwise, "why": ""}
        return [judge_registration(keeper, Path(path), answer, folder, queue=queue, untouchable=untouchable)
                for path, answer, folder in zip(paths, answers, folders, strict=True)]  # fmt: skip


def _read_all(
    keeper: Keeper, paths: Sequence[str], folders: Sequence[Path], more: Sequence[Mapping[str, Any]], *,
    untouchable: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Every file's identity, by limited readers; `more` goes into each request."""
    reactor = Reactor()
    pool = ReaderPool(reactor, keeper.settings.intake.memory_mb)
    limits = read_limits(keeper)
    answers: dict[int, dict[str, Any]] = {}
    try:
        for number, path in enumerate(paths):
            side = only_beside(Path(path))
            body = {"id": number, "task": "identify", "path": os.path.realpath(path), "name": safe_name(Path(path).name),
                    "out_folder": str(folders[number]), "packed": str(folders[number].with_suffix(".tar")), "limits": limits,
                    "side": str(side.path) if side else None,
                    **more[number]}  # fmt: skip
            if untouchable:
                body["keys_out"] = str(folders[number].with_suffix(".keys"))
            with contextlib.suppress(Damage):
                body["protected"] = protected_for(keeper, folders[number].with_suffix(".protected"))
            size = tree_bytes(list_tree(path)) if Path(path).is_dir() else Path(path).stat().st_size
            pool.submit(body, size, partial(answers.__setitem__, number))
        while len(answers) < len(paths):
            pool.tick(time.monotonic())
            reactor.poll(0.05)
    finally:
        pool.close()
        reactor.close()
    return [answers[number] for number in range(len(paths))]


def judge_registration(keeper: Keeper, path: Path, answer: Mapping[str, Any], folder: Path, *, queue: bool,
                       untouchable: bool = False) -> dict[str, Any]:  # fmt: skip
    """The verdict on one file from its reader's answer; `folder` holds the fingerprints. Raises EnvironmentFault."""
    name = safe_name(path.name)
    if answer.get("fault") == "environment":
        raise EnvironmentFault(f"{path} cannot be read now: {answer['message']}", subject=str(path),
                               hint="heirloom doctor; then try again")  # fmt: skip
    if answer.get("fault"):
        return drop_result(name, "rejected", f"it could not be read: {answer['message']}", None, {})
    # What a file that waits or is ignored in the inbox should do there is no advice for one that is refused here.
    why = answer["why"] if answer["verdict"] == "reject" else ""
    record = {**answer, "name": name, "dropped_as": name, "why": why}
    if answer["verdict"] != "ok":
        return drop_result(name, "rejected", str(answer["reason"]), answer.get("sha256"), record)
    settings = answer.get("settings") or {}
    if problem := wish_problem(keeper, settings, str(answer["kind"]), str(answer["container"])):
        return drop_result(name, "rejected", f"its side file: {problem}", answer.get("sha256"), record)
    wishes = {key: settings[key] for key in ("line", "recipe", "priority") if key in settings}
    decision = decide(keeper, record, {**wishes, "queue": queue, "untouchable": untouchable}, folder)
    verdict = "duplicate" if decision.verdict == "duplicate" else "admitted" if decision.queue != "none" else "registered"
    found = drop_result(name, verdict, decision.reason, str(answer["sha256"]), {**record, "decision": asdict(decision)})
    mended = found["mended"] and verdict == "registered"
    return found | {"status": file_status(keeper, str(answer["sha256"]))} if mended else found
