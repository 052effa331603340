"""Before step 1: is what this job is about to feed the data that was planned, and does it train what it should?

Each question is about a mistake that would train without a complaint and end in a model that is silently worse: bytes that
changed since the data was prepared, ids the vocabulary has no row for, ids that wrapped in 16 bits, a mask of all zeros or
all ones, questions that bear loss, an answer that was cut, conversations of another template, an example that is fed twice
or that is kept for judging. Shards that the job reads are read whole, conversations looked at one by one are a sample.
Not here: the model (`trainer/model_check.py`), documents that see one another (`trainer/leak_check.py`), and whether there
is anything new (`guard/checks/preflight.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from guard.durable import sha256_file
from guard.errors import CheckFailed, Damage, DataFault
from trainer.dataset import LENGTH, LOSS_TOKENS, START, Dataset
from trainer.selection import Selection
from trainer.shards import mask_name, shard_name, token_dtype
from trainer.template import encode, encode_prompt
from trainer.templates.base import Template
from trainer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from trainer.batches import Feed

__all__ = ["require_same_template", "require_sound_data"]

SAMPLE = 64
"""So many sequences, evenly spread over the list, are looked at token by token."""
_PROBES: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"},
                  {"role": "user", "content": "v w"}, {"role": "assistant", "content": "b c"}]},
    {"system": "s", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y\nz"}]},
)  # fmt: skip
_AGAIN = "nothing was trained; heirloom queue retry ID prepares the data again"


def require_sound_data(feed: Feed, tokenizer: Tokenizer, template: Template, pins: Mapping[str, str], *, masked: bool) -> None:
    """Raise Damage or CheckFailed for the first thing that is not as it should be.

    `pins`: what each dataset was when the job was planned, by id (`Dataset.pin`); one that is not named was planned by an
    earlier release. `masked`: the job trains answers alone.
    """
    selection = feed.selection
    _require_sound_list(selection)
    for number, dataset in enumerate(feed.datasets):
        fed = selection.ranges[selection.ranges[:, 0] == number]
        _require_planned(dataset, pins)
        _require_room_for_ids(dataset, tokenizer)
        _require_written_bytes(dataset, fed, tokenizer)
        if number == 0:
            _require_once(dataset, fed)
            _require_apart(dataset, fed)
        if dataset.stage == "sft" and (masked or number):
            _require_mask(dataset)
        if masked or number:
            require_same_template(dataset, template)
    if masked and feed.datasets[0].stage == "sft":
        _require_answers(feed, tokenizer, template)


def require_same_template(dataset: Dataset, template: Template) -> None:
    """Raise CheckFailed for conversations that another template was used for; plain text passes through none."""
    if dataset.stage != "sft":
        return
    found = str(dataset.metadata.get("template_hash") or template.hash)
    if found != template.hash:
        raise CheckFailed(f"wrong template: the base speaks {template.name} ({template.hash[:12]}), {dataset.folder.name} was"
                          f" prepared with {dataset.metadata.get('template')} ({found[:12]})", subject="template", hint=_AGAIN)


def _require_sound_list(selection: Selection) -> None:
    """What counts as learnt is fed as new, and each sequence is of the data it says."""
    if not len(selection.sequences):
        raise CheckFailed("zero steps: the job's list holds no sequence", subject="selection",
                          hint="nothing is new in this data; --allow-repeat trains it again")  # fmt: skip
    if selection.replay[selection.touches[:, 0]].any():
        raise CheckFailed("replay counted as new: examples of replayed sequences are listed as newly learnt",
                          subject="selection", hint="nothing was trained; please report this")  # fmt: skip
    firsts = selection.ranges[selection.sequences[~selection.replay, 0], 0]
    if (firsts != 0).any():
        raise CheckFailed("replay counted as new: a sequence of an earlier dataset is not marked as replay",
                          subject="selection", hint="nothing was trained; please report this")  # fmt: skip


def _require_planned(dataset: Dataset, pins: Mapping[str, str]) -> None:
    if pins.get(dataset.id, dataset.pin) != dataset.pin:
        raise Damage(f"the dataset {dataset.id[:12]} is not the one that was planned: its metadata changed since",
                     subject=str(dataset.folder), hint=_AGAIN)  # fmt: skip


def _require_room_for_ids(dataset: Dataset, tokenizer: Tokenizer) -> None:
    wanted = token_dtype(tokenizer.vocab_size)
    if dataset.train.reader.dtype.itemsize < wanted.itemsize:
        raise CheckFailed(f"uint16 overflow: {dataset.folder.name} keeps ids in {dataset.train.reader.dtype.name}, and the"
                          f" tokenizer has {tokenizer.vocab_size:,} of them, which need {wanted.name}",
                          subject=str(dataset.folder), hint="prepare the text again with this tokenizer")  # fmt: skip


def _touched_shards(dataset: Dataset, ranges: NDArray[np.int64]) -> list[int]:
    """Numbers of the train split's shards that hold any token of the ranges."""
    ends = np.cumsum([shard.tokens for shard in dataset.train.reader.shards])
    first = np.searchsorted(ends, ranges[:, 1], side="right")
    last = np.searchsorted(ends, ranges[:, 1] + ranges[:, 2] - 1, side="right")
    used = np.zeros(len(ends) + 1, dtype=np.int64)
    np.add.at(used, first, 1)
    np.add.at(used, np.minimum(last + 1, len(ends)), -1)
    return np.flatnonzero(np.cumsum(used)[: len(ends)]).tolist()


