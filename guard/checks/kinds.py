"""What a drop is: which names are never data, which container a suffix means, which kind the columns say.

Pure: names and columns in, answers with reasons out; no file is opened here. What cannot be read is said to be exactly
that, and stays where it is: ignored is not rejected. Which stage of training a kind belongs to is said here and nowhere
else (`stage_of`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from guard.checks.prerendered import TAGS, opens_rendered

__all__ = [
    "CHAT_TAGS", "KINDS", "README_REASON", "ROW_KINDS", "SIDE_REASON", "SIDE_SUFFIXES", "SUPPORTED", "TRAINABLE_KINDS",
    "Detected", "container_of", "container_reason", "counts_lines", "detect_columns", "forced_kind_of", "holds_rows",
    "ignore_reason", "ignored_name", "kind_reason", "kinds_of", "name_for", "packing_of", "registered_reason", "stage_of",
    "unpacked_container",
]  # fmt: skip

KINDS = ("pretrain", "sft", "preference", "task", "mutation", "docs")
ROW_KINDS = tuple(kind for kind in KINDS if kind != "docs")
"""Kinds that consist of examples."""
_STAGES = {"pretrain": "pretrain", "sft": "sft", "mutation": "sft"}
TRAINABLE_KINDS = tuple(_STAGES)
_KEPT_FOR = {
    "preference": "preference pairs are kept for reward, DPO and IPO training, which this version does not have yet",
    "task": "tasks are kept for GRPO training and for evaluation, which this version does not have yet",
}
SUPPORTED = (".jsonl .json .csv .parquet .arrow with 'messages', 'conversations' or 'instruction' and 'output' (sft), 'text' or "
             "'input_ids' (pretrain), 'chosen' and 'rejected' (preference), 'tests' (task), 'buggy_code' and 'fixed_code' "
             "(mutation); .npy of token ids (pretrain); .txt and .md (docs, or pretrain under pretrain/); each also as .gz or "
             ".zst; folders of data sets")  # fmt: skip
CHAT_TAGS = TAGS

SIDE_SUFFIXES = (".meta.yaml", ".meta.yml")
SIDE_REASON = "settings for the file beside it"
README_REASON = "the inbox's own README"
"""By its name; whoever sees the bytes knows better (`daemon/scan.py`)."""

_UNFINISHED = (".part", ".partial", ".filepart", ".crdownload", ".download", ".tmp", ".temp", ".swp", ".swo", ".swx")
_SYSTEM_NAMES = {"thumbs.db": "Windows", "desktop.ini": "Windows", "lost+found": "the file system"}
_RSYNC = re.compile(r"\..+\.[A-Za-z0-9]{6}", re.DOTALL)
_CONTAINERS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".md": "text", ".json": "json", ".csv": "csv",
               ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".npy": "npy",
               ".tar": "tar"}  # fmt: skip
_PACKINGS = {".gz": "gz", ".zst": "zst"}
_BINARY = ("parquet", "arrow", "npy")
_KNOWN_SUFFIXES = frozenset(
    {
        ".gz", ".zst", ".npz", ".zip", ".xz", ".bz2", ".pdf", ".docx", ".html", ".htm", ".epub",
        ".py", ".rs", ".c", ".h", ".cc", ".cpp", ".hpp", ".go", ".java", ".js", ".ts", ".sh", ".rb", ".toml",
        ".yaml", ".yml", ".ipynb",
    }
)  # fmt: skip
_PLACES = frozenset({"rejected", "duplicates"})


class Detected(NamedTuple):
    """The kind a row's columns say, and the form it is written in."""

    kind: str
    form: str


def stage_of(kind: str) -> str:
    """The stage of training, and so the objective, that files of a kind are for; "" for what is not trained."""
    return _STAGES.get(kind, "")


def registered_reason(kind: str) -> str:
    """Why files of a kind are known and not queued, and what they are kept for; "" for kinds that are."""
    return _KEPT_FOR.get(kind, "")


def ignored_name(name: str) -> str:
    """Why a file or folder of this name is never data, or "" when it may be."""
    lower = name.lower()
    if lower.startswith("._"):
        return "a macOS resource file"
    if lower in _SYSTEM_NAMES:
        return f"made by {_SYSTEM_NAMES[lower]}, not data"
    if lower.startswith((".syncthing.", "~syncthing~")):
        return "a transfer that is still running (syncthing)"
    if lower.startswith(".nfs"):
        return "a removed file that NFS keeps for a process that has it open"
    if _RSYNC.fullmatch(name):
        return "a hidden file; rsync uses such names while a transfer is running"
    if lower.startswith("."):
        return "a hidden file"
    if lower.endswith("~") or lower.startswith("~$") or (lower.startswith("#") and lower.endswith("#")):
        return "an editor's backup or lock"
    if lower.endswith(_UNFINISHED):
        return "an unfinished or temporary file by its name; it is taken when it is renamed"
    if lower.endswith(".why.txt"):
        return "the reason why another file came back"
    if lower.endswith(SIDE_SUFFIXES):
        return SIDE_REASON
    return ""


