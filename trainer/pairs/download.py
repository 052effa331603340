"""Public preference pairs into one file: a budget shared among sources, resumable, the same bytes however often it stopped.

    rows in the hub's order -> pairs -> <out>.partial/<source>.jsonl -> <out>, whole, by a rename

Of every source its first usable pairs are taken, so that the budget alone decides which. A row that gives none is
counted with its reason. Not here: what a row means (`sources.py`), the network (`hub.py`), homes and the inbox
(`daemon/cli/prefs.py`).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from guard.durable import make_dir, open_new
from guard.errors import DataFault, NotFound, UsageError
from guard.failpoints import point
from trainer.making import check_writable
from trainer.pairs.hub import Origin, find_folder, find_origin, open_rows
from trainer.pairs.pair import pair_id, pair_line
from trainer.pairs.partial import Partial, SourceState
from trainer.pairs.shares import fair_shares
from trainer.pairs.sources import RULES_VERSION, Source

__all__ = ["DEFAULT_BUDGET", "Download", "Request"]

DEFAULT_BUDGET = 200_000
_ENDLESS = 1 << 62
_ROWS_A_NOTE = 2_000
_BYTES_A_NOTE = 8 << 20
REPEATED = "the same pair came before"


@dataclass(frozen=True)
class Request:
    """What to make: `budget` pairs in all, at most `caps[name]` of a source, into the new file `out`."""

    sources: Sequence[Source]
    out: Path
    budget: int = DEFAULT_BUDGET
    caps: Mapping[str, int] = field(default_factory=dict)
    folder: Path | None = None
    """Where the data sets lie as folders; None: on the hub."""
    split: str = "train"
    named: bool = False
    """Whether a person named the sources: then a missing one is an error, not a remark."""


class Download:
    """One download; `run` does all of it, or as much as this life is given."""

    def __init__(self, request: Request, tell: Callable[[str], None] = lambda _: None) -> None:
        self.request = request
        self.tell = tell
        out = request.out
        if out.exists() and not out.is_file():
            raise UsageError(f"{out} is not a file", subject=str(out), hint="name a file after --out")
        self.partial = Partial(out.with_name(f"{out.name}.partial"))
        self.cache = self.partial.folder / "cache"

    def run(self, then: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
        """Read what is missing, publish the output, call `then` with the report, remove the unfinished half.

        The report: `out pairs bytes sha256 missing sources{name: pairs rows refused listed origin revision done}`. Raises
        EnvironmentFault when the network or the disk gives way (run again goes on), DataFault, NotFound, Busy.
        """
        check_writable(self.request.out.parent)
        make_dir(self.request.out.parent)
        with self.partial.hold():
            runs = {source.name: self._begin(source) for source in self.sources()}
            shares = self._fill(runs)
            report = self._publish(runs, shares)
            point("prefs.published")
            then(report)
            point("prefs.dropped")
            self.partial.remove()
        return report

    def sources(self) -> list[Source]:
        """The sources that are there. Raises NotFound when none is, or a named one is not."""
        missing = self.missing()
        here = [item for item in self.request.sources if item.name not in missing]
        if not here or (missing and self.request.named):
            item = next(item for item in self.request.sources if item.name in missing)
            where = f"in {self.request.folder}" if item.splits[self.request.split] else f"in its {self.request.split} split"
            raise NotFound(f"there is no {item.name} {where}", subject=item.name,
                           hint=f"a folder {item.repository.rpartition('/')[2]}/ in it, as git clone"
                                f" https://huggingface.co/datasets/{item.repository} makes it")  # fmt: skip
        return here

    def missing(self) -> list[str]:
        """The names of sources that have no such split, or no folder below the one that was given."""
        return [item.name for item in self.request.sources
                if not item.splits[self.request.split] or (self.request.folder and not self._folder_of(item))]  # fmt: skip

    def _folder_of(self, source: Source) -> Path | None:
        folder = self.request.folder
        return find_folder(folder, source, only=len(self.request.sources) == 1) if folder else None

    def _begin(self, source: Source) -> _Run:
        origin = self._origin(source, self._folder_of(source))
        identity = {"repository": source.repository, "revision": origin.revision, "folder": origin.is_folder,
                    "split": self.request.split, "rules": RULES_VERSION}  # fmt: skip
        return _Run(self, source, origin, self.partial.begin(source.name, identity))

    def _origin(self, source: Source, folder: Path | None) -> Origin:
        """Of the hub the revision a download began with: what is added there meanwhile would shift every row."""
        known = self.partial.states.get(source.name)
        if folder is None and known and not known.identity.get("folder") and known.identity.get("revision"):
            return Origin(source.repository, str(known.identity["revision"]), False)
        return find_origin(source, folder, self.cache)

    def _fill(self, runs: Mapping[str, _Run]) -> dict[str, int]:
        """Read on until every source has its share, or nothing more; returns the shares."""
        while True:
            limits = {name: min(self.request.caps.get(name, _ENDLESS), run.state.pairs if run.state.done else _ENDLESS)
                      for name, run in runs.items()}  # fmt: skip
            shares = fair_shares(self.request.budget, limits)
            waiting = [run for name, run in runs.items() if not run.state.done and run.state.pairs < shares[name]]
            if not waiting:
                return shares
            for run in waiting:
                run.read_until(shares[run.source.name])

    def _publish(self, runs: Mapping[str, _Run], shares: Mapping[str, int]) -> dict[str, Any]:
        """The output, whole and durable, and the report on it."""
        if not any(shares.values()):
            reasons = [reason for run in runs.values() for reason in run.state.refused]
            raise DataFault("no pair can be used", hint=reasons[0] if reasons else "the sources are empty")
        digest, size = hashlib.sha256(), 0
        with open_new(self.request.out) as handle:
            for name in runs:
                for line in islice(self.partial.lines(name), shares[name]):
                    handle.write(line)
                    digest.update(line)
                    size += len(line)
        return {
            "out": str(self.request.out), "pairs": sum(shares.values()), "bytes": size, "sha256": digest.hexdigest(),
            "sources": {name: run.report(shares[name]) for name, run in runs.items()}, "missing": self.missing(),
        }  # fmt: skip


class _Run:
    """One source on its way into the unfinished half."""

    def __init__(self, download: Download, source: Source, origin: Origin, state: SourceState) -> None:
        self.download, self.source, self.origin, self.state = download, source, origin, state
        self._stream: Any = None
        self._seen: set[bytes] = set()

    def read_until(self, pairs: int) -> None:
        """Read rows until there are so many pairs, or no more rows."""
        partial, request = self.download.partial, self.download.request
        if self._stream is None:
            self._seen = partial.ids(self.source.name)
            self._stream = open_rows(self.source, self.origin, request.split, self.download.cache, self.state.position)
        while not self.state.done and self.state.pairs < pairs:
            lines = b"".join(self._lines(pairs))
            self.state.position = self._stream.position()
            partial.add(self.source.name, lines)
            self.download.tell(f"{self.source.name}: {self.state.pairs:,} pairs of {self.state.rows:,} rows")

    def _lines(self, pairs: int) -> Iterator[bytes]:
        """The lines of further rows, until they are enough or much; all pairs of a row or none."""
        size = 0
        for _ in range(_ROWS_A_NOTE):
            row = next(self._stream, None)
            if row is None:
                self.state.done = True
                return
            self.state.rows += 1
            for line in self._lines_of(row):
                self.state.pairs += 1
                size += len(line)
                yield line
            if self.state.pairs >= pairs or size >= _BYTES_A_NOTE:
                return

    def _lines_of(self, row: Mapping[str, Any]) -> list[bytes]:
        found = self.source.pairs_of(row)
        if isinstance(found, str):
            self.state.refuse(found)
            return []
        lines = []
        for fields in found:
            identity = uuid.UUID(pair_id(fields)).bytes
            if identity not in self._seen:
                self._seen.add(identity)
                lines.append(pair_line(fields, self.source.name))
        if not lines:
            self.state.refuse(REPEATED)
        return lines

    def report(self, taken: int) -> dict[str, Any]:
        """What became of this source."""
        state = self.state
        return {"pairs": taken, "rows": state.rows, "refused_rows": sum(state.refused.values()),
                "refused": dict(sorted(state.refused.items())), "listed": state.listed, "done": state.done,
                "origin": self.origin.place, "revision": self.origin.revision}  # fmt: skip
