"""Jinja2 in its sandbox, with everything bounded by counts: chat templates come from strangers.

The names are those that `transformers` gives to chat templates: `raise_exception`, `strftime_now`, the filter `tojson`,
loop controls and `generation` blocks. The date stands still, and the bounds are counts and never seconds, so that the same
row is rendered or refused alike on any machine. Not here: what a rendering means (`chat.py`).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.filters import do_indent
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

__all__ = ["GENERATED_CLOSE", "GENERATED_OPEN", "BoundedEnvironment", "TooMuch", "environment_of"]

GENERATED_OPEN, GENERATED_CLOSE = "\U000f0002", "\U000f0003"
"""Stand around what a `generation` block renders, when it is asked for."""
_OPERATIONS = 2_000_000
_RANGE = 100_000
_OUTPUT_CHARACTERS = 64 << 20
_LONGEST_NUMBER = 100_000


class TooMuch(TemplateError):
    """The template does more than any chat template needs."""


def _weigh(characters: int) -> None:
    """Raises TooMuch for a text that no conversation has."""
    if characters > _OUTPUT_CHARACTERS:
        raise TooMuch(f"the template makes texts of more than {_OUTPUT_CHARACTERS:,} characters")


def _joined(pieces: Iterable[str]) -> str:
    found = list(pieces)
    _weigh(sum(map(len, found)))
    return "".join(found)


class _Tildes(NodeTransformer):
    """Puts the bounded join in the place of `~`, which the sandbox does not let anyone watch."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        join = nodes.EnvironmentAttribute("tilde").set_lineno(node.lineno)
        return nodes.Call(join, node.nodes, [], None, None).set_lineno(node.lineno)


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    _weigh(len(text) + (len(text) + 1) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _indent(text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    _weigh((str(text).count("\n") + 1) * (len(width) if isinstance(width, str) else int(width)))
    return do_indent(str(text), width, first, blank)


def _join(values: Iterable[Any], between: str = "", attribute: Any = None) -> str:
    found = [value[attribute] if attribute is not None else value for value in values]
    return _joined([piece for value in found for piece in (str(between), str(value))][1:])


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: what the assistant makes."""

    tags = {"generation"}  # noqa: RUF012 - it is Jinja that says what this is

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked", [nodes.ContextReference()]), [], [], body).set_lineno(line)

    def _marked(self, context: Any, caller: Callable[[], str]) -> str:
        made = caller()
        return f"{GENERATED_OPEN}{made}{GENERATED_CLOSE}" if context.get("marks_generated") else made


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with a budget; `refill` before every rendering."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})
    concat = staticmethod(_joined)

    def refill(self) -> None:
        """A new budget."""
        self.operations, self.numbers = _OPERATIONS, _RANGE

    def spend(self) -> None:
        """One operation. Raises TooMuch when the budget is gone."""
        self.operations -= 1
        if self.operations < 0:
            raise TooMuch(f"the template needs more than {_OPERATIONS:,} operations")

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.spend()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.spend()
        return super().getitem(obj, argument)

    def call(self, context: Any, callee: Any, *arguments: Any, **named: Any) -> Any:
        self.spend()
        if any(isinstance(item, int) and abs(item) > _LONGEST_NUMBER for item in (*arguments, *named.values())):
            raise TooMuch(f"the template calls something with a number beyond {_LONGEST_NUMBER:,}")
        owner = getattr(callee, "__self__", None)
        if isinstance(owner, str):  # replace, join and the like make at most so much
            _weigh((len(owner) + 1) * max([1, *(len(item) for item in arguments if isinstance(item, str))]))
        return super().call(context, callee, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.spend()
        big = any(isinstance(item, str | list | tuple) for item in (left, right)) and operator == "*"
        if big or (operator == "**") or (operator == "%" and isinstance(left, str)):
            raise TooMuch(f"the template uses the operator {operator} in a way that makes large things")
        if operator == "+" and isinstance(left, str | list) and isinstance(right, str | list):
            _weigh(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def tilde(self, *pieces: Any) -> str:
        """What `a ~ b` makes."""
        return _joined(map(str, pieces))

    def _generate(self, source: nodes.Template, *arguments: Any, **named: Any) -> str:
        return super()._generate(_Tildes().visit(source), *arguments, **named)

    def bounded_range(self, *numbers: int) -> range:
        """`range`, of which all together may give so many numbers."""
        found = range(*numbers)
        self.numbers -= len(found)
        if self.numbers < 0:
            raise TooMuch(f"the template counts further than {_RANGE:,}")
        return found

    def rendered(self, template: Any, values: Mapping[str, Any]) -> str:
        """The text, made piece by piece and never longer than the bound. Raises TemplateError."""
        self.refill()
        pieces, characters = [], 0
        for piece in template.generate(**values):
            characters += len(piece)
            if characters > _OUTPUT_CHARACTERS:
                raise TooMuch(f"the template makes more than {_OUTPUT_CHARACTERS:,} characters")
            pieces.append(piece)
        return "".join(pieces)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
             sort_keys: bool = False) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def environment_of(date: str) -> BoundedEnvironment:
    """The environment in which every day is `date` (YYYY-MM-DD). Raises ValueError for what is no date."""
    today = datetime.datetime.strptime(date, "%Y-%m-%d")
    found = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    found.filters |= {"tojson": _to_json, "replace": _replace, "indent": _indent, "join": _join}
    for name in ("center", "pprint", "random", "filesizeformat", "format", "wordwrap", "xmlattr", "batch", "slice"):
        # make things of any size, or of chance, and no chat template needs them
        del found.filters[name]
    found.globals |= {"raise_exception": _refuse, "strftime_now": today.strftime, "range": found.bounded_range}
    for name in ("lipsum", "cycler"):
        del found.globals[name]
    return found
