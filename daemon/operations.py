"""What a changing command does, once, whether it came over the socket or runs under the home lock.

Each operation takes the engine and plain JSON arguments and returns a plain JSON result, or raises a HeirloomError.
With `dry_run` among the arguments it judges as ever, changes nothing, and returns what the result would be.
Slow work (reading a registered file) is only begun here; the engine finishes it and the caller looks at the ledger.
Not here: confirming with a person (`daemon/cli/`) and the acts themselves (`guard/store/`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from daemon import queue_acts
from daemon.engine import Engine
from daemon.folder_scan import require_data_set, room_problem
from daemon.plan_request import plan
from daemon.regrow import regrow
from daemon.sides import only_beside
from daemon.training import train
from guard.errors import Busy, EnvironmentFault, NotFound, UsageError
from guard.folder_tree import list_tree, tree_bytes
from guard.names import safe_name
from guard.steps import Steps, drain
from guard.store.admission import queue_index
from guard.store.evaluations import record_all
from guard.store.indexes import current_documents
from guard.store.intake import claim
from guard.store.jobs import find_job
from guard.store.keeper import Keeper
from guard.store.prune import prune_indexes
from guard.store.purge import purge_steps
from guard.store.restore import restore_steps
from guard.store.retention import retention_apply_steps
from guard.store.rollback import rollback_steps
from guard.store.trash import delete
from guard.store.vault import backup_steps, plan_backup
from guard.store.vault_state import adopt_vault, begin_anew
from guard.store.versions import find_version
from trainer.retrieval.chunk import estimate_chunks

__all__ = ["OPERATIONS", "begin", "perform"]

Arguments = Mapping[str, Any]

_MOVING = ("delete", "restore", "purge", "retention.apply")


def perform(engine: Engine, operation: str, arguments: Arguments) -> dict[str, Any]:
    """Do one operation by name, however long it takes. Raises UsageError for an unknown one."""
    return drain(begin(engine, operation, arguments))


def begin(engine: Engine, operation: str, arguments: Arguments) -> Steps[dict[str, Any]]:
    """`perform` in slices: what reads much yields between pieces of it, so that the daemon's loop goes on."""
    if operation not in OPERATIONS:
        raise UsageError(f"unknown operation {operation!r}", hint="daemon and command are of different versions?")
    with _alone(engine, operation, arguments):
        result = OPERATIONS[operation](engine, arguments)
        if isinstance(result, Generator):
            result = yield from result
    engine.hint()
    return result


@contextlib.contextmanager
def _alone(engine: Engine, operation: str, arguments: Arguments) -> Iterator[None]:
    """Of the operations that move versions one at a time: each first ends what it finds unfinished, and would take the
    other's half-done work for such. They are served in slices, so a second one may well be asked for in between.
    """
    if operation not in _MOVING or arguments.get("dry_run"):
        yield
        return
    if engine.moving:
        raise Busy(f"{engine.moving} is under way, and {operation} has to wait for it", subject=operation,
                   hint="try again when it is done: heirloom log -f tells")  # fmt: skip
    engine.moving = operation
    try:
        yield
    finally:
        engine.moving = ""


# --- versions -----------------------------------------------------------------------------------------------------


def _rollback(engine: Engine, arguments: Arguments) -> Steps[dict[str, Any]]:
    keeper = engine.keeper
    line = arguments.get("line") or find_version(keeper.ledger, arguments["version"]).line

    if not arguments.get("dry_run"):
        engine.runner.finish_commits(line)

    def park() -> int | None:
        running = engine.runner.current
        on_line = running is not None and find_job(keeper.ledger, running).line == line
        return engine.runner.stop_current("parked") if on_line else None

    return rollback_steps(keeper, arguments["version"], line, str(arguments.get("reason") or ""),
                          dry_run=bool(arguments.get("dry_run")), park=park)  # fmt: skip


