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
    "container_of", "container_reason",
    "detect_columns", "forced_kind_of", "form_reason", "ignore_reason", "ignored_name", "kind_reason",
]  # fmt: skip

KINDS = ("pretrain", "sft", "preference", "task", "mutation", "docs")
TRAINABLE_KINDS = ("pretrain", "sft")
SUPPORTED = ".jsonl with 'messages' (sft) or 'text' (pretrain); .txt and .md (docs, or pretrain under pretrain/)"
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
_CONTAINERS = {".jsonl": "jsonl", ".txt": "text", ".md": "text", ".tar": "tar"}
_KNOWN_SUFFIXES = frozenset(
    {
        ".json", ".csv", ".parquet", ".npy", ".arrow", ".gz", ".zst", ".pdf", ".docx", ".html", ".htm", ".epub",
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
    """`jsonl`, `text`, `tar` (a folder that was packed), or "" for anything this version cannot read; upper case is the same."""
    return _CONTAINERS.get(_suffix(name), "")


def container_reason(name: str) -> str:
    """Why a file of this name cannot be read, for a name whose container is ""."""
    suffix = _suffix(name)
    if suffix in _KNOWN_SUFFIXES:
        return f"{suffix} files are not a kind this version can read yet; supported: {SUPPORTED}"
    what = f"{suffix} is an unknown type" if suffix else "the name has no extension"
    return f"{what}; supported: {SUPPORTED}"


def kind_reason(kind: str, container: str) -> str:
    """Why this version cannot take that kind in that container, or "" when it can."""
    if kind not in (*TRAINABLE_KINDS, "docs"):
        return f"{kind} is not a kind this version can train on yet; supported: {SUPPORTED}"
    if kind == "docs" and container in ("jsonl", "tar"):
        return f"rows are not a document this version can index; supported: {SUPPORTED}"
    if kind == "sft" and container == "text":
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