def _require_written_bytes(dataset: Dataset, ranges: NDArray[np.int64], tokenizer: Tokenizer) -> None:
    """The shards that will be read hold the bytes that were written, and no id that the model has no row for."""
    reader = dataset.train.reader
    for number in _touched_shards(dataset, ranges):
        shard = reader.shards[number]
        for name, expected in ((shard_name(number), shard.sha256), (mask_name(number), shard.mask_sha256)):
            if expected and sha256_file(reader.folder / name) != expected:
                raise Damage(f"{reader.folder / name} is not what was prepared: its bytes changed",
                             subject=str(reader.folder / name), hint=f"{_AGAIN}; heirloom verify --all")  # fmt: skip
    reader.check_ids(tokenizer.vocab_size, _touched_shards(dataset, ranges))


def _require_once(dataset: Dataset, ranges: NDArray[np.int64]) -> None:
    """No token of the new data is fed twice in an epoch: neighbouring pieces share the one between them, and no more."""
    order = np.argsort(ranges[:, 1], kind="stable")
    starts, lengths = ranges[order, 1], ranges[order, 2]
    twice = np.flatnonzero(starts[1:] < (starts + lengths - 1)[:-1])
    if len(twice):
        raise CheckFailed(f"fed twice: token {int(starts[twice[0] + 1]):,} of {dataset.folder.name} stands in two sequences",
                          subject="selection", hint="nothing was trained; please report this")  # fmt: skip


def _require_apart(dataset: Dataset, ranges: NDArray[np.int64]) -> None:
    """What is kept for judging is not among what is fed."""
    if not dataset.val.count:
        return
    table, order = dataset.train.examples, np.argsort(ranges[:, 1], kind="stable")
    starts, ends = ranges[order, 1], (ranges[:, 1] + ranges[:, 2])[order]
    # An example is fed when the token it is first predicted by is: the last of the example before may be shared.
    inside = table[:, START] + np.minimum(1, table[:, LENGTH] - 1)
    place = np.searchsorted(starts, inside, side="right") - 1
    fed = (place >= 0) & (inside < ends[place])
    shared = int(np.isin(dataset.train.fingerprints[fed], dataset.val.fingerprints).sum())
    if shared:
        raise CheckFailed(f"held-out rows trained: {shared:,} examples that would be fed stand in the val split of"
                          f" {dataset.folder.name} too", subject=str(dataset.folder), hint=_AGAIN)  # fmt: skip


