"""The readers of containers: the same rows whatever holds them, and what is broken is told by where and why."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zstandard

from guard.checks.jsonl import Row
from guard.containers import json_nesting
from guard.containers.faults import CutShort
from guard.containers.read import read_container
from guard.containers.unpack import unpacked
from guard.errors import DataFault

ROWS = [{"text": f'line {n}\nand "quoted", {n % 3} \\ caf\u00e9', "n": n, "deep": {"a": [1, {"b": None}]}} for n in range(9)]


def read(data: bytes, container: str, **limits: Any) -> list[Row]:
    return list(read_container(io.BytesIO(data), container, **limits))


def values(data: bytes, container: str) -> list[dict[str, Any] | None]:
    return [row.value for row in read(data, container)]


class Trickle(io.BytesIO):
    """A stream that gives a few bytes at a time, so that every place is once the edge of a block."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size, 3) if size and size > 0 else 3)


# --- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [io.BytesIO, Trickle])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
        "\ufeff \n" + json.dumps(ROWS),
        json.dumps({"version": 1, "data": ROWS, "more": {"x": [[1]]}}),
        json.dumps({"rows": ROWS}, indent=1),
        json.dumps({"anything": ROWS}),  # its elements say a kind themselves
        "".join(json.dumps(row) + "\n" for row in ROWS),
        "".join(json.dumps(row, indent=2) for row in ROWS),
    ],
)
def test_an_array_a_wrapper_and_objects_in_a_row_give_the_same_rows(text: str, stream: Callable[[bytes], Any]) -> None:
    assert [row.value for row in read_container(stream(text.encode()), "json")] == ROWS


def test_a_single_object_is_a_row_when_it_says_what_it_is() -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    odd = {"dialog": [{"who": "a", "said": "b"}]}
    assert values(json.dumps(chat).encode(), "json") == [chat]
    assert values(json.dumps(odd).encode(), "json") == [odd]  # columns may name it: nothing says that these are rows
    assert values(json.dumps([chat]).encode(), "json") == [chat]
    assert values(b" \n", "json") == values(b"[ ]", "json") == []


def test_rows_of_an_array_are_as_strictly_read_as_lines_and_told_by_the_line_they_begin_at() -> None:
    bad = ['{"text": "x",\n "text": "y"}', '{"text": NaN}', '{"a": ' + "[" * 101 + "]" * 101 + "}", '{"text": "\\ud800"}', "5",
           '"x"', '{"text": "\\x"}']  # fmt: skip
    rows = read(("[\n" + ",\n".join(['{"text": "fine"}', *bad, '{"text": "last"}']) + "\n]").encode(), "json")
    assert [row.value and row.value["text"] for row in rows] == ["fine", *[None] * len(bad), "last"]
    words = ["duplicate key", "NaN", "nested too deeply", "surrogate", "a number, not an object", "the row is text", "not valid"]
    for row, word in zip(rows[1:-1], words, strict=True):
        assert row.fault and word in row.fault.reason
    assert [row.line_number for row in rows] == [2, 3, 5, 6, 7, 8, 9, 10, 11]
    utf8 = read(b'[{"text": "caf\xe9"}, {"text": "x"}]', "json")
    assert utf8[0].fault and "invalid UTF-8 (byte 0xe9)" in utf8[0].fault.reason and utf8[1].value == {"text": "x"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}\n {"b": 2}]', "line 2: ',' was expected, and '{' stands there"),
        ('[{"a": 1},\n]', "line 2: a comma and no row"),
        ('[{"a": 1}]\n[{"a": 1}]', "line 2: something follows the end of the array"),
        ('[{"a": [}, {"b": 1}]', "closes what is not open"),
        ('{"data": [{"a": 1}]} trailing', "something that is no object"),
        ('{"a": 1}, {"a": 2}', "something that is no object"),
        ('"text"', "neither [ nor {"),
        ("text,label\n", "neither [ nor {"),
        ("[,]", "a row was expected"),
        ("[" * 2000, "nested too deeply"),
        ("{'a': 1}", "not valid JSON"),
        ('{"a" 1}', ""),
    ],
)
def test_json_whose_rows_cannot_be_told_apart_is_refused_as_a_whole(
    text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_nesting, "_MAX_NESTING", 1000)
    found: list[Row] = []
    try:
        found = read(text.encode(), "json")
    except DataFault as fault:
        assert words in fault.message and fault.hint and not isinstance(fault, CutShort)
    else:
        assert found[0].fault and words in found[0].fault.reason  # one object alone: its own fault


@pytest.mark.parametrize("text", ["[", '[{"a": 1},', '[{"a": 1}', '[{"a": "x', '{"a": 1}\n{"b', '[{"a": "x\\', "[1"])
def test_json_that_stops_in_the_middle_is_cut_short(text: str) -> None:
    with pytest.raises(CutShort) as caught:
        read(text.encode(), "json")
    assert caught.value.line == text.count("\n") + 1


