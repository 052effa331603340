"""The text beside a file that came back: what happened, why, which rows, and what to do, for a person to read.

Pure: an identity in, text out. Who writes it, and where, is the caller's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.checks.scan import RowFault

if TYPE_CHECKING:
    from guard.checks.identify import Identity

__all__ = ["printable", "why_text"]


def why_text(identity: Identity) -> str:
    """The content of `<name>.why.txt` for a file that was rejected (or waits, or is ignored)."""
    words = {"reject": "was rejected", "wait": "is waiting", "ignore": "is ignored", "ok": "was accepted"}
    reason = identity.reason or "nothing is wrong"
    lines = [f"{printable(identity.name)} {words[identity.verdict]}.", "", f"Why: {printable(reason)}"]
    if identity.sha256:
        facts = [f"kind: {identity.kind or 'unknown'}", f"{identity.size_bytes} bytes", f"sha256: {identity.sha256}"]
        if identity.rows:
            facts[1:1] = [f"{identity.rows} rows", f"{identity.examples} usable"]
        lines += ["", "What was read: " + ", ".join(facts)]
    lines += _fault_lines("cannot be read", identity.bad_rows_count, identity.bad_rows)
    lines += _fault_lines("cannot be trained on", identity.unusable_rows_count, identity.unusable_rows)
    lines += ["", "What to do: " + _advice(identity)]
    return "\n".join(lines) + "\n"


def printable(text: str) -> str:
    """The text with every character that a terminal would act on, or that is not UTF-8, written as an escape."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _fault_lines(what: str, count: int, faults: tuple[RowFault, ...]) -> list[str]:
    if not count:
        return []
    shown = f" (the first {len(faults)})" if count > len(faults) else ""
    lines = ["", f"{count} row{'s' if count > 1 else ''} that {what}{shown}:"]
    for fault in faults:
        where = f"line {fault.line}" + (f", {printable(fault.field)}" if fault.field else "")
        expected = f" (expected: {fault.expected})" if fault.expected else ""
        lines.append(f"  {where}: {printable(fault.reason)}{expected}")
    return lines


def _advice(identity: Identity) -> str:
    if identity.verdict == "reject":
        advice = "correct the file and drop it into the inbox again, under any name; nothing of it was trained on."
        return f"{identity.hint}. Then {advice}" if identity.hint else advice[0].upper() + advice[1:]
    return identity.hint or "nothing; the file stays where it is."
