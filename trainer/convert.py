"""Rows from one container into another: JSON, JSONL, CSV and Parquet, and Arrow folders as `datasets` keeps them.

What is read is whatever intake reads, by the same readers; nested values survive between JSON, Parquet and Arrow. Everything
is streamed. The output appears whole or not at all: it is made beside its place and moved there when it is durable; a row that
cannot be read ends it, told by its line. Not here: how each form is written (`convert_sinks.py`), registering, training.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard.checks.jsonl import Row
from guard.durable import make_dir, remove_tree, rename_new, write_json
from guard.errors import DataFault, UsageError
from trainer.convert_sinks import FORMATS, write_arrow_folder, write_csv, write_json_rows, write_parquet
from trainer.convert_sources import RowFiles, find_splits
from trainer.making import made_beside

__all__ = ["convert"]

_LISTED_ROWS = 20
_SUFFIXES = {f".{name}": name for name in FORMATS if name != "arrow"}

Progress = Callable[[int, float | None], None]
"""Called now and then with (rows so far, share of the input that was read, None where that is not known)."""


@dataclass
class _BadRows:
    """Rows that cannot be read: all are counted, the first are kept."""

    count: int = 0
    listed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, path: Path, row: Row) -> None:
        self.count += 1
        if len(self.listed) < _LISTED_ROWS and row.fault:
            self.listed.append({"file": path.name, "line": row.line_number, "reason": row.fault.reason})

    def refuse(self) -> None:
        """Raises DataFault when there was one."""
        if self.count:
            lines = [f"{item['file']}:{item['line']} {item['reason']}" for item in self.listed]
            more = [f"and {self.count - len(lines)} more"] if self.count > len(lines) else []
            raise DataFault("\n".join([f"{self.count} row{'s' if self.count > 1 else ''} cannot be read", *lines, *more]),
                            hint="mend or remove these rows; nothing was written")  # fmt: skip


def convert(source: Path, output: Path, form: str = "", progress: Progress | None = None) -> dict[str, Any]:
    """Convert a file or folder of rows; returns what was made: `output`, `format`, `rows`, `columns`, `splits`.

    `form` is one of FORMATS; "" takes it from the output's name, which without a suffix is an Arrow folder. A source with splits
    gives a folder with a folder for each. Raises UsageError (words, an output that exists or lies in `source`), NotFound,
    DataFault (bad rows by line, values the form has no word for), OSError.
    """
    form = form or _form_of(output)
    splits = find_splits(source)
    named = [name for name in splits if name]
    if named and not form == "arrow" and output.suffix.lower() in _SUFFIXES:
        raise UsageError(f"{source} has the splits {', '.join(named)}, and {output.name} is one file", subject=str(source),
                         hint=f"name a folder and --to {form}, or convert the files of one split")  # fmt: skip
    if os.path.lexists(output):
        raise UsageError(f"{output} exists already", subject=str(output), hint="name a new file or folder; nothing is replaced")
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{output} is inside {source}, and would be a part of it the next time", subject=str(output),
                         hint="name an output outside of the input")  # fmt: skip
    output = output.absolute()
    with made_beside(output) as (making, removed):
        made = _make_splits(splits, making, form, progress) if named else [_make(splits[""], making, form, progress)]
        rename_new(making, output)
    return {"output": str(output), "format": form, "rows": sum(item["rows"] for item in made), "columns": made[0]["columns"],
            "splits": {name: item["rows"] for name, item in zip(splits, made, strict=True) if name},
            "removed": removed}  # fmt: skip


def _form_of(output: Path) -> str:
    suffix = output.suffix.lower()
    if suffix and suffix not in _SUFFIXES:
        raise UsageError(f"{output.name} names no form that can be written", subject=str(output),
                         hint=f"end it in {', '.join(_SUFFIXES)}, or in nothing for an Arrow folder; or add --to")  # fmt: skip
    return _SUFFIXES.get(suffix, "arrow")


def _make_splits(splits: dict[str, list[Path]], folder: Path, form: str, progress: Progress | None) -> list[dict[str, Any]]:
    make_dir(folder)
    made = []
    for name, paths in splits.items():
        target = folder / name
        if form != "arrow":
            make_dir(target)
            target /= f"data.{form}"
        made.append(_make(paths, target, form, progress, name))
    if form == "arrow":
        write_json(folder / "dataset_dict.json", {"splits": list(splits)})
    return made


def _make(paths: Sequence[Path], target: Path, form: str, progress: Progress | None, split: str = "") -> dict[str, Any]:
    bad = _BadRows()
    files = RowFiles(paths, bad.add, progress or (lambda rows, share: None))
    if form == "arrow":
        made = write_arrow_folder(files, target, split, bad.refuse)
    elif form == "parquet":
        made = write_parquet(files, target, bad.refuse)
    elif form == "csv":
        made = write_csv(files, target, bad.refuse)
    else:
        made = write_json_rows(files, target, bad.refuse, as_array=form == "json")
    if not made["rows"]:
        with contextlib.suppress(FileNotFoundError):
            remove_tree(target)
        raise DataFault("there is no row in it", subject=str(paths[0]), hint="nothing was written")
    return made
