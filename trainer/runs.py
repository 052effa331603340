"""Text that is safe to give to a tokenizer: whole characters, and no run so long that it breaks or stalls a pre-tokenizer.

Not here: tokenizers.
"""

from __future__ import annotations

import re

__all__ = ["RUN_LIMIT_CHARACTERS", "RUN_PATTERN", "split_runs", "valid_unicode"]

RUN_LIMIT_CHARACTERS = 16_384
"""A run of white space, or of anything else, is cut after so many characters before GPT-2 encoding. Without it a
million spaces before a letter overflow tiktoken's regex stack (a panic), and older tiktoken needs quadratic time for
one long word. Texts without such a run, which is to say all prose and code, encode exactly as tiktoken does."""
# Spelt out, because what \s matches differs between regex engines and the Hugging Face files use this pattern too.
RUN_PATTERN = rf"[ \t\n\r]{{{RUN_LIMIT_CHARACTERS}}}|[^ \t\n\r]{{{RUN_LIMIT_CHARACTERS}}}"
_RUN = re.compile(RUN_PATTERN)
_SPACE, _NOT_SPACE = re.compile(r"[ \t\n\r]"), re.compile(r"[^ \t\n\r]")


def valid_unicode(text: str) -> str:
    """Text without lone surrogates (JSON can smuggle them in): they become U+FFFD, as in tiktoken."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _has_long_run(text: str) -> bool:
    """Could there be a run over the limit? Looks at aligned half-length blocks: a long run fills at least one."""
    if len(text) < RUN_LIMIT_CHARACTERS:
        return False
    half = RUN_LIMIT_CHARACTERS // 2
    for start in range(0, len(text) - half + 1, half):
        end = start + half
        if not _SPACE.search(text, start, end) or not _NOT_SPACE.search(text, start, end):
            return True
    return False


def split_runs(text: str) -> list[str]:
    """The text in pieces that are safe to encode; one piece nearly always."""
    if not _has_long_run(text):
        return [text]
    pieces: list[str] = []
    position = 0
    for match in _RUN.finditer(text):
        pieces += [text[position : match.start()], match.group()]
        position = match.end()
    return [piece for piece in (*pieces, text[position:]) if piece]