def test_a_huge_element_is_one_bad_row_and_costs_no_memory() -> None:
    text = b'[{"text": "a"}, {"text": "' + b"x" * (8 << 20) + b'"}, {"text": "b"}]'
    tracemalloc.start()
    rows = read(text, "json", max_line_bytes=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.value for row in rows] == [{"text": "a"}, None, {"text": "b"}] and peak < 6 << 20
    assert rows[1].fault and "longer than 100000 bytes" in rows[1].fault.reason


def test_an_object_longer_than_any_row_is_read_for_the_one_list_in_it() -> None:
    rows = [{"text": "x" * 50, "n": n} for n in range(100)]
    text = json.dumps({"about": "y" * 3000, "anything": rows, "numbers": [1, 2]}).encode()
    assert [row.value for row in read(text, "json", max_line_bytes=2000)] == rows
    wrongs = (({"a": rows, "b": rows}, "two lists of objects, 'a' and 'b'"), ({"a": "x" * 5000}, "no list of objects"))
    for wrong, words in wrongs:
        with pytest.raises(DataFault, match=words):
            read(json.dumps(wrong).encode(), "json", max_line_bytes=2000)


# --- CSV ---------------------------------------------------------------------------------------------------------------


def test_a_list_of_rows_is_found_behind_any_number_of_blocks() -> None:
    rows = [{"text": f"{number} " + "x" * 4000} for number in range(1200)]
    for data in ({"meta": {"a": [1]}, "data": rows}, {"data": rows, "meta": [1]}):
        found = values(json.dumps(data).encode(), "json")
        few = [row.value for row in read(json.dumps(data).encode(), "json", max_line_bytes=3 << 20)]
        assert found == few == rows


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_gives_text_whatever_separates_it(separator: str, end: str) -> None:
    lines = [f"text{separator}label{separator}", f'"a ""b""{separator}\n c"{separator}1{separator}x', f"d{separator}{separator}"]
    data = ("\ufeff" + end.join(lines) + end + end).encode()
    rows = read(data, "csv")
    assert [row.value for row in rows] == [{"text": f'a "b"{separator}\n c', "label": "1"}, {"text": "d"}]
    assert [row.line_number for row in rows] == [2, 4]


def test_bad_records_of_csv_are_told_by_their_line() -> None:
    data = b'text,label\nfine,1\nmany,2,3\nfew\n"a\nb","c"d\nbad \xe9,4\n"x\ny",5\n'
    rows = read(data, "csv")
    assert [row.line_number for row in rows] == [2, 3, 4, 5, 7, 8]
    assert [bool(row.value) for row in rows] == [True, False, False, False, False, True]
    reasons = [row.fault.reason for row in rows if row.fault]
    told = ["3 cells and 2", "1 cells and 2", "not valid CSV", "byte 0xe9) at line 7, column 5"]
    for reason, words in zip(reasons, told, strict=True):
        assert words in reason
    assert not any(row.truncated for row in rows)
    assert read(b"a,b\n1", "csv")[0].truncated


def test_a_large_field_is_read_and_a_quote_that_never_closes_ends_the_reading() -> None:
    field = "word, " * 1_700_000
    assert values(f'text,n\n"{field}",1\n'.encode(), "csv") == [{"text": field, "n": "1"}]
    with pytest.raises(DataFault, match="begins at line 3 is longer than 1000 bytes"):
        read(b'text\nfine\n"' + b"open\n" * 1000, "csv", max_line_bytes=1000)
    with pytest.raises(CutShort, match="line 3"):
        read(b'text\nfine\n"open\nmore\n', "csv")
    assert csv_faults(b"a,a\n1,2\n") == "the header names the column 'a' twice"
    assert csv_faults(b'{"text": "x"}\n') == "the first line is JSON and no header of column names"
    assert "UTF-16" in csv_faults("text\nx\n".encode("utf-16")) and "0xe9" in csv_faults(b"caf\xe9\nx\n")


def csv_faults(data: bytes) -> str:
    with pytest.raises(DataFault) as caught:
        read(data, "csv")
    return caught.value.message


# --- npy ---------------------------------------------------------------------------------------------------------------


