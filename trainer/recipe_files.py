"""Recipes as files: found by name in `configs/`, read as YAML or JSON, their stage and name taken from where they lie.

Not here: what a recipe may say (`trainer/recipe.py`).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from guard.errors import NotFound, UsageError
from guard.plain_yaml import parse_json, parse_yaml
from trainer.recipe import Recipe, parse_recipe

__all__ = ["find_recipe", "load_recipe"]

_SUFFIXES = (".yaml", ".yml", ".json")


def _stage_of_folder(path: Path) -> str | None:
    """`configs/pretrain/x.yaml` -> pretrain; `configs/sft1/x.json` -> sft."""
    folder = path.parent.name
    return "pretrain" if folder.startswith("pretrain") else "sft" if folder.startswith("sft") else None


@functools.lru_cache(maxsize=32)
def _read(text: str, suffix: str) -> object:
    """The plain values of a recipe's text. The daemon asks for the same few again and again, and YAML takes 6 ms a time."""
    return parse_json(text) if suffix == ".json" else parse_yaml(text)


def load_recipe(path: Path | str, stage: str | None = None) -> Recipe:
    """Read a recipe file; its folder says the stage and its stem the name where the file does not.

    `stage`: that of the data, for a recipe that says none and fits them all (`configs/lora/`).

    Raises NotFound when there is no file and UsageError for anything it says wrongly.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"no recipe at {path}", subject=str(path), hint="ls configs/*/ shows them") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}", subject=str(path)) from error
    try:
        data = copy.deepcopy(_read(text, path.suffix))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML or JSON: {_in_a_line(error)}", subject=str(path),
                         hint="correct it there and try again") from error  # fmt: skip
    if isinstance(data, Mapping):
        folder = "lora" if path.parent.name == "lora" else data.get("stage") or _stage_of_folder(path)
        name = data.get("name") or (f"{folder}/{path.stem}" if folder else path.stem)
        stage = data.get("stage") or _stage_of_folder(path) or stage
        data = {**data, "name": name, **({"stage": stage} if stage else {})}
    return parse_recipe(data, str(path))


def find_recipe(name: str, roots: Sequence[Path | str], stage: str | None = None) -> Path:
    """The file of a recipe named `pretrain/micro`, `micro` (with `stage`), or by its path. Raises NotFound.

    `roots` are `configs/` folders, the first that has it wins; `sft1/` is looked at beside `sft/`.
    """
    if Path(name).suffix in _SUFFIXES and Path(name).is_file():
        return Path(name)
    names = [name] if "/" in name or stage is None else [f"{stage}/{name}", f"{stage}1/{name}", name]
    names += [item.replace("sft/", "sft1/", 1) for item in names if item.startswith("sft/")]
    for root in roots:
        for item in names:
            for suffix in ("", *_SUFFIXES):
                candidate = Path(root) / f"{item}{suffix}"
                if candidate.suffix in _SUFFIXES and candidate.is_file():
                    return candidate
    raise NotFound(f"no recipe {names[0]!r} in {', '.join(str(root) for root in roots)}", subject=name,
                   hint=f"put it there as {names[0] if Path(names[0]).suffix in _SUFFIXES else names[0] + '.yaml'}; "
                        "ls configs/*/ shows what there is")  # fmt: skip


def _in_a_line(error: Exception) -> str:
    """What a reader says of a text, without the lines of it that it quotes: it becomes the reason of a job, too."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
