"""A shelf: the immutable folders of columns that one index is made of, and which of them count.

A manifest `index.json` names the folders that count; whatever else lies on the shelf is a leftover and is cleared. Small
folders are joined, so that a row is written again only a few times in its life. Everything here is derived: a lost or
unreadable manifest is an empty shelf, and the index is made again.
Not here: what stands in the folders (`known.py`), or what a folder is (`guard/columns.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import orjson

from guard.columns import Chunk, Columns, folder_stamp, write_columns_steps
from guard.durable import make_dir, remove_tree, write_json
from guard.errors import Damage
from guard.failpoints import point
from guard.steps import Steps

__all__ = ["Shelf", "ShelfView"]

Join = Callable[[Sequence[Columns]], Iterable[Chunk]]


class Shelf:
    """One shelf on disk; whoever changes it holds the home lock."""

    def __init__(self, folder: Path, layout: Mapping[str, str], points: tuple[str, str, str], *, schema: Mapping[str, int],
                 fan_out: int, tier: Callable[[int], int]) -> None:  # fmt: skip
        """`points`: the fail points behind a folder that was written, a manifest, a clearing; `schema`: what the manifest says
        beside its folders; `fan_out` folders whose numbers of rows are of one `tier` become one."""
        self.folder, self.layout, self.schema = folder, layout, schema
        self._written, self._published, self._cleared = points
        self.fan_out, self.tier = fan_out, tier

    @property
    def _manifest(self) -> Path:
        return self.folder / "index.json"

    def names(self) -> list[str]:
        """The folders that count; none when there is no readable manifest."""
        try:
            head = orjson.loads(self._manifest.read_bytes())
            sound = all(head[key] == value for key, value in self.schema.items())
            return [str(name) for name in head["folders"]] if sound else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def stamp(self) -> tuple[int, int, int]:
        """By what it is known that the manifest is still the same."""
        try:
            facts = self._manifest.stat()
        except OSError:
            return (0, 0, 0)
        return facts.st_ino, facts.st_mtime_ns, facts.st_size

    def clear(self, keep: Iterable[str]) -> None:
        """Remove the folders that do not count: finished ones have numbers for names, halves begin with a dot."""
        kept = set(keep)
        if self.folder.is_dir():
            for entry in list(self.folder.iterdir()):
                ours = entry.name.isdigit() or entry.name.startswith(".")
                if ours and entry.name not in kept and entry.is_dir() and not entry.is_symlink():
                    remove_tree(entry)

    def _next_name(self) -> str:
        taken = [int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit()]
        return f"{max(taken, default=0) + 1:08d}"

    def write_steps(self, rows: int, chunks: Iterable[Chunk], files: Sequence[str]) -> Steps[str]:
        """Make a folder that does not count yet; returns its name. Raises as `write_columns_steps`."""
        make_dir(self.folder)
        name = self._next_name()
        yield from write_columns_steps(self.folder / name, self.layout, rows, chunks, files)
        point(self._written)
        return name

    def publish_steps(self, names: Sequence[str]) -> Steps[None]:
        """Make these the folders that count, then let the others go."""
        make_dir(self.folder)
        write_json(self._manifest, {**self.schema, "folders": list(names)})
        point(self._published)
        yield
        self.clear(names)
        point(self._cleared)
        yield

    def join_steps(self, look: Callable[[], ShelfView], merge: Join) -> Steps[None]:
        """Join folders of about one size, from the smallest up, until there is nothing to join.

        Rows are compared as they are read. A folder that turns out not to be what was written is left out: its files are
        then on no folder, and are taken in anew.
        """
        while True:
            view = look()
            full = self._full(view.folders)
            if not full:
                return
            parts = [view.folders[name] for name in full]
            files = [sha256 for part in parts for sha256 in part.file_names()]
            try:
                name = yield from self.write_steps(sum(part.rows for part in parts), merge(parts), files)
            except Damage as damage:
                lost = Path(damage.subject).name
                if lost not in full:
                    raise
                view.leave_out(lost, damage.message)
                yield from self.publish_steps(list(view.folders))
                continue
            yield from self.publish_steps([*(other for other in view.folders if other not in full), name])

    def _full(self, folders: Mapping[str, Columns]) -> list[str]:
        tiers: dict[int, list[str]] = {}
        for name, columns in folders.items():
            tiers.setdefault(self.tier(columns.rows), []).append(name)
        return next((names for _tier, names in sorted(tiers.items()) if len(names) >= self.fan_out), [])


class ShelfView:
    """A shelf as one process sees it. `damaged`: folders that were left out because they are not what was written."""

    def __init__(self, shelf: Shelf, before: ShelfView | None = None) -> None:
        """`before`: an older view. Of its folders those that were not written to since stay open, with what was proven."""
        self.shelf, self.stamp = shelf, shelf.stamp()
        self.folders: dict[str, Columns] = {}
        self.damaged: dict[str, str] = {}
        for name in shelf.names():
            try:
                self.folders[name] = _opened(shelf.folder / name, before.folders.get(name) if before else None)
            except Damage as damage:
                self.damaged[name] = damage.message
        self._cover()

    def _cover(self) -> None:
        self.covered = {sha256 for columns in self.folders.values() for sha256 in columns.file_names()}

    @property
    def rows(self) -> int:
        """How many rows all of its folders have."""
        return sum(columns.rows for columns in self.folders.values())

    def leave_out(self, name: str, reason: str) -> None:
        """Believe nothing of a folder any more; its files count as uncovered from now on."""
        self.damaged[name] = reason
        self.folders.pop(name, None)
        self._cover()

    def prove_steps(self, most_rows: int) -> Steps[None]:
        """Compare what this process did not compare before, of folders of at most so many rows; leave out what is not sound."""
        for name, columns in list(self.folders.items()):
            if columns.rows <= most_rows:
                try:
                    yield from columns.prove_all_steps()
                except Damage as damage:
                    self.leave_out(name, damage.message)


def _opened(folder: Path, before: Columns | None) -> Columns:
    """A folder, opened anew only where it was written to since. Raises Damage."""
    try:
        same = before is not None and folder_stamp(folder) == before.stamp
    except OSError:
        same = False
    return before if before is not None and same else Columns(folder)
