"""Work on a stream of items in several threads, with the results in the order of the items.

For work that gives Python's lock back (tokenizers in Rust, hashing, numpy on large arrays): whoever asks reads and writes,
the threads encode. The results are those of one thread, item by item. Not here: what an item is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(items: Iterable[Item], work: Callable[[Item], Result], threads: int) -> Generator[tuple[Item, Result], None, None]:
    """Each item with `work(item)`, in the order of the items; at most `threads` + 2 items are held at a time.

    `items` is read and the results are given in the caller's thread; `work` runs in `threads` others (in the caller's
    own when that is 1) and must keep nothing between two items. Raises what either raises; then no work goes on.
    """
    if threads <= 1:
        for item in items:
            yield item, work(item)
        return
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > threads + 1:
                    yield _result(waiting)
            while waiting:
                yield _result(waiting)
        finally:
            for _item, future in waiting:
                future.cancel()


def _result(waiting: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    item, future = waiting.popleft()
    return item, future.result()
