"""`heirloom register` and `heirloom why`: making a file known, and telling all that ever happened to it.

Registering is not training: it copies, identifies and remembers. The verdicts come from intake; here they become
words and exit codes. The story of `why` is gathered in `daemon/story.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun, Yes
from daemon.cli.output import human_bytes, human_count, human_tokens, moment, plural, short_hash, table, visible
from guard.checks.kinds import container_of
from guard.errors import CheckFailed, Duplicate, NotFound, UsageError

__all__ = ["add_to", "exit_code_of", "register_lines", "register_record", "story_lines"]

_STATUS_WORDS = {
    "registered": "Not yet trained",
    "queued": "Queued for training",
    "trained": "Trained",
}
_DOCUMENT_WORDS = {"queued": "Queued for the index", "registered": "In the index", "indexed": "In the index"}
_SHOWN_ROWS = 20


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    app.command("register", epilog=EPILOGUE)(register)
    app.command("why", epilog=EPILOGUE)(why)


def register(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Files, or data sets' folders; they stay where they are.")],
    description: Annotated[str, typer.Option("--description", help="What this data is, for later readers.")] = "",
    kind: Annotated[str | None, typer.Option("--kind", help="pretrain, sft or docs, instead of detecting it.")] = None,
    queue: Annotated[bool, typer.Option("--queue", help="Queue it for training too.")] = False,
    untouchable: Annotated[bool, typer.Option("--untouchable", help="An evaluation set: its rows are never trained.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Fingerprint files and make them known, without training them."""
    caller: Caller = context.obj
    home = caller.home()
    paths = [_file_or_data_set(caller.folder / Path(name).expanduser()) for name in files]
    if untouchable and queue:
        raise UsageError("an untouchable set is never trained", hint="leave --queue or --untouchable away")
    if dry_run:
        from daemon.rehearsal import rehearse_registration

        results = rehearse_registration(home, paths=paths, kind=kind, queue=queue, untouchable=untouchable)
    else:
        from daemon.client import call_register

        results = call_register(home, paths=paths, description=description, kind=kind, queue=queue, untouchable=untouchable)
    records = [register_record(result) | ({"dry_run": True} if dry_run else {}) for result in results]
    caller.console.emit(records[0] if len(records) == 1 else {"files": records})
    for result in results:
        lines = register_lines(result, dry_run=dry_run)
        caller.console.note(*lines) if _code(result) == 0 and not dry_run else caller.console.say(*lines)
    code = exit_code_of(results)
    if code:
        raise typer.Exit(code)


def _file_or_data_set(path: Path) -> str:
    if not path.exists():
        raise NotFound(f"there is no file {visible(path)}", subject=str(path), hint="check the name")
    if path.is_dir():
        from daemon.folder_scan import require_data_set

        require_data_set(path)
    elif not path.is_file():
        raise UsageError(f"{visible(path)} is not a regular file", subject=str(path),
                         hint="name the files in it: heirloom register DIR/*.jsonl")  # fmt: skip
    # A link is meant as what it points to, unless only its own name says what that is: so it is in the hub's cache.
    return str(path.resolve() if path.is_symlink() and container_of(path.resolve().name) else path.absolute())


def register_record(result: Mapping[str, Any]) -> dict[str, Any]:
    """One file of `register --json`: the promised keys first, then everything else that is known."""
    promised = ("kind", "examples", "tokens", "bad_rows", "duplicates", "status")
    record = {"fingerprint": result.get("sha256"), **{key: result.get(key) for key in promised}}
    return record | {key: value for key, value in result.items() if key not in record and key != "sha256"}


def _code(result: Mapping[str, Any]) -> int:
    if result["verdict"] == "duplicate":
        return Duplicate.exit_code
    return 0 if result["verdict"] in ("admitted", "registered") else CheckFailed.exit_code


def exit_code_of(results: Sequence[Mapping[str, Any]]) -> int:
    """The worst of several: a refusal weighs more than a duplicate, a duplicate more than success."""
    codes = {_code(result) for result in results}
    return next((code for code in (CheckFailed.exit_code, Duplicate.exit_code) if code in codes), 0)


def register_lines(result: Mapping[str, Any], *, dry_run: bool = False) -> list[str]:
    """What a person reads about one registered, known or refused file; with `dry_run` of one that would be."""
    name, code = visible(result.get("name")), _code(result)
    if code == Duplicate.exit_code:
        return [f"❌ Already known: {name}", f"   Fingerprint: {short_hash(result.get('sha256'))}",
                f"   Why: {visible(result.get('reason') or 'everything in it was learnt before')}"]  # fmt: skip
    if code:
        return [f"❌ {'Would be rejected' if dry_run else 'Rejected'}: {name}",
                *_why_lines(result.get("why"), result.get("reason"))]  # fmt: skip
    tokens, document = f"{human_tokens(result.get('tokens') or 0)} tokens", result.get("kind") == "docs"
    size = f"about {tokens}" if document else f"{human_count(result.get('examples') or 0)} examples ({tokens})"
    notes = _notes(result, name, dry_run=dry_run)
    status = str(result.get("status"))
    words = _DOCUMENT_WORDS.get(status) if document else None
    headline = ("Can be mended" if dry_run else "Mended") if result.get("mended") else \
        "Can be registered" if dry_run else "Data registered"  # fmt: skip
    return [
        f"✅ {headline}: {name}",
        f"   Fingerprint: {short_hash(result.get('sha256'))}",
        f"   Size: {size}",
        *([f"   Note: {', '.join(notes)}"] if notes else []),
        f"   Status: {words or _STATUS_WORDS.get(status, visible(status))}"
        + (" (dry run: nothing was registered)" if dry_run else ""),
    ]


