"""HTML as plain text, for questions and answers that were written on a web page.

Paragraphs are apart by an empty line, lists have `- ` or numbers, `<pre>` keeps every character between two fences and
`<code>` in a line stands between back-quotes, since most of what is asked there is code. Links keep their words only.
It never fails: what is no HTML comes out as the text it is. It is not a cleaner against scripts on a page.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

__all__ = ["html_to_text"]

_BLOCKS = frozenset({"p", "div", "blockquote", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6", "table", "hr"})
_LINES = frozenset({"br", "tr", "li", "dt", "dd"})
_SILENT = frozenset({"script", "style"})
_SPACE, _GAP = re.compile(r"[ \t\r\n\f]+"), re.compile(r"\n{3,}")


def html_to_text(html: str) -> str:
    """The text of a piece of HTML without spaces and empty lines around it."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.text()


class _Reader(HTMLParser):
    """Collects text; `<pre>` parts are kept apart so that no later step touches their white space."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[tuple[bool, str]] = []  # (as it stands, text)
        self._pre: list[str] | None = None
        self._silent = 0
        self._lists: list[int] = []  # the number of the last item; -1 where items have none

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self._silent += 1
        elif tag == "pre" and self._pre is None:
            self._pre = []
        elif tag == "code" and self._pre is None:
            self._add("`")
        elif tag in ("ul", "ol"):
            self._lists.append(0 if tag == "ol" else -1)
            self._add("\n\n" if len(self._lists) == 1 else "")
        elif tag == "li":
            self._item()
        elif tag in _BLOCKS or tag in _LINES:
            self._add("\n\n" if tag in _BLOCKS else "\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag == "pre" and self._pre is not None:
            self._end_pre()
        elif tag == "code" and self._pre is None:
            self._add("`")
        elif tag in ("ul", "ol"):
            self._lists = self._lists[:-1]
            self._add("" if self._lists else "\n\n")
        elif tag in _BLOCKS:
            self._add("\n\n")

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        if self._pre is not None:
            self._pre.append(data)
        else:
            self._add(_SPACE.sub(" ", data))

    def text(self) -> str:
        """What was read."""
        if self._pre is not None:
            self._end_pre()
        loose = "".join(text if not kept else f"\0{place}\0" for place, (kept, text) in enumerate(self._parts))
        lines = "\n".join(line.strip(" ") if not line.startswith("  ") else line.rstrip(" ") for line in loose.split("\n"))
        lines = _GAP.sub("\n\n", lines).strip("\n ")
        return re.sub(r"\0(\d+)\0", lambda found: self._parts[int(found[1])][1], lines)

    def _add(self, text: str) -> None:
        if self._pre is not None:
            self._pre.append(text)
        else:
            self._parts.append((False, text.replace("\0", "")))

    def _item(self) -> None:
        mark = "- "
        if self._lists and self._lists[-1] >= 0:
            self._lists[-1] += 1
            mark = f"{self._lists[-1]}. "
        self._add("\n" + "  " * max(0, len(self._lists) - 1) + mark)

    def _end_pre(self) -> None:
        code = "".join(self._pre or ()).strip("\n").replace("\0", "")
        self._pre = None
        self._parts += [(False, "\n\n"), (True, f"```\n{code}\n```"), (False, "\n\n")]
