"""The decision over sound bytes: admitted and queued, admitted only, or a duplicate, judged against all that is known.

It reads ledger and disk and changes neither. Not here: whether the bytes are sound (`guard/checks/identify.py` said so
before), and what follows (`admission.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from guard.checks.kinds import registered_reason, stage_of
from guard.names import slugify
from guard.splits import val_keys
from guard.store.estimate import tip_of, touchable
from guard.store.files import StoredFile, get_file, trained_in
from guard.store.indexes import active_index
from guard.store.jobs import queued_with_file
from guard.store.keeper import Keeper
from guard.store.known import sidecar_bytes
from guard.store.learnt import Novelty, judge_novelty
from guard.store.originals import damaged_parts, mendable_parts
from guard.store.versions import DEFAULT_LINE

__all__ = ["Decision", "decide"]

_LEFT = "register it again as the kind it was admitted as, or copy it back from a vault"


@dataclass(frozen=True)
class Decision:
    """`verdict`: admit or duplicate. `queue`: train, index or none."""

    verdict: str
    queue: str
    reason: str
    line: str = DEFAULT_LINE
    slug: str = "data"
    recipe: str = ""
    priority: int = 0
    new_examples: int = 0
    known_examples: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)
    max_steps: int = 0
    mends: Sequence[str] = ()
    """Parts of the stored original that were damaged and are made good by this arrival."""
    untouchable_examples: int = 0
    """In a registered evaluation set, and so kept out; as every count here an estimate, made again at job start."""


def decide(keeper: Keeper, record: Mapping[str, Any], options: Mapping[str, Any], sidecar: Path,
           novelty: Novelty | None = None) -> Decision:  # fmt: skip
    """Judge sound bytes against everything known. `options`: line, recipe, priority, queue (False: register only).

    `novelty`: what is new in the file, where the reader said so already. A known file whose stored copy is damaged is
    mended, and beside that gets the verdict it would get anyway.
    """
    known = get_file(keeper.ledger, record["sha256"])
    if options.get("untouchable"):
        return _decide_evaluation(record)
    damaged = damaged_parts(keeper.home, known) if known else []
    mends = mendable_parts(damaged, known, record, sidecar) if known and damaged else []
    if record["kind"] == "docs":
        usual = _decide_document(keeper, known, mends)
    elif not stage_of(str(record["kind"])):
        usual = _decide_kept(known, record, mends)
    else:
        usual = _decide_examples(keeper, record, options, sidecar, mends, novelty)
    if not damaged:
        return usual
    left = [part for part in damaged if part not in mends]
    told = [f"mended: the stored copy was damaged ({', '.join(mends)}){'' if left else ' and is whole again'}" if mends else "",
            f"the stored copy stays damaged ({', '.join(left)}): {_LEFT}" if left else "", usual.reason]  # fmt: skip
    return replace(usual, verdict="admit" if mends else usual.verdict, mends=mends, reason="; ".join(filter(None, told)))


def _decide_examples(
    keeper: Keeper, record: Mapping[str, Any], options: Mapping[str, Any], sidecar: Path, mends: Sequence[str],
    novelty: Novelty | None,
) -> Decision:  # fmt: skip
    line = str(options.get("line") or DEFAULT_LINE)
    common: dict[str, Any] = {"line": line, "slug": str(options.get("slug") or slugify(Path(str(record["name"])).stem)),
              "recipe": str(options.get("recipe") or ""), "priority": int(options.get("priority") or 0),
              "overrides": dict(options.get("overrides") or {}), "max_steps": int(options.get("max_steps") or 0)}  # fmt: skip
    job = queued_with_file(keeper.ledger, record["sha256"])
    if job:
        more = f": heirloom queue retry {job.id} goes on with it" if job.state == "parked" and mends else ""
        return Decision("duplicate", "none", f"the same bytes are already in job {job.id} ({job.state}){more}", **common)
    if novelty is None:
        keys = sidecar_bytes(sidecar)
        fingerprints = touchable(keys, (record.get("untouchable") or {}).get("rows", ""))
        # What is about to be mended is not asked what it holds.
        instead = {record["sha256"]: keys} if "examples.fp" in mends else {}
        novelty = judge_novelty(keeper, fingerprints, tip_of(keeper, line), stage_of(str(record["kind"])), instead,
                                val_keys(record, keys))  # fmt: skip
    return _decide_training(keeper, record, options, novelty, common)


def _decide_kept(known: StoredFile | None, record: Mapping[str, Any], mends: Sequence[str]) -> Decision:
    """Of a kind that nothing here trains: it is stored with its fingerprints, and waits for what will use it."""
    if known is not None and not mends:
        return Decision("duplicate", "none", f"the same bytes are registered already, as {known.name}")
    only = int(record.get("evaluation_only") or 0)
    count = int(record["examples"])
    judges = f"{'all' if only == count else f'{only:,}'} without starter_code: evaluation only, never trained" if only else ""
    return Decision("admit", "none", "; ".join(filter(None, (
        f"registered with {count:,} examples and not queued: {registered_reason(str(record['kind']))}", judges))))


def _decide_evaluation(record: Mapping[str, Any]) -> Decision:
    rows = int((record.get("evaluation") or {}).get("rows") or 0)
    return Decision("admit", "none", f"registered as an evaluation set: its {rows:,} rows are never trained from now on")


def _decide_training(
    keeper: Keeper, record: Mapping[str, Any], options: Mapping[str, Any], novelty: Novelty, common: dict[str, Any]
) -> Decision:
    held = record.get("untouchable") or {}
    count = int(held.get("examples") or 0)
    counts: dict[str, Any] = {"new_examples": novelty.new, "known_examples": novelty.known, "untouchable_examples": count}
    names = ", ".join(held.get("sets") or ())
    kept_out = f"in the evaluation set{'s' if len(held.get('sets') or ()) > 1 else ''} {names}: kept out"
    if count and count == record["examples"]:
        reason = f"all {count:,} examples are {kept_out}, and nothing is left to train"
        return Decision("admit", "none", reason, **common, **counts)
    out = f", {count:,} of its rows are {kept_out}" if count else ""
    wanted = "train" if options.get("queue", True) else "none"
    if novelty.new == 0 and novelty.known:
        where = trained_in(keeper.ledger, record["sha256"])
        others = "every example in it was learnt from other files; heirloom seen - < FILE names them"
        what = f"trained in {', '.join(where)}" if where else others
        return Decision("duplicate", "none", f"nothing new for {common['line']}: {what}{out}", **common, **counts)
    if novelty.new == 0:
        rest = "all" if not count else "the other"
        reason = f"{rest} {novelty.held_out} examples are held out for judging; nothing is left to train{out}"
        return Decision("admit", "none", reason, **common, **counts)
    overlap = f", {novelty.known:,} were learnt before" if novelty.known else ""
    return Decision("admit", wanted, f"{novelty.new:,} new examples{overlap}{out}", **common, **counts)


def _decide_document(keeper: Keeper, known: StoredFile | None, mends: Sequence[str]) -> Decision:
    current = known and keeper.ledger.value("SELECT current_doc FROM files WHERE sha256 = ?", (known.sha256,))
    if known is None or not current:
        return Decision("admit", "index", "goes into the next index")
    if mends and _left_out(keeper, known):
        return Decision("admit", "index", "the index has it not: it goes into the next one")
    return Decision("duplicate", "none", f"the same document is in the index already, as {known.name}")


def _left_out(keeper: Keeper, file: StoredFile) -> bool:
    """Whether a current document is missing from the active index and no build waits that would take it in."""
    index = active_index(keeper)
    waits = keeper.ledger.value("SELECT count(*) FROM jobs WHERE kind = 'index' AND state IN "
                                "('queued', 'held', 'preparing', 'committing')")  # fmt: skip
    if index is None or waits:
        return not waits
    skipped = {str(item.get("name")) for item in index.get("skipped", [])}
    return file.sha256 not in index["documents"] or bool(skipped & {file.name, str(file.record.get("dropped_as"))})
