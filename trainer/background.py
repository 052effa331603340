"""Snapshots written beside the training: the tensors are copied at a step's end, the rest is done by a thread.

One write at a time. A write that failed is told at the next step's end, as the very error it was; a run that stops or
ends waits for the one under way. The copies are kept and used again: as much memory as weights and moments together.
What a snapshot is, and how it is made durable, is `trainer/snapshot.py`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from trainer.snapshot import save_snapshot

__all__ = ["SnapshotWriter"]

_POLITE = 10
"""Added to the writing thread's niceness: it takes what the step's own threads leave over."""


class SnapshotWriter:
    """Use as a context manager: leaving waits for the write under way."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copies: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})

    @property
    def busy(self) -> bool:
        """A write is under way."""
        return self._thread is not None and self._thread.is_alive()

    def begin(
        self, step: int, state: Mapping[str, Any], model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor],
        before: Callable[[], object],
    ) -> None:  # fmt: skip
        """Copy the tensors now and write them while the caller goes on; `before` is called first, by the thread.

        Waits for an earlier write. Raises what that one raised, or what came of the last one since.
        """
        self.wait()
        self._copies = tuple(_copied(new, kept) for new, kept in zip((model, optimizer), self._copies, strict=True))  # type: ignore[assignment]
        self._thread = threading.Thread(target=self._write, args=(step, dict(state), before), name="snapshot")
        self._thread.start()

    def check(self) -> None:
        """Raise what a write that has ended meanwhile has failed with."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Return when no write is under way. Raises what it failed with: OSError (disk full, ...)."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, step: int, state: Mapping[str, Any], before: Callable[[], object]) -> None:
        try:
            with contextlib.suppress(OSError):  # a hint to the scheduler; on Linux the niceness is a thread's own
                own = threading.get_native_id()
                os.setpriority(os.PRIO_PROCESS, own, min(19, os.getpriority(os.PRIO_PROCESS, own) + _POLITE))
            before()
            save_snapshot(self._folder, step, state, *self._copies)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread, at its next look
            self._error = error

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:  # there is a worse trouble already, which is the one that is told
            self._thread.join()


def _copied(tensors: Mapping[str, Tensor], kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, in the memory of the last ones where names, shapes and types are the same."""
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        old = kept.get(name)
        if old is None or old.shape != tensor.shape or old.dtype != tensor.dtype:
            kept[name] = torch.empty_like(tensor, device="cpu")
    copies = {name: kept[name] for name in plain}
    with torch.no_grad():
        torch._foreach_copy_(list(copies.values()), list(plain.values()))
    return copies
