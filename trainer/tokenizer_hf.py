"""Any Hugging Face tokenizer folder as one of our tokenizers, through the `tokenizers` library and nothing else.

Text is encoded with the added tokens taken out, so that a tag written in a record is spelt out; what a vocabulary would
still join into one (a word model that lists `<s>`) is cut in two first. An id that stands for white space alone is
ordinary text, and so is the one for unknown characters. Transformers, code of the folder and the network are never used.
Not here: which files a folder may have (`trainer/tokenizer_folder.py`), writing them (`trainer/hf_tokenizer.py`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from guard.errors import CheckFailed, UsageError
from trainer.runs import RUN_PATTERN, split_runs, valid_unicode
from trainer.shards import token_dtype
from trainer.templates.mypt import END_OF_TURN
from trainer.tokenizer import Tokenizer
from trainer.tokenizer_folder import TokenizerFolder, added_token, read_tokenizer_folder

__all__ = ["HfTokenizer", "hf_tokenizer"]

_BETWEEN_DOCUMENTS = ("<|endoftext|>", "<|end_of_text|>")
"""Before eos_token, which chat models have moved to the end of a turn."""
_ROWS = 64
"""The embedding table is made a multiple of this: a vocabulary of odd size is slow to multiply by."""


def hf_tokenizer(folder: Path | str, extra: Sequence[str] = ()) -> HfTokenizer:
    """The tokenizer of a folder, with `extra` control tokens behind its own where it lacks them.

    Raises NotFound, CheckFailed when the folder holds none that can be used.
    """
    found = read_tokenizer_folder(folder)
    document = {**found.document, "added_tokens": list(found.document["added_tokens"])}
    there = {item["content"] for item in document["added_tokens"]}
    following = _vocab_size(document)
    for content in extra:
        if content not in there:
            document["added_tokens"].append(added_token(following, content))
            following += 1
    return HfTokenizer(TokenizerFolder(document, found.named, found.chat_template, found.separator_id), str(folder))


def _vocab_size(document: Mapping[str, Any]) -> int:
    vocabulary = document["model"]["vocab"]
    own = max(vocabulary.values()) + 1 if isinstance(vocabulary, dict) else len(vocabulary)
    return max([own, *(item["id"] + 1 for item in document["added_tokens"])])


def _with(model: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The model with these words among its own: the library numbers an added token anew unless its model knows it."""
    if not isinstance(model["vocab"], dict):
        return model
    return {**model, "vocab": {**model["vocab"], **{item["content"]: item["id"] for item in added}}}


def _unknown_id(model: Mapping[str, Any]) -> int | None:
    """The id of unknown characters: text may give it, and it controls nothing."""
    if isinstance(model["vocab"], dict):
        return model["vocab"].get(model.get("unk_token"))
    return model.get("unk_id")


