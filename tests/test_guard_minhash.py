"""The frozen MinHash: test vectors that may never change, a plain second implementation, and how good its estimate is."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.minhash import BINS, SHORTEST, normal_bytes, signatures, similarity, trained_text

SHAKESPEARE = Path(__file__).parent.parent.parent / "shared" / "data" / "tinyshakespeare.txt"
VECTORS = {
    "": "00" * 64,
    "the quick brown fox jumps over the lazy dog":
        "9554bfb6b6529bb5328e80145274800ab50a52952efd2e32b59b9c5232571895"
        "2eca57b5380a01bf957d182e042ecab695803afdfe0195047d528e143a80fe52",
    "Heirloom keeps one model learning for weeks.\nIt never loses any of it: not a byte, not a step, not a word.":
        "649e899d9e64cbd4aed5e42bc7fece2318e28c9dd6bd59306a956281d4210c1e"
        "590e216a9c0bc7d47809a35918d4eae578e46a0b6d0b9e23e289d518fb9e9ff7",
    "\u00c4pfel und \u4e2d\u6587, \u00e9 as e\u0301\t and   so on, long enough":
        "a91668c7166fc326886f159ad6a0b1c79aa0b72628a90ed06fc35bc36aa02812"
        "280ed0602078e96a0d59d0c309d0888a281560a9846a8309590e159ac30e84c7",
}
_MODULUS = 2**64


def _hash(number: int) -> int:
    mixed = (number + 0x9E3779B97F4A7C15) % _MODULUS
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % _MODULUS
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % _MODULUS
    return mixed ^ mixed >> 31


def plain_signature(text: str) -> bytes:
    """The definition, word by word and slowly."""
    data = re.sub(rb"[\t-\r ]+", b" ", text.encode()).strip(b" ").lower()
    if len(data) < SHORTEST:
        return bytes(BINS)
    bins: dict[int, int] = {}
    for start in range(len(data) - 7):
        value = _hash(int.from_bytes(data[start : start + 8], "little"))
        bins[value >> 58] = min(value, bins.get(value >> 58, value))
    order = {i: sorted(set(range(BINS)) - {i}, key=lambda j, i=i: (_hash(64 * i + j), j)) for i in range(BINS)}  # type: ignore[misc]
    return bytes(bins[next(j for j in (i, *order[i]) if j in bins)] & 255 for i in range(BINS))


def test_signatures_never_change() -> None:
    for text, expected in VECTORS.items():
        assert signatures([trained_text({"text": text})])[0].tobytes().hex() == expected, repr(text)


def test_a_plain_implementation_gives_the_same() -> None:
    dice = random.Random(3)
    letters = "abcdefghXYZ  \n\t\r\x0b\x0c\u00e9\u00fc\u4e2d\u00a0"
    sizes = (0, 1, 7, 8, 31, 32, 33, 60, 400, 9000, 40_000)
    texts = ["".join(dice.choices(letters, k=dice.choice(sizes))) for _ in range(60)]
    assert [row.tobytes() for row in signatures(texts)] == [plain_signature(text) for text in texts]
    assert signatures([]).shape == (0, BINS)


def test_case_and_white_space_do_not_count_and_short_texts_have_no_signature() -> None:
    one, two, short = signatures(["One  Two\n\tthree FOUR five six seven", "one two three four FIVE six seven\n", "just short"])
    assert (one == two).all() and one.any() and not short.any()
    assert normal_bytes(" A\r\n b ") == b"a b"
    assert trained_text({"messages": [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "ho"}],
                         "system": "be"}) == "be\n hi \nho"  # fmt: skip


def resemblance(first: str, second: str) -> float:
    """The exact Jaccard resemblance of two texts' shingles."""
    one, two = ({data[at : at + 8] for at in range(len(data) - 7)} for data in map(normal_bytes, (first, second)))
    return len(one & two) / len(one | two)


def pairs_of(text: str, count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact and estimated resemblance of passages and changed copies of them."""
    dice = random.Random(seed)
    words = text.split(" ")
    first, second = [], []
    for _ in range(count):
        start = dice.randrange(len(words) - 200)
        passage = words[start : start + dice.randrange(30, 200)]
        share = dice.random() * 0.12
        first.append(" ".join(passage))
        second.append(" ".join(dice.choice(words) if dice.random() < share else word for word in passage))
    exact = np.array([resemblance(one, two) for one, two in zip(first, second, strict=True)])
    return exact, similarity((signatures(first) == signatures(second)).sum(axis=1))


def judge(exact: NDArray[np.float64], estimated: NDArray[np.float64]) -> dict[str, float]:
    """Mean error, its spread, how many of the alike are found, and how many found are far from alike."""
    error, found = estimated - exact, estimated >= 0.8
    return {"bias": float(error.mean()), "spread": float(error.std()), "found at 0.9": float(found[exact >= 0.9].mean()),
            "found at 0.8": float(found[exact >= 0.8].mean()), "false below 0.6": float(found[exact < 0.6].mean())}  # fmt: skip


def _is_good(figures: dict[str, float]) -> bool:
    return (abs(figures["bias"]) < 0.01 and figures["spread"] < 0.065 and figures["found at 0.9"] > 0.95
            and figures["found at 0.8"] > 0.8 and figures["false below 0.6"] < 0.002)  # fmt: skip


def test_the_estimate_is_unbiased_and_finds_what_is_alike_in_generated_text() -> None:
    dice = random.Random(1)
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randrange(2, 9))) for _ in range(3000)]
    figures = judge(*pairs_of(" ".join(dice.choices(words, k=20_000)), 1500, 5))
    assert _is_good(figures), figures


def test_the_same_holds_for_real_text() -> None:
    if not SHAKESPEARE.is_file():
        pytest.skip("no real text here")
    figures = judge(*pairs_of(SHAKESPEARE.read_text("utf-8"), 1500, 6))
    assert _is_good(figures), figures


def test_strangers_are_never_alike() -> None:
    dice = random.Random(9)
    texts = [" ".join("".join(dice.choices("etaoinshrdlu", k=5)) for _ in range(60)) for _ in range(600)]
    rows = signatures(texts)
    assert max(int((rows[:300] == rows[300:][np.roll(np.arange(300), turn)]).sum(axis=1).max()) for turn in range(20)) < 24
