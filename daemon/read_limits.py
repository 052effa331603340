"""What a reader forgives in a file, and how far the token ids of the model go that the file is for.

From settings and ledger; the rules themselves are the reader's (`guard/checks/identify.py`).
"""

from __future__ import annotations

import json
from typing import Any

from guard.store.estimate import tip_of
from guard.store.keeper import Keeper
from guard.store.versions import DEFAULT_LINE, tips, version_by_id

__all__ = ["read_limits", "vocabulary"]


def read_limits(keeper: Keeper, line: str = "") -> dict[str, Any]:
    """The limits in a reader's request; `line`: the one a flag names, "" where the file's side file may name one."""
    intake = keeper.settings.intake
    others = {} if line else {name: vocabulary(keeper, name) for name in tips(keeper.ledger) if name != DEFAULT_LINE}
    return {"max_bad_rows": intake.max_bad_rows, "max_unusable_rows": intake.max_unusable_rows, "final": True,
            "max_unpacked_bytes": int(intake.max_unpacked_gb * 1e9),
            **vocabulary(keeper, line or DEFAULT_LINE), "of_lines": others}  # fmt: skip


def vocabulary(keeper: Keeper, line: str) -> dict[str, Any]:
    """What a reader needs of the tip's tokenizer; {} before there is a tip, or where its tokenizer cannot be read now.

    Asked for every file that comes, so it is remembered for each version, which never changes.
    """
    tip = tip_of(keeper, line)
    if tip is None:
        return {}
    known: dict[int, dict[str, Any]] = keeper.memory.setdefault("vocabularies", {})
    if tip not in known:
        path = keeper.home.models / version_by_id(keeper.ledger, tip).name / "tokenizer_state.json"
        try:
            state = json.loads(path.read_text("utf-8"))
            known[tip] = {"vocab_size": int(state["vocab_size"]), "tokenization": str(state["tokenization"]),
                          "content_hash": str(state["content_hash"])}  # fmt: skip
        except (OSError, ValueError, KeyError):
            return {}  # the job itself compares tokenizer and data once more, and says what is wrong with the version
    return known[tip]
