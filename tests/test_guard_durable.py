"""Durable writing: a file is finished or it is not there, and no error leaves anything behind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import remove_sealed

from guard import copies, durable
from guard.errors import Damage
from guard.folders import together


class Syncs:
    """Counts what is synced, and fails from the n-th call on when told to."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.fail_at: int | None = None

    def __call__(self, descriptor: int) -> None:
        self.paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self.fail_at is not None and len(self.paths) >= self.fail_at:
            raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    counter = Syncs()
    monkeypatch.setattr(durable, "_fsync", counter)
    return counter


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "place"
    place.mkdir()
    yield place
    remove_sealed(tmp_path)
    tmp_path.mkdir()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_synced_before_it_takes_its_name_and_the_folder_after(folder: Path, syncs: Syncs) -> None:
    target = folder / "a"
    with durable.open_new(target) as handle:
        handle.write(b"x" * 10)
        assert not target.exists()
    file, place = syncs.paths
    assert file.startswith(f"{folder}/.a.") and file.endswith(".tmp") and place == str(folder)
    assert target.read_bytes() == b"x" * 10 and stat.S_IMODE(target.stat().st_mode) == durable.FILE_MODE


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_in_the_block_leaves_no_trace_and_the_old_bytes(folder: Path, error: type[BaseException]) -> None:
    (folder / "a").write_bytes(b"old")
    with pytest.raises(error), durable.open_new(folder / "a") as handle:
        handle.write(b"half")
        raise error
    assert names(folder) == ["a"] and (folder / "a").read_bytes() == b"old"


def test_a_failed_sync_is_never_tried_again_and_the_target_keeps_its_old_bytes(folder: Path, syncs: Syncs) -> None:
    (folder / "a").write_bytes(b"old")
    syncs.fail_at = 1
    with pytest.raises(OSError, match="Input/output"):
        durable.write_bytes(folder / "a", b"new")
    assert len(syncs.paths) == 1
    assert names(folder) == ["a"] and (folder / "a").read_bytes() == b"old"


