"""An example's identity: what is folded, what is not, and that stored fingerprints never change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import UsageError
from guard.fingerprint import FINGERPRINT_BYTES, canonical_bytes, canonical_text, example_fingerprint
from guard.heldout import held_out_mask, is_held_out


def chat(answer: str, question: str = "Why?") -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_fingerprints_kept_for_ever_do_not_change() -> None:
    assert example_fingerprint({"text": "Heirloom"}).hex() == "0bbef402db12d9fb53183e2f609b0dd2"
    assert example_fingerprint({"system": "Be kind.", **chat("Because é.")}).hex() == "1f7b72f99f50d53e0e49eb37cc2862cb"


def test_line_ends_composition_and_outer_white_space_are_folded() -> None:
    same = {
        example_fingerprint({"text": text})
        for text in ("caf\u00e9\nau lait", "cafe\u0301\r\nau lait", "  caf\u00e9\nau lait\n\n")
    }
    assert len(same) == 1


@pytest.mark.parametrize(
    "other", ["if x:\n  y()", "if x:\n\ty()", "if x: \n    y()", "If x:\n    y()", "if x:\r    y()"]
)
def test_indentation_case_and_inner_white_space_are_not_folded(other: str) -> None:
    assert example_fingerprint({"text": other}) != example_fingerprint({"text": "if x:\n    y()"})


def test_the_order_of_keys_does_not_count_and_the_order_of_turns_does() -> None:
    turns = chat("a")["messages"]
    assert isinstance(turns, list)
    swapped = [{"content": turn["content"], "role": turn["role"]} for turn in turns]
    assert example_fingerprint({"messages": swapped}) == example_fingerprint({"messages": turns})
    assert example_fingerprint({"messages": turns[::-1]}) != example_fingerprint({"messages": turns})


def test_text_cannot_pass_for_structure() -> None:
    assert example_fingerprint(chat("b", "a")) != example_fingerprint(chat("", "as1:b"))
    assert canonical_bytes(["ab", "c"]) != canonical_bytes(["a", "bc"])
    assert canonical_bytes([]) != canonical_bytes({}) != canonical_bytes("")


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="float"):
        canonical_bytes({"text": 1.5})


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_the_canonical_form_ignores_outer_white_space_and_is_stable(text: str) -> None:
    assert canonical_text(f" \n{text}\t ") == canonical_text(text)
    assert example_fingerprint({"text": text}) == example_fingerprint({"text": text + "\n"})


def test_an_example_is_held_out_by_salt_and_fraction_alone() -> None:
    prints = [example_fingerprint({"text": str(number)}) for number in range(2000)]
    mask = held_out_mask(b"".join(prints), "salt", 0.05)
    assert mask.tolist() == [is_held_out(fingerprint, "salt", 0.05) for fingerprint in prints]
    assert 60 <= sum(mask) <= 140
    assert (mask != held_out_mask(b"".join(prints), "other salt", 0.05)).any()
    wider = held_out_mask(b"".join(prints), "salt", 0.1)
    assert all(more for less, more in zip(mask, wider, strict=True) if less)


def test_the_held_out_choice_kept_for_ever_does_not_change() -> None:
    prints = b"".join(example_fingerprint({"text": str(number)}) for number in range(64))
    assert [index for index, held in enumerate(held_out_mask(prints, "golden", 0.1)) if held] == [26, 37, 40, 42, 43, 46, 59]


def test_the_ends_of_the_fraction_hold_out_nothing_and_everything() -> None:
    fingerprint = bytes(FINGERPRINT_BYTES)
    assert not is_held_out(fingerprint, "s", 0.0)
    assert is_held_out(fingerprint, "s", 1.0)


def test_a_fraction_or_fingerprint_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        held_out_mask(b"", "s", 1.5)
    with pytest.raises(UsageError, match="whole number"):
        held_out_mask(bytes(17), "s", 0.5)
    with pytest.raises(UsageError, match="16 bytes"):
        is_held_out(bytes(32), "s", 0.5)
