"""The safety filter of pairs: which rule a pair breaks, in which part, and what a wrong rule says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from homes import within

from guard.checks.rows import validate
from guard.checks.safety import Rule, broken_rules, load_rules
from guard.errors import UsageError
from guard.settings_read import load_settings


def pair(prompt: str = "a", chosen: str = "b", rejected: str = "c") -> dict[str, Any]:
    fields = validate("preference", {"prompt": prompt, "chosen": chosen, "rejected": rejected})
    assert isinstance(fields, dict)
    return fields


def home(folder: Path, text: str) -> Path:
    (folder / "configs").mkdir()
    (folder / "configs" / "heirloom.yaml").write_text(text)
    return folder


RULES = """
safety:
  enabled: true
  rules:
    - {name: keys, pattern: "(?i)api[_ ]key"}
    - {name: insults, pattern: "\\\\bfool\\\\b", fields: [chosen, prefix]}
"""


def test_the_first_rule_that_is_broken_is_named(tmp_path: Path) -> None:
    rules = load_rules(load_settings(home(tmp_path, RULES), {}))
    assert [rule.name for rule in rules] == ["keys", "insults"]
    found = [pair(), pair(rejected="my API key"), pair(chosen="you fool"), pair(rejected="you fool"), pair("fool, api_key"),
             pair(chosen="foolish")]  # fmt: skip
    assert broken_rules(rules, found) == ["", "keys", "insults", "", "keys", ""]
    assert broken_rules([], found[:2]) == ["", ""]


def test_it_is_off_unless_it_was_switched_on(tmp_path: Path) -> None:
    assert load_rules(load_settings(home(tmp_path, RULES.replace("true", "false")), {})) == []
    (tmp_path / "configs" / "heirloom.yaml").write_text("")
    assert load_rules(load_settings(tmp_path, {})) == [] and load_settings(tmp_path, {}).safety.rules == ()


@pytest.mark.parametrize(("rules", "words"), [
    ("[]", "there is no rule"),
    ("[{name: a}]", "has a name, a pattern"), ("[a]", "has a name, a pattern"), ("[{name: a, pattern: 7}]", "must be text"),
    ("[{name: a, pattern: b, fields: [text]}]", "looks in"), ("[{name: a, pattern: b}, {name: a, pattern: c}]", "are called 'a'"),
    ("[{name: a, pattern: '('}]", "no regular expression of RE2"), ("[{name: a, pattern: '(?=a)'}]", "expression of RE2"),
])  # fmt: skip
def test_a_wrong_rule_says_what_is_wrong(tmp_path: Path, rules: str, words: str) -> None:
    settings = load_settings(home(tmp_path, f"safety: {{enabled: true, rules: {rules}}}\n"), {})
    with pytest.raises(UsageError, match=words) as told:
        load_rules(settings)
    assert told.value.hint


def test_rules_are_a_list_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a list is needed"):
        load_settings(home(tmp_path, "safety: {rules: a}\n"), {})
    with pytest.raises(UsageError, match="a list is needed"):
        load_settings(tmp_path / "none", {"HEIRLOOM_SAFETY__RULES": "a"})


def test_no_pattern_takes_long_on_any_text() -> None:
    with within(60):
        assert broken_rules([Rule("bomb", "(a+)+$")], [pair(chosen="a" * 20_000 + "b")]) == [""]
