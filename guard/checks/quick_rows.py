"""The quick way through rows of JSON: a row that is built like an earlier one is taken apart at its quotes.

Most rows of a block are built like one that was seen before; they are matched with its plan (`row_plans.py`) and turned
into canonical forms all at once, without a step of Python for each. One that differs from it in numbers is matched by
itself. Whatever fits no plan, or is doubtful in any way, is None here and goes the careful way, which alone knows what a
fault is. A test feeds both ways the same rows. Nothing is refused here, and nothing is decided about a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from guard.checks.block_marks import MarkedBlock, mark_lines, shown
from guard.checks.columns import Reading
from guard.checks.jsonl import MAX_LINE_BYTES, lines_of
from guard.checks.row_plans import KINDS, Plan, Planner
from guard.fingerprint import canonical_text, fingerprints_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]
    Positions = NDArray[np.intp]

__all__ = ["QuickRows"]

_SMALL_BYTES = 4096  # so few rows are read before the first plan is learnt
_LARGE_BYTES = 4 << 20  # with lines as long as that, arrays over the block take more memory than they save time
_FEWEST = 8  # to match fewer rows than these at once costs more than to take each by itself
_MOST_PLANS = 4  # tried on the rows with one number of quotes
_loads, _dumps = orjson.loads, orjson.dumps


class _Careful(Exception):
    """These rows take a careful look; not an error."""


class QuickRows:
    """The quick way through the rows of one kind, read as `reading` says. It learns plans as it goes."""

    def __init__(self, kind: str | None, reading: Reading | None = None, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._planner = Planner(kind, reading) if kind in KINDS else None
        self._most = max_line_bytes

        self.bytes_trained = 0
        """Bytes of the trained texts of all rows that were answered, as they stand in the canonical form."""

    def fingerprints(self, block: bytes) -> list[bytes | None]:
        """For each line of a block in order its fingerprint of 16 bytes, or None: it takes the careful way."""
        if self._planner is None or not _SMALL_BYTES <= len(block) <= _LARGE_BYTES:
            return [None] * len(lines_of(block))
        marked = mark_lines(block)
        answers: list[bytes | None] = [None] * len(marked.ends)
        counts = self._match_many(marked, self._planner.learnt, answers)
        for place in (counts >= 0).nonzero()[0].tolist():
            answers[place] = self._match_one(self._planner, marked.line(place))
        return answers

    def _match_one(self, planner: Planner, line: bytes) -> bytes | None:
        parts = line.split(b'"')
        plan = planner.find(parts)
        if plan is None:
            return None
        try:
            for at in plan.texts:
                parts[at] = _canonical(parts[at])
        except (_Careful, ValueError):
            return None
        return self._prints(plan, [parts[at] for at in plan.trained])[0]

    def _match_many(self, marked: MarkedBlock, plans: list[Plan], answers: list[bytes | None]) -> Positions:
        """Answer the rows that are built like one of the plans'. For each line -1, or the number of its quotes if it is left."""
        import numpy as np

        counts = np.diff(marked.before)
        counts[marked.foul | (marked.ends - marked.starts > self._most)] = -1
        tried: dict[int, int] = {}
        present = set(np.unique(counts).tolist())
        for plan in plans:
            if plan.quotes not in present:
                continue
            tried[plan.quotes] = tried.get(plan.quotes, 0) + 1
            places = np.flatnonzero(counts == plan.quotes)
            if len(places) < _FEWEST or tried[plan.quotes] > _MOST_PLANS:
                continue
            pairs = (marked.before[places, None] + plan.texts) // 2
            opening, closing = marked.quotes[2 * pairs], marked.quotes[2 * pairs + 1]
            fitting = _fitting(marked, plan, places, opening, closing)
            rough = marked.rough[pairs]
            mixed = rough.any(axis=1)
            for some in (fitting & ~mixed).nonzero()[0], (fitting & mixed).nonzero()[0]:
                texts = _texts(marked.text, plan, opening[some], closing[some], rough[some])
                if texts is not None:
                    counts[places[some]] = -1
                    for place, answer in zip(places[some].tolist(), self._prints(plan, texts), strict=True):
                        answers[place] = answer
        return counts

    def _prints(self, plan: Plan, texts: list[bytes]) -> list[bytes]:
        """The fingerprints of rows of a plan with these trained texts, which are canonical: row after row, as in the form."""
        width = len(plan.trained)
        form = [*plan.form[:-1], plan.form[-1] + b"\n"] * (len(texts) // width)  # no form has a line end in it
        for column in range(width):
            form[2 * column + 1 :: 2 * width + 1] = texts[column::width]
        forms = shown(b"".join(form))
        self.bytes_trained += len(forms) - (plan.overhead + 1) * (len(texts) // width)
        return fingerprints_of(lines_of(forms))


def _canonical(part: bytes) -> bytes:
    """What stands between two quotes, in canonical form. Raises _Careful or ValueError where that is not for here to say."""
    text = canonical_text(_loads(b'"' + shown(part) + b'"'))
    if not text or "\0" in text:
        raise _Careful
    return _dumps(text)[1:-1]


def _canonical_many(parts: list[bytes]) -> list[bytes]:
    """`_canonical` of each, all at once; raises as it does when one of them is not for here to say."""
    if not parts:
        return []
    texts = [canonical_text(text) for text in _loads(shown(b'["' + b'","'.join(parts) + b'"]'))]
    if not all(texts) or any("\0" in text for text in texts):
        raise _Careful
    return [text[1:-1] for text in map(_dumps, texts)]


def _fitting(marked: MarkedBlock, plan: Plan, places: Positions, opening: Positions, closing: Positions) -> Flags:
    """[n] whether the rows at `places` have around their texts the very bytes of the plan.

    `opening` and `closing` [n, t]: where the quotes of the texts stand.
    """
    import numpy as np

    starts = np.column_stack((marked.starts[places], closing + 1))
    stops = np.column_stack((opening, marked.ends[places]))
    sizes = np.array([len(run) for run in plan.runs])
    fitting = (stops - starts == sizes).all(axis=1)
    run = np.repeat(np.arange(len(sizes)), sizes)
    offset = np.arange(len(run)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    wanted = np.frombuffer(b"".join(plan.runs), dtype=np.uint8)
    fitting[fitting] = (marked.data[starts[fitting][:, run] + offset] == wanted).all(axis=1)
    return fitting


def _texts(text: bytes, plan: Plan, opening: Positions, closing: Positions, rough: Flags) -> list[bytes] | None:
    """The trained texts of rows that fit a plan, row after row; None where one of them has to be looked at by itself."""
    texts = list(map(text.__getitem__, map(slice, (opening + 1).ravel().tolist(), closing.ravel().tolist())))
    places = rough.ravel().nonzero()[0].tolist()
    try:
        for at, canonical in zip(places, _canonical_many([texts[at] for at in places]), strict=True):
            texts[at] = canonical
    except (_Careful, ValueError):
        return None
    if plan.trained == plan.texts:
        return texts
    columns, width = [plan.texts.index(at) for at in plan.trained], len(plan.texts)
    return [texts[row + column] for row in range(0, len(texts), width) for column in columns]
