"""Every setting of a home, next to one sentence on what it sets, and where its value came from.

Order: flag > environment > `configs/heirloom.yaml` > default. In the environment `__` stands between levels:
`HEIRLOOM_INBOX__SETTLE_SECONDS=2`. Unknown keys are errors that name the nearest known one.
Not here: recipes (`trainer/recipe.py`) and side files, which speak about one drop and not about the home.
Plain frozen dataclasses and no library: `heirloom status` loads this and must answer at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guard.errors import UsageError
from guard.plain_yaml import parse_yaml

__all__ = ["Settings", "load_settings"]

PREFIX = "HEIRLOOM_"
# Names in the environment that start like settings and are not.
_NOT_SETTINGS = {"HEIRLOOM_HOME", "HEIRLOOM_FAILPOINT", "HEIRLOOM_ACTOR"}


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


_CHOICES = {"gate": ("enforce", "warn", "off"), "storage.seal": ("mode", "immutable"), "training.device": ("auto", "cpu", "cuda"),
            "near.policy": ("report", "off")}  # fmt: skip
_FRACTIONS = {"replay.fraction", "validation.fraction", "intake.max_bad_rows", "intake.max_unusable_rows",
              "near.threshold"}  # fmt: skip
_POSITIVE = {"inbox.sweep_seconds", "coalesce.after", "index.chunk_size", "training.max_attempts", "intake.memory_mb",
             "training.lanes", "training.processes", "backup.key_frame_every", "near.threshold",
             "intake.max_unpacked_gb"}  # fmt: skip


def _convert(key: str, raw: object, default: object, source: str) -> object:
    """Bring a raw value to the type of the default. Raises UsageError naming key, value and source."""
    try:
        if isinstance(default, tuple):
            if not isinstance(raw, list):
                raise ValueError("a list is needed here, in configs/heirloom.yaml")
            return tuple(raw)
        if raw is None or isinstance(raw, list | dict):
            raise ValueError("one value is needed here")
        if isinstance(default, bool):
            word = str(raw).strip().lower()
            if word not in {"1", "0", "true", "false", "yes", "no", "on", "off"}:
                raise ValueError("not yes or no")
            value: object = word in {"1", "true", "yes", "on"}
        elif isinstance(default, int):
            number = float(str(raw))
            if number != int(number):
                raise ValueError("not a whole number")
            value = int(number)
        elif isinstance(default, float):
            value = float(str(raw))
        else:
            # YAML 1.1 reads a bare `off` as false: `gate: off` must mean what it says.
            value = "off" if raw is False and key in ("gate", "near.policy") else str(raw)
        _check_range(key, value)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{key} = {raw!r} ({source}): {error}", subject=key,
                         hint=f"the default is {default!r}; see `heirloom config show --origin`") from error  # fmt: skip
    return value


def _check_range(key: str, value: object) -> None:
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ValueError(f"must be one of {', '.join(_CHOICES[key])}")
    if isinstance(value, float | int) and not isinstance(value, bool):
        if not 0 <= value < float("inf"):
            raise ValueError("must be a number, not negative and not endless")
        if key in _FRACTIONS and value > 1:
            raise ValueError("is a fraction between 0 and 1")
        if key in _POSITIVE and value <= 0:
            raise ValueError("must be above zero")


def _unknown(key: str, known: Mapping[str, object], source: str) -> UsageError:
    # The section alone makes any two of its keys look alike: what they are called within it must be near too.
    near = [name for name in difflib.get_close_matches(key, known, n=3)
            if difflib.SequenceMatcher(None, name.rpartition(".")[2], key.rpartition(".")[2]).ratio() > 0.6]  # fmt: skip
    hint = f"did you mean {near[0]}?" if near else "`heirloom config show` lists all settings"
    if not near and key.startswith("training."):
        hint += "; how a model is trained (learning rate, batch, precision) stands in a recipe, configs/*/*.yaml"
    return UsageError(f"unknown setting {key} ({source})", subject=key, hint=hint)


def _flatten(tree: object, source: str, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        raise UsageError(f"{source}: expected `section: {{key: value}}`, found {type(tree).__name__}",
                         hint="an empty file is fine; see `heirloom config show`")  # fmt: skip
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, source, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _from_file(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not valid YAML: {error}", hint="mend the file or move it away") from error
    if all(not line.strip() or line.lstrip().startswith("#") for line in text.splitlines()):
        return {}  # as `init` writes it: nothing is set, and `heirloom status` need not pay for importing yaml
    import yaml

    try:
        tree = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}", hint="mend the file or move it away") from error
    return {} if tree is None else _flatten(tree, str(path))


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    names = (name for name in environment if name.startswith(PREFIX) and name not in _NOT_SETTINGS)
    return {name[len(PREFIX) :].lower().replace("__", "."): environment[name] for name in names}


def load_settings(
    home: Path, environment: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
) -> Settings:
    """The settings of the home in `home`, each with its origin. Raises UsageError for unknown keys or bad values."""
    defaults = Settings().flat()
    path = home / "configs" / "heirloom.yaml"
    sources = (
        (str(path), _from_file(path)),
        ("environment", _from_environment(os.environ if environment is None else environment)),
        ("flag", dict(flags or {})),
    )
    values, origins = dict(defaults), dict.fromkeys(defaults, "default")
    for source, given in sources:
        for key, raw in given.items():
            if key not in defaults:
                raise _unknown(key, defaults, source)
            values[key], origins[key] = _convert(key, raw, defaults[key], source), source
    _check_lanes(values, origins)
    return _assemble(values, origins)


def _check_lanes(values: Mapping[str, object], origins: Mapping[str, str]) -> None:
    """Said here, before a job meets it: what each process has must be a branch of the tree in which lanes are added."""
    lanes, processes = int(str(values["training.lanes"])), int(str(values["training.processes"]))
    each, left = divmod(max(lanes, processes), processes)
    if processes > 1 and (left or each & (each - 1)):
        raise UsageError(f"training.lanes = {lanes} ({origins['training.lanes']}) cannot be shared by training.processes = "
                         f"{processes} ({origins['training.processes']})", subject="training.lanes",
                         hint="training.lanes must be 1, 2, 4, 8 ... times training.processes")  # fmt: skip


def _assemble(values: Mapping[str, object], origins: Mapping[str, str]) -> Settings:
    parts: dict[str, object] = {}
    for item in dataclasses.fields(Settings):
        default = getattr(Settings(), item.name) if item.name != "origins" else None
        if dataclasses.is_dataclass(default):
            own = {sub.name: values[f"{item.name}.{sub.name}"] for sub in dataclasses.fields(default)}
            parts[item.name] = dataclasses.replace(default, **own)  # type: ignore[type-var]
        elif item.name != "origins":
            parts[item.name] = values[item.name]
    return Settings(**parts, origins=dict(origins))  # type: ignore[arg-type]
