"""Which file of a version holds its weights: all of them, or an adapter that needs its base beside it.

Names only, so that the daemon and the checks can ask without torch. Not here: reading or writing weights
(`trainer/version_files.py`, `trainer/adapter_files.py`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

__all__ = ["ADAPTER", "ADAPTER_BASE", "ADAPTER_NOTE", "ADAPTER_SETTINGS", "FULL", "adapter_base", "input_identity",
           "weights_name", "weights_sha256"]  # fmt: skip

FULL = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
ADAPTER_SETTINGS = "adapter_config.json"
ADAPTER_NOTE = "adapter_base.json"
"""Name and hash of the base: `{"name": ..., "sha256": ...}`. `adapter_config.json` has no place for a hash."""
ADAPTER_BASE = "adapter_base"
"""The role of an input without which a version cannot be loaded; a parent's weights are in the child's own."""


def weights_name(files: Container[str]) -> str:
    """The name of the weights among a version's files."""
    return ADAPTER if ADAPTER in files else FULL


def weights_sha256(record: Mapping[str, Any]) -> str:
    """The hash of the weights a sealed version's record promises: of its adapter where it is one."""
    return str(record["files"][weights_name(record["files"])])


def adapter_base(inputs: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The input an adapter stands on, from a plan's or a version's `inputs`; None for full weights."""
    return next((item for item in inputs if item["role"] == ADAPTER_BASE), None)


def input_identity(inputs: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Role, name and hash of each input, in their order: what a record keeps and a proof compares. A home may be moved."""
    return [{key: str(item[key]) for key in ("role", "name", "sha256")} for item in inputs]
