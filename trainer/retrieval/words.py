"""The words of a text as retrieval sees them, and the frozen list of words that say nothing.

One cut for documents and questions alike: compatibility forms folded (NFKC), lower case, runs of letters, digits and
underscores. Scripts written without spaces (Chinese, Japanese) and Korean come out as whole runs, marked by `is_run`;
who counts them takes characters and pairs of characters, as such runs are sentences and not words.
The stop list is part of what an embedding means: a change to it must raise WORDS_VERSION, and every index is then
embedded anew. It is English only; nothing is dropped from other languages.
This file weighs and hashes nothing (`embed.py`, `search.py`).
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["STOP_WORDS", "WORDS_VERSION", "is_run", "pairs", "words"]

WORDS_VERSION = 1

# Function words, question words, and the filling of questions ("which kind of ... is known as"). In 256 dimensions
# their n-grams fill every chunk with the same noise: leaving them out is the largest single gain that was measured.
_STOP_WORDS = """
    a an the this that these those such same other another each every either neither both all any some no none
    i me my mine myself we us our ours ourselves you your yours yourself he him his himself she her hers herself it its
    itself they them their theirs themselves one ones someone something anyone anything everyone everything nothing
    who whom whose which what when where why how whether whatever whichever
    am is are was were be been being do does did doing done have has had having can could shall should will would may
    might must ought need cannot let lets
    s t d m o ll re ve don doesn didn isn aren wasn weren hasn haven hadn wouldn couldn shouldn ain mustn
    and or but nor so yet if then else than because since while although though unless until as whereas
    of in on at by for from to into onto with without within about above below over under between among through during
    before after against across along around near behind beyond off out up down upon via per toward towards
    not only just also too very more most less least much many few several lot lots quite rather almost enough even ever
    never always often sometimes usually still already again once here there now today further however therefore thus
    hence instead otherwise
    etc eg ie vs
    two new use used uses using kind type sort called name named known way make made get got
    """
STOP_WORDS = frozenset(_STOP_WORDS.split())

_RUN = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_RUN}]+|[^\\W{_RUN}]+")
_IS_RUN = re.compile(f"[{_RUN}]")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_FIRST_RUN = "\u3040"


def words(text: str) -> list[str]:
    """The words that say something, in order; all of them when every one is a stop word ("to be or not to be")."""
    if text.isascii():  # the same words, found three times as fast
        found = _ASCII_WORD.findall(text.lower())
    else:
        found = _WORD.findall(unicodedata.normalize("NFKC", text).lower())
    return [word for word in found if word not in STOP_WORDS] or found


def is_run(word: str) -> bool:
    """True for a run of a script that is written without spaces."""
    return word[:1] >= _FIRST_RUN and _IS_RUN.match(word) is not None


def pairs(run: str) -> list[str]:
    """The neighbouring pairs of characters in a run; the character itself when it stands alone."""
    return [run[at : at + 2] for at in range(len(run) - 1)] or [run]