def _notes(result: Mapping[str, Any], name: str, *, dry_run: bool) -> list[str]:
    """What a person should know beside the sizes."""
    if result.get("mended"):
        return [visible(result.get("reason"))]  # what is left to say of it was said when it first came
    notes = [plural(result["duplicates"], "repeated example")] if result.get("duplicates") else []
    if (result.get("splits") or {}).get("val"):
        notes.insert(0, f"{result['splits']['val']:,} of them kept for judging (its own split)")
    if result.get("left_out"):
        notes.append(f"left out: {visible(', '.join(result['left_out'][:3]))}{' ...' * (len(result['left_out']) > 3)}")
    more = "" if dry_run else f" (heirloom why {name})"
    if result.get("bad_rows"):
        notes.append(f"{plural(result['bad_rows'], 'row')} skipped{more}")
    if result.get("unusable_rows"):
        notes.append(f"{plural(result['unusable_rows'], 'row')} that cannot be trained on{more}")
    if result.get("untouchable"):
        notes.append(f"{plural(result['untouchable'], 'row')} in an evaluation set, kept out{more}")
    if result.get("evaluation_rows") is not None:
        notes.append(f"an evaluation set: its {plural(result['evaluation_rows'], 'row')} are never trained from now on")
    elif result.get("kind") == "docs":
        notes.append("a document: it is searched, not trained on (--kind pretrain trains text)")
    return notes


def _why_lines(text: object, reason: object) -> list[str]:
    """Intake's own account of a refusal, less its headline: the reason, the first 20 rows by line, what to do."""
    lines = [f"   {visible(line)}" for line in str(text or "").splitlines()[1:] if line]
    if any(line.startswith("   Why: ") for line in lines):
        return lines
    return [f"   Why: {visible(reason or 'it did not pass')}", *lines]


