"""How a run says that it stopped because it was asked to. Apart from the loop, so that preparing needs no torch for it.

Not here: who asks (`trainer/child.py`, by signal) and what is saved before (`trainer/loop.py`).
"""

from __future__ import annotations

__all__ = ["StopRequested"]


class StopRequested(Exception):
    """Somebody asked the run to stop; it did so where it can be taken up again. The child exits with 75."""
