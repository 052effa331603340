"""What a drop is: which names are never data, which container a suffix means, which kind the columns say.

Pure: names and columns in, answers with reasons out; no file is opened here. What is known but cannot be trained
on yet is said to be exactly that, and stays where it is: ignored is not rejected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "CHAT_TAGS", "KINDS", "README_REASON", "SIDE_REASON", "SIDE_SUFFIXES", "SUPPORTED", "TRAINABLE_KINDS", "Detected",
    "container_of", "container_reason", "counts_lines", "detect_columns", "forced_kind_of", "form_reason", "holds_rows",
    "ignore_reason", "ignored_name", "kind_reason", "name_for", "packing_of", "unpacked_container",
]  # fmt: skip

KINDS = ("pretrain", "sft", "preference", "task", "mutation", "docs")
TRAINABLE_KINDS = ("pretrain", "sft")
SUPPORTED = (".jsonl .json .csv .parquet .arrow with 'messages' (sft) or 'text' (pretrain); .npy of token ids (pretrain); "
             ".txt and .md (docs, or pretrain under pretrain/); each also as .gz or .zst")  # fmt: skip
CHAT_TAGS = (
    "<myPT_system>", "<myPT_user_context>", "<myPT_user>", "<|system|>", "<|developer|>", "<|user|>",
    "<|start|>", "<|im_start|>", "<|begin_of_text|>",
)  # fmt: skip

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
    """The kind a row's columns say, and the form it is written in; `trainable` here and now or not."""

    kind: str
    form: str
    trainable: bool


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
    """Why this version cannot take that kind in that container, or "" when it can."""
    if kind not in (*TRAINABLE_KINDS, "docs"):
        return f"{kind} is not a kind this version can train on yet; supported: {SUPPORTED}"
    if kind == "docs" and holds_rows(container):
        return f"rows are not a document this version can index; supported: {SUPPORTED}"
    if kind == "sft" and unpacked_container(container) == "npy":
        return f"sft needs conversations and an .npy holds token ids; supported: {SUPPORTED}"
    if kind == "sft" and not holds_rows(container):
        return f"sft needs rows and this is plain text; supported: {SUPPORTED}"
    return ""


def detect_columns(value: Mapping[str, Any]) -> Detected | None:
    """The kind that a row's columns say, by the first rule that holds; None when none does."""
    if "chosen" in value and "rejected" in value:
        return Detected("preference", "chosen and rejected", False)
    if "tests" in value:
        return Detected("task", "tests", False)
    if "buggy_code" in value and "fixed_code" in value:
        return Detected("mutation", "buggy_code and fixed_code", False)
    if "messages" in value:
        return Detected("sft", "messages", True)
    if "conversations" in value:
        return Detected("sft", "conversations", False)
    if "instruction" in value and "output" in value:
        return Detected("sft", "instruction and output", False)
    if "text" in value:
        text = value["text"]
        if isinstance(text, str) and text.lstrip().startswith(CHAT_TAGS):
            return Detected("sft", "text that opens with a chat tag", False)
        return Detected("pretrain", "text", True)
    if "input_ids" in value:
        return Detected("pretrain", "input_ids", False)
    return None


def form_reason(detected: Detected) -> str:
    """Why rows of a form that is known cannot be trained on."""
    what = f"{detected.kind} rows with {detected.form}"
    return f"{what} are not a kind this version can train on yet; supported: {SUPPORTED}"


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""