def npy(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "u2", "u8", "i1"])
def test_a_matrix_of_token_ids_is_read_row_by_row(dtype: str) -> None:
    ids = np.arange(100 * 7).reshape(100, 7) % 100
    assert values(npy(ids.astype(dtype)), "npy") == [{"input_ids": row} for row in ids.tolist()]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.arange(4096), "one long row of 4,096 ids"),
        (np.zeros((2, 2, 2), int), "3 dimensions"),
        (np.int64(5), "0 dimensions"),
        (np.zeros((2, 2)), "float64"),
        (np.array([["a"]]), "token ids are whole numbers"),
        (np.array([[None]], dtype=object), "Python objects (a pickle)"),
        (np.asfortranarray(np.arange(6).reshape(2, 3)), "Fortran order"),
        (np.zeros((5, 0), int), "5 rows without a single id"),
        (np.zeros((1, 3_000_000), int), "longer than"),
    ],
)
def test_an_array_that_is_no_matrix_of_ids_is_refused_with_what_to_type(array: Any, words: str) -> None:
    with pytest.raises(DataFault) as caught:
        read(npy(array, allow_pickle=True), "npy")
    assert words in caught.value.message and "np." in caught.value.hint


def test_an_array_with_too_few_or_too_many_bytes_is_told() -> None:
    data = npy(np.arange(12).reshape(3, 4))
    for cut in (0, 3, 40, len(data) - 1):
        with pytest.raises(CutShort):
            read(data[:cut], "npy")
    with pytest.raises(DataFault, match="1 bytes follow"):
        read(data + b"x", "npy")
    with pytest.raises(DataFault, match=r"no \.npy array"):
        read(b"input_ids\n1 2 3\n", "npy")


# --- packed ------------------------------------------------------------------------------------------------------------

LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zst(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


PACKED = {
    "jsonl.gz": [gzip.compress(LINES), gzip.compress(LINES[:99]) + gzip.compress(LINES[99:]),
                 gzip.compress(LINES) + b"\0" * 5000],
    "jsonl.zst": [zst(LINES), zst(LINES[:99]) + zst(LINES[99:]), b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zst(LINES, level=19)],
}


@pytest.mark.parametrize("container", PACKED)
def test_every_member_and_frame_is_read(container: str) -> None:
    for data in PACKED[container]:
        assert values(data, container) == ROWS
        assert [row.value for row in read_container(Trickle(data), container)] == ROWS


@pytest.mark.parametrize("container", PACKED)
def test_packed_data_that_stops_is_damaged_or_goes_on_is_told(container: str) -> None:
    data = PACKED[container][0]
    for cut in (1, 3, 10, len(data) // 2, len(data) - 1):
        with pytest.raises(CutShort):
            read(data[:cut], container)
    with pytest.raises(DataFault, match="follows after byte"):
        read(data + b"garbage", container)
    with pytest.raises(DataFault, match=r"no (gzip|zstandard) file"):
        read(LINES, container)
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    try:
        rows = read(bytes(damaged), container)
    except DataFault as fault:
        assert "damaged near byte" in fault.message
    else:
        assert container.endswith("zst") and [row.value for row in rows] != ROWS  # zstd has a checksum only where asked for one


def bomb(container: str) -> bytes:
    line = json.dumps({"text": "0" * (1 << 20)}).encode() + b"\n"
    if container.endswith("gz"):
        return gzip.compress(line * 10) * 15
    return zst(line * 70)


@pytest.mark.parametrize("container", ["jsonl.gz", "jsonl.zst", "text.gz"])
def test_a_bomb_is_refused_by_that_name_before_it_unfolds(container: str) -> None:
    data = bomb(container)
    tracemalloc.start()
    with unpacked(io.BytesIO(data), container) as (plain, _inner), pytest.raises(DataFault, match="decompression bomb"):
        while plain.read(1 << 20):
            assert plain.tell() < 200 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 << 20
    with pytest.raises(DataFault, match=r"more than 0\.001 GB"):
        read(gzip.compress(json.dumps({"text": "0" * (1 << 21)}).encode()), "jsonl.gz", most_bytes=1_000_000)


def test_a_zstd_frame_that_wants_a_giant_window_is_refused() -> None:
    # Magic, a descriptor without size or checksum, a window of 2^41 bytes, then an empty last block.
    with pytest.raises(DataFault, match="window of more than 128 MiB"):
        read(b"\x28\xb5\x2f\xfd" + b"\x00" + b"\xf8" + b"\x01\x00\x00", "jsonl.zst")


def test_a_packed_stream_is_read_again_from_its_beginning_and_from_nowhere_else() -> None:
    with unpacked(io.BytesIO(gzip.compress(LINES)), "jsonl.gz") as (plain, inner):
        assert inner == "jsonl" and plain.read(50) == LINES[:50]
        plain.seek(0)
        assert plain.read() == LINES
        with pytest.raises(io.UnsupportedOperation):
            plain.seek(0, io.SEEK_END)
    array = npy(np.arange(12).reshape(3, 4))
    assert len(values(gzip.compress(array), "npy.gz")) == len(values(zst(array), "npy.zst")) == 3
