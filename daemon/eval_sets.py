"""Which sets a version can be judged on: what its ancestry held out, evaluation sets of the home, and files named by hand.

A set is known by what it holds: the hash of a file, or of the files a held-out part is drawn from and how. Held-out rows
come from the prepared shards where those lie and have the version's tokenizer, else from the stored originals once more: they
are the same rows. Reads the ledger and, of files named by hand, the file (in the command's own process; the daemon never
comes here). Not here: measuring (`trainer/measuring.py`), questions (`eval_questions.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from daemon.planning import dataset_folder
from guard.checks.columns import Reading
from guard.checks.identify import identify
from guard.checks.kinds import container_of, holds_rows, stage_of
from guard.errors import CheckFailed, DataFault, NotFound, UsageError
from guard.store.evaluation import evaluation_sets
from guard.store.files import StoredFile, find_file, get_file, stored_path
from guard.store.keeper import Keeper
from guard.store.versions import Version, ancestors, version_by_id

if TYPE_CHECKING:
    from trainer.samples import FileSet, ShardSet

__all__ = ["Judging", "file_set", "held_out_sets", "registered_sets", "stamp_of"]

RULES = 1
"""Of what is counted and how; another number is another question to the ledger."""
MOST_SETS = 64
"""Held-out sets of the newest so many ancestors that have one; what is left out is told."""


@dataclass(frozen=True)
class Judging:
    """One set to judge by."""

    name: str
    set_id: str
    stage: str
    origin: str
    """`held out`, `evaluation set`, `stored file` or `file`."""
    source: Callable[[Any, Any], FileSet | ShardSet]
    """For a tokenizer and a template where its examples come from. Raises CheckFailed when nowhere."""
    path: Path | None = None
    """Of a file named by hand, which may change meanwhile."""
    stamp: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())


def stamp_of(path: Path) -> tuple[int, ...]:
    """What changes when a file is changed. Raises OSError."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


# --- held out ------------------------------------------------------------------------------------------------------


def held_out_sets(keeper: Keeper, version: Version) -> tuple[list[Judging], list[str]]:
    """The held-out part of every dataset of the ancestry, newest first, and notes on what cannot be judged by."""
    found: dict[str, Judging] = {}
    notes: list[str] = []
    for number in ancestors(keeper.ledger, version.id):
        ancestor = version_by_id(keeper.ledger, number)
        dataset = ancestor.record.get("dataset")
        if not dataset or dataset["id"] in found:
            continue
        if len(found) == MOST_SETS:
            notes.append(f"only the held-out rows of the newest {MOST_SETS} datasets are judged by")
            break
        found[dataset["id"]] = _held_out(keeper, ancestor, str(dataset["id"]))
    return list(found.values()), notes


def _held_out(keeper: Keeper, ancestor: Version, dataset: str) -> Judging:
    files = [get_file(keeper.ledger, item["sha256"]) for item in ancestor.record["data"]]
    names = ", ".join(item["file"] for item in ancestor.record["data"][:3])
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    stage, fraction = str(ancestor.record["stage"]), _fraction(keeper)
    folder = dataset_folder(keeper, ancestor)
    drawn = {"held_out": sorted(item["sha256"] for item in ancestor.record["data"]), "stage": stage, "fraction": fraction,
             "salt": hashlib.sha256(keeper.salt.encode()).hexdigest(), "rules": RULES}  # fmt: skip
    prepared = any(file is None or file.record.get("prepared") for file in files)
    again = None if prepared else _from_originals(keeper, [file for file in files if file], stage, fraction)
    return Judging(f"{names}{more} held out ({dataset[:8]})", _digest(drawn), stage, "held out",
                   lambda tokenizer, template: _shards_or(folder, again, stage, names, tokenizer, template))  # fmt: skip


