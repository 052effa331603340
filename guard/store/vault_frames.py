"""Weights in the vault: which file became a frame, what its chain of parents is, and is it still what was sealed.

In a version's folder in the vault `model.frame` stands for `model.safetensors`; everything else, SHA256SUMS included,
is as it was sealed. Older vaults hold plain copies, which are read just as well, also as the parent of a frame.
A frame's parent lies beside it, in `versions/<parent>/`; a frame without one is a key frame.
Reads only. Not here: making frames (`vault_versions.py`), their format (`guard/frames.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from pathlib import Path

from guard.durable import make_dir, open_new, sha256_file
from guard.errors import Damage, HeirloomError
from guard.frames import FrameHeader, FrameReader, decode_steps, frame_hash_steps, read_header
from guard.steps import drain
from guard.store.copying import copy_file_steps
from guard.store.sums import SUMS, Problem, hash_steps, listed_problem_steps, read_sums, sums_problem
from guard.tensors import FileBytes, Readable

__all__ = ["chain_of", "frame_name", "is_framed", "needed_by", "open_stored", "stored_bytes",
           "stored_problem_steps", "stored_problems", "stored_size", "stored_whole", "take_out_steps"]  # fmt: skip

WEIGHTS = ".safetensors"
FRAME = ".frame"
MAX_CHAIN = 10_000
"""Longer than any chain that is made: a circle must end somewhere."""


def frame_name(name: str) -> str | None:
    """What a file of a version is called as a frame; None for files that are stored as they are."""
    return name.removesuffix(WEIGHTS) + FRAME if name.endswith(WEIGHTS) else None


def is_framed(folder: Path, name: str) -> bool:
    """Whether the vault holds this file as a frame and not as a plain copy."""
    frame = frame_name(name)
    return frame is not None and not os.path.lexists(folder / name) and (folder / frame).is_file()


def open_stored(folder: Path, name: str, depth: int = 0) -> Readable:
    """A file of a version in the vault as what it was. Raises Damage when its chain is broken, OSError."""
    if not is_framed(folder, name):
        return FileBytes(folder / name)
    if depth > MAX_CHAIN:
        raise Damage(f"the chain of frames at {folder} has no end", subject=str(folder))

    def parent(header: FrameHeader) -> Readable:
        return _open_parent(folder, name, header, depth)

    return FrameReader(folder / str(frame_name(name)), parent)


def _open_parent(folder: Path, name: str, header: FrameHeader, depth: int) -> Readable:
    there = folder.parent / header.parent
    try:
        if not header.parent or Path(header.parent).name != header.parent:
            raise Damage(f"{folder.name} needs a parent and names none", subject=str(folder))
        if read_sums(there).get(name) != header.parent_sha256:
            raise Damage(f"{folder.name} needs another {header.parent} than lies in the vault", subject=str(folder))
        return open_stored(there, name, depth + 1)
    except (OSError, ValueError) as error:
        raise Damage(f"{folder.name} needs {header.parent}, which cannot be read: {error}", subject=str(folder),
                     cause=error, hint="heirloom backup run makes it again from models/") from error  # fmt: skip


def chain_of(folder: Path, name: str) -> list[Path]:
    """The folder of a framed file and those of its parents down to the key frame or plain copy. Raises Damage."""
    chain = [folder]
    while is_framed(chain[-1], name):
        header = read_header(chain[-1] / str(frame_name(name)))
        if not header.parent:
            break
        chain.append(folder.parent / header.parent)
        if len(chain) > MAX_CHAIN or not chain[-1].is_dir():
            raise Damage(f"{folder.name} needs {header.parent}, which is not in the vault", subject=str(folder))
    return chain


def needed_by(versions: Path, skip: Callable[[str], bool] = lambda _name: False) -> dict[str, list[str]]:
    """For each version in the vault the others whose chain needs it, by name. Frames that cannot be read need nobody."""
    parents: dict[str, set[str]] = {}
    for folder in sorted(versions.iterdir()) if versions.is_dir() else []:
        if folder.name.startswith(".") or skip(folder.name):
            continue
        for frame in folder.glob(f"*{FRAME}"):
            try:
                header = read_header(frame)
            except (HeirloomError, OSError):
                continue  # it is itself found to be damaged by whoever reads it
            if header.parent:
                parents.setdefault(folder.name, set()).add(header.parent)
    needed: dict[str, set[str]] = {}
    for name in parents:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            for parent in parents.get(waiting.pop(), set()) - seen:
                seen.add(parent)
                waiting.append(parent)
                needed.setdefault(parent, set()).add(name)
    return {name: sorted(others) for name, others in needed.items()}


# --- is it sound? ------------------------------------------------------------------------------------------------------


def stored_problem_steps(
    folder: Path, sums_sha256: str | None, *, hash_it: Callable[[str], bool] = lambda _name: True,
    whole_chain: bool = False,
) -> Generator[int, None, list[Problem]]:  # fmt: skip
    """`problem_steps` for a version's folder in the vault: frames are read, decoded and hashed. Yields bytes read.

    `whole_chain`: the frames it stands on are read and hashed first too, so that the one at fault is named.
    """
    if os.path.islink(folder) or not os.path.isdir(folder):
        return [("", "the folder is missing")]
    problem = sums_problem(folder, sums_sha256)
    if problem:
        return [(SUMS, problem)]
    sums = read_sums(folder)
    framed = {name: str(frame_name(name)) for name in sums if is_framed(folder, name)}
    plain = {name: digest for name, digest in sums.items() if name not in framed}
    problems = yield from listed_problem_steps(folder, plain, {SUMS, *framed.values()}, hash_it)
    for name, frame in framed.items():
        problem = yield from _frame_problem(folder, name, sums[name], hash_it(name), whole_chain)
        if problem:
            problems.append((frame, problem))
    return problems


def _frame_problem(
    folder: Path, name: str, expected: str, hashed: bool, whole_chain: bool
) -> Generator[int, None, str]:
    frame = str(frame_name(name))
    try:
        if read_header(folder / frame).sha256 != expected:
            return f"is not the frame of the {name} that was sealed"
        if not hashed:
            return ""
        for place in chain_of(folder, name) if whole_chain else [folder]:
            if is_framed(place, name) and (problem := (yield from frame_hash_steps(place / frame))):
                return problem if place == folder else f"needs {place.name}, whose {frame}: {problem}"
        return (yield from _decode_problem(folder, name, expected))
    except HeirloomError as error:
        return f"cannot be decoded: {error.message}"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _decode_problem(folder: Path, name: str, expected: str) -> Generator[int, None, str]:
    reader = open_stored(folder, name)
    try:
        digest = yield from decode_steps(reader)
    finally:
        reader.close()
    return "" if digest == expected else f"does not give back the {name} that was sealed"


def stored_problems(folder: Path, sums_sha256: str | None) -> list[Problem]:
    """`stored_problem_steps` run to its end, chain and all."""
    return drain(stored_problem_steps(folder, sums_sha256, whole_chain=True))


def stored_whole(folder: Path, sums_sha256: str | None) -> bool:
    """Whether everything of a version lies there, by its list and its frames' headers; contents are not read."""
    return not drain(stored_problem_steps(folder, sums_sha256, hash_it=lambda _name: False))


