"""Names of versions are numbers first; names of files survive whatever bytes they are made of."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import UsageError
from guard.names import first_free, index_name, parse_version_number, safe_name, slugify, split_output, version_name


def test_versions_sort_as_integers() -> None:
    names = [version_name(number, "x") for number in (1000, 999, 2, 10000, 9999)]
    assert sorted(names, key=lambda name: parse_version_number(name) or 0) == [
        "v002_x", "v999_x", "v1000_x", "v9999_x", "v10000_x"]  # fmt: skip
    assert index_name(7) == "v007" and index_name(1000) == "v1000"


@given(st.integers(0, 10**9), st.text("abc_0123456789", min_size=1))
@settings(max_examples=50, deadline=None)
def test_a_number_comes_back_from_its_name(number: int, slug: str) -> None:
    assert parse_version_number(version_name(number, slug)) == number


@pytest.mark.parametrize("text", ["", "v", "v1", "v01_x", "V001_x", "v001x", "xv001", "v001-x", "001_x", " v001", "v001_x\n"])
def test_what_is_no_version_name_has_no_number(text: str) -> None:
    assert parse_version_number(text) is None


@pytest.mark.parametrize("text, slug", [
    ("math_15k", "math_15k"), ("Été à Paris!", "ete_a_paris"), ("  A--B  ", "a_b"), ("数据", "data"), ("", "data"),
    ("../../etc/passwd", "etc_passwd"), ("x" * 300, "x" * 48), ("a\nb\t\"c'", "a_b_c"), ("\udcff", "data"),
    ("a" * 47 + "_b", "a" * 47),
])  # fmt: skip
def test_a_slug_is_short_plain_ascii(text: str, slug: str) -> None:
    assert slugify(text) == slug


@pytest.mark.parametrize("text, found", [
    ("v005_math", (5, "math")), ("v1000_Big Data", (1000, "big_data")), ("math", (None, "math")), ("v005", (5, "data")),
    (" v007_x ", (7, "x")), ("v5_math", (None, "v5_math")),
])  # fmt: skip
def test_an_output_may_ask_for_its_number(text: str, found: tuple[int | None, str]) -> None:
    assert split_output(text) == found


@pytest.mark.parametrize("text", ["", "   ", "---", "数据"])
def test_an_output_without_a_usable_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        split_output(text)


@pytest.mark.parametrize("raw, name", [
    (b"plain.jsonl", "plain.jsonl"), ("été.txt", "été.txt"), (b"caf\xe9.txt", "caf\\xe9.txt"),
    ("caf\udce9.txt", "caf\\xe9.txt"), ("a/b", "a_b"), (b"a\0b", "a_b"), ("-rf \n\t'\".md", "-rf \n\t'\".md"),
])  # fmt: skip
def test_odd_names_become_text_that_can_be_stored(raw: bytes | str, name: str) -> None:
    assert safe_name(raw) == name


@given(st.binary(min_size=1, max_size=255))
@settings(max_examples=100, deadline=None)
def test_every_name_becomes_text_of_at_most_180_bytes_in_one_folder(raw: bytes) -> None:
    name = safe_name(raw)
    assert 0 < len(name.encode("utf-8")) <= 180 and "/" not in name and "\0" not in name
    assert safe_name(os.fsdecode(raw)) == name


def test_long_names_stay_different_and_keep_their_suffix() -> None:
    one, two = safe_name("é" * 120 + "1.jsonl"), safe_name("é" * 120 + "2.jsonl")
    assert one != two and one.endswith("1.jsonl") and two.endswith("2.jsonl")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 1000, 100_000])
def test_the_first_free_number_is_found_with_few_looks(count: int) -> None:
    looks: list[int] = []

    def taken(number: int) -> bool:
        looks.append(number)
        return number <= count

    assert first_free(taken) == count + 1
    assert len(looks) <= 2 * (count + 1).bit_length()


@given(st.sets(st.integers(1, 60)))
def test_a_free_number_follows_a_taken_one_whatever_was_freed_again(taken: set[int]) -> None:
    free = first_free(taken.__contains__)
    assert free not in taken and (free == 1 or free - 1 in taken)
