"""Token ids as text: the same text and the same numbers as one by one, and nothing that is no id."""

from __future__ import annotations

import random

import pytest

from guard.checks.rows import validate_pretrain
from guard.token_ids import highest_id, ids_of, ids_text


def test_ids_become_the_text_that_writing_each_would_give_and_come_back() -> None:
    draw = random.Random(5)
    for bits in (1, 8, 16, 17, 32, 62):
        ids = [draw.getrandbits(bits) for _ in range(draw.randrange(1, 300))]
        text = ids_text(ids)
        assert text == " ".join(map(str, ids))
        assert ids_of(text).tolist() == ids
        assert highest_id(text) == max(ids)


@pytest.mark.parametrize("wrong", [True, 1.0, -1, "1", "2 3", None, [1], {}, float("nan")])
def test_what_is_no_id_is_no_text_and_stays_a_fault(wrong: object) -> None:
    assert ids_text([1, wrong]) == ""
    found = validate_pretrain({"input_ids": [1, wrong]})
    assert isinstance(found, list) and found[0].field == "input_ids[1]"


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**40])
def test_a_number_of_any_length_is_kept_and_told_as_it_is(number: int) -> None:
    fields = validate_pretrain({"input_ids": [3, number, 4]})
    assert fields == {"input_ids": f"3 {number} 4"}
    assert highest_id(f"3 {number} 4") == number
    assert int(ids_of(f"3 {number} 4").max()) == min(number, 2**63 - 1)
