"""How far a JSON value goes: brackets and texts, counted over pieces of it, whatever stands in them.

Possessive patterns run over whole texts and stop at brackets, so that no byte is looked at twice. Nothing is judged here but
brackets that do not fit; the rules of a row are `guard/checks/jsonl.py`, the rows of a file `json_rows.py`.
"""

from __future__ import annotations

import re

__all__ = ["Nesting", "Parts", "end_of_value"]

_MAX_NESTING = 1 << 20
"""Beyond it not even the brackets are kept; rows may be nested 100 deep."""
_SCALAR = re.compile(rb"[^,\[\]{}\":\s]*+")
_TO_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+(["{}\[\]]|\Z)', re.DOTALL)
_REST_OF_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_CLOSER = {b"{": ord("}"), b"[": ord("]")}


class Parts:
    """Pieces of a value, up to a size."""

    def __init__(self, keep: int) -> None:
        self._keep, self._size = keep, 0
        self._parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        if self._size <= self._keep:
            self._parts.append(part)
            self._size += len(part)

    def joined(self) -> bytes:
        return b"".join(self._parts)


class Nesting:
    """How deep a value is open after what was seen of it."""

    def __init__(self) -> None:
        self._open = bytearray()
        self._in_text = self._begun = False
        self.done = self.is_scalar = False
        self.fault = ""

    def scan(self, data: bytes, at: int) -> int:
        """Read on; returns up to where. `done` when the value ends there, else all of `data` but a split escape was taken."""
        if self._in_text:
            return self._text(data, at)
        if not self._begun or self.is_scalar:
            if self.is_scalar or data[at] not in b'"{[':
                return self._scalar(data, at)
            self._begun = True
            if data[at] == 0x22:
                self._in_text = True
                return self._text(data, at + 1)
        return self._brackets(data, at)

    def _text(self, data: bytes, at: int) -> int:
        match = _REST_OF_TEXT.match(data, at)
        assert match is not None
        if match.end() == len(data) or data[match.end()] != 0x22:
            return match.end()  # the file goes on, perhaps behind a backslash that was its block's last byte
        self._in_text = False
        self.done = not self._open
        return match.end() + 1 if self.done else self._brackets(data, match.end() + 1)

    def _scalar(self, data: bytes, at: int) -> int:
        match = _SCALAR.match(data, at)
        assert match is not None
        if match.end() == at and not self.is_scalar:
            self.fault = f"a row was expected, and {ascii(data[at : at + 1])[1:]} stands there"
        self._begun = self.is_scalar = True
        self.done = match.end() < len(data)
        return match.end()

    def _brackets(self, data: bytes, at: int) -> int:
        """From bracket to bracket, over whole texts; a quote that is found is one that this data does not close."""
        stack = self._open
        for match in _TO_BRACKET.finditer(data, at):
            end, mark = match.end(), match[1]
            if mark in _CLOSER:
                stack.append(_CLOSER[mark])
                if len(stack) > _MAX_NESTING:
                    self.fault = "nested too deeply"
                    return end
            elif mark == b'"':
                self._in_text = True
                return self._text(data, end)
            elif not mark:
                break
            elif not stack or stack.pop() != mark[0]:
                self.fault = f"{mark.decode()!r} closes what is not open"
                return end
            elif not stack:
                self.done = True
                return end
        return len(data)


def end_of_value(data: bytes, at: int) -> int | None:
    """Where the value at `at` ends, None when it goes on beyond the data."""
    nesting = Nesting()
    stop = nesting.scan(data, at)
    return stop if nesting.done or nesting.fault else None
