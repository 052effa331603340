"""Every setting of a home, next to one sentence on what it sets.

Not here: how they are read and where a value came from (`guard/settings_read.py`), recipes (`trainer/recipe.py`), and side
files, which speak about one drop and not about the home.
Plain frozen dataclasses and no library: `heirloom status` loads this and must answer at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Settings"]


@dataclass(frozen=True, repr=False)
class InboxSettings:
    settle_seconds: float = 5.0
    """A file is taken when nothing about it changed for this long."""
    sweep_seconds: float = 30.0
    """The whole inbox is looked through this often, whatever the file system reported."""


@dataclass(frozen=True, repr=False)
class IntakeSettings:
    max_bad_rows: float = 0.001
    """Share of rows that cannot be parsed above which the whole file is rejected."""
    max_unusable_rows: float = 0.05
    """Share of readable but unusable rows above which the whole file is rejected."""
    tail_grace_seconds: float = 60.0
    """How long a file whose last line is cut off may wait for its writer."""
    max_unpacked_gb: float = 100.0
    """A packed or binary file that unpacks to more is refused; what unpacks to 1,000 times its size always is."""
    memory_mb: int = 2048
    """A child that reads a dropped file is ended above this resident size."""


@dataclass(frozen=True, repr=False)
class DiskSettings:
    reserve_gb: float = 50.0
    """Free space that no job may eat into."""


@dataclass(frozen=True, repr=False)
class TrainingSettings:
    snapshot_seconds: float = 300.0
    """At most this much training is lost by a sudden death."""
    snapshot_steps: int = 0
    """Also take a snapshot every so many steps; 0: by time only."""
    max_steps: int = 0
    """Cap on the steps of one job; what it leaves over stays trainable; 0: no cap."""
    threads: int = 0
    """CPU threads of a training job; 0: the machine's cores."""
    lanes: int = 1
    """Gradients are added up in so many lanes, in a fixed order: what several processes can share; a part of the plan."""
    processes: int = 1
    """Processes that train one job together on this machine, each with its own lanes."""
    launch: str = ""
    """Command that starts those processes, e.g. `torchrun --nproc-per-node {processes} --no-python {command}`."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu` or `cuda`."""
    memory_mb: float = 0.0
    """Resident MiB above which a training or indexing child is ended and started again; 0: nine tenths of all."""
    hang_seconds: float = 3600.0
    """A child without progress for so long is ended and started again; 0: never for that."""
    max_attempts: int = 3
    """Deaths of a training child without progress between them before the job fails."""


@dataclass(frozen=True, repr=False)
class ReplaySettings:
    fraction: float = 0.10
    """Share of earlier data of the line mixed into a job, as a fraction of its new tokens."""


@dataclass(frozen=True, repr=False)
class CoalesceSettings:
    after: int = 32
    """When so many files of a kind wait, what is queued is trained as one version."""


@dataclass(frozen=True, repr=False)
class BackupSettings:
    path: str = "backups"
    """The vault; a relative path is inside the home and does not protect against a lost disk."""
    auto: bool = True
    """Copy every new version into the vault by itself."""
    key_frame_every: int = 8
    """Weights are stored as the difference from their parent's; every so many in a row stand by themselves."""
    drill_days: float = 7.0
    """A daemon proves this often that the vault alone brings the home back; 0: only when asked."""


@dataclass(frozen=True, repr=False)
class RetentionSettings:
    newest: int = 8
    """`retention` never proposes to archive the newest so many versions of a line."""


@dataclass(frozen=True, repr=False)
class GoalSettings:
    tokens: float = 1e12
    """How many tokens this model shall learn in its life."""


@dataclass(frozen=True, repr=False)
class WebSettings:
    port: int = 8741
    """Port of the local page."""


@dataclass(frozen=True, repr=False)
class StorageSettings:
    seal: str = "mode"
    """`mode`: sealed versions are read-only. `immutable`: also `chattr +i`, which binds root too; needs CAP_LINUX_IMMUTABLE."""


@dataclass(frozen=True, repr=False)
class ValidationSettings:
    fraction: float = 0.05
    """Share of examples held out for ever."""
    salt: str = ""
    """Decides which examples are held out; taken over at `init`, random when empty, fixed afterwards."""


@dataclass(frozen=True, repr=False)
class ScrubSettings:
    days: int = 30
    """A running daemon reads everything it keeps once in so many days, a share each day; 0: never."""


@dataclass(frozen=True, repr=False)
class NearSettings:
    policy: str = "report"
    """`report`: new files are compared with stored ones in the background, and what resembles is told; `off`: they are not."""
    threshold: float = 0.8
    """Estimated resemblance (Jaccard, of 8-byte shingles) from which two examples are near-duplicates."""


@dataclass(frozen=True, repr=False)
class SafetySettings:
    enabled: bool = False
    """Whether `prepare prefs` leaves out pairs that break a rule."""
    rules: tuple[object, ...] = ()
    """What must not stand in a pair: `[{name, pattern, fields}]`; patterns are those of RE2 (`guard/checks/safety.py`)."""


@dataclass(frozen=True, repr=False)
class IndexSettings:
    chunk_size: int = 800
    """Characters in one chunk of a document."""
    overlap: int = 120
    """Characters that neighbouring chunks share."""


@dataclass(frozen=True, repr=False)
class Settings:
    """All settings of a home; sections are frozen too."""

    inbox: InboxSettings = field(default_factory=InboxSettings)
    intake: IntakeSettings = field(default_factory=IntakeSettings)
    disk: DiskSettings = field(default_factory=DiskSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    coalesce: CoalesceSettings = field(default_factory=CoalesceSettings)
    backup: BackupSettings = field(default_factory=BackupSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    goal: GoalSettings = field(default_factory=GoalSettings)
    web: WebSettings = field(default_factory=WebSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    index: IndexSettings = field(default_factory=IndexSettings)
    scrub: ScrubSettings = field(default_factory=ScrubSettings)
    near: NearSettings = field(default_factory=NearSettings)
    safety: SafetySettings = field(default_factory=SafetySettings)
    gate: str = "enforce"
    """`enforce`, `warn` or `off`."""
    nice: int = 5
    """Politeness of training children towards everything else on the machine."""
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    """For each dotted key where its value came from."""

    def flat(self) -> dict[str, object]:
        """Every setting by its dotted key."""
        values: dict[str, object] = {}
        for item in dataclasses.fields(self):
            if item.name == "origins":
                continue
            value = getattr(self, item.name)
            if dataclasses.is_dataclass(value):
                values |= {f"{item.name}.{sub.name}": getattr(value, sub.name) for sub in dataclasses.fields(value)}
            else:
                values[item.name] = value
        return values
