"""The words of a command line before typer sees them: a pure function from argv to argv.

    --home, --json, -q and --debug are taken from wherever they stand and given back apart from the rest
    option names are spelt with `-`: `--output_dir=a_b` becomes `--output-dir=a_b`; values are never touched
    `--data A B C` becomes `--data A --data B --data C` where an option takes several
    no command at all means `status`

What takes a value is told by a `Shape`, made from the typer commands in `main.py`, so that a value which happens to
look like an option stays a value. Nothing here reads the environment, prints, or knows what a command does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from guard.errors import UsageError

__all__ = ["DEFAULT_COMMAND", "Globals", "Shape", "normalise"]

DEFAULT_COMMAND = "status"
_HELP = {"--help", "-h"}
_SWITCHES = {"--json", "--quiet", "-q", "--debug"}


@dataclass(frozen=True)
class Globals:
    """What may stand anywhere on the line."""

    home: str | None = None
    json: bool = False
    quiet: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Shape:
    """What one command takes: option names with one value, with several, and its sub-commands."""

    values: frozenset[str] = frozenset()
    several: frozenset[str] = frozenset()
    commands: Mapping[str, Shape] = field(default_factory=dict)


def normalise(argv: Sequence[str], shape: Shape) -> tuple[Globals, list[str]]:
    """The global options, and the line for typer. Raises UsageError for `--home` without a folder."""
    reader = _Reader(list(argv), shape)
    while reader.waiting:
        reader.take()
    if not reader.command_seen and not _HELP & set(reader.line):
        reader.line.insert(0, DEFAULT_COMMAND)
    return reader.found, reader.line


class _Reader:
    """Goes through the words once, from left to right."""

    def __init__(self, words: list[str], shape: Shape) -> None:
        self.waiting = words
        self.shape = shape
        # Before any command the words belong to the default one: `heirloom --watch` is `heirloom status --watch`.
        self.options = shape.commands.get(DEFAULT_COMMAND, shape)
        self.found = Globals()
        self.line: list[str] = []
        self.command_seen = False

    def take(self) -> None:
        word = self.waiting.pop(0)
        if word == "--":
            self.line += [word, *self.waiting]
            self.waiting.clear()
        elif word.startswith("--"):
            self._long(word)
        elif word.startswith("-") and len(word) > 1:
            self._short(word)
        else:
            self._plain(word)

    def _plain(self, word: str) -> None:
        if word in self.shape.commands:
            self.shape = self.options = self.shape.commands[word]
        # A wrong command is a command too: typer says that it does not exist.
        self.command_seen = True
        self.line.append(word)

    def _long(self, word: str) -> None:
        name, equals, value = word.partition("=")
        name = "--" + name[2:].replace("_", "-")
        if name == "--home":
            self.found = replace(self.found, home=value if equals else self._home_value())
        elif name in _SWITCHES and not equals:
            self._switch(name)
        else:
            self.line.append(name + equals + value)
            if not equals:
                self._values_of(name)

    def _short(self, word: str) -> None:
        """One or several one-letter options: `-q`, `-fq`, `-k5`, `-p TEXT`."""
        kept = ""
        for place, letter in enumerate(word[1:], start=1):
            name = f"-{letter}"
            if name in _SWITCHES:
                self._switch(name)
                continue
            kept += letter
            if name in self.options.values:
                self.line.append(f"-{kept}{word[place + 1 :]}")
                if place + 1 == len(word):
                    self._values_of(name)
                return
        if kept:
            self.line.append(f"-{kept}")

    def _switch(self, name: str) -> None:
        found = self.found
        self.found = replace(found, json=found.json or name == "--json", quiet=found.quiet or name in ("--quiet", "-q"),
                             debug=found.debug or name == "--debug")  # fmt: skip

    def _home_value(self) -> str:
        if not self.waiting:
            raise UsageError("--home needs a folder", hint="heirloom --home DIR status")
        return self.waiting.pop(0)

    def _values_of(self, name: str) -> None:
        if name not in self.options.values or not self.waiting:
            return
        self.line.append(self.waiting.pop(0))
        while name in self.options.several and self.waiting and not self.waiting[0].startswith("-"):
            self.line += [name, self.waiting.pop(0)]
