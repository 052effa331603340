"""What a reader forgives in a file, and how far the token ids of the model go that the file is for.

From settings and ledger; the rules themselves are the reader's (`guard/checks/identify.py`).
"""

from __future__ import annotations

import json
from typing import Any

from guard.store.estimate import tip_of
from guard.store.keeper import Keeper
from guard.store.versions import DEFAULT_LINE, version_by_id

__all__ = ["read_limits", "vocabulary"]


def read_limits(keeper: Keeper, line: str = "") -> dict[str, Any]:
    """The limits in a reader's request; `line`: the one the file is for, "" for the usual one."""
    intake = keeper.settings.intake
    return {"max_bad_rows": intake.max_bad_rows, "max_unusable_rows": intake.max_unusable_rows, "final": True,
            "max_unpacked_bytes": int(intake.max_unpacked_gb * 1e9),
            "vocab_size": vocabulary(keeper, line or DEFAULT_LINE)}  # fmt: skip


def vocabulary(keeper: Keeper, line: str) -> int:
    """How many token ids the tip of a line uses; 0 before there is one, or where its tokenizer cannot be read now.

    Asked for every file that comes, so it is remembered for each version, which never changes.
    """
    tip = tip_of(keeper, line)
    if tip is None:
        return 0
    sizes: dict[int, int] = keeper.memory.setdefault("vocabularies", {})
    if tip not in sizes:
        path = keeper.home.models / version_by_id(keeper.ledger, tip).name / "tokenizer_state.json"
        try:
            sizes[tip] = int(json.loads(path.read_text("utf-8"))["vocab_size"])
        except (OSError, ValueError, KeyError):
            return 0  # the job itself compares tokenizer and data once more, and says what is wrong with the version
    return sizes[tip]
