"""Intents: what a durable operation is about to do, in the ledger before the first byte moves (law 8).

One row of `meta` per operation and subject, `intent:delete:v004_full_stack` with JSON facts. Whoever finishes the
operation clears it in the same transaction that records the outcome; recovery finishes what is still there.
Not here: what the facts mean - each operation knows its own. Births and index switches keep theirs in their job.
"""

from __future__ import annotations

from typing import Any

import orjson

from guard.store.ledger import Ledger

__all__ = ["clear_intent", "open_intents", "put_intent"]


def put_intent(ledger: Ledger, operation: str, subject: str, facts: dict[str, Any]) -> None:
    """Note inside the current transaction what is about to happen."""
    ledger.set_meta(f"intent:{operation}:{subject}", orjson.dumps(facts, option=orjson.OPT_SORT_KEYS).decode())


def clear_intent(ledger: Ledger, operation: str, subject: str) -> None:
    """Forget an intent inside the transaction that records its outcome."""
    ledger.run("DELETE FROM meta WHERE key = ?", (f"intent:{operation}:{subject}",))


def open_intents(ledger: Ledger, operation: str) -> list[dict[str, Any]]:
    """Every unfinished intent of an operation, by subject."""
    # `;` is the character after `:`, so this is every key that starts with the operation.
    between = (f"intent:{operation}:", f"intent:{operation};")
    rows = ledger.rows("SELECT value FROM meta WHERE key >= ? AND key < ? ORDER BY key", between)
    return [orjson.loads(row[0]) for row in rows]
