"""`heirloom prepare`, `index`, `search`: datasets and retrieval indexes by hand, with or without a home.

The work is done in `trainer/prepare.py` and `trainer/retrieval/`; here are the words around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli import prepare_convert
from daemon.cli.caller import EPILOGUE, Caller
from daemon.cli.flags import DryRun, Yes
from daemon.cli.output import human_bytes, human_count, human_tokens, moment, plural, table, visible
from guard.errors import NotFound, UsageError

__all__ = [
    "add_to", "dataset_lines", "find_index", "index_lines", "index_plan_lines", "name_or_folder", "place_of", "prune_lines",
    "result_lines",
]  # fmt: skip

_EXCERPT = 400


def add_to(app: typer.Typer) -> None:
    """Put the commands on the command line."""
    makers = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
    makers.callback(epilog=EPILOGUE)(prepare)
    makers.command("text", epilog=EPILOGUE)(prepare_text)
    makers.command("chat", epilog=EPILOGUE)(prepare_chat)
    prepare_convert.add_to(makers)
    app.add_typer(makers, name="prepare", epilog=EPILOGUE)
    indexes = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
    indexes.callback(epilog=EPILOGUE)(index)
    indexes.command("build", epilog=EPILOGUE)(index_build)
    indexes.command("ls", epilog=EPILOGUE)(index_ls)
    indexes.command("prune", epilog=EPILOGUE)(index_prune)
    app.add_typer(indexes, name="index", epilog=EPILOGUE)
    app.command("search", epilog=EPILOGUE)(search)


# --- prepare -----------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Turn files into token shards; works without a home."""


_Input = Annotated[list[str], typer.Option("--input", metavar="FILE...", help="Files to prepare, one or several.")]
_Output = Annotated[str, typer.Option("--output-dir", help="A new or empty folder for the dataset.")]
_Tokens = Annotated[str, typer.Option("--tokenization", metavar="gpt2|char", help="Must be the model's own.")]
_Split = Annotated[float, typer.Option("--val-split", min=0.0, max=1.0, help="Share held out for judging.")]
_Shard = Annotated[int, typer.Option("--shard-size", min=1, help="Most tokens in one shard.")]


def prepare_text(
    context: typer.Context, input: _Input, output_dir: _Output, tokenization: _Tokens = "gpt2",
    val_split: _Split = 0.1, shard_size: _Shard = 10_000_000,
) -> None:  # fmt: skip
    """Plain text, Markdown, or rows with `text` in any container."""
    _prepare(context.obj, "text", input, output_dir, tokenization, val_split, shard_size)


def prepare_chat(
    context: typer.Context, input: _Input, output_dir: _Output, tokenization: _Tokens = "gpt2",
    val_split: _Split = 0.1, shard_size: _Shard = 10_000_000,
) -> None:  # fmt: skip
    """Conversations: rows with `messages`, optional `system` and `context`; only answers are trained."""
    _prepare(context.obj, "chat", input, output_dir, tokenization, val_split, shard_size)


def _prepare(
    caller: Caller,
    kind: str,
    inputs: Sequence[str],
    output_dir: str,
    tokenization: str,
    val_split: float,
    shard_size: int,
) -> None:
    from trainer.prepare_folder import prepare_folder

    paths = [caller.folder / Path(name).expanduser() for name in inputs]
    target = caller.folder / Path(output_dir).expanduser()
    found = prepare_folder(kind, paths, target, tokenization, val_split, shard_size)
    caller.console.emit(found)
    caller.console.note(*dataset_lines(found))


def dataset_lines(found: Mapping[str, Any]) -> list[str]:
    """What was made, for a person."""
    train, held = found["train"], found["val"]
    lines = [
        f"✅ Dataset ready: {visible(found['output_dir'])}",
        f"   Train: {plural(train['examples'], 'example')} ({human_tokens(train['tokens'])} tokens,"
        f" {plural(train['shards'], 'shard')})",
        f"   Held out: {plural(held['examples'], 'example')} ({human_tokens(held['tokens'])} tokens)",
        f"   Tokenization: {visible(found['tokenization'])}",
    ]
    if found["kind"] == "sft":
        lines.append(f"   Mask ratio: {found['mask_ratio']:.1%} of the tokens are trained")
    if found["skipped_rows"]:
        lines.append(f"   Skipped: {plural(found['skipped_rows'], 'row')} that cannot be used")
        lines += [f"     {visible(row['file'])}:{row['line']} {visible(row['field'])} {visible(row['reason'])}"
                  for row in found["skipped"]]  # fmt: skip
    return lines + [f"   ⚠️ {visible(text)}" for text in found["warnings"]]