def test_a_folder_that_cannot_be_synced_is_a_failure_too(folder: Path, syncs: Syncs) -> None:
    syncs.fail_at = 2
    with pytest.raises(OSError, match="Input/output"):
        durable.write_bytes(folder / "a", b"new")
    assert len(syncs.paths) == 2


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a").write_bytes(b"old")
    with pytest.raises(OSError) as caught, durable.open_new(folder / "a") as handle:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, handle.fileno())
        os.close(full)
        handle.write(b"x" * (1 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert names(folder) == ["a"] and (folder / "a").read_bytes() == b"old"


def test_writes_that_the_kernel_cuts_short_are_completed(folder: Path) -> None:
    """A pipe takes only part of a large write; `open_new` gives a buffered file that goes on until all is out."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        total = 0
        while block := os.read(reader, 1000):
            total += len(block)
        os._exit(0 if total == 300_000 else 1)
    os.close(reader)
    with durable.open_new(folder / "a") as handle:
        kept = os.dup(handle.fileno())
        os.dup2(writer, handle.fileno())
        os.close(writer)
        handle.write(b"y" * 300_000)
        handle.flush()
        os.dup2(kept, handle.fileno())
        os.close(kept)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_name_of_255_bytes_can_be_written(folder: Path) -> None:
    durable.write_text(folder / ("n" * 255), "x")
    assert names(folder) == ["n" * 255]


def test_json_has_sorted_keys_and_a_final_newline(folder: Path) -> None:
    durable.write_json(folder / "a.json", {"b": 1, "a": [1]})
    assert (folder / "a.json").read_text() == '{\n  "a": [\n    1\n  ],\n  "b": 1\n}\n'


def test_a_hint_that_cannot_be_published_leaves_no_litter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.publish(folder / "p.json", b"1")
    (folder / "p.json").unlink()
    (folder / "p.json").mkdir()
    with pytest.raises(IsADirectoryError):
        durable.publish(folder / "p.json", b"2")
    assert names(folder) == ["p.json"]


# --- folders, moving and links ------------------------------------------------------------------------------------


def test_every_new_folder_is_made_durable_in_its_parent(folder: Path, syncs: Syncs) -> None:
    durable.make_dir(folder / "a" / "b")
    assert syncs.paths == [str(folder), str(folder / "a")]
    durable.make_dir(folder / "a" / "b")
    assert len(syncs.paths) == 2


def test_a_file_in_the_way_of_a_folder_is_told(folder: Path) -> None:
    (folder / "a").write_text("x")
    with pytest.raises(FileExistsError):
        durable.make_dir(folder / "a")


def test_a_tree_is_synced_files_first_and_from_the_bottom_up(folder: Path, syncs: Syncs) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "f").write_text("x")
    (folder / "top").write_text("x")
    (folder / "link").symlink_to("/nowhere")
    durable.fsync_tree(folder)
    assert syncs.paths == [str(folder / "sub" / "f"), str(folder / "sub"), str(folder / "top"), str(folder)]


def test_syncing_a_tree_that_is_not_there_is_no_success(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        durable.fsync_tree(folder / "missing")


def test_moving_never_replaces_anything(folder: Path, syncs: Syncs) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
    (folder / "c").mkdir()
    (folder / "d").symlink_to("/nowhere")
    for target in ("b", "d"):
        with pytest.raises(FileExistsError):
            durable.rename_new(folder / "a", folder / target)
    assert names(folder) == ["a", "b", "c", "d"] and syncs.paths == []
    durable.rename_new(folder / "a", folder / "c" / "e")
    assert names(folder / "c") == ["e"] and syncs.paths == [str(folder / "c"), str(folder)]


def test_moving_never_replaces_where_the_kernel_cannot_promise_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def renameat2(self, *_arguments: object) -> int:
            return -1

    monkeypatch.setattr(durable.ctypes, "CDLL", lambda *_a, **_k: Old())
    monkeypatch.setattr(durable.ctypes, "get_errno", lambda: errno.EINVAL)
    (folder / "a").write_text("a")
    (folder / "b").write_text("b")
    with pytest.raises(FileExistsError):
        durable.rename_new(folder / "a", folder / "b")
    durable.rename_new(folder / "a", folder / "c")
    assert names(folder) == ["b", "c"] and (folder / "b").read_text() == "b"


def test_a_link_is_switched_in_one_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.replace_link(folder / "latest", "v001")
    durable.replace_link(folder / "latest", "v002")
    assert os.readlink(folder / "latest") == "v002" and names(folder) == ["latest"]

    def broken(*_arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(OSError, match="Input/output"):
        durable.replace_link(folder / "latest", "v003")
    assert os.readlink(folder / "latest") == "v002" and names(folder) == ["latest"]


# --- copies -------------------------------------------------------------------------------------------------------


def test_a_copy_is_read_back_and_its_hash_returned(folder: Path) -> None:
    (folder / "a").write_bytes(b"bytes" * 1000)
    digest = copies.copy_verified(folder / "a", folder / "b")
    assert digest == durable.sha256_file(folder / "b") == durable.sha256_bytes(b"bytes" * 1000)


def test_a_source_that_is_not_what_it_was_leaves_the_older_copy(folder: Path) -> None:
    (folder / "a").write_bytes(b"rotten")
    (folder / "b").write_bytes(b"good")
    with pytest.raises(Damage) as caught:
        copies.copy_verified(folder / "a", folder / "b", durable.sha256_bytes(b"good"))
    assert caught.value.subject == str(folder / "a")
    assert (folder / "b").read_bytes() == b"good" and names(folder) == ["a", "b"]


@pytest.mark.parametrize("failure", [Damage, OSError])
def test_a_copy_that_does_not_read_back_never_takes_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    (folder / "a").write_bytes(b"bytes")
    really = durable.sha256_file

    def bad_disk(path: Path | str) -> str:
        if failure is OSError:
            raise OSError(errno.EIO, "Input/output error")
        assert Path(path).read_bytes() == b"bytes"
        return really(folder / "a")[::-1]

    monkeypatch.setattr(copies, "sha256_file", bad_disk)
    with pytest.raises(failure):
        copies.copy_verified(folder / "a", folder / "b")
    assert names(folder) == ["a"]


def test_symbolic_links_are_never_followed_when_reading(folder: Path) -> None:
    (folder / "secret").write_text("x")
    (folder / "link").symlink_to("secret")
    for act in (lambda: durable.sha256_file(folder / "link"), lambda: copies.copy_verified(folder / "link", folder / "b")):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == errno.ELOOP
    assert names(folder) == ["link", "secret"]


def test_a_second_name_or_else_a_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a").write_text("x")
    copies.link_or_copy(folder / "a", folder / "b")
    assert (folder / "a").stat().st_ino == (folder / "b").stat().st_ino

    def no_links(*_arguments: object, **_more: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    copies.link_or_copy(folder / "a", folder / "c")
    assert (folder / "c").read_text() == "x" and (folder / "c").stat().st_ino != (folder / "a").stat().st_ino


# --- seals --------------------------------------------------------------------------------------------------------


def test_a_sealed_tree_is_read_only_and_what_links_point_at_is_untouched(folder: Path) -> None:
    outside = folder / "outside"
    outside.mkdir(mode=0o700)
    os.chmod(outside, 0o700)
    tree = folder / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "f").write_text("x")
    (tree / "link").symlink_to(outside)
    durable.seal_tree(tree)
    modes = {str(path.relative_to(tree)): stat.S_IMODE(path.lstat().st_mode) for path in tree.rglob("*")}
    assert modes["sub"] == 0o555 and modes["sub/f"] == 0o444 and stat.S_IMODE(tree.stat().st_mode) == 0o555
    durable.unseal_tree(tree)
    assert stat.S_IMODE((tree / "sub").stat().st_mode) == 0o755 and stat.S_IMODE((tree / "sub/f").stat().st_mode) == 0o444
    assert stat.S_IMODE(outside.stat().st_mode) == 0o700


def test_removing_a_sealed_tree_follows_no_link(folder: Path, syncs: Syncs) -> None:
    (folder / "kept").mkdir()
    (folder / "kept" / "f").write_text("x")
    tree = folder / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "f").write_text("x")
    (tree / "link").symlink_to(folder / "kept")
    durable.seal_tree(tree)
    durable.remove_tree(tree)
    (folder / "top").symlink_to(folder / "kept")
    durable.remove_tree(folder / "top")
    durable.remove_tree(folder / "was never there")
    assert names(folder) == ["kept"] and names(folder / "kept") == ["f"] and str(folder) in syncs.paths


def test_many_syncs_run_together_and_a_failed_one_is_told(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(40)]
    synced: set[Path] = set()

    def sync(path: Path) -> None:
        if path.name == "33":
            raise OSError(errno.EIO, "the disk lost it")
        synced.add(path)

    for count in (10, 40):
        synced.clear()
        if count == 10:
            together(sync, paths[:10])
        else:
            with pytest.raises(OSError, match="the disk lost it"):
                together(sync, paths)
        assert synced == {path for path in paths[:count] if path.name != "33"}
