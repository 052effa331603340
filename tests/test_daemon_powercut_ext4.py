"""Power cuts on a real file system: ext4 on a loop device, shut down in mid-call by EXT4_IOC_SHUTDOWN, journal and all.

A forked child plays a scene in a home on the mounted image and tells its acknowledgements to a file elsewhere. At the
chosen call the file system is shut down without flushing its log, unmounted, mounted again (which replays the journal)
and lived in once more. Root only: nobody else may mount. Half of the cuts have the ordinary mount options, half have
`commit=300,data=writeback,noauto_da_alloc`, under which ext4 gives away nothing that was not synced.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import pickle
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import homes
import pytest
from disk import Disk
from playing import calls_of, last_life, templates
from scenes import Journey, Scene, reader_s_complaints
from scenes_care import Care

from guard import durable
from guard.store.ledger import Ledger

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), linux/fs/ext4/ext4.h
NO_LOG_FLUSH = 2
CLONE_NEWNS = 0x00020000  # linux/sched.h
IMAGE_MIB = 48
OPTIONS = ("commit=300,data=writeback,noauto_da_alloc", "defaults")
KINDS: dict[str, type[Scene]] = {"journey": Journey, "care": Care}
START: dict[type[Scene], object] = {Journey: [name for name in Journey.DROPS if name != "again.jsonl"], Care: 0}
LIFE_ENDED, CUT = 0, 9
EVERY, PARTS = 3, 8  # every third durable call, dealt out to eight tests for each scene


def _run(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True)


@contextlib.contextmanager
def mounted(image: Path, place: Path, options: str) -> Iterator[Path]:
    """The image mounted; unmounted whatever happens."""
    place.mkdir(exist_ok=True)
    _run("mount", "-o", f"loop,{options}", image, place)
    try:
        yield place
    finally:
        # A home that is not whole is left in the middle, and a disk with an open file on it stays.
        for close in homes.at_the_end:
            close()
        homes.at_the_end.clear()
        gc.collect()
        _run("umount", place)


def _mount_for_ourselves() -> None:
    """Mounts made from here on are seen by nobody else and go with this process, even when it is killed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "mounts cannot be kept apart")
    _run("mount", "--make-rprivate", "/")


def why_not(folder: Path) -> str:
    """Why power cuts cannot be played here; "" when they can."""
    if os.geteuid() != 0:
        return "only root may mount"
    image, place = folder / "probe.img", folder / "probe"
    try:
        _mount_for_ourselves()
        _run("truncate", "-s", "16M", image)
        _run("mkfs.ext4", "-q", "-F", image)
        with mounted(image, place, "defaults"):
            shut_down(place)
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", b"") or str(error).encode()
        return f"no loop-mounted ext4 here: {told.decode(errors='replace').strip()}"
    return ""


def shut_down(place: Path) -> None:
    """The power goes: nothing more reaches this file system, its log is not flushed."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


@pytest.fixture(scope="module")
def stages(shared_scratch: Path) -> dict[str, tuple[Path, int]]:
    """For each scene an unmounted image with the scene set, and how many durable calls it makes when undisturbed."""
    folder = shared_scratch / "ext4"
    folder.mkdir()
    reason = why_not(folder)
    if reason:
        pytest.skip(reason)
    made, begin_from = {}, templates(folder)
    for name, kind in KINDS.items():
        image = folder / f"{name}.img"
        _run("truncate", "-s", f"{IMAGE_MIB}M", image)
        _run("mkfs.ext4", "-q", "-F", "-J", "size=4", image)
        with mounted(image, folder / "mnt", "defaults") as place:
            kind(begin_from[kind], place / "home")
        made[name] = (image, len(calls_of(kind, begin_from[kind], folder / "count")))
    return made


def child(kind: type[Scene], place: Path, notes: Path, number: int) -> None:
    """Play until the call of that number, and cut the power there. Never returns."""
    status = 70
    try:
        scene = kind(None, place / "home", START[kind])
        scene.synced = os.sync  # type: ignore[misc]
        with notes.open("ab", buffering=0) as told, Disk(scene.root, real=True) as disk:

            def acknowledged(ledger: Ledger) -> None:
                scene.witness.committed(ledger)
                told.write(pickle.dumps((scene.witness.newest, scene.witness.numbers, scene.progress())))

            def fault(count: int, _name: str) -> None:
                if count == number:
                    shut_down(place)
                    os._exit(CUT)

            disk.committed, disk.fault = acknowledged, fault
            scene.begin()
            scene.play()
        status = LIFE_ENDED
    finally:
        os._exit(status)


def last_note(notes: Path) -> tuple[tuple[int, str], dict[tuple[str, int], str], object] | None:
    found = None
    with notes.open("rb") as handle, contextlib.suppress(EOFError):
        while True:
            found = pickle.load(handle)
    return found


def cut(kind: type[Scene], image: Path, folder: Path, number: int, options: str) -> tuple[bool, list[str]]:
    """One power cut and the life after it: whether the scene came so far, and every broken promise."""
    copy, notes, place = folder / "cut.img", folder / "notes", folder / "mnt"
    _run("cp", "--sparse=always", image, copy)
    notes.write_bytes(b"")
    with mounted(copy, place, options):
        process = os.fork()
        if process == 0:
            child(kind, place, notes, number)
        ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert ended in (CUT, LIFE_ENDED), f"the child ended with {ended}"
    with mounted(copy, place, "defaults"):
        note = last_note(notes)
        scene = kind(None, place / "home", note[2] if note else START[kind])
        if note:
            scene.witness.newest, scene.witness.numbers = note[0], note[1]
        found = reader_s_complaints(scene.root)
        return ended == CUT, found + last_life(scene)


@pytest.fixture
def folder(shared_scratch: Path) -> Iterator[Path]:
    place = shared_scratch / "ext4-cuts"
    place.mkdir(exist_ok=True)
    yield place
    shutil.rmtree(place)


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", KINDS)
def test_a_power_cut_on_ext4_takes_nothing_that_was_acknowledged(
    name: str, part: int, stages: dict[str, tuple[Path, int]], folder: Path
) -> None:
    image, total = stages[name]
    wrong, cuts = {}, 0
    numbers = range(1 + EVERY * part, total + 1, EVERY * PARTS)
    for place, number in enumerate(numbers):
        reached, found = cut(KINDS[name], image, folder, number, OPTIONS[place % 2])
        cuts += reached
        if found:
            wrong[number] = found[:3]
    assert wrong == {}
    assert cuts >= len(numbers) - 1, "a backup is sliced by real time: only the very last call may not come"


@pytest.mark.sweep
def test_there_are_at_least_five_hundred_cuts(stages: dict[str, tuple[Path, int]]) -> None:
    assert sum(len(range(1, total + 1, EVERY)) for _image, total in stages.values()) >= 500


@pytest.mark.sweep
def test_without_any_fsync_ext4_does_lose_what_was_acknowledged(
    stages: dict[str, tuple[Path, int]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness is not blind: the same cuts find a version of the code that syncs nothing."""
    monkeypatch.setattr(durable, "_fsync", lambda _descriptor: None)
    monkeypatch.setattr(durable, "sync_file_system", lambda _path: None)
    image, total = stages["care"]
    found = [cut(Care, image, folder, number, OPTIONS[0]) for number in range(60, total // 2, 40)]
    assert any(complaints for _reached, complaints in found)
