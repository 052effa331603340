"""The text beside a file that came back: what happened, why, which rows, and what to do, for a person to read.

Pure: an identity in, text out. Who writes it, and where, is the caller's business. Every reason has a remedy, that of a file
that stays in the inbox as well (`ignored_remedy`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.checks.kinds import SIDE_REASON, counts_lines
from guard.checks.scan import RowFault

if TYPE_CHECKING:
    from guard.checks.identity import Identity

__all__ = ["DUPLICATE_ADVICE", "ignored_remedy", "printable", "returned_text", "why_text"]

_AGAIN = "mend the file and drop it into the inbox again, under any name; nothing of it was trained on, and nothing was lost."
DUPLICATE_ADVICE = "nothing: what it holds is stored already, and nothing was lost; delete it if you like."
_NOTHING = "nothing: it is no data and may stay"
_RENAME = "rename it if it is data: without the leading dot, ~ or #"
_REMEDIES = (
    ("a macOS resource file", _NOTHING), ("made by ", _NOTHING), ("a removed file that NFS keeps", _NOTHING),
    ("the inbox's own README", _NOTHING),
    ("a transfer that is still running", "wait: it is taken when the transfer has given it its name"),
    ("a hidden file", _RENAME), ("an editor's backup or lock", _RENAME),
    ("an unfinished or temporary file", "rename it when it is complete, such as mv data.jsonl.part data.jsonl"),
    ("the reason why another file came back", "read it, mend the file that it is about, and drop that file again"),
    (f"{SIDE_REASON}, and not a regular file", "put a plain file in its place"),
    (SIDE_REASON, "drop the file that it is for beside it"),
    ("in rejected/", "mend it and move it up into inbox/"),
    ("in duplicates/", "nothing: what it holds is stored already; delete it if you like"),
    ("not a regular file", "copy the file itself into the inbox (cp -L LINK inbox/): links, pipes and devices are never opened"),
    ("this folder cannot be read", "let the owner of the home read it: chmod u+rx FOLDER, or chown it"),
    ("a plain folder", "nothing, or name its sub-folders train/ and val/ if it is one data set"),
    ("the name has no extension", "rename it with its extension, such as .jsonl, .csv, .parquet, .txt or .md"),
    ("rows are not a document", "move it out of inbox/docs/: rows are learnt"),
    (" needs texts and an .npy holds", "move it to inbox/pretrain/: token ids are learnt as they are"),
    (" needs rows and this is plain text", "move it to inbox/pretrain/ (it is learnt) or inbox/docs/ (it is searched)"),
    (" whose name does not say what is in it", "rename it so that it does: data.jsonl.gz"),
    (" is an unknown type", "turn it into .jsonl, .txt or .md, or rename it if it is one"),
    (" files are not a kind this version can read yet", "turn it into .jsonl, .txt or .md, and drop that"),
)  # fmt: skip
"""By how a reason begins (`guard/checks/kinds.py`, `daemon/scan.py`), or, after a space, by what is in it; the first counts."""


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
    word = "line" if counts_lines(identity.container) else "row"
    lines += _fault_lines("cannot be read", identity.bad_rows_count, identity.bad_rows, word)
    lines += _fault_lines("cannot be trained on", identity.unusable_rows_count, identity.unusable_rows, word)
    lines += ["", "What to do: " + _advice(identity)]
    return "\n".join(lines) + "\n"


def returned_text(name: str, what: str, reason: str, advice: str = _AGAIN) -> str:
    """The content of `<name>.why.txt` for a file that came back for another reason than its rows."""
    return f"{printable(name)} {what}.\n\nWhy: {printable(reason)}\n\nWhat to do: {advice}\n"


def ignored_remedy(reason: str) -> str:
    """What to do with a file that stays in the inbox for this reason."""
    fits = (remedy for words, remedy in _REMEDIES if (words in reason if words[0] == " " else reason.startswith(words)))
    return next(fits, "") or "turn it into a file that can be read (see the reason), and drop that; the file itself may stay"


def printable(text: str) -> str:
    """The text with every character that a terminal would act on, or that is not UTF-8, written as an escape."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _fault_lines(what: str, count: int, faults: tuple[RowFault, ...], word: str) -> list[str]:
    if not count:
        return []
    shown = f" (the first {len(faults)})" if count > len(faults) else ""
    lines = ["", f"{count} row{'s' if count > 1 else ''} that {what}{shown}:"]
    for fault in faults:
        where = printable(fault.place if fault.member else f"{word} {fault.line}")
        where += f", {printable(fault.field)}" if fault.field else ""
        expected = f" (expected: {fault.expected})" if fault.expected else ""
        lines.append(f"  {where}: {printable(fault.reason)}{expected}")
    return lines


def _advice(identity: Identity) -> str:
    if identity.verdict == "reject":
        advice = "correct the file and drop it into the inbox again, under any name; nothing of it was trained on."
        return f"{identity.hint}. Then {advice}" if identity.hint else advice[0].upper() + advice[1:]
    return identity.hint or "nothing; the file stays where it is."
