"""`heirloom tokenizer train`: a byte-level BPE of one's own data, in the files of every other Hugging Face tokenizer.

Texts are streamed; what grows is the table of different words. The same files in the same order give the same bytes.
Not here: using it (`trainer/tokenizer_hf.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from guard.checks.kinds import container_of, container_reason, holds_rows, unpacked_container
from guard.checks.rows import iter_rows, open_regular, text_chunks
from guard.containers.unpack import unpacked
from guard.durable import fsync_tree, make_dir, rename_new
from guard.errors import DataFault, NotFound, UsageError
from guard.segment import iter_segments
from trainer.hf_tokenizer import write_hf_tokenizer
from trainer.making import made_beside
from trainer.runs import RUN_PATTERN, split_runs
from trainer.templates.find import template_from
from trainer.tokenizer_folder import TokenizerFolder, added_token
from trainer.tokenizer_hf import HfTokenizer

__all__ = ["train_tokenizer"]

_END_OF_TEXT = "<|endoftext|>"
_BYTES = 256
_NOT_TEXT = frozenset({"id", "role", "type", "name", "tool_call_id", "src"})
"""Keys of rows that name things; everything else that is text is learnt from."""
_TOLD_EVERY = 4096


def _strings(value: Any) -> Iterator[str]:
    """Every text of a row, in its order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _NOT_TEXT:
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _texts(path: Path) -> Iterator[str]:
    """The texts of one file, streamed. Raises DataFault for bytes that are no text."""
    container = container_of(path.name)
    if not holds_rows(container):
        with open_regular(path.resolve()) as stream, unpacked(stream, container) as (plain, _inner):
            yield from iter_segments(text_chunks(plain))
        return
    for row in iter_rows(path.resolve(), name=path.name):
        if row.value is not None:
            yield from _strings(row.value)


def _check(inputs: Sequence[Path], vocab_size: int, min_frequency: int, specials: Sequence[str], out_dir: Path) -> None:
    if not inputs:
        raise UsageError("no input file", hint="--input FILE, once or more often")
    for path in inputs:
        if not path.is_file():
            raise NotFound(f"no file {path}", subject=str(path), hint="check the path after --input")
        if unpacked_container(container_of(path.name)) in ("", "npy"):
            what = "it holds numbers" if container_of(path.name) else container_reason(path.name)
            raise UsageError(f"{path} is no text to learn words from: {what}", subject=str(path),
                             hint="text, or rows of text: .txt .md .jsonl .json .csv .parquet .arrow")  # fmt: skip
    if not all(name.strip() for name in specials):
        raise UsageError("a control token cannot be empty or white space alone", subject="--special",
                         hint="--special '<|mine|>'")  # fmt: skip
    least = _BYTES + len(specials)
    if not least <= vocab_size <= 1 << 20:
        raise UsageError(f"--vocab-size {vocab_size}: must be {least} (256 bytes and {len(specials)} control tokens) to"
                         f" {1 << 20:,}", subject="--vocab-size", hint="--vocab-size 16384")  # fmt: skip
    if min_frequency < 1:
        raise UsageError(f"--min-frequency {min_frequency}: must be at least 1", hint="--min-frequency 2")
    if out_dir.exists():
        raise UsageError(f"{out_dir} exists already", subject=str(out_dir), hint="name a new folder after --out-dir")


def train_tokenizer(inputs: Sequence[Path | str], vocab_size: int, out_dir: Path | str, *, min_frequency: int = 2,
                    specials: Sequence[str] = (), template: str = "mypt",
                    progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:  # fmt: skip
    """Train a tokenizer of at most `vocab_size` ids, control tokens counted, and write its folder whole or not at all.

    `min_frequency`: how often a pair must occur to be merged; `specials`: control tokens beside those of `template` and
    <|endoftext|>; `progress` is told (texts, characters) so far. Returns {out_dir, vocab_size, content_hash, texts,
    characters, special_tokens, template, removed}. Raises UsageError for wrong words or a folder that exists or
    cannot be made, NotFound for a missing file, DataFault when there is no text.
    """
    paths, out_dir = [Path(item) for item in inputs], Path(out_dir).absolute()
    chosen = template_from({"name": template})
    names = list(dict.fromkeys([_END_OF_TEXT, *chosen.special_tokens, *specials]))
    _check(paths, vocab_size, min_frequency, names, out_dir)
    with made_beside(out_dir) as (making, removed):
        feed = _Feed(paths, progress)
        model = _learn(feed, vocab_size - len(names), min_frequency)
        if not feed.characters:
            raise DataFault("there is no text in the files", subject=paths[0].name, hint="name other files after --input")
        tokenizer = _assemble(model, names)
        tokenizer.check_specials()
        make_dir(making)
        write_hf_tokenizer(tokenizer, making, None, chosen)
        fsync_tree(making)
        rename_new(making, out_dir)
    return {"out_dir": str(out_dir), "vocab_size": tokenizer.vocab_size, "content_hash": tokenizer.content_hash,
            "texts": feed.texts, "characters": feed.characters, "special_tokens": tokenizer.special_tokens,
            "template": chosen.name, "removed": removed}  # fmt: skip


class _Feed:
    """The texts of all files, counted on the way; endless runs are cut as they are when text is encoded."""

    def __init__(self, paths: Sequence[Path], progress: Callable[[int, int], None] | None) -> None:
        self.paths, self.progress = paths, progress
        self.texts = self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            for text in _texts(path):
                self.texts += 1
                self.characters += len(text)
                if self.progress and self.texts % _TOLD_EVERY == 0:
                    self.progress(self.texts, self.characters)
                yield from split_runs(text)


def _learn(feed: _Feed, vocab_size: int, min_frequency: int) -> dict[str, Any]:
    """The model part of tokenizer.json: bytes first, then merges in the order they were found."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    how = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=min_frequency, show_progress=False, special_tokens=[],
                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    learner.train_from_iterator(iter(feed), how)
    found: dict[str, Any] = orjson.loads(learner.to_str())["model"]
    return found


def _assemble(model: dict[str, Any], names: Sequence[str]) -> HfTokenizer:
    """The learnt model with the control tokens behind it and the cut of endless runs before it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    runs = {"type": "Split", "pattern": {"Regex": RUN_PATTERN}, "behavior": "Isolated", "invert": False}
    first = len(model["vocab"])
    document = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added_token(first + number, name) for number, name in enumerate(names)], "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [runs, byte_level]}, "post_processor": None,
        "decoder": byte_level, "model": model,
    }  # fmt: skip
    return HfTokenizer(TokenizerFolder(document, {"eos_token": _END_OF_TEXT, "pad_token": _END_OF_TEXT}), "the new tokenizer")
