"""Lanes: how the sequences of a step are dealt to them, and which process works on which. Pure, no torch.

The gradients of a step are accumulated in a fixed number of lanes and added up in a fixed order (`trainer/lanes.py`), so
that it makes no difference to a single bit whether one process works on all lanes or several on some each. The number
of lanes is a part of the plan; how many processes there are is not, and may change in the middle of a run.
"""

from __future__ import annotations

from guard.errors import UsageError

__all__ = ["deal", "own_lanes"]


def deal(lengths: list[int], lanes: int) -> list[list[int]]:
    """Positions of a step's sequences by lane; `lengths`: tokens of each, in the order of the frozen list.

    Longest first, to and fro over the lanes, so that all have about as much to do; within a lane in the order of the
    list. Where there are fewer sequences than lanes it is the last lanes that have nothing.
    """
    dealt: list[list[int]] = [[] for _ in range(lanes)]
    longest_first = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    for turn, position in enumerate(longest_first):
        row, place = divmod(turn, lanes)
        dealt[place if row % 2 == 0 else lanes - 1 - place].append(position)
    return [sorted(lane) for lane in dealt]


def own_lanes(lanes: int, processes: int, rank: int) -> range:
    """The lanes of process `rank` (0-based): neighbours, as many for each, a power of two of them.

    Then what a process adds up by itself is a branch of the tree in which all lanes are added. Raises UsageError.
    """
    each, left = divmod(lanes, processes)
    if left or each < 1 or (processes > 1 and each & (each - 1)):
        raise UsageError(f"{lanes} lanes cannot be shared by {processes} processes", subject="training.lanes",
                         hint="lanes must be 1, 2, 4, 8 ... times training.processes")  # fmt: skip
    return range(rank * each, (rank + 1) * each)
