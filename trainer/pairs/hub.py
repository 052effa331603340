"""Where rows of a public data set come from: streamed from the hub through `datasets`, or from a folder in its layout.

Rows come in the hub's order (its files by name, each from its beginning), with a position from which the next life goes
on without reading what came before. Nothing is executed that a data set brings along. What `datasets` caches goes
below the folder that is named, not into the user's own.
Not here: what a row means (`sources.py`), and what is done with it (`download.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.errors import DataFault, EnvironmentFault, HeirloomError, NotFound, is_environment
from trainer.pairs.sources import Source

__all__ = ["Origin", "RowStream", "find_folder", "find_origin", "open_rows"]

_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024
_DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".gz", ".zst", ".arrow", ".csv")
_CACHES = {"HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets", "HF_XET_CACHE": "xet", "HF_ASSETS_CACHE": "assets"}


@dataclass(frozen=True)
class Origin:
    """Where a source is read from, fixed for the whole download: a revision of the hub, or a folder as it lies there."""

    place: str
    revision: str
    """The commit on the hub; of a folder a hash over the names and sizes of its files."""
    is_folder: bool


class RowStream:
    """The rows of one split after a position; `position` then says where the next life goes on."""

    def __init__(self, dataset: Any, origin: Origin, source: Source) -> None:
        self._dataset, self._origin, self._source = dataset, origin, source
        self._rows = iter(dataset)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self

    def __next__(self) -> Mapping[str, Any]:
        try:
            return next(self._rows)
        except StopIteration:
            raise
        except Exception as error:
            raise _reading_fault(error, self._origin, self._source) from error

    def position(self) -> dict[str, Any]:
        """Where the stream stands: after the row that was given last."""
        return self._dataset.state_dict()


def find_folder(folder: Path, source: Source, *, only: bool) -> Path | None:
    """The folder that holds a source: below `folder` by its name on the hub or here, or as the hub's own cache has it.

    `only`: no other source was asked for, so `folder` itself may be it.
    """
    owner, _, name = source.repository.partition("/")
    cached = folder / f"datasets--{owner}--{name}"
    names = [folder / source.repository, folder / name, folder / source.name,
             *_snapshots(cached), *_snapshots(folder / "hub" / cached.name)]  # fmt: skip
    found = next((path for path in names if path.is_dir()), None)
    return found or (folder if only and _data_files(folder) else None)


def _snapshots(cached: Path) -> list[Path]:
    """The snapshots of a cache folder, the one that `main` names first."""
    reference = cached / "refs" / "main"
    main = [cached / "snapshots" / reference.read_text("utf-8").strip()] if reference.is_file() else []
    return main + (sorted((cached / "snapshots").iterdir()) if (cached / "snapshots").is_dir() else [])


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*")
                  if path.name.lower().endswith(_DATA_SUFFIXES) and path.is_file()
                  and not any(part.startswith(".") for part in path.relative_to(folder).parts))  # fmt: skip


def find_origin(source: Source, folder: Path | None, cache: Path) -> Origin:
    """The revision that the hub has now, or the folder as it lies there.

    Raises EnvironmentFault without a network, NotFound and DataFault for a folder that holds no data.
    """
    if folder is not None:
        return Origin(str(folder), _folder_revision(folder, source), True)
    _place_caches(cache)
    try:
        from huggingface_hub import HfApi

        return Origin(source.repository, str(HfApi().dataset_info(source.repository, timeout=30).sha), False)
    except Exception as error:
        raise _network_fault(error, source) from error


def _folder_revision(folder: Path, source: Source) -> str:
    files = _data_files(folder)
    if not files:
        raise NotFound(f"there is no data of {source.name} in {folder}", subject=str(folder),
                       hint=f"git clone https://huggingface.co/datasets/{source.repository}")  # fmt: skip
    listing = []
    for path in files:
        size = path.stat().st_size
        if size < _POINTER_BYTES and path.read_bytes().startswith(_POINTER):
            raise DataFault(f"{path} is only a pointer of git-lfs, the data is not there", subject=str(path),
                            hint=f"cd {folder} && git lfs pull")  # fmt: skip
        listing.append(f"{path.relative_to(folder)} {size}")
    return hashlib.sha256("\n".join(listing).encode("utf-8", "surrogateescape")).hexdigest()


def open_rows(source: Source, origin: Origin, split: str, cache: Path, position: Mapping[str, Any] | None) -> RowStream:
    """The rows of `split` (ours) after `position`. Raises NotFound for a split that is not there, and as `find_origin`."""
    if not origin.is_folder:
        _place_caches(cache)
    import datasets  # one to two seconds, and only for those who download

    datasets.disable_progress_bars()
    # It would import torch (seconds) to share its place with torch's worker processes; here are none.
    datasets.config.TORCH_AVAILABLE = False
    try:
        revision = {} if origin.is_folder else {"revision": origin.revision}
        splits = datasets.load_dataset(origin.place, streaming=True, cache_dir=str(cache / "datasets"), **revision)
        name = next((name for name in source.splits[split] if name in splits), None)
        if name is None:
            raise NotFound(f"{source.name} has no {split} split in {origin.place}: there is {', '.join(map(str, splits))}",
                           subject=origin.place, hint="leave this source out of --source")  # fmt: skip
        dataset = splits[name]
        if position:
            dataset.load_state_dict(json.loads(json.dumps(position)))
        return RowStream(dataset, origin, source)
    except HeirloomError:
        raise
    except Exception as error:
        raise _reading_fault(error, origin, source) from error


def _place_caches(cache: Path) -> None:
    """Point the libraries' caches below ours, before they are imported; whoever set them knows better."""
    for name, folder in _CACHES.items():
        if not os.environ.get("HF_HOME"):
            os.environ.setdefault(name, str(cache / folder))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _reading_fault(error: Exception, origin: Origin, source: Source) -> HeirloomError:
    if not origin.is_folder:
        return _network_fault(error, source)
    if is_environment(error):
        return EnvironmentFault(f"{origin.place} cannot be read now: {error}", subject=origin.place,
                                hint="the same command goes on where it stopped")  # fmt: skip
    return DataFault(f"{source.name} in {origin.place} cannot be read: {_first_line(error)}", subject=origin.place,
                     hint="is the copy complete? fetch the folder again")  # fmt: skip


def _network_fault(error: Exception, source: Source) -> EnvironmentFault:
    return EnvironmentFault(
        f"{source.name} cannot be read from the hub: {_first_line(error)}", subject=source.repository,
        hint="with a network the same command goes on where it stopped; without one, on a machine that has it: git clone"
             f" https://huggingface.co/datasets/{source.repository}, then here: heirloom prefs download --from DIR",
    )  # fmt: skip


def _first_line(error: Exception) -> str:
    """The deepest reason of a chain of errors, in one line."""
    reason: BaseException = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    text = str(reason).strip().splitlines()
    return f"{type(reason).__name__}: {text[0][:300]}" if text else type(reason).__name__
