"""Tool definitions (JSON Schema) as the TypeScript-like text that Harmony's developer block holds.

Source of the form: the published Harmony guide and its rendered examples; what they do not show is written in the same
manner. Not here: the block around it (`harmony.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["functions_section"]

_SIMPLE = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null",
           "object": "object"}  # fmt: skip
_DEEPEST = 20
"""Schemas nested deeper than this end in `any`."""

Schema = Mapping[str, Any]


def functions_section(tools: Sequence[Schema]) -> str:
    """The section `## functions`, from its heading to the comment behind the namespace."""
    lines = ["## functions", "", "namespace functions {", ""]
    for tool in tools:
        name = tool["name"].removeprefix("functions.")  # the namespace says it
        lines += [*_comment(tool.get("description")), f"type {name} = {_signature(tool.get('parameters'))};", ""]
    return "\n".join([*lines, "} // namespace functions"])


def _comment(text: Any) -> list[str]:
    return [f"// {line}".rstrip() for line in str(text).split("\n")] if text else []


def _signature(parameters: Any) -> str:
    if not isinstance(parameters, Mapping) or not parameters.get("properties"):
        return "() => any"
    about = parameters.get("description")
    opening = f"// {' '.join(str(about).split())}\n" if about else ""
    return f"(_: {opening}{_object(parameters, 0)}) => any"


def _object(schema: Schema, depth: int) -> str:
    required = schema.get("required") or ()
    properties = schema.get("properties") or {}
    lines = [line for name, item in properties.items() for line in _property(name, item, name in required, depth)]
    return "\n".join(["{", *lines, "}"])


def _property(name: str, schema: Any, required: bool, depth: int) -> list[str]:
    """The lines of one field: comments above it, then name and type, its default behind."""
    schema = schema if isinstance(schema, Mapping) else {}
    lines = [*_comment(schema.get("title")), *(["//"] if schema.get("title") else []), *_comment(schema.get("description"))]
    if schema.get("examples"):
        lines += ["// Examples:", *(f"// - {json.dumps(item, ensure_ascii=False)}" for item in schema["examples"])]
    label = f"{name}{'' if required else '?'}:"
    choices = schema.get("oneOf") or schema.get("anyOf")
    if choices:
        if "default" in schema:
            lines.append(f"// default: {_default(schema)}")
        return [*lines, label, *(_choice(item, depth) for item in choices), ","]
    tail = f" // default: {_default(schema)}" if "default" in schema else ""
    return [*lines, f"{label} {_type(schema, depth)},{tail}"]


def _choice(schema: Any, depth: int) -> str:
    """One line of a oneOf."""
    schema = schema if isinstance(schema, Mapping) else {}
    words = [" ".join(str(schema["description"]).split())] if schema.get("description") else []
    words += [f"default: {_default(schema)}"] if "default" in schema else []
    return f" | {_type(schema, depth)}" + (f" // {' '.join(words)}" if words else "")


def _default(schema: Schema) -> str:
    """A default value; the value of an enumeration stands without quotes."""
    value = schema["default"]
    return value if isinstance(value, str) and schema.get("enum") else json.dumps(value, ensure_ascii=False)


def _type(schema: Any, depth: int) -> str:
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return "any"
    nullable = " | null" if schema.get("nullable") else ""
    kind = schema.get("type")
    if schema.get("enum"):
        return " | ".join(json.dumps(item, ensure_ascii=False) for item in schema["enum"]) + nullable
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False) + nullable
    if isinstance(kind, list):
        return " | ".join(_type({**schema, "type": item}, depth + 1) for item in kind)
    if schema.get("oneOf") or schema.get("anyOf"):
        return " | ".join(_type(item, depth + 1) for item in schema.get("oneOf") or schema["anyOf"]) + nullable
    if kind == "array":
        inner = _type(schema.get("items"), depth + 1)
        return (f"({inner})[]" if " | " in inner else f"{inner}[]") + nullable
    if schema.get("properties"):
        return _object(schema, depth + 1) + nullable
    return _SIMPLE.get(str(kind), "any") + nullable
