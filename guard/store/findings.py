"""What a verification looked at and what it found: the collector and the report.

Not here: looking (`verify.py`, `verify_data.py`, `verify_vault.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guard.steps import drain
from guard.store.sums import Problem

__all__ = ["Checked", "Finding", "Findings", "Report"]


_REMEDIES = {
    "version": "heirloom restore {name}",
    "original": "drop the same file again, or copy it back from the vault: backups/files/",
    "dataset": "derived: made again from the originals by the next job that needs it; it may be removed",
    "index": "derived: heirloom index prune {name} removes it; while it is active, heirloom index build goes first",
    "link": "derived: heirloom index build makes it again",
    "view": "heirloom doctor --rebuild makes the views again",
    "evaluation": "heirloom register FILE --untouchable with the same file; until then nothing is trained",
    "ledger": "heirloom doctor --rebuild makes the ledger again",
    "events": "heirloom doctor --rebuild makes the export again",
    "backup": "heirloom backup run makes the copy again",
    "archived": "heirloom backup run reads the copy in the vault again and vouches for it when it is sound; "
                "one that is missing or damaged: heirloom restore {name} --from ANOTHER_VAULT, then heirloom backup run",
    "rebuild": "the sealed files are as they were sealed; their training cannot be repeated here: heirloom show {name}",
    "folder": "nobody knows it: look what it is and move it away",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be, and which versions were grown from it."""

    what: str
    name: str
    file: str
    problem: str
    descendants: tuple[str, ...] = ()

    @property
    def remedy(self) -> str:
        """What mends it, or makes it again."""
        return _REMEDIES.get(self.what, "").format(name=self.name)


@dataclass
class Checked:
    """How much was looked at. `bytes` counts what was read and hashed."""

    versions: int = 0
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Report:
    """The outcome of a verification."""

    checked: Checked
    damage: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.damage

    def as_dict(self) -> dict[str, Any]:
        """The shape of `verify --json`, less its schema number."""
        damage = [{**asdict(item), "descendants": list(item.descendants), "remedy": item.remedy} for item in self.damage]
        return {"ok": self.ok, "checked": asdict(self.checked), "damage": damage}


@dataclass
class Findings:
    """Collects while the checks run. `sample` is the share of files whose content is read (1.0: all)."""

    sample: float = 1.0
    draw: str = ""
    """Decides which files a sample takes; another text takes others."""
    checked: Checked = field(default_factory=Checked)
    damage: list[Finding] = field(default_factory=list)

    def hash_it(self, key: str) -> bool:
        """Whether this file's content belongs to the sample."""
        if self.sample >= 1.0:
            return True
        digest = hashlib.blake2b(f"{self.draw}\n{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.sample * 2**64

    def picker(self, prefix: str) -> Callable[[str], bool]:
        """`hash_it` for the files of one folder."""
        return lambda name: self.hash_it(f"{prefix}/{name}")

    def add(self, what: str, name: str, file: str, problem: str, descendants: Iterable[str] = ()) -> None:
        """Report one damage."""
        self.damage.append(Finding(what, name, file, problem, tuple(descendants)))

    def run(self, steps: Generator[int, None, list[Problem]]) -> list[Problem]:
        """Drain a comparison and count the bytes it read."""
        return drain(self.counted(steps))

    def counted(self, steps: Generator[int, None, list[Problem]]) -> Generator[int, None, list[Problem]]:
        """`run` in slices."""
        while True:
            try:
                size = next(steps)
            except StopIteration as end:
                return end.value
            self.checked.bytes += size
            yield size

    def count_files(self, folder: Path) -> None:
        """Count what lies in a folder as looked at."""
        self.checked.files += sum(1 for path in folder.rglob("*") if path.is_file())

    def report(self) -> Report:
        return Report(self.checked, tuple(self.damage))
