"""Columns of Arrow become plain values, as JSON has them: text, whole numbers, numbers, true and false, lists and objects.

NULL is a key that is not there, at every depth. Times, dates and decimals become text (ISO 8601). For what JSON has no word
for (bytes, images, NaN) stands `Foreign`: such a column is not read at all, and it is a fault only where somebody needs it.
Not here: reading files (`columnar.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from pyarrow import types

__all__ = ["Foreign", "plain_column", "unreadable"]

_MAX_DEPTH = 100
_LISTS = (types.is_struct, types.is_list, types.is_large_list, types.is_fixed_size_list)


class Foreign:
    """In the place of a value that JSON has no word for."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __repr__(self) -> str:
        return f"<{self.what}>"


_NOT_A_NUMBER = Foreign("a number that is none (NaN or infinite)")
_NOT_TEXT = Foreign("text that is not UTF-8")


def unreadable(kind: pa.DataType, depth: int = 0) -> str:
    """What of a column's type JSON has no word for; "" when all of it has one."""
    if depth > _MAX_DEPTH:
        return "nested too deeply"
    if isinstance(kind, pa.BaseExtensionType):
        return unreadable(kind.storage_type, depth + 1)
    if types.is_dictionary(kind):
        return unreadable(kind.value_type, depth + 1)
    if types.is_map(kind):
        return "" if _is_text(kind.key_type) and not unreadable(kind.item_type, depth + 1) else str(kind)[:60]
    if types.is_nested(kind):
        if types.is_union(kind) or not any(is_it(kind) for is_it in _LISTS):
            return str(kind)[:60]
        inner = (unreadable(kind.field(place).type, depth + 1) for place in range(kind.num_fields))
        return next(filter(None, inner), "")
    known = (types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_temporal, _is_text)
    return "" if any(is_it(kind) for is_it in known) and not types.is_interval(kind) else str(kind)[:60]


def _is_text(kind: pa.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def plain_column(column: pa.Array) -> list[Any]:
    """The values of a column whose type is not `unreadable`, None where there is none."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain_column(column.storage)
    if types.is_nested(kind):
        return _nested(column)
    if types.is_dictionary(kind):
        return plain_column(column.dictionary_decode())
    if types.is_temporal(kind) and not types.is_duration(kind):
        return [_moment(item) for item in _as_text(column)]
    if types.is_decimal(kind):
        return _as_text(column)
    if types.is_duration(kind):
        return column.cast(pa.int64()).to_pylist()
    if types.is_floating(kind):
        return [item if item is None or math.isfinite(item) else _NOT_A_NUMBER for item in column.to_pylist()]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_text_or_foreign(item) for item in column]


def _text_or_foreign(item: pa.Scalar) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        return _NOT_TEXT


def _as_text(column: pa.Array) -> list[Any]:
    """Texts of dates, times and decimals; a time zone that this machine does not know is left away (times are UTC then)."""
    try:
        return column.cast(pa.string()).to_pylist()
    except pa.ArrowInvalid:
        return column.cast(pa.timestamp(column.type.unit)).cast(pa.string()).to_pylist()


def _nested(column: pa.Array) -> list[Any]:
    rule = _rule(column.type)
    return [item if item is None else _ruled(rule, item) for item in _listed(column)]


def _ruled(rule: Callable[[Any], Any], item: Any) -> Any:
    try:
        return rule(item)
    except _NoNumber:
        return _NOT_A_NUMBER


def _listed(column: pa.Array) -> list[Any]:
    column = _worded(column)
    try:
        return column.to_pylist(maps_as_pydicts="strict")
    except (UnicodeDecodeError, KeyError):
        return [_listed_or_foreign(item) for item in column]


def _listed_or_foreign(item: pa.Scalar) -> Any:
    try:
        return item.as_py(maps_as_pydicts="strict")
    except (UnicodeDecodeError, KeyError):
        return _NOT_TEXT


def _worded(column: pa.Array) -> pa.Array:
    """The same nested column with its times and decimals as text, so that they become what they become outside."""
    wanted = _worded_type(column.type)
    return column if wanted.equals(column.type) else column.cast(wanted)


def _worded_type(kind: pa.DataType) -> pa.DataType:
    if types.is_struct(kind):
        return pa.struct([field.with_type(_worded_type(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(kind.key_type, _worded_type(kind.item_type))
    if types.is_large_list(kind):
        return pa.large_list(_worded_type(kind.value_type))
    if types.is_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(_worded_type(kind.value_type))
    if types.is_duration(kind):
        return pa.int64()
    return pa.string() if types.is_temporal(kind) or types.is_decimal(kind) else kind


class _NoNumber(Exception):
    """A NaN somewhere in a value; not an error."""


def _rule(kind: pa.DataType) -> Callable[[Any], Any]:
    """How a value of this type loses its empty keys. Raises _NoNumber where it holds a number that is none."""
    if types.is_struct(kind):
        rules = {field.name: _rule(field.type) for field in kind}
        return lambda item: _filled(item, rules)
    if types.is_map(kind):
        inner = _rule(kind.item_type)
        return lambda item: {key: inner(part) for key, part in item.items()} if type(item) is dict else item
    if types.is_nested(kind):
        inner = _rule(kind.value_type)
        return _same if inner is _same else lambda item: [inner(part) for part in item] if type(item) is list else item
    if types.is_temporal(kind) and not types.is_duration(kind):
        return _moment
    return _number if types.is_floating(kind) else _same


def _filled(item: Any, rules: dict[str, Callable[[Any], Any]]) -> Any:
    return {key: rules[key](part) for key, part in item.items() if part is not None} if type(item) is dict else item


def _same(item: Any) -> Any:
    return item


def _moment(item: Any) -> Any:
    return item and item.replace(" ", "T", 1)


def _number(item: Any) -> Any:
    if item is not None and not math.isfinite(item):
        raise _NoNumber
    return item
