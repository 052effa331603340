"""`heirloom lineage --matrix` in words: the held-out losses of a version and its ancestors, and what was forgotten.

Not here: where the figures come from (`guard/store/matrix.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.cli.output import plural, table, visible
from guard.names import parse_version_number, version_name

__all__ = ["SETS_SHOWN", "matrix_lines"]

SETS_SHOWN = 50
_COLUMNS = 6


def matrix_lines(matrix: Mapping[str, Any]) -> list[str]:
    """Sets as rows, the newest versions as columns, then the best figure with its version, and the rise since then."""
    sets, older = matrix["sets"], matrix["older"]
    if not sets:
        return [f"Nothing was measured of {visible(matrix['version'])} and its ancestors yet."]
    shown = {figure["version"] for item in sets for figure in item["losses"]}
    columns = [name for name in matrix["versions"] if name in shown][-_COLUMNS:]
    rows: list[tuple[object, ...]] = [("Set", "Before", *map(_short, columns), "Best", "Rise")]
    rows += [_row(item, columns) for item in sets]
    return [f"Held-out losses of {visible(matrix['version'])} and its ancestors, nats per token", "", *table(rows, "  "),
            *([f"  ({plural(older, 'older set')}: --all)"] if older else []), "",
            "Before: the parent of the version that learnt the set. Rise: the newest figure over the best one."]  # fmt: skip


def _row(item: Mapping[str, Any], columns: list[str]) -> tuple[object, ...]:
    figures = {figure["version"]: figure["loss"] for figure in item["losses"]}
    share = item["rise_share"]
    rise = f"{share:+.1%}" if share is not None else f"{item['rise']:+.4f}"
    return (item["set"], _loss(item["before"]), *(_loss(figures.get(name)) for name in columns),
            f"{item['best']['loss']:.4f} ({_short(item['best']['version'])})", rise)  # fmt: skip


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _short(name: str) -> str:
    """`v003` of `v003_syllogisms`."""
    number = parse_version_number(name)
    return name if number is None else version_name(number, "x").removesuffix("_x")
