"""A key given twice is refused wherever a person writes settings: of two lines the last would win without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from guard.errors import EnvironmentFault, HeirloomError, UsageError
from guard.plain_yaml import parse_json, parse_yaml
from guard.settings_read import load_settings
from trainer.machine import read_machine
from trainer.recipe_files import load_recipe


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_plain_values_are_what_they_were() -> None:
    assert parse_yaml("a: 1\nb: {c: [x, off], d: 1e-3}\n") == yaml.safe_load("a: 1\nb: {c: [x, off], d: 1e-3}\n")
    assert parse_yaml(b"schema: 1\n") == {"schema": 1} and parse_yaml("") is None
    assert parse_json('{"a": [{"b": 1}, {"b": 2}]}') == {"a": [{"b": 1}, {"b": 2}]}
    assert parse_yaml("one: &it {a: 1}\ntwo: {<<: *it, a: 2}\n") == {"one": {"a": 1}, "two": {"a": 2}}


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "x:\n  a: 1\n  a: 1\n", "[{a: 1, a: 2}]", '"a": 1\na: 2\n'])
def test_a_key_given_twice_is_named_with_its_line(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"the key 'a' is given twice(.|\n)*line"):
        parse_yaml(text)


def test_json_is_no_better_and_is_refused_too() -> None:
    with pytest.raises(ValueError, match="the key 'b' is given twice"):
        parse_json('{"a": {"b": 1, "b": 2}}')


def refused(home: Path, name: str, text: str) -> HeirloomError:
    path = written(home / "configs" / name, text)
    with pytest.raises((UsageError, EnvironmentFault)) as told:
        if name == "heirloom.yaml":
            load_settings(home, {})
        elif name == "machine.yaml":
            read_machine(path)
        else:
            load_recipe(path)
    return told.value


@pytest.mark.parametrize("name, text", [
    ("heirloom.yaml", "replay: {fraction: 0.5}\ngate: warn\nreplay: {fraction: 0.1}\n"),
    ("machine.yaml", "schema: 1\nthreads: 2\nthreads: 1\n"),
    ("sft/twice.yaml", "stage: sft\ntraining: {learning_rate: 1.0e-3, learning_rate: 1.0e-5}\n"),
    ("sft/twice.json", '{"stage": "sft", "stage": "pretrain"}'),
])  # fmt: skip
def test_every_file_that_a_person_writes_is_read_so(tmp_path: Path, name: str, text: str) -> None:
    told = refused(tmp_path, name, text)
    assert "is given twice" in told.message and name in told.message
