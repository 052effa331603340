"""What a model makes of a set: nats per token, perplexity, bits per byte, each with how sure it is. In fp32, on the CPU.

    loss            sum of -ln p(token) over the tokens that bear loss / how many there are: what training minimises
    perplexity      exp(loss): depends on the tokenizer
    bits per byte   the same sum over the tokens that are text / ln 2 / their bytes of UTF-8: comparable across tokenizers
                    (as in Gao et al. 2020, "The Pile", arXiv 2101.00027, 3.1, there as loss * tokens / bytes / ln 2)

Control tokens (tags, separators) bear loss and are no text, so they count in the first two alone. An example's first token
has nothing before it: it is predicted by nobody, and neither its nats nor its bytes are counted.
Not here: which examples (`samples.py`), the formulas of the errors (`comparing.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer.comparing import Ratio, difference_of_ratios, ratio, verdict_of
from trainer.model import Decoder
from trainer.samples import Sample
from trainer.stopping import StopRequested
from trainer.windows import Window, grouped, windows

__all__ = ["Measured", "compare", "measure"]

_TILE = 1 << 24
"""At most so many scores at once: 64 MiB in fp32, whatever the vocabulary."""
_TOO_LARGE = 700.0
"""exp of more is no number any more."""


@dataclass
class Measured:
    """Per example, in the order of `keys`: sums over the tokens that bear loss."""

    keys: list[bytes] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    text_nats: list[float] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)
    read: int = 0
    """Input tokens read, windows' shared ones twice."""

    def figures(self) -> dict[str, Any]:
        """Plain values; null where there is nothing to tell or the loss is not finite. Intervals are for 95 %."""
        loss, bits = ratio(*self.per_token()), ratio(*self.per_byte())
        span = _interval(loss)
        return {
            "loss": _value(loss), "loss_error": _error(loss), "loss_interval": span, "perplexity": _exp(_value(loss)),
            "perplexity_interval": [_exp(end) for end in span] if span else None,
            "bits_per_byte": _value(bits), "bits_per_byte_error": _error(bits), "bits_per_byte_interval": _interval(bits),
            "examples": len(self.keys), "tokens": self.read, "loss_tokens": sum(self.tokens),
            "text_bytes": sum(self.text_bytes), "finite": all(map(math.isfinite, self.nats)),
        }  # fmt: skip

    def per_token(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(nats [n], tokens [n])"""
        return np.array(self.nats, dtype=np.float64), np.array(self.tokens, dtype=np.float64)

    def per_byte(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(bits of text [n], bytes [n])"""
        return np.array(self.text_nats, dtype=np.float64) / math.log(2), np.array(self.text_bytes, dtype=np.float64)

    def at(self, keys: Iterable[bytes]) -> Measured:
        """The same for these examples alone, in this order."""
        place = {key: number for number, key in enumerate(self.keys)}
        order = [place[key] for key in keys]
        columns = ("keys", "nats", "tokens", "text_nats", "text_bytes")
        return Measured(**{name: [getattr(self, name)[number] for number in order] for name in columns}, read=self.read)


def _value(found: Ratio | None) -> float | None:
    return None if found is None else found.value


def _error(found: Ratio | None) -> float | None:
    return None if found is None else found.error


def _interval(found: Ratio | None) -> list[float] | None:
    return None if found is None or found.interval is None else list(found.interval)


def _exp(value: float | None) -> float | None:
    return None if value is None or value > _TOO_LARGE else math.exp(value)


@torch.no_grad()
def measure(
    model: Decoder, samples: Iterable[Sample], lengths: NDArray[np.int64], controls: NDArray[np.int64], *,
    stop: Callable[[], bool] = lambda: False, progress: Callable[[int], None] = lambda tokens: None,
) -> Measured:  # fmt: skip
    """Measure a model on samples. `lengths` [ids]: bytes of text of every id; `controls`: ids that are no text.

    Memory: a batch of about 4,096 positions and 64 MiB of scores. Raises StopRequested when `stop` says so.
    """
    found = Measured()
    is_text = np.ones(max(model.config.vocab_size, len(lengths)), dtype=bool)
    is_text[controls] = False
    for group in grouped(_placed(found, samples, model.config.block_size), lambda item: len(item[1][0])):
        if stop():
            raise StopRequested("stopped while judging a set")
        _add(found, model, group, lengths, is_text)
        progress(found.read)
    return found


_Placed = tuple[int, Window]


def _placed(found: Measured, samples: Iterable[Sample], block: int) -> Iterator[_Placed]:
    """Every window with its example's place; the example's sums begin at zero. One of a single token has no window."""
    for sample in samples:
        place = -1
        for window in windows(sample.ids, sample.mask, sample.cut, block):
            if place < 0:
                place = len(found.keys)
                found.keys.append(sample.key)
                found.nats.append(0.0)
                found.text_nats.append(0.0)
                found.tokens.append(0)
                found.text_bytes.append(0)
            yield place, window


def _add(found: Measured, model: Decoder, group: list[_Placed], lengths: NDArray[np.int64],
         is_text: NDArray[np.bool_]) -> None:  # fmt: skip
    """One batch: the nats of each position that bears loss, added to its example."""
    longest = max(len(ids) for _place, (ids, _mask) in group) - 1
    inputs = torch.zeros(len(group), longest, dtype=torch.int64)
    bears = np.zeros((len(group), longest), dtype=bool)
    targets = np.zeros((len(group), longest), dtype=np.int64)
    for row, (_place, (ids, mask)) in enumerate(group):
        count = len(ids) - 1
        inputs[row, :count] = torch.from_numpy(ids[:-1].astype(np.int64))
        targets[row, :count] = ids[1:]
        bears[row, :count] = True if mask is None else mask[1:] > 0
        found.read += count
    rows, _columns = np.nonzero(bears)
    if not len(rows):
        return
    wanted = targets[bears]
    nats = _nats(model, model(inputs)[torch.from_numpy(bears)], torch.from_numpy(wanted))
    places = np.array([place for place, _window in group])[rows]
    text = is_text[wanted]
    for place in np.unique(places).tolist():
        mine = places == place
        found.nats[place] += float(nats[mine].sum())
        found.tokens[place] += int(mine.sum())
        found.text_nats[place] += float(nats[mine & text].sum())
        found.text_bytes[place] += int(lengths[wanted[mine & text]].sum())


def _nats(model: Decoder, hidden: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """-ln p of each target [n] after its hidden state [n, width], a tile of positions at a time."""
    rows = max(1, _TILE // model.config.vocab_size)
    parts = [F.cross_entropy(model.logits(hidden[at : at + rows]), targets[at : at + rows], reduction="none")
             for at in range(0, len(targets), rows)]  # fmt: skip
    return torch.cat(parts).double().numpy()


def compare(first: Measured, second: Measured, *, same_tokenizer: bool) -> dict[str, Any]:
    """How `first` stands to `second` on the examples both have: paired differences (first less second) and a plain word.

    The word is about the loss; between two tokenizers, whose losses cannot be compared, about bits per byte.
    """
    there = set(second.keys)
    both = [key for key in first.keys if key in there]
    one, two = first.at(both), second.at(both)
    loss = difference_of_ratios(one.per_token(), two.per_token()) if same_tokenizer else None
    bits = difference_of_ratios(one.per_byte(), two.per_byte())
    return {"examples": len(both), "loss": _value(loss), "loss_interval": _interval(loss), "bits_per_byte": _value(bits),
            "bits_per_byte_interval": _interval(bits), "by": "loss" if same_tokenizer else "bits_per_byte",
            "verdict": verdict_of(loss if same_tokenizer else bits)}  # fmt: skip
