"""A home: the folder that holds one Heirloom, its paths, and the proof that it is the one we think it is.

Missing is not empty (law 9): a home whose store id or ledger has gone is refused, never made anew.
This file reads; `guard/store/create.py` makes a home.
"""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from guard.errors import CheckFailed, Damage, NotFound

__all__ = ["Home", "boot_id", "find_home"]


_LOST = "is the disk mounted? bring it back. What is lost for good: heirloom doctor --rebuild writes it again"


@dataclass(frozen=True)
class Home:
    """The paths of one home; nothing here touches the disk except `check`, `free_bytes` and `store_id`."""

    root: Path

    @cached_property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @cached_property
    def rejected(self) -> Path:
        return self.inbox / "rejected"

    @cached_property
    def duplicates(self) -> Path:
        return self.inbox / "duplicates"

    @cached_property
    def data(self) -> Path:
        return self.root / "data"

    @cached_property
    def files(self) -> Path:
        return self.data / "files"

    @cached_property
    def incoming(self) -> Path:
        """Where claimed drops wait for their verdict; the identify child writes only here."""
        return self.data / ".incoming"

    @cached_property
    def shards(self) -> Path:
        return self.data / "shards"

    @cached_property
    def docs(self) -> Path:
        return self.data / "docs"

    @cached_property
    def indexes(self) -> Path:
        return self.data / "index"

    @cached_property
    def ledger(self) -> Path:
        return self.data / "ledger.db"

    @cached_property
    def events(self) -> Path:
        """The event export: the audit trail outside the ledger."""
        return self.data / "events"

    @cached_property
    def manifest(self) -> Path:
        return self.data / "manifest.json"

    @cached_property
    def models(self) -> Path:
        return self.root / "models"

    @cached_property
    def registry(self) -> Path:
        return self.models / "registry.json"

    @cached_property
    def staging(self) -> Path:
        return self.models / ".staging"

    @cached_property
    def trash(self) -> Path:
        return self.models / ".trash"

    @cached_property
    def configs(self) -> Path:
        return self.root / "configs"

    @cached_property
    def state(self) -> Path:
        return self.root / ".heirloom"

    @cached_property
    def status_file(self) -> Path:
        return self.state / "status.json"

    @cached_property
    def store_id_file(self) -> Path:
        return self.state / "store-id"

    @cached_property
    def high_water_file(self) -> Path:
        return self.state / "high-water"

    @cached_property
    def index_high_water_file(self) -> Path:
        return self.state / "index-high-water"

    @cached_property
    def lock_file(self) -> Path:
        return self.state / "lock"

    @cached_property
    def socket(self) -> Path:
        return self.state / "control.sock"

    def vault(self, setting: str) -> Path:
        """The backup folder; a relative setting is inside the home."""
        return self.root / os.path.expanduser(setting)

    def staging_of(self, job: int) -> Path:
        return self.staging / f"job-{job:06d}"

    def folders(self) -> tuple[Path, ...]:
        """Every folder that a sound home has."""
        return (
            self.inbox, self.rejected, self.duplicates, self.data, self.files, self.incoming, self.shards, self.docs,
            self.indexes, self.models, self.staging, self.trash, self.configs, self.state,
        )  # fmt: skip

    def store_id(self) -> str:
        """The id given at `init`. Raises Damage when the file is missing or empty."""
        try:
            text = self.store_id_file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Damage(f"{self.store_id_file} cannot be read", subject=str(self.root), cause=error,
                         hint=_LOST) from error  # fmt: skip
        if not text:
            raise Damage(f"{self.store_id_file} is empty", subject=str(self.root), hint=_LOST)
        return text

    def check(self) -> None:
        """Refuse a home whose parts have vanished. Raises Damage naming what is missing (law 9)."""
        self.store_id()
        missing = [path for path in (self.ledger, self.models, self.data, self.files) if not path.exists()]
        if missing:
            raise Damage(
                f"{', '.join(str(path.relative_to(self.root)) for path in missing)} missing in {self.root}",
                subject=str(self.root),
                hint="is a disk not mounted? bring it back. What is lost for good: heirloom doctor --rebuild",
            )
        inbox = self.inbox.resolve()
        for place in (self.data, self.models, self.state):
            if inbox.is_relative_to(place.resolve()) or place.resolve().is_relative_to(inbox):
                raise CheckFailed(f"the inbox is {inbox}, which holds or lies in {place.relative_to(self.root)}/ of this home",
                                  subject=str(self.inbox), hint="let inbox be a folder of its own")  # fmt: skip

    def free_bytes(self) -> int:
        """Bytes free for an ordinary user on the models' disk."""
        return shutil.disk_usage(self.models).free


def find_home(start: Path, given: str | None = None) -> Home:
    """The home given by flag or environment, else the nearest folder up from `start` that is one.

    Raises NotFound with what to type.
    """
    if given:
        home = Home(Path(given).expanduser().absolute())
        if not _is_home(home):
            raise NotFound(f"{home.root} is not a Heirloom home", subject=str(home.root),
                           hint=f"heirloom init {home.root}")  # fmt: skip
        return home
    for folder in (start.absolute(), *start.absolute().parents):
        if _is_home(Home(folder)):
            return Home(folder)
    raise NotFound(f"no Heirloom home at or above {start.absolute()}", subject=str(start),
                   hint="heirloom init DIR makes one; --home DIR or HEIRLOOM_HOME names one")  # fmt: skip


def _is_home(home: Home) -> bool:
    """Whether a home stands here, even one that lost its identity: then it is told so, and not that there is none."""
    return home.state.is_dir() or home.ledger.is_file() or home.registry.is_file()


@functools.cache  # every event carries it, and no process outlives its machine's start
def boot_id() -> str:
    """An id that changes at every start of the machine; "unknown" where the kernel tells none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return "unknown"