class HfTokenizer(Tokenizer):
    """The `hf` tokenization. Build with `load_tokenizer("hf", folder)` or `hf_tokenizer`."""

    tokenization = "hf"

    def __init__(self, files: TokenizerFolder, name: str) -> None:
        from tokenizers import Tokenizer as Backend

        self.document = files.document
        """tokenizer.json, as a version will carry it."""
        self.named = files.named
        self.chat_template = files.chat_template
        added = files.document["added_tokens"]
        blank = [item for item in added if not item["content"].strip()]
        controls = [item for item in added if item["content"].strip()]
        self._specials = {item["content"]: int(item["id"]) for item in controls}
        self._names = {value: content for content, value in self._specials.items()}
        plain = {**files.document, "added_tokens": blank, "post_processor": None, "model": _with(files.document["model"], blank)}
        try:
            self._backend = Backend.from_str(orjson.dumps(plain).decode())
        except Exception as error:  # the library raises a bare Exception for whatever it cannot read
            raise CheckFailed(f"the tokenizer of {name} cannot be used: {error}", subject=name,
                              hint="save it again with a current transformers: save_pretrained(DIR)") from error  # fmt: skip
        self.vocab_size = _vocab_size(files.document)
        self.padded_vocab_size = -(-self.vocab_size // _ROWS) * _ROWS
        self.dtype = token_dtype(self.vocab_size)
        self._forbidden = np.zeros(self.vocab_size, dtype=bool)
        self._forbidden[list(self._names)] = True
        self.separator_id = self._separator(files, name)
        unknown = _unknown_id(files.document["model"])
        ends = {self.separator_id, *(self._specials.get(files.named.get(word, "")) for word in ("eos_token", "bos_token"))}
        if unknown is not None and unknown not in ends:  # where one token is both, unknown text would end a document
            self._forbidden[unknown] = False
            self.unknown_id = unknown

    def _separator(self, files: TokenizerFolder, name: str) -> int:
        if files.separator_id is not None and files.separator_id in self._names:
            return files.separator_id
        for candidate in (*_BETWEEN_DOCUMENTS, files.named.get("eos_token"), END_OF_TURN):
            if candidate in self._specials:
                return self._specials[candidate]
        raise CheckFailed(f"the tokenizer of {name} has no token that ends a document (eos_token)", subject=name,
                          hint="name it as eos_token in special_tokens_map.json")  # fmt: skip

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[NDArray[Any]]:
        pieces = [split_runs(valid_unicode(text)) for text in texts]
        flat = [piece for parts in pieces for piece in parts]
        if threads > 1:
            encoded = self._backend.encode_batch_fast(flat, add_special_tokens=False)
        else:
            encoded = [self._backend.encode_batch_fast([piece], add_special_tokens=False)[0] for piece in flat]
        arrays = iter([self._checked(piece, item.ids) for piece, item in zip(flat, encoded, strict=True)])
        results = []
        for parts in pieces:
            mine = [next(arrays) for _part in parts]
            results.append(mine[0] if len(mine) == 1 else np.concatenate(mine))
        return results

    def _checked(self, text: str, ids: Sequence[int]) -> NDArray[Any]:
        found = np.array(ids, dtype=self.dtype)
        if not self._forbidden[found].any():
            return found
        return np.array(self._respelt(text), dtype=self.dtype)

    def _respelt(self, text: str) -> list[int]:
        """Ids of a text in which the vocabulary sees control tokens: each is cut behind its first character."""
        waiting, ids = [text], []
        while waiting:
            piece = waiting.pop()
            found = self._backend.encode(piece, add_special_tokens=False)
            spans = [span for value, span in zip(found.ids, found.offsets, strict=True) if self._forbidden[value]]
            cuts = sorted({start + 1 for start, end in spans if end - start > 1})
            if not spans:
                ids += found.ids
            elif not cuts:
                raise CheckFailed(f"the text {piece[:20]!r} cannot be spelt without a control token of this tokenizer",
                                  subject=self.tokenization, hint="use another tokenizer")  # fmt: skip
            else:
                edges = [0, *cuts, len(piece)]
                parts = [piece[start:end] for start, end in itertools.pairwise(edges)]
                waiting += [part for part in reversed(parts) if part]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        pieces: list[str] = []
        run: list[int] = []
        for value in ids:
            if not 0 <= value < self.vocab_size:
                raise CheckFailed(f"id {value} is not in the hf vocabulary (0..{self.vocab_size - 1})",
                                  hint="sample only the ids in use")  # fmt: skip
            if value in self._names:
                pieces += [self._plain(run), self._names[value]]
                run = []
            else:
                run.append(int(value))
        return "".join([*pieces, self._plain(run)])

    def _plain(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False) if ids else ""

    def token_bytes(self) -> list[bytes]:
        return [(self._backend.id_to_token(value) or "").encode() for value in range(self.vocab_size)]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self.separator_id,)

    def _identity(self) -> Iterable[bytes]:
        """The document in one spelling: merges as pairs, nothing that is empty, nothing that never changes an id."""
        model = {key: value for key, value in self.document["model"].items() if value not in (None, "", False)}
        if model.get("merges"):
            model["merges"] = [item.split(" ", 1) if isinstance(item, str) else list(item) for item in model["merges"]]
        blank = [[item["id"], item["content"]] for item in self.document["added_tokens"] if not item["content"].strip()]
        parts = [model, self.document.get("normalizer"), self.document.get("pre_tokenizer"), blank]
        yield json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()
        yield RUN_PATTERN.encode()

    def check_specials(self) -> None:
        for name, value in self._specials.items():
            spelt = self.encode_array(name)
            if self._forbidden[value] and self._forbidden[spelt].any():
                raise CheckFailed(f"the text {name!r} does not encode as ordinary text", subject=self.tokenization)

    def special(self, name: str) -> int:
        if name not in self._specials:
            raise UsageError(f"this tokenizer has no control token {name!r}", subject=name,
                             hint="make the base with the template its tokenizer was made for")  # fmt: skip
        return self._specials[name]