# --- index and search --------------------------------------------------------------------------------------------


def index() -> None:
    """Retrieval indexes: searchable documents."""


def index_build(
    context: typer.Context,
    docs_dir: Annotated[str | None, typer.Option("--docs-dir", help="Documents of your own; the home's otherwise.")] = None,
    out_dir: Annotated[str | None, typer.Option("--out-dir", help="Where the index goes; with --docs-dir.")] = None,
    chunk_size: Annotated[int | None, typer.Option("--chunk-size", min=1, help="Characters in one piece.")] = None,
    overlap: Annotated[int | None, typer.Option("--overlap", min=0, help="Characters neighbours share.")] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Build an index; without --docs-dir, rebuild the home's from its stored documents."""
    from guard.settings import IndexSettings

    caller: Caller = context.obj
    if (docs_dir is None) != (out_dir is None):
        raise UsageError("--docs-dir and --out-dir belong together",
                         hint="heirloom index build --docs-dir DIR --out-dir DIR")  # fmt: skip
    if docs_dir is None or out_dir is None:
        if chunk_size is not None or overlap is not None:
            raise UsageError("the home's index takes its sizes from the settings",
                             hint="set index.chunk_size and index.overlap in configs/heirloom.yaml")  # fmt: skip
        _rebuild(caller, dry_run=dry_run)
        return
    from trainer.retrieval.build import build_from_folder, plan_from_folder

    usual = IndexSettings()
    folder = caller.folder / Path(docs_dir).expanduser()
    target = (caller.folder / Path(out_dir).expanduser()).absolute()
    size, shared = chunk_size or usual.chunk_size, usual.overlap if overlap is None else overlap
    if dry_run:
        found = plan_from_folder(folder, target, chunk_size=size, overlap=shared)
        caller.console.emit({"out_dir": str(target), **found, "dry_run": True})
        caller.console.say(*index_plan_lines(found, str(target)))
        return
    report = build_from_folder(folder, target, chunk_size=size, overlap=shared)
    caller.console.emit({"out_dir": str(target), **report})
    caller.console.note(*index_lines(report, str(target)))


def _rebuild(caller: Caller, *, dry_run: bool) -> None:
    from daemon.cli.queue import Teller, finish
    from daemon.client import run_until_done

    if dry_run:
        found = caller.call("index.rebuild", {"dry_run": True})
        caller.console.emit({**found, "dry_run": True})
        caller.console.say(*index_plan_lines(found, "a new index of this home"))
        return
    job = caller.call("index.rebuild", {})["job"]
    run_until_done(caller.home(), job, Teller(job, caller.console.progress))
    finish(caller, job)


def index_lines(report: Mapping[str, Any], folder: str) -> list[str]:
    """A built index, for a person; every document that is not in it is named."""
    lines = [
        f"✅ Index ready: {visible(folder)}",
        f"   {plural(report['documents'], 'document')} in {plural(report['chunks'], 'chunk')},"
        f" {human_count(report['embedded_new'])} embedded now",
    ]
    return lines + [f"   ⚠️ left out {visible(item['name'])}: {visible(item['reason'])}" for item in report["skipped"]]


def index_plan_lines(found: Mapping[str, Any], target: str) -> list[str]:
    """What an index would be made of."""
    size = f"{plural(found['documents'], 'document')}, {human_bytes(found['bytes'])}"
    lines = [f"Would build {visible(target)}", f"   {size}, about {plural(found['chunks'], 'chunk')}"]
    return lines + [f"   ⚠️ left out {visible(item['name'])}: {visible(item['reason'])}" for item in found.get("skipped", [])]


def index_ls(context: typer.Context) -> None:
    """The indexes of this home; the active one is marked."""
    from guard.names import index_name
    from guard.store.keeper import open_reader

    caller: Caller = context.obj
    import orjson

    with open_reader(caller.home()) as keeper:
        rows = keeper.ledger.rows("SELECT * FROM indexes ORDER BY id")
    found = []
    for row in rows:
        record = orjson.loads(row["record"])
        found.append({"name": index_name(row["id"]), "id": row["id"], "active": row["state"] == "active",
                      "created": row["created"], "documents": len(record.get("documents", [])),
                      "chunks": record.get("chunks")})  # fmt: skip
    caller.console.emit({"indexes": found})
    shown: list[Sequence[object]] = [("INDEX", "CREATED", "DOCUMENTS", "CHUNKS", "")]
    shown += [(item["name"], moment(item["created"]), item["documents"], item["chunks"], "ACTIVE" if item["active"] else "")
              for item in found]  # fmt: skip
    caller.console.say(*(table(shown) if found else ["There is no index yet: drop documents into inbox/."]))


def index_prune(
    context: typer.Context,
    index: Annotated[str | None, typer.Argument(metavar="INDEX", help="One, such as v001; all but the active otherwise.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Remove indexes that are not active, damaged ones too. They are derived: index build makes a new one."""
    caller: Caller = context.obj
    found = caller.call("index.prune", {"index": index, "dry_run": True})
    if dry_run or not found["pruned"]:
        caller.console.emit({**found, "dry_run": dry_run})
        caller.console.say(*prune_lines(found, done=False))
        return
    caller.console.say(*prune_lines(found, done=False))
    caller.confirm_yes(yes=yes, hint="heirloom index prune ... --yes")
    done = caller.call("index.prune", {"index": index, "dry_run": False})
    caller.console.emit(done)
    caller.console.note(*prune_lines(done, done=True))


def prune_lines(found: Mapping[str, Any], *, done: bool) -> list[str]:
    """Which indexes go, or went."""
    if not found["pruned"]:
        return ["There is no index but the active one."]
    word = "✅ Removed" if done else "Would remove"
    names = ", ".join(map(visible, found["pruned"]))
    return [f"{word} {len(found['pruned']):,} of the indexes, {human_bytes(found['bytes'])}: {names}"]


def find_index(caller: Caller, name: str | None, folder: str | None) -> Path:
    """The index folder that was named (`v002` of the home, or a folder), else the home's active one.

    Raises NotFound with what to type.
    """
    if folder is not None:
        path = caller.folder / Path(folder).expanduser()
    else:
        path = caller.home().indexes / (name or "latest")
    if not (path / "meta.jsonl").is_file():
        raise NotFound(f"there is no index at {visible(path)}", subject=str(path),
                       hint="heirloom index ls; or drop documents into inbox/ and run heirloom run --once")  # fmt: skip
    return path.resolve()


def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    k: Annotated[int, typer.Option("-k", "--top-k", min=1, help="How many pieces.")] = 5,
    index: Annotated[str | None, typer.Option("--index", metavar="DIR", help="A folder, or v002 of this home.")] = None,
) -> None:
    """Search the documents."""
    from trainer.retrieval.search import search as run_search

    caller: Caller = context.obj
    folder = find_index(caller, *name_or_folder(index))
    results = run_search(folder, query, k)
    caller.console.emit({"query": query, "index": folder.name, "results": results})
    caller.console.say(*result_lines(results))


def name_or_folder(text: str | None) -> tuple[str | None, str | None]:
    """`v002` and `latest` are names of the home's own; anything else is a folder."""
    if text is None or text == "latest" or (text[:1] == "v" and text[1:].isdecimal()):
        return text, None
    return None, text


def result_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was found, best first, each with where it stands."""
    if not results:
        return ["Nothing found."]
    lines: list[str] = []
    for number, item in enumerate(results, 1):
        text = " ".join(str(item["text"]).split())
        more = "..." if len(text) > _EXCERPT else ""
        lines += [
            f"[{number}] {visible(place_of(item))}  ({item['score']:.3f})",
            f"    {visible(text[:_EXCERPT])}{more}",
            "",
        ]
    return lines[:-1]


def place_of(item: Mapping[str, Any]) -> str:
    """`file:3-12`, or `file, page 4`."""
    if item.get("page"):
        return f"{item['file']}, page {item['page']}"
    if item.get("start_line"):
        return f"{item['file']}:{item['start_line']}-{item['end_line']}"
    return str(item["file"])