# --- taking out ----------------------------------------------------------------------------------------------------------


def stored_size(folder: Path, name: str) -> int:
    """Bytes of a file once it is taken out. Raises OSError, Damage."""
    return read_header(folder / str(frame_name(name))).size if is_framed(folder, name) else os.lstat(folder / name).st_size


def stored_bytes(folder: Path) -> int:
    """Bytes that a version's folder takes in the vault; 0 when it is not there."""
    try:
        return sum(path.lstat().st_size for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    except FileNotFoundError:
        return 0


def take_out_steps(
    folder: Path, into: Path, sums_sha256: str, copied: Callable[[], object] = lambda: None
) -> Generator[int, None, None]:  # fmt: skip
    """Take a whole version out of the vault, or out of any folder that holds it, file by file against the sealed hashes.

    What lies well in `into` already is kept; `copied` is called after each file. Yields bytes. Raises Damage when the list
    is not the one that was sealed, or when what comes out of a file, or what was written of it, is not what it says.
    """
    make_dir(into)
    if sha256_file(folder / SUMS) != sums_sha256:
        raise Damage(f"{folder / SUMS} is not the one that was sealed", subject=folder.name, hint="heirloom verify --backup")
    for name, expected in {**read_sums(folder), SUMS: sums_sha256}.items():
        target = into / name
        make_dir(target.parent)
        if not target.exists() or (yield from hash_steps(target)) != expected:
            yield from (_decoded_steps if is_framed(folder, name) else _copied_steps)(folder, name, target, expected)
            if (yield from hash_steps(target)) != expected:
                raise Damage(f"read back, the copy {target} is not what was written", subject=folder.name,
                             hint="check the disk; the original was not touched")  # fmt: skip
        copied()


def _copied_steps(folder: Path, name: str, target: Path, expected: str) -> Generator[int, None, None]:
    return copy_file_steps(folder / name, target, expected)


def _decoded_steps(folder: Path, name: str, target: Path, expected: str) -> Generator[int, None, None]:
    reader = open_stored(folder, name)
    try:
        with open_new(target) as writer:
            if (yield from decode_steps(reader, writer.write)) != expected:
                raise Damage(f"{folder / name} did not come out of its frame as it was sealed", subject=folder.name,
                             hint="heirloom verify --backup")  # fmt: skip
    finally:
        reader.close()
