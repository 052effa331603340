"""The event export against the ledger: every line, both ways. Reads only.

The export is kept outside the ledger so that a chain that was changed, cut short or replaced as a whole is still found.
Not here: the chain within the ledger (`ledger.py`), making either again (`rebuild.py`).
"""

from __future__ import annotations

from guard.store.event_export import read_events
from guard.store.findings import Findings
from guard.store.keeper import Keeper

__all__ = ["check_export"]

_TOLD = 5
"""Of a broken export so many lines are named; the rest follows from them."""


def check_export(keeper: Keeper, findings: Findings) -> None:
    """Every line of the export is the ledger's event of that number, and every event of the ledger is in the export."""
    folder, problems, names = keeper.home.events, [], set()
    hashes = {row[0]: row[1] for row in keeper.ledger.rows("SELECT seq, hash FROM events")}
    number = 0
    try:
        for number, (name, event) in enumerate(read_events(folder), 1):
            names.add(name)
            if event is None:
                problems.append((name, f"line {number} is not the event that was written"))
            elif event["seq"] != number or event["hash"] != hashes.get(number, _now(keeper, number)):
                problems.append((name, f"line {number} is not event {number} of the ledger"))
    except OSError as error:
        problems.append(("", f"cannot be read: {error.strerror or error}"))
    # A daemon appends what it has just committed: then the export has it by now.
    if not problems and number < len(hashes) and keeper.ledger.export.head()[0] < len(hashes):
        problems.append(("", f"events {number + 1} to {len(hashes)} of the ledger are not in the export"))
    findings.checked.files += len(names)
    for name, problem in problems[:_TOLD]:
        findings.add("events", folder.name, name, problem)


def _now(keeper: Keeper, number: int) -> str | None:
    """The hash of an event that was written after the others were read."""
    return keeper.ledger.value("SELECT hash FROM events WHERE seq = ?", (number,))
