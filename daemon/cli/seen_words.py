"""The answer of `heirloom seen` as a person reads it. Pure: a record in, lines out. Not here: finding it (`seen.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daemon.cli.output import human_count, plural, short_hash, visible

__all__ = ["seen_lines"]

_LISTED = 100
_SHOWN = 20


def seen_lines(record: Mapping[str, Any]) -> list[str]:
    """The answer for a person."""
    lines = [f"Note: {visible(note)}." for note in record["notes"]]
    if record["rows"] is not None:
        lines += _row_lines(record)
    else:
        lines += _hit_lines(record) + _document_lines(record)
        if not record["found"]:
            lines.append(_nothing(record))
    return lines + _untouchable_lines(record) + _unasked_lines(record)


def _nothing(record: Mapping[str, Any]) -> str:
    if record["unasked"]:
        return "Not seen as it is: no stored file holds it. Whether one resembles it cannot be said:"
    left = record["documents_left"]
    docs = f"; {plural(left, 'document')} not looked through (heirloom search looks in the index)" if left else ""
    more = "" if record["asked_near"] else " (--near also looks for what resembles it)"
    return f"Never seen: no stored file holds it{docs}{more}."


def _hit_lines(record: Mapping[str, Any]) -> list[str]:
    lines = []
    for title, items in (("Seen", record["exact"]), ("Resembling", record["near"])):
        for item in items:
            alike = "" if title == "Seen" else f", about {item['similarity']:.0%} alike"
            lines.append(f"{title}: {visible(item['file'])} ({short_hash(item['sha256'])}), {_place(item)}{alike}")
            lines += [f"   {_version_words(version)}" for version in item["versions"]] or ["   learnt by no version"]
    return lines + [f"Only the first {plural(len(items), 'place')} are shown." for items in (record["exact"], record["near"])
                    if len(items) == _LISTED]  # fmt: skip


def _place(item: Mapping[str, Any]) -> str:
    """Counted from 1, as lines are."""
    return f"example {human_count(item['number'])}" + (f", line {human_count(item['line'])}" if item.get("line") else "")


def _document_lines(record: Mapping[str, Any]) -> list[str]:
    return [f"Seen: the document {visible(item['file'])} ({short_hash(item['sha256'])}) "
            + ("is this text" if item["whole"] else f"holds it, line {human_count(item['line'])}")
            + (": it is searched, not learnt" if item["current"] else ": stored, a newer one took its place in the index")
            for item in record["documents"]]  # fmt: skip


def _row_lines(record: Mapping[str, Any]) -> list[str]:
    rows = record["rows"]
    lines = [f"{human_count(rows['seen'])} of {plural(rows['total'], 'row')} {'is' if rows['seen'] == 1 else 'are'} stored"
             + (f", {human_count(rows['unseen'])} never seen" if rows["unseen"] else "")
             + (f", {human_count(rows['unusable'])} could not be trained on" if rows["unusable"] else "") + "."]  # fmt: skip
    lines += [f"   {plural(item['rows'], 'row')} in {visible(item['file'])} ({short_hash(item['sha256'])})"
              for item in rows["files"][:_SHOWN]]  # fmt: skip
    lines += [f"   and in {plural(len(rows['files']) - _SHOWN, 'more file')}"] if len(rows["files"]) > _SHOWN else []
    if rows["unseen"]:
        lines.append(f"Never seen: {_some_lines(rows['unseen_lines'], rows['unseen'])}")
    lines += [f"Line {human_count(item['line'])}: {visible(item['reason'])}" for item in rows["unusable_lines"][:_SHOWN]]
    lines += [f"and {human_count(rows['unusable'] - _SHOWN)} more such lines"] if rows["unusable"] > _SHOWN else []
    if record["asked_near"] and rows["near_asked"]:
        first = "" if rows["near_asked"] == rows["unseen"] else "the first "
        asked = f"{first}{plural(rows['near_asked'], 'row')} never seen"
        lines.append(f"Of {asked} {human_count(rows['resembling'])} resemble stored ones.")
        lines += [f"   line {human_count(item['asked_line'])}: {visible(item['file'])}, {_place(item)},"
                  f" about {item['similarity']:.0%} alike" for item in record["near"][:_SHOWN]]  # fmt: skip
    return lines


def _some_lines(numbers: Sequence[int], total: int) -> str:
    shown = ", ".join(human_count(number) for number in numbers[:_SHOWN])
    more = f" and {human_count(total - _SHOWN)} more" if total > _SHOWN else ""
    return f"line{'s' if total > 1 else ''} {shown}{more}"


def _untouchable_lines(record: Mapping[str, Any]) -> list[str]:
    names = ", ".join(visible(item["name"]) for item in record["untouchable"])
    which = "Some of it is" if record["rows"] is not None else "It is"
    sets = f"evaluation set{'s' if len(record['untouchable']) > 1 else ''} {names}"
    lines = [f"{which} in the {sets}: never trained."] if names else []
    if record["untouchable_problem"]:
        lines.append(f"⚠️ Whether it is untouchable cannot be said: {visible(record['untouchable_problem'])} (heirloom verify)")
    return lines


def _unasked_lines(record: Mapping[str, Any]) -> list[str]:
    """The files that nobody could ask what resembles the text, and what to type."""
    unasked, lost = record["unasked"], record["unasked_lost"]
    if not unasked:
        return []
    if record["near_off"]:
        return [f"⚠️ {plural(unasked, 'file')} could not be asked: near.policy is off, so they have no signatures.",
                "   try: near.policy: report in configs/heirloom.yaml, then heirloom run"]  # fmt: skip
    lines = []
    if lost:
        lines.append(f"⚠️ {plural(lost, 'file')} could not be asked: {'its' if lost == 1 else 'their'} signatures in data/near"
                     " are missing or damaged.")  # fmt: skip
    if unasked > lost:
        lines.append(f"⚠️ {plural(unasked - lost, 'file')} could not be asked: not looked at for near-duplicates yet.")
    return [*lines, "   try: heirloom run makes them (or run --once), then ask again"]


def _version_words(version: Mapping[str, Any]) -> str:
    active = f", active in {', '.join(version['active_in'])}" if version["active_in"] else ", in no active version"
    return f"learnt by {version['name']} ({version['state']}, {version['objective']}){active}"
