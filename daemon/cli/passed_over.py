"""Rows that a version passed over, with the reason: what `heirloom show` tells of them.

Read from what the version's record and shards say; nothing is judged here. Not here: where each row of a file went
(`daemon/story_parts.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from daemon.cli.output import plural

if TYPE_CHECKING:
    from guard.store.files import StoredFile
    from guard.store.keeper import Keeper

__all__ = ["passed_over_lines", "repeat_lines", "too_long_of", "too_long_words"]

_OVER = (
    ("known", "learnt before"), ("held_out", "held out for judging"), ("untouchable", "in an evaluation set"),
    ("repeated", "repeated"),
)  # fmt: skip


def passed_over_lines(record: Mapping[str, Any]) -> list[str]:
    """The rows of a version's files that it did not learn, and why; what was asked for again was fed, and is not among them."""
    skipped = record.get("skipped") or {}
    fed_again = {"known"} if (record.get("planned") or {}).get("allow_repeat") else set()
    lines = [f"    {plural(skipped[key], 'example')} {words}" for key, words in _OVER
             if skipped.get(key) and key not in fed_again]  # fmt: skip
    if skipped.get("too_long"):
        window = f"window of {record['block_size']:,} tokens" if record.get("block_size") else "window"
        lines.append(f"    {plural(skipped['too_long'], 'example')} longer than its {window}: split or shorten them")
    return lines


def repeat_lines(record: Mapping[str, Any]) -> list[str]:
    """The rows that an ancestor had learnt and that were fed once more because a person asked for it."""
    known = (record.get("skipped") or {}).get("known")
    asked = (record.get("planned") or {}).get("allow_repeat")
    return [f"  Trained again, as was asked: {plural(known, 'example')} learnt before"] if known and asked else []


def too_long_of(keeper: Keeper, file: StoredFile) -> list[dict[str, Any]]:
    """The versions that passed rows of a file over because they are longer than the window: version, window, examples."""
    from daemon.story_parts import passed_over

    return [{"version": item.version, "window": item.window, "examples": item.count} for item in passed_over(keeper, file)
            if item.count]  # fmt: skip


def too_long_words(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """What `too_long_of` found, for a person."""
    return [f"{plural(item['examples'], 'row')}: longer than the window of {item['version']} ({item['window']:,} tokens);"
            " split or shorten them" for item in items]  # fmt: skip
