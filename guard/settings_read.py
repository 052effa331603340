"""Settings read: each value checked, with where it came from.

Order: flag > environment > `configs/heirloom.yaml` > default. In the environment `__` stands between levels:
`HEIRLOOM_INBOX__SETTLE_SECONDS=2`. Unknown keys are errors that name the nearest known one.
Not here: which settings there are and what they mean (`guard/settings.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from guard.errors import UsageError
from guard.plain_yaml import parse_yaml
from guard.settings import Settings

__all__ = ["load_settings", "settings_as_far_as_right"]

PREFIX = "HEIRLOOM_"
# Names in the environment that start like settings and are not.
_NOT_SETTINGS = {"HEIRLOOM_HOME", "HEIRLOOM_FAILPOINT", "HEIRLOOM_ACTOR"}
_CHOICES = {"gate": ("enforce", "warn", "off"), "storage.seal": ("mode", "immutable"), "training.device": ("auto", "cpu", "cuda"),
            "near.policy": ("report", "off")}  # fmt: skip
_FRACTIONS = {"replay.fraction", "validation.fraction", "intake.max_bad_rows", "intake.max_unusable_rows",
              "near.threshold"}  # fmt: skip
_POSITIVE = {"inbox.sweep_seconds", "coalesce.after", "index.chunk_size", "training.max_attempts", "intake.memory_mb",
             "training.lanes", "training.processes", "backup.key_frame_every", "near.threshold",
             "intake.max_unpacked_gb"}  # fmt: skip

_MOST = 2**53
"""No whole number is larger: every program that reads a plan keeps it exactly."""


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
        if isinstance(value, int) and value > _MOST:
            raise ValueError(f"must not be above {_MOST:,}")
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
    settings, problems = settings_as_far_as_right(home, environment, flags)
    if problems:
        raise problems[0]
    return settings


def settings_as_far_as_right(
    home: Path, environment: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
) -> tuple[Settings, list[UsageError]]:
    """The settings of a home and what is wrong with them: whatever is wrong is left out, as if nobody had said it."""
    defaults, problems = Settings().flat(), list[UsageError]()
    path = home / "configs" / "heirloom.yaml"
    try:
        from_file = _from_file(path)
    except UsageError as error:
        from_file = {}
        problems.append(error)
    sources = (
        (str(path), from_file),
        ("environment", _from_environment(os.environ if environment is None else environment)),
        ("flag", dict(flags or {})),
    )
    values, origins = dict(defaults), dict.fromkeys(defaults, "default")
    for source, given in sources:
        for key, raw in given.items():
            try:
                if key not in defaults:
                    raise _unknown(key, defaults, source)
                values[key], origins[key] = _convert(key, raw, defaults[key], source), source
            except UsageError as error:
                problems.append(error)
    try:
        _check_lanes(values, origins)
    except UsageError as error:
        problems.append(error)
    return _assemble(values, origins), problems


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
