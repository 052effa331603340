"""`heirloom lineage`, `show`: looking at versions, and at the files they learnt from.

What is known of them is read in `guard/store/`; here it becomes words. Not here: moving between versions (`moving.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.evaluate import recorded_lines
from daemon.cli.matrix import SETS_SHOWN, matrix_lines
from daemon.cli.output import (
    human_bytes,
    human_count,
    human_duration,
    human_tokens,
    moment,
    plural,
    short_hash,
    table,
    tick,
    visible,
)
from daemon.cli.passed_over import passed_over_lines, repeat_lines, too_long_of, too_long_words
from daemon.cli.sample import sample_lines, sample_of
from guard.errors import NotFound

__all__ = ["add_to", "file_lines", "history_lines", "version_lines"]

_NEWEST = 50
_NEWEST_ROLLBACKS = 10


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("lineage", epilog=EPILOGUE)(lineage)
    app.command("show", epilog=EPILOGUE)(show)


def lineage(
    context: typer.Context,
    version: Annotated[str | None, typer.Argument(metavar="VERSION", help="Only it, its ancestors and heirs.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All versions instead of the newest 50.")] = False,
    matrix: Annotated[bool, typer.Option("--matrix", help="Held-out losses of it and its ancestors: what it forgot.")] = False,
) -> None:
    """The tree: what descends from what, and which data made the difference."""
    if matrix:
        _matrix(context.obj, version, everything)
        return
    from guard.store.keeper import open_reader
    from guard.store.lineage import lineage as read_lineage
    from guard.store.lineage import regrown_lines, rollbacks, tree_lines
    from guard.store.versions import named_version

    caller: Caller = context.obj
    with open_reader(caller.home()) as keeper:
        total = 0
        if version is not None:
            records = related(read_lineage(keeper), named_version(keeper.ledger, version).name)
        else:
            wanted = None if everything or caller.console.json else _NEWEST
            records, total = read_lineage(keeper, newest=wanted), keeper.ledger.value("SELECT count(*) FROM versions")
        shown = {item["name"] for item in records}
        history = [item for item in rollbacks(keeper.ledger) if {item["from"], item["to"]} & shown]
        regrown = [item for item in regrown_lines(keeper.ledger) if item["base"] in shown]
    caller.console.emit({"versions": records, "rollbacks": history, "regrown": regrown})
    caller.console.say(*tree_lines(records, newest=None if everything else _NEWEST, total=total))
    caller.console.say(*history_lines(history if everything else history[-_NEWEST_ROLLBACKS:], regrown))


def _matrix(caller: Caller, text: str | None, everything: bool) -> None:
    """The forgetting matrix of a version; of the default line's tip when none is named."""
    from guard.store.keeper import open_reader
    from guard.store.matrix import forgetting_matrix
    from guard.store.versions import DEFAULT_LINE, line_tip, named_version

    with open_reader(caller.home()) as keeper:
        version = named_version(keeper.ledger, text) if text is not None else line_tip(keeper.ledger, DEFAULT_LINE)
        if version is None:
            raise NotFound(f"the line {DEFAULT_LINE} has no version yet", subject=DEFAULT_LINE,
                           hint="heirloom lineage --matrix VERSION")  # fmt: skip
        newest = None if everything or caller.console.json else SETS_SHOWN
        found = forgetting_matrix(keeper.ledger, version, newest=newest)
    caller.console.emit(found)
    caller.console.say(*matrix_lines(found))


