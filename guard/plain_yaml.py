"""YAML as a person writes settings in it: plain values, and no key given twice.

PyYAML lets the last of two equal keys win without a word, so of two `learning_rate:` lines one would be a lie. JSON has
the same habit. Not here: what the keys mean (settings, recipes, machine.yaml), nor dropped side files, which nobody may
trust (`checks/side.py` refuses aliases and deep nests before anything is built).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

__all__ = ["parse_json", "parse_yaml", "repeated_key"]


def repeated_key(node: yaml.MappingNode) -> yaml.ScalarNode | None:
    """The first key of a mapping that stands there a second time; None when all differ."""
    import yaml

    seen: set[str] = set()
    for key, _value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                return key
            seen.add(key.value)
    return None


def parse_yaml(text: str | bytes) -> Any:
    """The plain values of a text. Raises yaml.YAMLError with line and column, for a key given twice too."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            if (key := repeated_key(node)) is not None:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value[:40]!r} is given twice",
                                                        key.start_mark)  # fmt: skip
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def parse_json(text: str) -> Any:
    """The plain values of a text. Raises ValueError, for a key given twice too."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _value in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {twice[:40]!r} is given twice")
        return found

    return json.loads(text, object_pairs_hook=once)