def _delete(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    return delete(engine.keeper, arguments["version"], force=bool(arguments.get("force")),
                  confirm_lineage=bool(arguments.get("confirm_lineage")), confirm=arguments.get("confirm"),
                  dry_run=bool(arguments.get("dry_run")))  # fmt: skip


def _restore(engine: Engine, arguments: Arguments) -> Steps[dict[str, Any]]:
    return restore_steps(engine.keeper, arguments["version"], source=arguments.get("source"),
                         dry_run=bool(arguments.get("dry_run")))  # fmt: skip


def _purge(engine: Engine, arguments: Arguments) -> Steps[dict[str, Any]]:
    days = arguments.get("older_than_days")
    return purge_steps(
        engine.keeper, arguments.get("version"), older_than_days=None if days is None else float(days),
        no_backup=bool(arguments.get("no_backup")), confirm=arguments.get("confirm"), yes=bool(arguments.get("yes")),
        dry_run=bool(arguments.get("dry_run")), shown=_names(arguments))  # fmt: skip


def _names(arguments: Arguments) -> list[str] | None:
    """What a person was shown before confirming; None when the caller showed no list."""
    return None if arguments.get("shown") is None else [str(name) for name in arguments["shown"]]


def _retention_apply(engine: Engine, arguments: Arguments) -> Steps[dict[str, Any]]:
    newest = arguments.get("newest")
    return retention_apply_steps(
        engine.keeper, confirm=arguments.get("confirm"), newest=None if newest is None else int(newest),
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


def _adopt(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    return (begin_anew if arguments.get("new") else adopt_vault)(engine.keeper, dry_run=bool(arguments.get("dry_run")))


def _drill(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    """Want a drill; how it ended is an event after number `after`."""
    return engine.drill.ask(arguments.get("into"))


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
        real = path.resolve() if path.is_symlink() else path  # what is taken into the house is never a link
        folder = real.is_dir()
        if not path.is_absolute() or not (real.is_file() or folder):
            raise NotFound(f"{text} is not a regular file", subject=str(text), hint="heirloom register FILE")
        if folder:
            _require_room(engine.keeper, real)
        side = only_beside(path)
        named = {**options, "dropped_as": safe_name(path.name), **({"side": side.as_dict()} if side else {})}
        drops.append(claim(engine.keeper, real, origin="register", move=False, forced_kind=arguments.get("kind"),
                           options=named, name=path.name))  # fmt: skip
    return {"drops": drops}


def _require_room(keeper: Keeper, folder: Path) -> None:
    """Raises UsageError for a folder that is no data set, EnvironmentFault when the disk has no room to copy and pack it."""
    require_data_set(folder)
    free = shutil.disk_usage(keeper.home.incoming).free
    if problem := room_problem(tree_bytes(list_tree(folder)), free):
        raise EnvironmentFault(f"{folder} cannot be taken now: {problem}", subject=str(folder), hint="heirloom status")


def _rebuild_index(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    if arguments.get("dry_run"):
        documents, sizes = current_documents(engine.keeper), engine.keeper.settings.index
        lengths = [Path(item["path"]).stat().st_size for item in documents]
        chunks = sum(estimate_chunks(length, sizes.chunk_size, sizes.overlap) for length in lengths)
        return {"job": None, "documents": len(documents), "bytes": sum(lengths), "chunks": chunks}
    with engine.keeper.ledger.transaction():
        return {"job": queue_index(engine.keeper)}


def _prune_indexes(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    if engine.index.current is not None and not arguments.get("dry_run"):
        raise Busy("an index is being built, and it may read the one before it", hint="wait until it is done: heirloom queue")
    return prune_indexes(engine.keeper, arguments.get("index"), dry_run=bool(arguments.get("dry_run")))


def _record_evaluations(engine: Engine, arguments: Arguments) -> dict[str, Any]:
    """Keep what `heirloom eval` measured in its own process."""
    return {"ids": record_all(engine.keeper, list(arguments["results"]), dry_run=bool(arguments.get("dry_run")))}


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
    "backup.adopt": _adopt,
    "backup.drill": _drill,
    "queue.pause": queue_acts.pause,
    "queue.resume": queue_acts.resume,
    "queue.cancel": queue_acts.cancel,
    "queue.retry": queue_acts.retry,
    "queue.move": queue_acts.move,
    "register": _register,
    "index.rebuild": _rebuild_index,
    "index.prune": _prune_indexes,
    "evaluation.record": _record_evaluations,
    "regrow": _regrow,
    "plan": plan,
    "train": train,
}