def history_lines(history: Sequence[Mapping[str, Any]], regrown: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Who went back where, when and why; and which lines were grown again."""
    lines = ["", "Rollbacks"] if history else []
    if history:
        lines += table([(moment(item["utc"]), item["line"], f"{item['from']} -> {item['to']}", item["actor"], item["why"])
                        for item in history], "  ")  # fmt: skip
    if regrown:
        lines += ["", "Regrown lines"]
        lines += table([(item["line"], f"{item['of']} from {item['base']} without {item['file']}") for item in regrown], "  ")
    return lines


def related(records: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """A version with its ancestors and its descendants; ascending ids put every parent before its children."""
    parents = {item["name"]: item["parent"] for item in records}
    kept, above = {name}, parents.get(name)
    while above is not None:
        kept.add(above)
        above = parents.get(above)
    heirs = {name}
    for item in records:
        if item["parent"] in heirs:
            heirs.add(item["name"])
    return [item for item in records if item["name"] in kept | heirs]


def show(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="VERSION|FILE", help="A version, or a file by name or hash.")],
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="With --sample: the N-th example.")] = 1,
    sample: Annotated[bool, typer.Option("--sample", help="One example of a file as the model will see it.")] = False,
) -> None:
    """Everything that is recorded of one version or one file."""
    from guard.store.evaluations import evaluations_of
    from guard.store.files import find_file
    from guard.store.keeper import open_reader
    from guard.store.lineage import rollbacks
    from guard.store.versions import named_version

    caller: Caller = context.obj
    with open_reader(caller.home()) as keeper:
        try:
            version = named_version(keeper.ledger, what)
        except NotFound:
            version = None
        if version is not None and not sample:
            measured = evaluations_of(keeper.ledger, version.id)
            caller.console.emit({**version.record, "evaluations": measured})
            caller.console.say(*version_lines({**version.record, "state": version.state, "size_bytes": version.size_bytes}))
            history = [item for item in rollbacks(keeper.ledger) if version.name in (item["from"], item["to"])]
            caller.console.say(*recorded_lines(measured), *history_lines(history))
            return
        file = _find_file(find_file, keeper, what)
        record = _file_record(keeper, file)
        if sample:
            record |= sample_of(keeper, file, number)
    caller.console.emit(record)
    caller.console.say(*(sample_lines(record["sample"], record["sample_about"], caller.console.style) if sample else
                         file_lines(record)))


def _find_file(find: Any, keeper: Any, what: str) -> Any:
    try:
        return find(keeper.ledger, what)
    except NotFound:
        raise NotFound(f"there is no version and no file {what!r} here", subject=what,
                       hint="heirloom lineage lists versions; heirloom why FILE") from None  # fmt: skip


def _file_record(keeper: Any, file: Any) -> dict[str, Any]:
    """A stored file in the manifest's words, with what was recorded at its admission."""
    from guard.store.files import stored_path, trained_in
    from guard.store.views import file_status

    record = {key: value for key, value in file.record.items() if key not in ("decision", "stored_as")}
    return {
        **record, "filename": file.name, "hash": file.sha256, "sha256": file.sha256, "kind": file.kind,
        "size_bytes": file.size_bytes, "num_examples": file.examples, "tokens_approx": file.tokens_approx,
        "description": file.description, "first_seen": file.first_seen,
        "trained_in": trained_in(keeper.ledger, file.sha256), "too_long": too_long_of(keeper, file),
        "status": file_status(keeper, file.sha256), "path": str(stored_path(keeper.home, file)),
    }  # fmt: skip


def version_lines(record: Mapping[str, Any]) -> list[str]:
    """A version for a person."""
    metrics = record.get("metrics") or {}
    rows: list[tuple[str, Any]] = [
        ("Parent", record.get("parent") or "none (a base)"),
        *((str(item["role"]).replace("_", " ").capitalize(), item["name"]) for item in record.get("inputs") or ()),
        ("Line of birth", record.get("line")),
        ("State", record.get("state")),
        ("Created", moment(record.get("created")) or None),
        ("Exactness", record.get("exactness")),
        ("Optimizer", record.get("optimizer")),
        ("Size", human_bytes(record["size_bytes"]) if record.get("size_bytes") else None),
        *(
            (key.replace("_", " ").capitalize(), _number(value))
            for key, value in metrics.items()
            if not isinstance(value, list | dict)
        ),
    ]
    rows += _costs(record)
    lines = [visible(record.get("name")), *table([(label, value) for label, value in rows if value is not None], "  ")]
    data = record.get("data") or []
    if data:
        lines += ["", f"  Learnt from {plural(len(data), 'file')}"]
        lines += table([(item.get("file"), short_hash(item.get("sha256")), f"{item.get('examples', 0):,} examples",
                         f"{human_tokens(item.get('tokens') or 0)} tokens") for item in data], "    ")  # fmt: skip
    if record.get("anomalies"):
        lines += ["", "  Anomalies", *(f"    {visible(text)}" for text in anomaly_lines(record["anomalies"]))]
    again, over = repeat_lines(record), passed_over_lines(record)
    lines += ["", *again] if again else []
    lines += ["", "  Passed over", *over] if over else []
    gate = record.get("gate") or {}
    checks = gate.get("checks") if isinstance(gate, Mapping) else None
    if checks:
        lines += ["", "  Gate"]
        lines += [f"    {tick(check.get('ok'))} {visible(check.get('name'))}: {visible(check.get('detail'))}"
                  for check in checks]  # fmt: skip
    return lines


def _costs(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the job was estimated to take beside what it took; nothing of versions that say neither."""
    told, found = record.get("estimate") or {}, record.get("actual") or {}
    rows: list[tuple[str, Any]] = []
    if told.get("seconds") and found.get("seconds"):
        rows.append(("Estimated", f"{human_duration(told['seconds'])}, took {human_duration(found['seconds'])}"))
    if told.get("memory_bytes") and found.get("memory_bytes"):
        rows.append(("Memory", f"{human_bytes(told['memory_bytes'])} estimated, peak {human_bytes(found['memory_bytes'])}"))
    return rows


def anomaly_lines(anomalies: Sequence[Mapping[str, Any]]) -> list[str]:
    """What went wrong in a run and what was skipped for it, one sentence each."""
    lines = []
    for item in anomalies:
        limit = f", at most {item['limit']:.4g} was to be expected" if item.get("limit") is not None else ""
        value = f"{item['value']:.4g}" if isinstance(item["value"], float) else item["value"]
        steps = ", ".join(str(step) for step in item["skipped"])
        lines.append(f"step {item['step']}: {str(item['kind']).replace('_', ' ')} ({value}{limit}); skipped: {steps}")
    return lines


def _number(value: object) -> object:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) else value


def file_lines(record: Mapping[str, Any]) -> list[str]:
    """A file for a person."""
    document, bad = record["kind"] == "docs", record.get("bad_rows_count") or len(record.get("bad_rows") or [])
    learnt = "nothing: documents are searched, not learnt" if document else ", ".join(record["trained_in"]) or "nothing yet"
    rows = [
        ("SHA-256", record["sha256"]), ("Kind", record["kind"]), ("Size", human_bytes(record["size_bytes"])),
        *([] if document else [("Examples", human_count(record["num_examples"]))]),
        ("Tokens", f"about {human_tokens(record['tokens_approx'])}"),
        ("First seen", moment(record["first_seen"])), ("Status", record["status"]), ("Trained in", learnt),
        ("Bytes", record["path"]),
    ]  # fmt: skip
    if record["description"]:
        rows.insert(1, ("Description", record["description"]))
    if bad:
        rows.append(("Bad rows", f"{bad:,} (heirloom why tells which)"))
    if record.get("unusable_rows_count"):
        rows.append(("Unusable", f"{plural(record['unusable_rows_count'], 'row')} (heirloom why tells which)"))
    rows += [("Too long", words) for words in too_long_words(record.get("too_long") or ())]
    if (record.get("near") or {}).get("alike"):
        rows.append(("Resembling", f"{plural(record['near']['alike'], 'example')} (heirloom why tells which files)"))
    return [visible(record["filename"]), *table(rows, "  ")]