def _require_mask(dataset: Dataset) -> None:
    """Some tokens are trained and some are not, over the whole split."""
    table = dataset.train.examples
    marked, tokens = int(table[:, LOSS_TOKENS].sum()), dataset.train.total_tokens
    if tokens and not 0 < marked < tokens:
        what = "0: no token would be trained" if not marked else "1: every token would be trained, questions too"
        raise CheckFailed(f"the loss mask of {dataset.folder.name} is all {what}", subject=str(dataset.folder),
                          hint="the rows need questions and answers; heirloom prepare chat makes the mask")  # fmt: skip


def _runs(mask: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """(first, end) of each stretch of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _frame(tokenizer: Tokenizer, template: Template) -> tuple[list[int], set[int]] | None:
    """(ids that stand before every answer, ids that end one; empty: any may), or None for a template without such a frame.

    The ids before are where a prompt ends: what chat asks the model to go on from, from its last control token on, since what
    stands in front of that depends on whose turn it was. Believed only as far as the template's own conversations are so.
    """
    controls: set[int] = set()
    before: list[int] | None = None
    stops = {tokenizer.special(name) for name in template.stop_names}
    ends = set(stops)
    for probe in _PROBES:
        try:
            parts = template.parts(probe)
            made = encode(probe, tokenizer, template)
            prompt = encode_prompt(probe.get("system"), None, probe["messages"][:1], tokenizer, template)
        except DataFault:
            continue  # this template has no such conversations
        controls |= {tokenizer.special(part.control) for part in parts if part.control}
        before = prompt if before is None else _common_end(prompt, before)
        for first, end in _runs(made.mask):
            before = _common_end(made.ids[:first].tolist(), before)
            ends.add(int(made.ids[end - 1]))
    places = [place for place, token in enumerate(before or []) if token in controls]
    if not before or not places:
        return None
    return before[places[-1] :], ends if ends <= controls | stops else set()


def _common_end(one: list[int], other: list[int]) -> list[int]:
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return one[len(one) - count :]


def _require_answers(feed: Feed, tokenizer: Tokenizer, template: Template) -> None:
    """In a sample of the conversations as they will be fed: answers alone bear loss, from their first token to their last."""
    frame = _frame(tokenizer, template)
    fresh = np.flatnonzero(~feed.selection.replay)
    for sequence in fresh[np.linspace(0, len(fresh) - 1, num=min(SAMPLE, len(fresh)), dtype=np.int64)]:
        for ids, mask in feed.documents(int(sequence)):
            if mask is None or not mask.any():
                raise _wrong(sequence, "mask all 0: it has no token that would be trained")
            if mask.all():
                raise _wrong(sequence, "mask all 1: every token of it would be trained, the question too")
            for first, end in _runs(mask) if frame else ():
                _require_frame(int(sequence), ids, (first, end), frame or ([], set()), tokenizer)


def _require_frame(sequence: int, ids: NDArray[np.integer], run: tuple[int, int], frame: tuple[list[int], set[int]],
                   tokenizer: Tokenizer) -> None:  # fmt: skip
    (first, end), (before, ends) = run, frame
    if ids[max(0, first - len(before)) : first].tolist() != before:
        said = tokenizer.decode(ids[max(0, first - 8) : first + 4].tolist())
        raise _wrong(sequence, f"prompts trained: loss begins in {said!r}, and not behind {tokenizer.decode(before)!r}, where an"
                     " answer does")  # fmt: skip
    if ends and int(ids[end - 1]) not in ends:
        said = tokenizer.decode(ids[max(first, end - 8) : end].tolist())
        raise _wrong(sequence, f"an answer was cut: its loss ends in {said!r}, without the token that ends an answer")


def _wrong(sequence: int, what: str) -> CheckFailed:
    return CheckFailed(f"conversation in sequence {sequence}: {what}", subject="loss mask",
                       hint="nothing was trained; was the data prepared with the base's template? heirloom prepare chat makes it"
                       " again")  # fmt: skip