def _fraction(keeper: Keeper) -> float:
    return float(keeper.ledger.meta("validation_fraction") or keeper.settings.validation.fraction)


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(dict(facts), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _from_originals(keeper: Keeper, files: Sequence[StoredFile], stage: str, fraction: float) -> Callable[[], FileSet]:
    salt, sources = keeper.salt, [_stored_source(keeper, file) for file in files]

    def make() -> FileSet:
        from trainer.samples import FileSet

        return FileSet(tuple(source() for source in sources), stage, salt, fraction)

    return make


def _stored_source(keeper: Keeper, file: StoredFile) -> Callable[[], Any]:
    path, sidecar = stored_path(keeper.home, file), keeper.home.files / file.sha256
    reading = Reading(**file.record.get("reading") or {})
    kind = "" if stage_of(file.kind) == file.kind else file.kind

    def make() -> Any:
        from trainer.source_file import SourceFile

        return SourceFile(file.sha256, file.name, path, sidecar, reading, kind)

    return make


def _shards_or(folder: Path | None, again: Callable[[], FileSet] | None, stage: str, names: str, tokenizer: Any,
               template: Any) -> FileSet | ShardSet:  # fmt: skip
    """Prepared shards of this tokenizer (and template, of conversations), else the originals."""
    from trainer.dataset import open_dataset
    from trainer.samples import ShardSet

    if folder is not None:
        dataset = open_dataset(folder)
        same = dataset.tokenizer_state.get("content_hash") == tokenizer.content_hash
        if same and (stage != "sft" or dataset.metadata.get("template_hash") == template.hash):
            return ShardSet(folder)
    if again is None:
        raise CheckFailed(f"the held-out rows of {names} cannot be read for this version: it was prepared before it came, with"
                          " another tokenizer, or its shards are gone", subject=names,
                          hint="name files with --set instead")  # fmt: skip
    return again()


# --- files ---------------------------------------------------------------------------------------------------------


def registered_sets(keeper: Keeper) -> tuple[list[Judging], list[str]]:
    """The evaluation sets registered with `--untouchable` that a loss can be taken of, and notes on the others."""
    found, notes = [], []
    for item in evaluation_sets(keeper.ledger):
        file = get_file(keeper.ledger, str(item["sha256"]))
        if file is None or stage_of(file.kind) not in ("pretrain", "sft"):
            notes.append(f"{item['name']}: no loss is taken of {file.kind if file else 'what is not stored'}")
        else:
            found.append(_stored(keeper, file, "evaluation set"))
    return found, notes


def _stored(keeper: Keeper, file: StoredFile, origin: str) -> Judging:
    stage = stage_of(file.kind)
    if stage not in ("pretrain", "sft") or file.record.get("prepared"):
        raise UsageError(f"{file.name} is {file.kind}: no loss is taken of it", subject=file.name,
                         hint="text or conversations; a prepared dataset is judged by its held-out rows")  # fmt: skip
    source = _stored_source(keeper, file)

    def make(_tokenizer: Any, _template: Any) -> FileSet:
        from trainer.samples import FileSet

        return FileSet((source(),), stage)

    return Judging(file.name, _file_id(file.sha256, stage, Reading(**file.record.get("reading") or {})), stage, origin, make)


def _file_id(sha256: str, stage: str, reading: Reading) -> str:
    return ":".join(filter(None, (sha256, stage, reading.digest)))


def file_set(keeper: Keeper, text: str, folder: Path, kind: str | None) -> Judging:
    """The set a person named: a file on disk, else one that is stored here by its name or hash.

    Raises NotFound, UsageError for what no loss can be taken of, DataFault for a file that cannot be read.
    """
    path = folder / Path(text).expanduser()
    if not path.exists():
        try:
            return _stored(keeper, find_file(keeper.ledger, text), "stored file")
        except NotFound:
            raise NotFound(f"there is no file {text} on disk, and none of that name is stored here", subject=text,
                           hint="--set FILE, or the name of a registered file") from None  # fmt: skip
    if path.is_dir():
        raise UsageError(f"{text} is a folder", subject=text, hint=f"heirloom prepare convert {text} OUT.jsonl, then --set it")
    real = path.resolve()
    stamp = stamp_of(real)
    found = _identified(real, path, kind)
    stage = stage_of(found.kind) if found.kind != "docs" else "pretrain"
    if stage not in ("pretrain", "sft"):
        raise UsageError(f"{path.name} holds {found.kind}: no loss is taken of it", subject=text,
                         hint="text or conversations; questions with answers: --questions")  # fmt: skip
    reading = Reading(**found.reading)
    own = "" if found.kind in (stage, "docs") else found.kind
    skipped = found.bad_rows_count + found.unusable_rows_count

    def make(_tokenizer: Any, _template: Any) -> FileSet:
        from trainer.samples import FileSet
        from trainer.source_file import SourceFile

        return FileSet((SourceFile(found.sha256, path.name, real, None, reading, own, path.name),), stage)

    return Judging(path.name, _file_id(found.sha256, stage, reading), stage, "file", make, real, stamp,
                   (f"{skipped:,} of its rows cannot be used (heirloom prepare validate tells)",) if skipped else ())  # fmt: skip


def _identified(real: Path, named: Path, kind: str | None) -> Any:
    """What a file is, by the rules of intake; `named` is what a person wrote, and side files lie beside that."""
    from guard.checks.side import sides_beside

    name, container = named.name, container_of(named.name)
    forced = kind or ("pretrain" if container and not holds_rows(container) else None)
    found = identify(real, name, forced, side=next(iter(sides_beside(named)), None))
    if found.verdict == "ok":
        return found
    rows = "; ".join(f"line {row.line}: {row.field + ': ' if row.field else ''}{row.reason}" for row in found.bad_rows[:3])
    told = f"{name} cannot be judged by: {found.reason}{f' ({rows})' if rows else ''}"
    if found.verdict == "reject":
        raise DataFault(told, subject=name, hint=found.hint)
    raise UsageError(told, subject=name, hint=found.hint or found.wait_for or "text, or rows with text or messages")
