"""A sweep of the inbox: everything that lies there is found or named with a reason, and nothing odd is ever opened."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from homes import make_home, within

from daemon import scan, service
from daemon.client import local_engine
from daemon.scan import SHIPPED_READMES, dropped_as, forced_kind, has_writer, ignored_because, sweep
from guard.checks.kinds import KINDS, README_REASON, ignore_reason
from guard.home import Home

SHIPPED = (Path(__file__).parent.parent / "inbox" / "README.md").read_bytes()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    for folder in (made.inbox, made.rejected, made.duplicates):
        folder.mkdir()
    return made


def found(home: Home) -> list[str]:
    return [str(item.path.relative_to(home.inbox)) for item in sweep(home, ignore_reason).files]


def ignored(home: Home) -> dict[str, str]:
    return {str(path.relative_to(home.inbox)): why for path, why in sweep(home, ignore_reason).ignored.items()}


def put(path: Path, content: str = "x\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_files_are_found_at_any_depth_and_what_came_back_is_left_alone(home: Home) -> None:
    for name in ("b.jsonl", "a.txt", "deep/er/still/c.md", "sft/rejected/d.jsonl", "deep/duplicates/e.jsonl"):
        put(home.inbox / name)
    put(home.rejected / "no.jsonl")
    put(home.duplicates / "no.jsonl")
    assert found(home) == ["a.txt", "b.jsonl", "deep/duplicates/e.jsonl", "deep/er/still/c.md", "sft/rejected/d.jsonl"]


def test_a_populated_folder_moved_in_is_found_whole(home: Home, tmp_path: Path) -> None:
    for number in range(50):
        put(tmp_path / "elsewhere" / f"{number % 5}" / f"{number:02d}.jsonl")
    (tmp_path / "elsewhere").rename(home.inbox / "moved")
    assert len(found(home)) == 50


def test_the_signature_tells_device_inode_size_and_both_times(home: Home) -> None:
    path = put(home.inbox / "a.jsonl", "12345")
    facts = path.stat()
    item = sweep(home, ignore_reason).files[0]
    assert item.signature == (facts.st_dev, facts.st_ino, 5, facts.st_mtime_ns, facts.st_ctime_ns) and item.size == 5


def test_pipes_sockets_links_and_devices_are_named_and_never_opened(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    target = put(home.root / "outside.jsonl")
    (home.root / "folder").mkdir()
    put(home.root / "folder" / "inside.jsonl")
    (home.inbox / "link.jsonl").symlink_to(target)
    (home.inbox / "dangling.jsonl").symlink_to("/nowhere")
    (home.inbox / "folderlink.jsonl").symlink_to(home.root / "folder")
    os.mkfifo(home.inbox / "pipe.jsonl")
    line = socket.socket(socket.AF_UNIX)
    line.bind(str(home.inbox / "socket.jsonl"))

    def forbidden(*_arguments: object, **_more: object) -> int:
        raise AssertionError("something was opened")

    with monkeypatch.context() as patch, within(60):
        patch.setattr(os, "open", forbidden)
        assert found(home) == []
        assert set(ignored(home)) == {"link.jsonl", "dangling.jsonl", "folderlink.jsonl", "pipe.jsonl", "socket.jsonl"}
    assert set(ignored(home).values()) == {"not a regular file"}
    line.close()


def test_asking_a_pipe_or_a_link_for_its_writer_neither_waits_nor_follows(home: Home) -> None:
    os.mkfifo(home.inbox / "pipe.jsonl")
    with within(60):
        has_writer(home.inbox / "pipe.jsonl")
    (home.inbox / "link.jsonl").symlink_to(put(home.root / "outside.jsonl"))
    with pytest.raises(OSError):
        has_writer(home.inbox / "link.jsonl")


def test_odd_and_temporary_names_are_named_with_their_reasons(home: Home) -> None:
    for name in (".DS_Store", "a.jsonl.part", ".a.jsonl.Xy12Zz", "photo.png", "noextension", "lost+found/a.jsonl"):
        put(home.inbox / name)
    put(home.inbox / "UPPER.JSONL")
    (home.inbox / "README.md").write_bytes(SHIPPED)
    assert found(home) == ["UPPER.JSONL"]
    reasons = ignored(home)
    assert len(reasons) == 7 and all(reasons.values()) and ".png is an unknown type" in reasons["photo.png"]


def test_the_shipped_readme_stays_and_a_users_own_is_taken(home: Home) -> None:
    path = home.inbox / "README.md"
    assert hashlib.sha256(SHIPPED).hexdigest() in SHIPPED_READMES, "a changed inbox/README.md needs its hash in daemon/scan.py"
    for bytes_ in (SHIPPED, SHIPPED.replace(b"\n", b"\r\n")):
        path.write_bytes(bytes_)
        assert found(home) == [] and ignored(home) == {"README.md": README_REASON} and ignored_because(home, path)
    for bytes_ in (SHIPPED + b"More.\n", b"# My project\n", b"x" * 10_000):
        path.write_bytes(bytes_)
        assert found(home) == ["README.md"] and ignored(home) == {} and ignored_because(home, path) == ""
    path.unlink()
    path.symlink_to(home.root)
    assert found(home) == [] and "README.md" in ignored(home)


def test_names_of_any_bytes_are_found(home: Home) -> None:
    names = [b"caf\xe9.jsonl", b"-rf.jsonl", b"new\nline.jsonl", "\U0001f600.jsonl".encode(), b"n" * 249 + b".jsonl",
             b"a'\"\t.jsonl"]  # fmt: skip
    for name in names:
        with open(os.path.join(os.fsencode(home.inbox), name), "wb") as handle:
            handle.write(b"x")
    assert sorted(os.fsencode(name) for name in found(home)) == sorted(names)


@pytest.mark.parametrize("mode, problem", [(0o000, "unreadable"), (0o444, ""), (0o200, "unreadable")])
def test_an_unreadable_file_is_said_to_be_just_that(home: Home, mode: int, problem: str) -> None:
    put(home.inbox / "a.jsonl").chmod(mode)
    assert [item.problem for item in sweep(home, ignore_reason).files] == [problem]


def test_a_folder_that_cannot_be_read_is_named_and_hides_no_other(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    put(home.inbox / "closed" / "a.jsonl")
    put(home.inbox / "open" / "b.jsonl")
    really = os.scandir

    def closed(folder: Path) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return really(folder)

    monkeypatch.setattr(scan.os, "scandir", closed)
    assert found(home) == ["open/b.jsonl"]
    assert ignored(home) == {"closed": "this folder cannot be read: Permission denied"}


def test_a_missing_inbox_is_not_an_empty_one(home: Home) -> None:
    for folder in (home.rejected, home.duplicates, home.inbox):
        folder.rmdir()
    with pytest.raises(FileNotFoundError):
        sweep(home, ignore_reason)


def test_a_file_that_goes_between_listing_and_look_is_no_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    put(home.inbox / "a.jsonl")
    put(home.inbox / "b.jsonl")
    really = os.scandir

    def slow(folder: Path) -> list[os.DirEntry[str]]:
        entries = list(really(folder))
        (home.inbox / "a.jsonl").unlink(missing_ok=True)
        return entries

    monkeypatch.setattr(scan.os, "scandir", slow)
    assert found(home) == ["b.jsonl"]


# --- writers ------------------------------------------------------------------------------------------------------


def test_a_writer_that_holds_the_file_open_is_noticed_however_idle(home: Home) -> None:
    path = put(home.inbox / "a.jsonl")
    assert not has_writer(path)
    reader, writer = path.open("rb"), path.open("ab")
    assert has_writer(path)
    writer.close()
    assert not has_writer(path)
    reader.close()


def test_where_leases_are_unknown_nobody_is_taken_for_a_writer(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(home.inbox / "a.jsonl")

    def no_leases(*_arguments: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(scan.fcntl, "fcntl", no_leases)
    with path.open("ab"):
        assert not has_writer(path)


def test_looking_for_a_writer_leaves_the_file_as_it_was(home: Home) -> None:
    path = put(home.inbox / "a.jsonl")
    before = path.stat()
    has_writer(path)
    after = path.stat()
    assert (before.st_mtime_ns, before.st_ctime_ns, stat.S_IMODE(before.st_mode)) == (
        after.st_mtime_ns, after.st_ctime_ns, stat.S_IMODE(after.st_mode))  # fmt: skip
    with path.open("ab") as handle:  # no lease was left behind
        handle.write(b"x")


@pytest.mark.parametrize("where", ["daemon", "command"])
def test_a_broken_lease_ends_no_process_of_ours(scratch: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    make_home(scratch / "home").ledger.close()
    before = {number: signal.getsignal(number) for number in (signal.SIGIO, signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # what a new process has: it ends it
    monkeypatch.setattr(service.Service, "run", lambda _self: 0)
    try:
        if where == "daemon":
            service.run(Home(scratch / "home"))
            assert signal.getsignal(signal.SIGIO) is signal.SIG_IGN
        else:
            with local_engine(Home(scratch / "home"), "register"):
                assert signal.getsignal(signal.SIGIO) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- kinds --------------------------------------------------------------------------------------------------------


def test_the_first_folder_forces_the_kind_and_is_no_part_of_the_name(home: Home) -> None:
    for kind in KINDS:
        assert forced_kind(home, home.inbox / kind / "deep" / "a.jsonl") == kind
        assert dropped_as(home, home.inbox / kind / "deep" / "a.jsonl") == "deep/a.jsonl"
    assert forced_kind(home, home.inbox / "project" / "sft" / "a.jsonl") is None
    assert dropped_as(home, home.inbox / "project" / "sft" / "a.jsonl") == "project/sft/a.jsonl"
    assert forced_kind(home, home.inbox / "sft") is None and dropped_as(home, home.inbox / "sft") == "sft"
