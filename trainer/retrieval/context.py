"""What retrieval hands to a conversation: the context block in the form models were trained on, and its citations.

The form is `[1] (document.md) text`, one after the other, each on a line of its own. What does not fit is left out, the
weakest first, and the last piece that fits in part is cut between words. Only what stands in the context is cited.
Not here: the chat template around it (`trainer/template.py`). Chunk text is content: it is never made control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.retrieval.search import Hit

__all__ = ["Citation", "Context", "build_context"]

_CUT_MARK = "..."
_SMALLEST_PART = 0.25  # a piece of which less than this would be left is not worth its number


@dataclass(frozen=True)
class Citation:
    """One numbered source of a context."""

    number: int
    file: str
    chunk_id: str
    page: int | None
    start_line: int
    end_line: int
    score: float

    def display(self) -> str:
        """`[1] guide.md, lines 3-17` or `[2] paper.pdf, page 4`."""
        if self.page is not None:
            return f"[{self.number}] {self.file}, page {self.page}"
        if self.start_line == self.end_line:
            return f"[{self.number}] {self.file}, line {self.start_line}"
        return f"[{self.number}] {self.file}, lines {self.start_line}-{self.end_line}"


@dataclass(frozen=True)
class Context:
    """The text for the `context` field ("" when nothing fits) and the sources in it."""

    text: str
    citations: tuple[Citation, ...]


def build_context(hits: Sequence[Hit], budget: int, measure: Callable[[str], int] = len) -> Context:
    """The context of `hits` (best first) within `budget`, in the unit of `measure`: characters, or a tokenizer's count.

    Hits of a text that is already there are passed over. `measure` must not shrink when a text grows.
    """
    text, seen = "", set()
    citations: list[Citation] = []
    for hit in hits:
        if hit["text"] in seen:
            continue
        seen.add(hit["text"])
        opening = f"{text}\n" if text else ""
        opening += f"[{len(citations) + 1}] ({_on_one_line(hit['file'])}) "
        piece = hit["text"]
        whole = measure(opening + piece) <= budget
        if not whole:
            piece = _longest_part(opening, piece, budget, measure)
        if piece:
            text = opening + piece
            citations.append(Citation(len(citations) + 1, hit["file"], hit["chunk_id"], hit["page"],
                                      hit["start_line"], hit["end_line"], hit["score"]))  # fmt: skip
        if not whole:
            break
    return Context(text, tuple(citations))


def _longest_part(opening: str, text: str, budget: int, measure: Callable[[str], int]) -> str:
    """The longest beginning of `text` that ends with a word and fits behind `opening`; "" when too little would."""
    ends = [at for at, char in enumerate(text) if char.isspace() and not text[at - 1 : at].isspace() and at]
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if measure(opening + text[: ends[middle - 1]] + _CUT_MARK) <= budget:
            low = middle
        else:
            high = middle - 1
    if low == 0 or ends[low - 1] < _SMALLEST_PART * len(text):
        return ""
    return text[: ends[low - 1]] + _CUT_MARK


def _on_one_line(name: str) -> str:
    """A file name cannot end its bracket's line and so pass for another source."""
    return " ".join(name.split())
