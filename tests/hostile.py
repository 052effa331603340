# ruff: noqa: E501 - a table reads better in long rows
"""Files that mean no good, or were made by accident: a table of names, bytes, and what must become of each.

Made by code, so that nothing hostile lies in the repository. `verdict` is `admitted`, `rejected`, `ignored` (stays in the
inbox and says why) or `waiting`; `words` must stand in the reason a person reads. Cases A20-A24, A70-A80, C10.
Not a test: `test_daemon_hostile.py` drops them all.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from toy import chat_of

from guard.checks.kinds import CHAT_TAGS

__all__ = ["CONTROL", "HOSTILE", "Hostile", "heavy"]


class Hostile(NamedTuple):
    """One file: its name in the inbox, what makes its bytes, its verdict, and words of the reason."""

    name: bytes
    make: Callable[[], bytes]
    verdict: str
    words: str = ""


_count = 0


def _good() -> bytes:
    """Rows that nobody else in the table has."""
    global _count
    _count += 1
    return chat_of(4, seed=10_000 + _count).encode()


def _of(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _row(**fields: object) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _text(text: str) -> bytes:
    return _row(text=text)


def _chat(user: str = "q", assistant: str = "a", **more: object) -> bytes:
    return _row(messages=[{"role": "user", "content": user}, {"role": "assistant", "content": assistant}], **more)


# --- names (A20-A24): the bytes are good, the name must not matter ---------------------------------------------------

_NAMES = [
    b"\xff\xfe\x80.jsonl", b"new\nline.jsonl", b"tab\t.jsonl", b'quo"te.jsonl', b"apo'strophe.jsonl", b"-rf.jsonl",
    b"--help.jsonl", b"$(reboot).jsonl", b"`id`.jsonl", b";ls;.jsonl", b"a|b&c.jsonl", b"*.jsonl", b"[!a].jsonl", b"%s%n%x.jsonl",
    b"{0.__class__}.jsonl", "\N{FAMILY}\N{PILE OF POO}.jsonl".encode(), "\u202egnp.jsonl".encode(), "zero\u200bwidth.jsonl".encode(),
    "e\u0301.jsonl".encode(), "\u00e9.jsonl".encode(), b"\x1b[31mred\x1b[0m.jsonl", b"\x07bell.jsonl", b"\x7f.jsonl", b" space.jsonl",
    b"dots...jsonl", b"a" * 249 + b".jsonl", b"CON.jsonl", b"null.jsonl", b"examples.fp.jsonl", b"content.jsonl", b"UPPER.JSONL",
    b"<script>alert(1)</script>.jsonl".replace(b"/", b"\xe2\x88\x95"), b"' OR 1=1; --.jsonl", b"\\..\\..\\x.jsonl", b"\xc0\xaf.jsonl",
]  # fmt: skip
_NEVER = [
    (b".hidden.jsonl", "hidden"), (b".jsonl", "hidden"), (b"._a.jsonl", "macOS"), (b".DS_Store", "hidden"), (b"Thumbs.db", "Windows"),
    (b"desktop.ini", "Windows"), (b".nfs0000a1", "NFS"), (b".a.jsonl.Xy12Zz", "rsync"), (b"a.jsonl.part", "unfinished"),
    (b"a.jsonl.crdownload", "unfinished"), (b"a.jsonl.tmp", "unfinished"), (b"a.jsonl~", "editor"), (b"~$a.jsonl", "editor"),
    (b".a.jsonl.swp", "hidden"), (b".syncthing.a.jsonl.tmp", "syncthing"), (b"a.why.txt", "reason why"), (b"noextension", "no extension"),
    (b"a.exe", "unknown type"), (b"record.npz", "not a kind"), (b"a.jsonl.\xff", "unknown type"),
]  # fmt: skip

# --- encodings (A70) -------------------------------------------------------------------------------------------------

_ENCODED = [
    ("utf8_mark", "utf-8-sig", "admitted", ""), ("utf16_mark", "utf-16", "rejected", "UTF-16"),
    ("utf16_le", "utf-16-le", "rejected", "UTF-16"), ("utf16_be", "utf-16-be", "rejected", "UTF-16"),
    ("utf32_mark", "utf-32", "rejected", "UTF-32"), ("utf32_le", "utf-32-le", "rejected", "UTF-32"),
    ("utf32_be", "utf-32-be", "rejected", "UTF-32"),
]  # fmt: skip
_ENCODINGS = [
    Hostile(f"{name}.jsonl".encode(), lambda encoding=encoding: _good().decode().encode(encoding), verdict, words)  # type: ignore[misc]
    for name, encoding, verdict, words in _ENCODED
] + [
    Hostile(b"utf7.jsonl", _of(b"+AHsAIg-"), "rejected", "cannot be read"),
    Hostile(b"latin1.jsonl", _of('{"text": "caf\u00e9"}\n'.encode("latin-1")), "rejected", "invalid UTF-8 (byte 0xe9) at column"),
    Hostile(b"shift_jis.jsonl", _of('{"text": "\u65e5\u672c"}\n'.encode("shift_jis")), "rejected", "cannot be read"),
    Hostile(b"mixed.jsonl", _of(_text("fine") * 5 + '{"text": "caf\u00e9"}\n'.encode("latin-1")), "rejected", "line 6"),
    Hostile(b"overlong.jsonl", _of(b'{"text": "\xc0\x80 \xc0\xaf"}\n'), "rejected", "invalid UTF-8 (byte 0xc0)"),
    Hostile(b"overlong_brace.jsonl", _of(b'\xc1\xbb"text": "x"}\n'), "rejected", "cannot be read"),
    Hostile(b"raw_surrogate.jsonl", _of(_text("\ud800")), "rejected", "invalid UTF-8 (byte 0xed)"),
    Hostile(b"cesu8.jsonl", _of(_text("\ud83d\ude00")), "rejected", "cannot be read"),
    Hostile(b"beyond_unicode.jsonl", _of(b'{"text": "\xf4\x90\x80\x80"}\n'), "rejected", "cannot be read"),
    Hostile(b"lone_continuation.jsonl", _of(b'{"text": "\x80\x80\x80"}\n'), "rejected", "cannot be read"),
    Hostile(b"cut_character.jsonl", _of(b'{"text": "x"}\n{"text": "\xf0\x9f\n'), "rejected", "cannot be read"),
    Hostile(b"mark_in_the_middle.jsonl", _of(_text("x") + b"\xef\xbb\xbf" + _text("y")), "rejected", "cannot be read"),
    Hostile(b"two_marks.jsonl", _of(b"\xef\xbb\xbf\xef\xbb\xbf" + _text("x")), "rejected", "cannot be read"),
    Hostile(b"escaped_surrogate.jsonl", _of(b'{"text": "\\ud800"}\n'), "rejected", "lone surrogate"),
    Hostile(b"escaped_halves_swapped.jsonl", _of(b'{"text": "\\udc00\\ud800"}\n'), "rejected", "cannot be read"),
    Hostile(b"separator_2028.jsonl", _of(_text("one\u2028line\u2029still\x85one")), "admitted"),
    Hostile(b"noncharacters.jsonl", _of(_text("\ufffe\uffff\U0010ffff")), "admitted"),
    Hostile(b"zalgo.jsonl", _of(_text("a" + "\u0301" * 5000)), "admitted"),
    Hostile(b"bidi.jsonl", _of(_text("\u202ehidden\u202c and shown")), "admitted"),
]

# --- JSON (A71-A75, A79) ---------------------------------------------------------------------------------------------

_JSON = [
    (b"deep_list", b'{"text": "x", "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", "rejected", "nested too deeply"),
    (b"deep_object", b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n", "rejected", "nested too deeply"),
    (b"deep_open", b'{"text": ' + b"[" * 100_000 + b"\n", "rejected", "nested too deeply"),
    (b"a_level_too_deep", b'{"text": "x", "a": ' + b"[" * 101 + b"]" * 101 + b"}\n", "rejected", "nested too deeply"),
    (b"duplicate_key", b'{"text": "x", "text": "y"}\n', "rejected", "duplicate key"),
    (b"duplicate_escaped_key", b'{"text": "x", "te\\u0078t": "y"}\n', "rejected", "duplicate key"),
    (b"duplicate_in_turn", b'{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}\n', "rejected", "duplicate key"),
    (b"nan", b'{"text": "x", "score": NaN}\n', "rejected", "NaN is not a JSON number"),
    (b"infinity", b'{"text": "x", "score": -Infinity}\n', "rejected", "Infinity is not"),
    (b"1e400", b'{"text": "x", "score": 1e400}\n', "rejected", "1e400 is too large"),
    (b"minus_zero", b'{"text": "minus zero", "score": -0}\n', "admitted", ""),
    (b"huge_integer", b'{"text": "huge", "n": ' + b"9" * 5000 + b"}\n", "rejected", "is too large"),
    (b"huge_fraction", b'{"text": "x", "n": 0.' + b"1" * 100_000 + b"}\n", "admitted", ""),
    (b"huge_exponent", b'{"text": "x", "n": 1e-99999999999}\n', "admitted", ""),
    (b"hex_number", b'{"text": "x", "n": 0x1F}\n', "rejected", "cannot be read"),
    (b"leading_zero", b'{"text": "x", "n": 007}\n', "rejected", "cannot be read"),
    (b"plus_number", b'{"text": "x", "n": +1}\n', "rejected", "cannot be read"),
    (b"bare_point", b'{"text": "x", "n": .5}\n', "rejected", "cannot be read"),
    (b"single_quotes", b"{'text': 'x'}\n", "rejected", "cannot be read"),
    (b"trailing_comma", b'{"text": "x",}\n', "rejected", "cannot be read"),
    (b"comment", b'{"text": "x"} // why\n', "rejected", "cannot be read"),
    (b"unquoted", b"{text: 1}\n", "rejected", "cannot be read"),
    (b"bad_escape", b'{"text": "\\x41"}\n', "rejected", "column 11"),
    (b"short_escape", b'{"text": "\\u12"}\n', "rejected", "cannot be read"),
    (b"backslashes", b'{"text": "' + b"\\\\" * 100_000 + b'"}\n', "admitted", ""),
    (b"escaped_slashes", b'{"text": "' + b"\\/" * 10_000 + b'"}\n', "admitted", ""),
    (b"raw_control", b'{"text": "a\x01b"}\n', "rejected", "column"),
    (b"raw_tab", b'{"text": "a\tb"}\n', "rejected", "cannot be read"),
    (b"raw_nul", b'{"text": "a\x00b"}\n', "rejected", "NUL character at column"),
    (b"escaped_nul", b'{"text": "a\\u0000b"}\n', "rejected", "NUL"),
    (b"concatenated", b'{"text": "x"}{"text": "y"}\n', "rejected", "Extra data"),
    (b"array", b'[{"text": "x"}, {"text": "y"}]\n', "rejected", "jq -c '.[]'"),
    (b"pretty_array", json.dumps([{"text": "x"}] * 3, indent=2).encode(), "rejected", "jq -c '.[]'"),
    (b"pretty_object", json.dumps({"text": "x", "b": 2}, indent=2).encode() + b"\n", "rejected", "jq -c ."),
    (b"csv", b"text,label\nhello,1\nthere,2\n", "rejected", "looks like CSV"),
    (b"tsv", b"text\tlabel\nhello\t1\n", "rejected", "looks like CSV"),
    (b"numbers", b"1\n2\n3\n", "rejected", "a number, not an object"),
    (b"strings", b'"a"\n"b"\n', "rejected", "the row is text"),
    (b"nulls", b"null\n" * 50, "rejected", "the row is null"),
    (b"empty_objects", b"{}\n" * 50, "rejected", "no kind of data"),
    (b"only_newlines", b"\n" * 5000, "rejected", "white space"),
    (b"only_spaces", b" " * 5000, "rejected", "white space"),
    (b"only_mark", b"\xef\xbb\xbf", "rejected", "white space"),
    (b"carriage_returns", b'{"text": "one"}\r{"text": "two"}\r', "rejected", "cannot be read"),
    (b"crlf", _text("crlf one").replace(b"\n", b"\r\n") + _text("crlf two").replace(b"\n", b"\r\n"), "admitted", ""),
    (b"form_feed", _text("ff one") + b"\x0c\n" + _text("ff two"), "admitted", ""),
    (b"cut_short", _text("x") + b'{"text": "it sto', "rejected", "truncated at line 2"),
    (b"long_key", b'{"text": "long key", "' + b"k" * 1_000_000 + b'": 1}\n', "admitted", ""),
    (b"many_keys", b'{"text": "keys"' + b"".join(b', "k%d": 1' % i for i in range(20_000)) + b"}\n", "admitted", ""),
    (b"empty_key", b'{"": 1, "text": "empty key"}\n', "admitted", ""),
    (b"proto_key", b'{"__proto__": {"x": 1}, "__class__": "y", "text": "proto"}\n', "admitted", ""),
    (b"text_is_list", b'{"text": ["x"]}\n', "rejected", "cannot be trained on"),
    (b"text_is_number", b'{"text": 5}\n', "rejected", "cannot be trained on"),
    (b"text_is_blank", b'{"text": " \\u3000\\n"}\n', "rejected", "cannot be trained on"),
    (b"messages_is_text", b'{"messages": "hi"}\n', "rejected", "must be a list"),
    (b"messages_is_object", b'{"messages": {"role": "user"}}\n', "rejected", "cannot be trained on"),
    (b"messages_of_text", b'{"messages": ["hi", "there"]}\n', "rejected", "cannot be trained on"),
    (b"unknown_role", _row(messages=[{"role": "root", "content": "x"}]), "rejected", "unknown role"),
    (b"role_is_list", _row(messages=[{"role": ["user"], "content": "x"}]), "rejected", "must be a string"),
    (b"long_role", _row(messages=[{"role": "r" * 100_000, "content": "x"}]), "rejected", "cannot be trained on"),
    (b"empty_answer", _chat(assistant=""), "rejected", "empty after stripping"),
    (b"user_last", _row(messages=[{"role": "user", "content": "x"}]), "rejected", "cannot be trained on"),
    (b"tool_calls", _row(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": [1]}]),
     "rejected", "a tool call must be an object"),
    (b"no_text", b'{"label": 1}\n', "rejected", "no kind of data"),
    (b"preference", b'{"prompt": "x", "chosen": "y", "rejected": "y"}\n', "rejected", "Responses are identical"),
    (b"terminal", b'{"\\u001b[2Jtext": "x"}\n', "rejected", "no kind of data"),
    (b"one_bad_in_ten", _text("ten") * 9 + b"oops\n", "rejected", "line 10"),
]  # fmt: skip

# --- size and time (A16, A71, A77), containers that are none (A73) ---------------------------------------------------


def _zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("a.jsonl"), b"\0" * (20 << 20), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


_BOMBS = [
    (b"one_long_line.jsonl", lambda: b'{"text": "' + b"x" * (17 << 20) + b'"}\n', "rejected", "longer than"),
    (b"one_long_open_line.jsonl", lambda: b'{"text": "' + b"x" * (18 << 20), "rejected", ""),
    (b"carets.jsonl", lambda: _text("^" * 1_000_000), "admitted", ""),
    (b"carets.txt", lambda: b"^" * 1_000_000, "admitted", ""),
    (b"spaces.txt", lambda: b"x" + b" " * 1_000_000 + b"y", "admitted", ""),
    (b"one_word.md", lambda: b"ab" * 700_000, "admitted", ""),
    (b"quotes.jsonl", lambda: b'"' * 1_000_000 + b"\n", "rejected", "cannot be read"),
    (b"colons.jsonl", lambda: b'{"text": "' + b'\\":' * 200_000 + b'"}\n', "admitted", ""),
    (b"open_quotes.jsonl", lambda: b'{"' * 300_000 + b"\n", "rejected", "cannot be read"),
    (b"wide_list.jsonl", lambda: b'{"text": "wide", "a": [' + b"0," * 500_000 + b"0]}\n", "admitted", ""),
    (b"wide_objects.jsonl", lambda: b'{"text": "objects", "a": [' + b"{}," * 200_000 + b"{}]}\n", "admitted", ""),
    (b"many_bad_lines.jsonl", lambda: b"{\n" * 100_000, "rejected", "cannot be read"),
    (b"many_turns.jsonl", lambda: _row(messages=[{"role": ("user", "assistant")[i % 2], "content": "."} for i in range(20_000)]),
     "admitted", ""),
    (b"regex_bait.jsonl", lambda: _text("a" * 30_000 + "!" + " \t" * 30_000 + "\n" * 30_000), "admitted", ""),
    (b"regex_bait.md", lambda: b"[" * 30_000 + b"](" * 30_000 + b"<" * 30_000 + b"`" * 30_001, "admitted", ""),
    (b"gzip_bomb.jsonl", lambda: gzip.compress(b"\0" * (50 << 20)), "rejected", "gzip"),
    (b"zip_bomb.jsonl", _zip_bomb, "rejected", "zip"),
    (b"xz.jsonl", lambda: lzma.compress(b"\0" * (20 << 20)), "rejected", "cannot be read"),
    (b"bz2.jsonl", lambda: bz2.compress(b"\0" * (20 << 20)), "rejected", "cannot be read"),
    (b"zeroes.jsonl", lambda: b"\0" * (8 << 20), "rejected", "zero-filled"),
    (b"zero_tail.jsonl", lambda: _good() + b"\0" * 70_000, "rejected", "zero-filled"),
    (b"nothing.jsonl", lambda: b"", "waiting", "empty"),
]  # fmt: skip

# --- documents (A80) -------------------------------------------------------------------------------------------------

_DOCUMENTS = [
    (b"broken.pdf", b"%PDF-1.7\ngarbage", "ignored", "not a kind"),
    (b"pdf.txt", b"%PDF-1.7\n1 0 obj << /Encrypt 2 0 R >>", "rejected", "PDF"),
    (b"zip.md", b"PK\x03\x04" + b"x" * 40, "rejected", "zip"),
    (b"page.html", b"<html><script>while(1);</script>", "ignored", "not a kind"),
    (b"html.md", b"<script>alert(1)</script><img src=x onerror=alert(1)>\n" * 40, "admitted", ""),
    (b"control.md", b"# \x1b[2J\x1b]0;owned\x07 title\n\nbody \x08\x08\x08\n", "admitted", ""),
    (b"nul.md", b"# title\n\nbo\0dy\n", "rejected", "NUL"),
    (b"latin1.txt", "caf\u00e9\n".encode("latin-1"), "rejected", "invalid UTF-8"),
    (b"utf16.txt", "hello there\n".encode("utf-16"), "rejected", "UTF-16"),
    (b"blank.md", b" \n\t\n" * 100, "rejected", "white space"),
    (b"links.md", b"[x](javascript:alert(1)) ![y](file:///etc/passwd) <http://[::1]/>\n" * 20, "admitted", ""),
    (b"sqlite.txt", b"SQLite format 3\0" + b"\0" * 100 + b"x", "rejected", "SQLite"),
]  # fmt: skip

# --- models and code in the inbox (C10) ------------------------------------------------------------------------------


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def _pickled() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([[_Evil()]], dtype=object), allow_pickle=True)
    return out.getvalue()


_MODELS = [
    (b"model.pkl", pickle.dumps(_Evil()), "ignored", "unknown type"),
    (b"pytorch_model.bin", pickle.dumps(_Evil()), "ignored", "unknown type"),
    (b"weights.pt", pickle.dumps(_Evil()), "ignored", "unknown type"),
    (b"pickle.jsonl", pickle.dumps(_Evil()) + b"\n", "rejected", "cannot be read"),
    (b"array.npy", _pickled(), "rejected", "Python objects (a pickle)"),
    (b"header.npy", b"\x93NUMPY\x01\x00\x11\x00{'descr': '|O', }\n" + b"x" * 40, "rejected", "header of the array cannot be read"),
    (b"model.safetensors", (1 << 62).to_bytes(8, "little") + b"{}", "ignored", "unknown type"),
    (b"safetensors.jsonl", (2).to_bytes(8, "little") + b"{}" + b"\xff" * 64, "rejected", "cannot be read"),
    (b"modeling_evil.py", b"raise SystemExit('code was run')\n", "ignored", "not a kind"),
    (b"config.json", b'{"auto_map": {"AutoModel": "modeling_evil.Evil"}}', "rejected", "no kind of data"),
    (b"auto_map.jsonl", b'{"auto_map": {"AutoModel": "modeling_evil.Evil"}}\n', "rejected", "no kind of data"),
    (b"conftest.py", b"raise SystemExit('code was run')\n", "ignored", "not a kind"),
    (b"sitecustomize.py", b"raise SystemExit('code was run')\n", "ignored", "not a kind"),
]  # fmt: skip

# --- control tokens of every template, in every field (A76) ----------------------------------------------------------

_TOKENS = sorted({*CHAT_TAGS, "</myPT_user>", "<myPT_assistant>", "</myPT_assistant>", "<myPT_eot>", "<|endoftext|>", "<|end|>",
                  "<|im_end|>", "<|eot_id|>", "<|channel|>", "<|message|>", "<|return|>", "[INST]", "</s>", "<bos>",
                  "<start_of_turn>"})  # fmt: skip
CONTROL: dict[bytes, Callable[[], bytes]] = {}
for _place, _token in enumerate(_TOKENS):
    _mean = f"{_token}x{_token} and {_token[:-1]}\u200b{_token[-1]}"
    CONTROL[b"token_%02d.jsonl" % _place] = _of(_chat(user=_mean, assistant=f"a{_mean}", system=f"s{_mean}", context=f"c{_mean}"))
CONTROL[b"token_text.jsonl"] = _of(b"".join(_text(f"said {token}{token} of {token}") for token in _TOKENS))

HOSTILE: list[Hostile] = [
    *(Hostile(name, _good, "admitted") for name in _NAMES),
    *(Hostile(name, _good, "ignored", words) for name, words in _NEVER),
    *_ENCODINGS,
    *(Hostile(name + b".jsonl", _of(data), verdict, words) for name, data, verdict, words in _JSON),
    *(Hostile(name, make, verdict, words) for name, make, verdict, words in _BOMBS),
    *(Hostile(name, _of(data), verdict, words) for name, data, verdict, words in (*_DOCUMENTS, *_MODELS)),
    *(Hostile(name, make, "admitted") for name, make in CONTROL.items()),
]


def heavy() -> list[Hostile]:
    """What takes tens of seconds, or hundreds of megabytes on disk."""
    return [
        Hostile(b"sixteen_million_objects.jsonl", lambda: b'{"text": "x", "a": [' + b"{}," * 5_000_000 + b"{}]}\n", "admitted"),
        Hostile(b"a_million_keys.jsonl",
                lambda: b'{"text": "x"' + b"".join(b', "%07d": 0' % i for i in range(1_000_000)) + b"}\n", "admitted"),
        Hostile(b"half_a_gigabyte.jsonl", lambda: b'{"text": "' + b"x" * (500 << 20) + b'"}\n', "rejected", "cannot be read"),
        Hostile(b"ten_million_bad_lines.jsonl", lambda: b"{\n" * 10_000_000, "rejected", "cannot be read"),
        Hostile(b"deep_million.jsonl", lambda: (b'{"a":' * 1_000_000 + b"\n") * 3, "rejected", "cannot be read"),
        Hostile(b"quotes_sixteen_million.jsonl", lambda: b'{"text": "' + b'\\"' * 8_000_000 + b'"}\n', "admitted"),
    ]
