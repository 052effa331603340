"""What a file is: verdicts with their reasons, and sidecars only for what is accepted."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guard.checks import identify as identify_module
from guard.checks.identify import Identity, Limits, identify, why_text
from guard.checks.rows import iter_examples
from guard.errors import UsageError


def chat_row(number: int) -> bytes:
    turns = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"It is {number}."}]
    return json.dumps({"messages": turns}).encode() + b"\n"


def chat_file(rows: int) -> bytes:
    return b"".join(chat_row(number) for number in range(rows))


@pytest.fixture
def drop(tmp_path: Path) -> Any:
    """Write a file and identify it; sidecars go to `tmp_path / "out"`."""

    def identify_bytes(data: bytes, name: str = "rows.jsonl", kind: str | None = None, **limits: Any) -> Identity:
        path = tmp_path / "drop"
        path.write_bytes(data)
        return identify(path, name, kind, Limits(**limits), out_folder=tmp_path / "out")

    return identify_bytes


def test_a_good_file_is_identified_and_its_sidecars_written(drop: Any, tmp_path: Path) -> None:
    data = chat_file(30) + chat_row(3)
    identity = drop(data)
    assert (identity.verdict, identity.kind, identity.rows, identity.examples) == ("ok", "sft", 31, 31)
    assert (identity.duplicates, identity.duplicates_exact) == (1, True)
    assert identity.sha256 == hashlib.sha256(data).hexdigest() and identity.size_bytes == len(data)
    texts = [f"What is {n}?It is {n}." for n in [*range(30), 3]]
    assert identity.tokens_approx == len("".join(texts)) // 4
    (tmp_path / "rows.jsonl").write_bytes(data)
    prints = b"".join(example.fingerprint for example in iter_examples(tmp_path / "rows.jsonl", "sft"))
    assert (tmp_path / "out" / "examples.fp").read_bytes() == prints
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert Identity.from_record(record) == identity


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (b"", "rows.jsonl", None),
        (b"{oops}\n", "rows.jsonl", None),
        (b'{"chosen": "a", "rejected": "b"}\n', "rows.jsonl", None),
        (chat_file(2) + b'{"mess', "rows.jsonl", None),
        (b"x\0y", "book.txt", "pretrain"),
    ],
)
def test_what_is_not_accepted_leaves_nothing_behind(
    drop: Any, tmp_path: Path, data: bytes, name: str, kind: str | None
) -> None:
    assert drop(data, name, kind).verdict != "ok"
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_plain_text_is_pretraining_where_it_was_forced_and_a_document_elsewhere(drop: Any, tmp_path: Path) -> None:
    text = b"".join(b"Sentence %d of the book.\n" % number for number in range(500))
    book = drop(text, "BOOK.TXT", "pretrain")
    assert (book.verdict, book.kind, book.examples) == (
        "ok",
        "pretrain",
        len(list(iter_examples(tmp_path / "drop", "pretrain"))),
    )
    assert book.examples > 3 and book.tokens_approx == len(text) // 4
    document = drop(text, "notes.md")
    assert (document.verdict, document.kind, document.examples) == ("ok", "docs", 0)
    assert (tmp_path / "out" / "examples.fp").read_bytes() == b""


# Waiting ------------------------------------------------------------------------------------------------------------


def test_an_empty_file_waits(drop: Any) -> None:
    identity = drop(b"")
    assert (identity.verdict, identity.wait_for) == ("wait", "empty")


def test_a_truncated_last_row_waits_and_then_is_rejected(drop: Any) -> None:
    data = chat_file(3) + chat_row(4)[:40]
    waiting = drop(data)
    assert (waiting.verdict, waiting.wait_for, waiting.reason) == ("wait", "truncated_tail", "truncated at line 4")
    final = drop(data, final=True)
    assert (final.verdict, final.reason, final.truncated_line) == ("reject", "truncated at line 4", 4)


def test_a_last_row_without_line_end_is_accepted(drop: Any) -> None:
    assert drop(chat_file(3).rstrip(b"\n")).verdict == "ok"


@pytest.mark.parametrize("data", [bytes(300_000), chat_file(5) + bytes(5000)])
def test_a_zero_filled_file_waits_and_then_is_rejected(drop: Any, data: bytes) -> None:
    waiting = drop(data)
    assert (waiting.verdict, waiting.wait_for) == ("wait", "zero_filled")
    final = drop(data, final=True)
    assert final.verdict == "reject" and final.reason.startswith("zero-filled")


def append(path: Path) -> None:
    with path.open("ab") as writer:
        writer.write(chat_row(99))


def rewrite_and_put_the_time_back(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [append, rewrite_and_put_the_time_back])
@pytest.mark.parametrize(("name", "kind"), [("rows.jsonl", "sft"), ("book.txt", "pretrain")])
def test_a_file_changed_while_it_is_read_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, change: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    path.write_bytes(chat_file(5))
    real = identify_module._content

    def meanwhile(*arguments: Any) -> Identity:
        identity = real(*arguments)
        change(path)
        return identity

    monkeypatch.setattr(identify_module, "_content", meanwhile)
    identity = identify(path, path.name, kind, out_folder=tmp_path / "out")
    assert (identity.verdict, identity.wait_for, identity.reason) == ("wait", "changed", "changed while being read")
    assert identity.sha256 == "" and list((tmp_path / "out").iterdir()) == []


def test_a_file_that_may_not_be_read_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(chat_file(2))

    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(identify_module, "open_regular", refuse)
    identity = identify(path, path.name)
    assert (identity.verdict, identity.wait_for) == ("wait", "unreadable")


# Rejecting ----------------------------------------------------------------------------------------------------------


def test_one_bad_row_in_thousands_is_skipped_and_listed(drop: Any) -> None:
    data = chat_file(2000).split(b"\n")
    data[776] = b"{oops}"
    identity = drop(b"\n".join(data))
    assert (identity.verdict, identity.examples, identity.bad_rows_count) == ("ok", 1999, 1)
    assert [fault.line for fault in identity.bad_rows] == [777]


def test_the_limit_itself_is_allowed_and_one_more_is_not(drop: Any) -> None:
    assert drop(chat_file(999) + b"{oops}\n").verdict == "ok"
    identity = drop(chat_file(9) + b"{oops}\n")
    assert (identity.verdict, identity.reason) == ("reject", "1 of 10 rows cannot be read; at most 0.10% may be")
    assert drop(chat_file(19) + b'{"messages": []}\n').verdict == "ok"
    identity = drop(chat_file(18) + b'{"messages": []}\n')
    assert (identity.verdict, identity.unusable_rows_count, identity.bad_rows_count) == ("reject", 1, 0)


def test_only_the_first_twenty_faults_are_listed_and_all_are_counted(drop: Any) -> None:
    identity = drop(chat_file(10) + b"{oops}\n" * 50 + b'{"messages": 1}\n' * 60)
    assert (identity.bad_rows_count, identity.unusable_rows_count) == (50, 60)
    assert [fault.line for fault in identity.bad_rows] == list(range(11, 31))
    assert [fault.line for fault in identity.unusable_rows] == list(range(61, 81))


@pytest.mark.parametrize(
    ("data", "name", "kind", "words"),
    [
        (b'[\n{"text": "a"},\n{"text": "b"}\n]\n', "rows.jsonl", None, "JSON array"),
        (b'[{"text": "a"}, {"text": "b"}]', "rows.jsonl", None, "JSON array"),
        (b"question,answer\na,b\nc,d\n", "rows.jsonl", None, "CSV"),
        (b'{\n  "text": "a"\n}\n', "rows.jsonl", None, "rename it to end in .json, or write one per line"),
        (b'{"foo": 1, "bar": 2}\n', "rows.jsonl", None, "foo, bar"),
        (b'{"text": ""}\n', "rows.jsonl", None, "rows cannot be trained on"),
        (b"\n \n\n", "rows.jsonl", None, "no usable example"),
        (b"\n \n\n", "book.txt", "pretrain", "no usable example"),
        ('{"text": "a"}\n'.encode("utf-16"), "rows.jsonl", None, "UTF-16"),
        ("A book".encode("utf-16"), "book.txt", "pretrain", "UTF-16"),
        (b"A book\nwith \xff in it", "book.txt", None, "line 2, column 6"),
        (chat_file(3), "rows.jsonl", "pretrain", "Missing required field 'text'"),
    ],
)
def test_a_rejection_tells_a_person_what_why_and_what_to_do(
    drop: Any, data: bytes, name: str, kind: str | None, words: str
) -> None:
    identity = drop(data, name, kind)
    assert identity.verdict == "reject"
    text = why_text(identity)
    assert words in text and text.startswith(f"{name} was rejected.") and "drop it into the inbox again" in text


def test_a_file_of_which_nothing_can_be_used_is_rejected_whatever_the_limits(drop: Any) -> None:
    identity = drop(b'{"text": ""}\n', max_unusable_rows=1.0)
    assert (identity.verdict, identity.reason) == ("reject", "no usable example")


def test_the_reason_lists_each_row_by_line_field_and_reason(drop: Any) -> None:
    text = why_text(drop(chat_file(3) + b'{"messages": "x"}\n{oops}\n'))
    assert "line 4, messages: Field 'messages' must be a list (expected: a list of user and assistant turns)" in text
    assert "line 5: not valid JSON at column 2" in text


def test_a_name_cannot_write_to_the_terminal(drop: Any) -> None:
    text = why_text(drop(b"{oops}\n", "a\n\x1b[31m\udcff.jsonl"))
    assert text.startswith("a\\n\\x1b[31m\\udcff.jsonl was rejected.")


# Ignoring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name", "kind", "words"),
    [
        (b"{}", "rows.ipynb", None, ".ipynb files"),
        (b"%PDF-1.7", "a.pdf", None, ".pdf files"),
        (b"x", "noextension", None, "no extension"),
        (b"x", "rows.jsonl.part", None, "unfinished"),
        (chat_file(1), "rows.jsonl", "docs", "not a document"),
        (b"plain", "a.txt", "sft", "plain text"),
        (b"plain", "a.txt", "preference", "needs rows"),
        (chat_file(1), "rows.jsonl", "nonsense", "nonsense is not a kind"),
    ],
)
def test_what_cannot_be_read_is_ignored_with_an_honest_reason(
    drop: Any, data: bytes, name: str, kind: str | None, words: str
) -> None:
    identity = drop(data, name, kind)
    assert identity.verdict == "ignore" and words in identity.reason


def test_tagged_text_that_was_forced_to_pretraining_is_pretraining(drop: Any) -> None:
    assert drop(b'{"text": "<|user|>Hi<|assistant|>Ho"}\n', "rows.jsonl", "pretrain").verdict == "ok"


def test_the_first_row_that_says_a_kind_decides(drop: Any) -> None:
    identity = drop(b'{"id": 1}\n' + chat_file(30))
    assert (identity.kind, identity.verdict, identity.unusable_rows_count) == ("sft", "ok", 1)


def test_links_and_special_files_are_refused_without_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target.jsonl"
    target.write_bytes(chat_file(2))
    before = target.stat()
    (tmp_path / "link.jsonl").symlink_to(target)
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    monkeypatch.chdir(tmp_path)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jsonl")
    reasons = {
        name: identify(tmp_path / name, name)
        for name in ("link.jsonl", "dangling.jsonl", "fifo.jsonl", "folder.jsonl", "socket.jsonl")
    }
    assert {identity.verdict for identity in reasons.values()} == {"ignore"}
    assert "symbolic link" in reasons["dangling.jsonl"].reason and "FIFO" in reasons["fifo.jsonl"].reason
    assert "device" in identify("/dev/null", "null.jsonl").reason
    assert target.stat() == before


def test_a_link_swapped_in_after_the_look_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.jsonl").write_bytes(chat_file(2))
    (tmp_path / "rows.jsonl").symlink_to(tmp_path / "secret.jsonl")
    monkeypatch.setattr(identify_module, "_by_type", lambda base, path: None)
    with pytest.raises(OSError, match="symbolic links"):
        identify(tmp_path / "rows.jsonl", "rows.jsonl")


def test_an_unknown_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="colour"):
        Limits.from_dict({"colour": 1})


def test_a_file_that_nothing_could_save_is_not_read_to_its_end(drop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.checks.identify._COUNTED_BAD_ROWS", 10)
    identity = drop(b"{\n" * 30_000)
    assert (identity.verdict, identity.bad_rows_count) == ("reject", 32) and identity.rows == 32
    # Just as many bad rows at the head of a file that is good enough as a whole cost it nothing.
    assert drop(b"{\n" * 29 + b'{"text": "x"}\n' * 30_000).verdict == "ok"
