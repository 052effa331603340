"""The row reader against anything: it never raises, agrees with json.loads on what it accepts, and spelling is no identity.

A fuzz target for hypothesis: quick by default; HYPOTHESIS_PROFILE=long digs for minutes. Cases A61, A71.
"""

from __future__ import annotations

import io
import json
import os
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from guard.checks.jsonl import read_rows
from guard.checks.rows import validate
from guard.fingerprint import example_fingerprint

settings.register_profile("long", max_examples=50_000, deadline=None)
EXAMPLES = 50_000 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 120

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXT, part, max_size=3), max_leaves=8)  # fmt: skip
PIECES = st.sampled_from([
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\\u", b"d800", b"\\ud83d\\ude00", b"0", b"-", b"1e400", b".5", b"NaN",
    b"true", b"null", b" ", b"\t", b"\r", b"\n", b"\0", b"\x01", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8",
    b'"text"', b'"a": 1', b'{"text": "x"}', b'"a": ',
])  # fmt: skip
NOISE = st.one_of(
    st.binary(max_size=60),
    st.lists(PIECES, max_size=14).map(b"".join),
    st.tuples(st.dictionaries(TEXT, VALUES, max_size=3), st.booleans(), st.integers(0, 40), st.binary(max_size=2)).map(
        lambda made: _spoilt(json.dumps(made[0], ensure_ascii=made[1]).encode(), made[2], made[3])),
)  # fmt: skip


def _spoilt(data: bytes, place: int, noise: bytes) -> bytes:
    """A good row with a few bytes put where they do not belong."""
    place = min(place, len(data))
    return data[:place] + noise + data[place + len(noise) // 2 :]


def _refuse(_name: str) -> Any:
    raise ValueError("no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(NOISE, max_size=4))
def test_no_bytes_make_the_reader_raise_and_what_it_accepts_every_reader_accepts(parts: list[bytes]) -> None:
    data = b"\n".join(parts)
    lines = data.split(b"\n")
    for row in read_rows(io.BytesIO(data)):
        assert (row.value is None) == (row.fault is not None)
        line = lines[row.line_number - 1]
        if row.value is not None:
            line = line.removeprefix(b"\xef\xbb\xbf") if row.line_number == 1 else line
            plain = json.loads(line, parse_constant=_refuse, object_pairs_hook=_once)
            # orjson gives integers beyond 64 bits as the nearest float; nothing that is trained is a number.
            assert json.dumps(row.value, sort_keys=True) == json.dumps(_floats(plain), sort_keys=True)
        else:
            assert row.fault is not None and row.fault.reason and row.fault.reason.isprintable()


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_floats(item) for item in value]
    beyond = isinstance(value, int) and not isinstance(value, bool) and not -2**63 <= value < 2**64
    return float(value) if beyond else value


TURNS = st.lists(TEXT.filter(lambda text: bool(text.strip()) and "\0" not in text), min_size=2, max_size=4).filter(
    lambda texts: len(texts) % 2 == 0)  # fmt: skip


@settings(max_examples=EXAMPLES // 5, deadline=None)
@given(TURNS, st.dictionaries(TEXT, VALUES, max_size=2), st.randoms(use_true_random=False))
def test_the_same_example_has_one_fingerprint_however_it_is_spelt(
    texts: list[str], extra: dict[str, Any], dice: random.Random
) -> None:
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    row = {**{key: value for key, value in extra.items() if key not in ("system", "context")}, "messages": turns}
    prints = set()
    for _ in range(4):
        read = next(iter(read_rows(io.BytesIO(_spell(row, dice).encode() + dice.choice([b"\n", b"\r\n", b"", b"  \n"])))))
        assert read.value is not None, read.fault
        fields = validate("sft", read.value)
        assert isinstance(fields, dict), fields
        prints.add(example_fingerprint(fields))
    assert len(prints) == 1


def _spell(value: Any, dice: random.Random) -> str:
    """One of the many ways to write a value in JSON: order of keys, white space, escapes."""
    space = lambda: dice.choice(["", "", " ", "\t", " \r "])  # noqa: E731
    if isinstance(value, dict):
        items = [f"{space()}{_spell(key, dice)}{space()}:{space()}{_spell(item, dice)}" for key, item in value.items()]
        dice.shuffle(items)
        return "{" + ",".join(items) + space() + "}"
    if isinstance(value, list):
        return "[" + ",".join(space() + _spell(item, dice) for item in value) + space() + "]"
    if isinstance(value, str):
        return '"' + "".join(_letter(letter, dice) for letter in value) + '"'
    return json.dumps(value)


def _letter(letter: str, dice: random.Random) -> str:
    if letter in '"\\' or letter < " " or dice.random() < 0.2:
        units = letter.encode("utf-16-be")
        return "".join(f"\\u{dice.choice(['%04x', '%04X']) % int.from_bytes(units[i : i + 2])}" for i in range(0, len(units), 2))
    return "\\/" if letter == "/" and dice.random() < 0.5 else letter
