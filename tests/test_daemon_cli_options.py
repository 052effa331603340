"""The words of a command line before typer sees them."""

from __future__ import annotations

import pytest

from daemon.cli.commands import GROUPS, build, groups_for, shape_of
from daemon.cli.options import Globals, Shape, normalise
from guard.errors import UsageError

SHAPE = Shape(
    commands={
        "status": Shape(),
        "plan": Shape(values=frozenset({"--base", "--data", "--output"}), several=frozenset({"--data"})),
        "chat": Shape(values=frozenset({"-p", "--prompt", "-k"})),
        "log": Shape(values=frozenset({"--since"})),
        "queue": Shape(values=frozenset({"--follow"}), commands={"move": Shape(values=frozenset({"--to"}))}),
    }
)


@pytest.mark.parametrize(
    "line",
    ["--home H --json -q log -f", "log --home H -f --json -q", "log -f --quiet --json --home=H", "-q log -f --home H --json"],
)
def test_global_options_are_taken_from_anywhere(line: str) -> None:
    assert normalise(line.split(), SHAPE) == (Globals(home="H", json=True, quiet=True), ["log", "-f"])


def test_no_command_means_status() -> None:
    assert normalise([], SHAPE) == (Globals(), ["status"])
    assert normalise(["--home", "H", "--json"], SHAPE) == (Globals(home="H", json=True), ["status"])
    assert normalise(["--watch"], SHAPE)[1] == ["status", "--watch"]


def test_help_alone_stays_help() -> None:
    assert normalise(["--help"], SHAPE)[1] == ["--help"]


def test_option_names_take_underscores_and_values_are_never_touched() -> None:
    line = normalise(["plan", "--out_put=a_b", "--output", "--my_name", "--base=v1_x", "c_d"], SHAPE)[1]
    assert line == ["plan", "--out-put=a_b", "--output", "--my_name", "--base=v1_x", "c_d"]


def test_a_value_that_looks_like_a_global_option_stays_a_value() -> None:
    found, line = normalise(["chat", "-p", "--json", "--prompt", "-q"], SHAPE)
    assert (found, line) == (Globals(), ["chat", "-p", "--json", "--prompt", "-q"])


def test_nothing_behind_two_dashes_is_an_option() -> None:
    found, line = normalise(["chat", "--", "--json", "--out_put"], SHAPE)
    assert (found, line) == (Globals(), ["chat", "--", "--json", "--out_put"])


def test_an_option_may_take_several_values() -> None:
    line = normalise(["plan", "--data", "a", "b", "c", "--output", "x", "--data", "d"], SHAPE)[1]
    assert line == ["plan", "--data", "a", "--data", "b", "--data", "c", "--output", "x", "--data", "d"]


def test_short_options_stand_together() -> None:
    assert normalise(["log", "-fq"], SHAPE) == (Globals(quiet=True), ["log", "-f"])
    assert normalise(["chat", "-k5", "-qk", "7"], SHAPE) == (Globals(quiet=True), ["chat", "-k5", "-k", "7"])


def test_sub_commands_have_options_of_their_own() -> None:
    found, line = normalise(["queue", "move", "3", "--to", "--json", "--json"], SHAPE)
    assert (found, line) == (Globals(json=True), ["queue", "move", "3", "--to", "--json"])


def test_home_without_a_folder_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        normalise(["status", "--home"], SHAPE)


def test_the_real_commands_tell_which_options_take_values() -> None:
    shape = shape_of(build())
    assert "--data" in shape.commands["plan"].several and "--base" in shape.commands["plan"].values
    assert "--sample" in shape.commands["verify"].values and "--sample" not in shape.commands["show"].values
    assert "--to" in shape.commands["queue"].commands["move"].values


def test_only_the_files_that_a_line_needs_are_imported() -> None:
    assert groups_for(["--json", "log", "-f"]) == ("journal",)
    assert set(groups_for(["why", "search"])) == {"files", "data"}
    assert groups_for(["log", "--help"]) == groups_for(["nonsense"]) == tuple(GROUPS)
