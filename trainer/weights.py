"""Named tensors to and from one safetensors file: the only way weights and optimizer state touch a disk.

No pickle. A full disk comes back as the OSError it is and not as a library's own error, so that the job is held and
retried (law 10). Syncing is left to the caller, who syncs the whole folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from guard.durable import FILE_MODE

__all__ = ["save_weights"]

_SYSTEM_ERROR = re.compile(r"os error (\d+)")


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write detached, contiguous copies of the tensors, in the order safetensors fixes: equal weights, equal bytes.

    Raises OSError when the disk says no, SafetensorError for anything else.
    """
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as error:
        told = _SYSTEM_ERROR.search(str(error))
        if told is None:
            raise
        code = int(told[1])
        raise OSError(code, os.strerror(code), os.fspath(path)) from error
    # safetensors keeps its files to their owner; whoever may read a home may read its weights
    os.chmod(path, FILE_MODE)