def ignore_reason(relative: str) -> str:
    """Why a path relative to the inbox (parts joined by "/") is not taken, or "" when it may be data.

    A type or a kind that this version cannot read is ignored too, not rejected: it stays where it is and says why.
    """
    parts = relative.split("/")
    if parts[0] in _PLACES:
        return f"in {parts[0]}/, where files come back to"
    if relative.lower() == "readme.md":
        return README_REASON
    reason = next(filter(None, map(ignored_name, parts)), "")
    container, forced = container_of(parts[-1]), forced_kind_of(relative)
    if not reason and not container:
        return container_reason(parts[-1])
    return reason or (kind_reason(forced, container) if forced else "")


def forced_kind_of(relative: str) -> str | None:
    """The kind that the first folder of a path relative to the inbox forces, or None."""
    first, separator, _ = relative.partition("/")
    return first if separator and first in KINDS else None


def container_of(name: str) -> str:
    """How a file of this name holds its rows: `jsonl`, `json`, `csv`, `parquet`, `arrow`, `npy` or `text`, and behind it
    `.gz` or `.zst` where it is packed (`jsonl.gz`); "" for anything this version cannot read. Upper case is the same."""
    packing = _PACKINGS.get(_suffix(name), "")
    inner = _CONTAINERS.get(_suffix(name.rpartition(".")[0] if packing else name), "")
    return f"{inner}.{packing}" if packing and inner else inner


def packing_of(container: str) -> str:
    """`gz`, `zst`, or "" for a container that is not packed."""
    return container.partition(".")[2]


def unpacked_container(container: str) -> str:
    """The container without its packing: `jsonl` for `jsonl.gz`."""
    return container.partition(".")[0]


def holds_rows(container: str) -> bool:
    """Whether it holds rows with columns, and not one running text."""
    return unpacked_container(container) not in ("text", "")


def counts_lines(container: str) -> bool:
    """Whether its rows stand in lines of text that a person can count; the others are numbered."""
    return unpacked_container(container) not in _BINARY


def name_for(container: str) -> str:
    """A file name that says this container, for bytes whose own name is not at hand."""
    suffix = "txt" if not holds_rows(container) else unpacked_container(container)
    packing = packing_of(container)
    return f"original.{suffix}.{packing}" if packing else f"original.{suffix}"


def container_reason(name: str) -> str:
    """Why a file of this name cannot be read, for a name whose container is ""."""
    suffix = _suffix(name)
    if suffix in _PACKINGS:
        inner = _suffix(name.rpartition(".")[0])
        what = f"{inner}{suffix} files are" if inner else f"a {suffix} file whose name does not say what is in it is"
        return f"{what} not a kind this version can read yet; supported: {SUPPORTED}"
    if suffix in _KNOWN_SUFFIXES:
        return f"{suffix} files are not a kind this version can read yet; supported: {SUPPORTED}"
    what = f"{suffix} is an unknown type" if suffix else "the name has no extension"
    return f"{what}; supported: {SUPPORTED}"


def kind_reason(kind: str, container: str) -> str:
    """Why a kind cannot come in that container, or "" when it can."""
    if kind == "docs" and holds_rows(container):
        return f"rows are not a document this version can index; supported: {SUPPORTED}"
    if kind != "pretrain" and unpacked_container(container) == "npy":
        return f"{kind} needs texts and an .npy holds token ids; supported: {SUPPORTED}"
    if kind not in ("docs", "pretrain") and not holds_rows(container):
        return f"{kind} needs rows and this is plain text; supported: {SUPPORTED}"
    return ""


def detect_columns(value: Mapping[str, Any]) -> Detected | None:
    """The kind that a row's columns say, by the first rule that holds; None when none does. A column of null is none."""
    return next(_kinds(value), None)


def kinds_of(value: Mapping[str, Any]) -> list[str]:
    """Every kind that a row may be meant as by its columns, the likeliest first."""
    found = [item.kind for item in _kinds(value)]
    if value.get("text") is not None:
        found.append("pretrain")
    return list(dict.fromkeys(found))


def _kinds(value: Mapping[str, Any]) -> Iterator[Detected]:
    given = {key for key in value if value[key] is not None}
    for kind, columns in _COLUMNS:
        if given.issuperset(columns):
            yield Detected(kind, " and ".join(columns))
    if isinstance(value.get("prompt"), list) and isinstance(value.get("completion"), list):
        yield Detected("sft", "prompt and completion")
    text = value.get("text")
    if isinstance(text, str) and opens_rendered(text):
        yield Detected("sft", "text that opens with a chat tag")
    elif text is not None:
        yield Detected("pretrain", "text")
    if "input_ids" in given:
        yield Detected("pretrain", "input_ids")


_COLUMNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("preference", ("chosen", "rejected")),
    ("task", ("tests",)),
    ("mutation", ("buggy_code", "fixed_code")),
    ("sft", ("messages",)),
    ("sft", ("conversations",)),
    ("sft", ("instruction", "output")),
)


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""