def _row_lines(rows: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Rows that were left out, by line; `count` of them were, of which the first are recorded."""
    lines = []
    for row in rows[:_SHOWN_ROWS]:
        place = f"{visible(row['member'])}:{row['line']}" if row.get("member") else f"line {row['line']}"
        place += f", {visible(row['field'])}" if row["field"] else ""
        lines.append(f"      {place}: {visible(row['reason'])}")
    return lines + ([f"      and {count - len(lines):,} more"] if count > len(lines) else [])


def why(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|SHA256", help="A name, a path, a SHA-256 or 8 digits of one.")],
) -> None:
    """Tell a file's whole story: when it came, what became of it and why, which versions learnt it."""
    from daemon.story import tell_story
    from guard.store.keeper import open_reader

    caller: Caller = context.obj
    with open_reader(caller.home()) as keeper:
        story = tell_story(keeper, file, caller.folder)
    caller.console.emit(story)
    caller.console.say(*story_lines(story))


def story_lines(story: Mapping[str, Any]) -> list[str]:
    """The story as a person reads it, oldest first."""
    lines = [f"{visible(story['name'])}: {visible(story['status'])}"]
    if story.get("side_of") and story["drops"]:
        side = visible(Path(story["query"]).name)
        lines.insert(0, f"{side} was taken with {visible(story['side_of'])}, whose settings it held:")
    if story.get("reason"):
        lines.append(f"  {visible(story['reason'])}")
    if story.get("remedy"):
        lines.append(f"  try: {visible(story['remedy'])}")
    for file in story["files"]:
        size = human_bytes(file["size_bytes"])
        lines += ["", f"  File {short_hash(file['sha256'])} {visible(file['kind'])}, {size}, "
                  f"{human_count(file['examples'])} examples ({human_tokens(file['tokens'])} tokens)"]  # fmt: skip
        if file["description"]:
            lines.append(f"    {visible(file['description'])}")
        if file.get("splits"):
            told = ", ".join(f"{item['member']} ({item['split']}, {item['count']:,})" for item in file["splits"][:_SHOWN_ROWS])
            more = f" and {len(file['splits']) - _SHOWN_ROWS:,} more" if len(file["splits"]) > _SHOWN_ROWS else ""
            lines.append(f"    a folder of {visible(told)}{more}")
        if file.get("left_out"):
            lines.append(f"    left out when it was packed: {visible(', '.join(file['left_out']))}")
        if file.get("unread"):
            lines.append(f"    not read, for its state.json does not name them: {visible(', '.join(file['unread']))}")
        if file.get("damage"):
            lines.append(f"    damaged: {visible(file['damage'])}")
        for rows, what in (("bad_rows", "skipped"), ("unusable_rows", "that cannot be trained on")):
            if file[rows]:
                lines += [f"    {plural(file[f'{rows}_count'], 'row')} {what}:", *_row_lines(file[rows], file[f"{rows}_count"])]
    lines += _section("Arrivals", [(moment(d["seen"]), d["name"], d["state"], d["reason"]) for d in story["drops"]])
    lines += _beside(story)
    lines += _returned(story["drops"], told=story.get("reason"))
    lines += _section("Jobs", [(f"job {j['id']}", j["state"], j["output"] or "", j["reason"]) for j in story["jobs"]])
    lines += _section("Learnt by", [(v["name"], v["line"], v["objective"], f"{v['examples']:,} examples ({v['state']})")
                                    for v in story["versions"]])  # fmt: skip
    lines += _section("Left out of", [(item["line"], f"{item['of']} grown again from {item['base']} without this file")
                                      for item in story["left_out"]])  # fmt: skip
    lines += _near_lines(story["near"]) + _evaluation_lines(story["evaluation"])
    lines += _section("Events", [(moment(e["utc"]), e["verb"], e["subject"], e["actor"], e["payload"].get("reason") or "")
                                 for e in story["events"]])
    return lines


def _beside(story: Mapping[str, Any]) -> list[str]:
    """Side files, what an arrival mended, what is left to learn, and what waits now."""
    lines = []
    for drop in story["drops"]:
        if drop.get("side"):
            said = ", ".join(f"{key}: {value}" for key, value in drop["side"]["settings"].items()) or "nothing"
            lines.append(f"    with {visible(drop['side']['name'])}: {visible(said)}")
        for number in drop.get("mends") or ():
            before = next(item for item in story["drops"] if item["id"] == number)
            lines.append(f"    mends what was refused {moment(before['seen'])}: {visible(before['reason'])}")
    for file in story["files"]:
        for line, parts in (file.get("parts") or {}).items():
            left = f"{parts['new']:,} of {plural(parts['rows'], 'row')}"
            lines.append(f"    left to learn for {visible(line)}: {left}{_rest(parts)}")
    for item in story.get("waits") or ():
        lines.append(f"    waits now: {visible(item['path'])}: {visible(item['reason'])}")
        lines += [f"      try: {visible(item['remedy'])}"] if item.get("remedy") else []
    return lines


_PART_WORDS = {
    "learnt": "learnt", "held_out": "held out for judging", "untouchable": "in an evaluation set",
    "repeated": "repeated within the file", "too_long": "too long", "bad": "that cannot be read",
    "unusable": "that cannot be trained on",
}  # fmt: skip


def _rest(parts: Mapping[str, Any]) -> str:
    """`; 150 held out for judging, 9 repeated within the file`: with what is left they add up to the rows."""
    told = [f"{parts[part]:,} {words}" for part, words in _PART_WORDS.items() if parts[part]]
    long = f" (longer than the model's window of {parts['window']:,} tokens: split or shorten them)" if parts["window"] else ""
    return "; " * bool(told) + ", ".join(told) + long


def _near_lines(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the file resembles; nothing was left out for it."""
    lines: list[str] = []
    for report in reports:
        if report["alike"]:
            lines += ["", f"  {report['alike']:,} of {plural(report['examples'], 'example')} resemble older ones"
                      f" ({report['threshold']:.0%} or more; told, and nothing is left out for it)"]  # fmt: skip
            lines += [f"    {plural(item['examples'], 'example')} of {visible(item['name'] or short_hash(item['sha256']))}"
                      + (", an evaluation set" if item["evaluation"] else "") for item in report["resembles"]]  # fmt: skip
    return lines


def _evaluation_lines(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for item in sets:
        lines += ["", f"  An evaluation set since {moment(item['since'])}: {plural(item['rows'], 'row')} never trained since"]
        lines += [f"    {plural(found['examples'], 'row')} learnt by {found['version']} ({found['state']}) from"
                  f" {visible(found['file'])}" for found in item["learnt"]]  # fmt: skip
    return lines


def _section(title: str, rows: list[tuple[Any, ...]]) -> list[str]:
    return ["", f"  {title}", *table(rows, "    ")] if rows else []


def _returned(drops: Sequence[Mapping[str, Any]], told: object) -> list[str]:
    """Where refused bytes lie now, and what was wrong with the last of them, but for the reason that was told above."""
    lines: list[str] = []
    for drop in drops:
        if drop["returned_to"]:
            lines.append(f"    given back as {visible(drop['returned_to'])}")
    refused = [drop for drop in drops if drop["state"] == "rejected"]
    if refused:
        account = _why_lines(refused[-1]["why"], refused[-1]["reason"])
        lines += ["", "  The last refusal", *(f" {line}" for line in account if line != f"   Why: {visible(told)}")]
    return lines
