"""What a file is: verdicts with reasons, sidecars only for what is accepted, a child that outlives bad files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guard import identify_child
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


@pytest.mark.parametrize(("size", "kind"), [(5, "sft"), (5, "pretrain")])
def test_a_file_changed_while_it_is_read_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, kind: str
) -> None:
    path = tmp_path / ("rows.jsonl" if kind == "sft" else "book.txt")
    path.write_bytes(chat_file(size))
    real = identify_module._content

    def meanwhile(*arguments: Any) -> Identity:
        identity = real(*arguments)
        with path.open("ab") as writer:
            writer.write(chat_row(99))
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


def test_one_bad_row_in_twenty_thousand_is_skipped_and_listed(drop: Any) -> None:
    data = chat_file(20_000).split(b"\n")
    data[7776] = b"{oops}"
    identity = drop(b"\n".join(data))
    assert (identity.verdict, identity.examples, identity.bad_rows_count) == ("ok", 19_999, 1)
    assert [fault.line for fault in identity.bad_rows] == [7777]


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
        (b'{\n  "text": "a"\n}\n', "rows.jsonl", None, "one object per line"),
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
        (
            b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n',
            "rows.jsonl",
            None,
            "preference rows with chosen and rejected",
        ),
        (b'{"tests": "t"}\n', "rows.jsonl", None, "task rows"),
        (b'{"conversations": []}\n', "rows.jsonl", None, "sft rows with conversations"),
        (b'{"conversations": []}\n', "rows.jsonl", "sft", "sft rows with conversations"),
        (b'{"input_ids": [1, 2]}\n', "rows.jsonl", None, "input_ids"),
        (b'{"text": "<|user|>Hi<|assistant|>Ho"}\n', "rows.jsonl", None, "chat tag"),
        (b"a,b", "rows.csv", None, ".csv files"),
        (b"%PDF-1.7", "a.pdf", None, ".pdf files"),
        (b"x", "noextension", None, "no extension"),
        (b"x", "rows.jsonl.part", None, "unfinished"),
        (chat_file(1), "rows.jsonl", "docs", "not a document"),
        (b"plain", "a.txt", "sft", "plain text"),
        (chat_file(1), "rows.jsonl", "preference", "preference is not a kind"),
        (chat_file(1), "rows.jsonl", "nonsense", "nonsense is not a kind"),
    ],
)
def test_what_cannot_be_trained_on_yet_is_ignored_with_an_honest_reason(
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


# The child ----------------------------------------------------------------------------------------------------------


def test_the_child_answers_every_request_and_survives_every_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "good.jsonl"
    good.write_bytes(chat_file(3))
    troubles = {
        "memory": MemoryError(),
        "recursion": RecursionError("too deep"),
        "disk": OSError(28, "No space left"),
        "bug": ValueError("what?"),
    }
    real = identify_child.identify

    def troubled(path: str, name: str, *rest: Any, **options: Any) -> Identity:
        if name in troubles:
            raise troubles[name]
        return real(path, name, *rest, **options)

    monkeypatch.setattr(identify_child, "identify", troubled)
    requests = [json.dumps({"id": name, "path": str(good), "name": name}).encode() for name in troubles]
    requests += [
        b"not json",
        b"[]",
        b'{"id": 9, "path": "/nowhere/x.jsonl", "name": "x.jsonl"}',
        json.dumps({"id": "limits", "path": str(good), "name": "x.jsonl", "limits": {"colour": 1}}).encode(),
        json.dumps({"id": "good", "path": str(good), "name": "good.jsonl"}).encode(),
    ]
    out = io.BytesIO()
    identify_child.serve(io.BytesIO(b"\n".join(requests) + b"\n"), out)
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [answer.get("fault") for answer in answers] == [
        "environment",
        "bug",
        "environment",
        "bug",
        "bug",
        "bug",
        "environment",
        "bug",
        None,
    ]
    assert (answers[2]["errno"], answers[6]["errno"], answers[7]["message"]) == (28, 2, "unknown limit 'colour'")
    assert (answers[-1]["id"], answers[-1]["verdict"], answers[-1]["examples"]) == ("good", "ok", 3)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "guard.identify_child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def ask(child: subprocess.Popen[bytes], **request: Any) -> dict[str, Any]:
    assert child.stdin and child.stdout
    child.stdin.write(json.dumps(request).encode() + b"\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


def test_one_child_lives_for_many_files_and_odd_names(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    name = os.fsdecode(b"-r\n\xff\xf0\x9f\x98\x80.jsonl")
    path = os.path.join(tmp_path, name)
    with open(path, "wb") as handle:
        handle.write(chat_file(2))
    answer = ask(child, id=1, path=path, name=name, forced_kind=None, out_folder=str(tmp_path / "out"), limits={})
    assert (answer["id"], answer["verdict"], answer["name"]) == (1, "ok", name)
    assert json.loads((tmp_path / "out" / "record.json").read_bytes())["name"] == name
    assert ask(child, id=2, path=str(tmp_path / "gone.jsonl"), name="gone.jsonl")["fault"] == "environment"
    deep = tmp_path / "deep.jsonl"
    deep.write_bytes(b'{"text": ' + b"[" * 200_000)
    assert ask(child, id=3, path=str(deep), name="deep.jsonl")["verdict"] == "reject"
    assert ask(child, id=4, path=path, name=name)["examples"] == 2
    assert child.stdin
    child.stdin.close()
    assert child.wait(timeout=10) == 0


def test_the_child_imports_nothing_heavy() -> None:
    code = "import sys, guard.identify_child; print(','.join(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(",")
    assert not {"numpy", "torch", "pydantic", "trainer", "daemon", "tinydb", "watchdog"} & set(modules)


def test_the_child_dies_with_its_parent() -> None:
    requests_read, requests_write = os.pipe()  # held open here, so that the child cannot see its requests end
    answers_read, answers_write = os.pipe()
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-m', 'guard.identify_child'],"
        f" stdin={requests_read}, stdout={answers_write}); print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(requests_read, answers_write),
    )
    assert parent.stdout and parent.stdin
    watched = os.pidfd_open(int(parent.stdout.readline()))
    os.write(requests_write, b"[]\n")
    assert b"a request is an object" in os.read(answers_read, 4096)
    with parent:
        parent.send_signal(signal.SIGKILL)
    assert select.select([watched], [], [], 10)[0]
    for descriptor in (watched, requests_read, requests_write, answers_read, answers_write):
        os.close(descriptor)


def test_an_unknown_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="colour"):
        Limits.from_dict({"colour": 1})
