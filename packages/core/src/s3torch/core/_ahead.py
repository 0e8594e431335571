"""Requests that wait for their answers, several at a time."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

A = TypeVar("A")
T = TypeVar("T")


def run_ahead(function: Callable[[A], T], items: Iterable[A], *, workers: int, name: str) -> Iterator[T]:
    """Calls a function of many items on some threads and yields the results in the order of the items.

    It takes no more items than there are threads to work on them, so that memory stays bounded. When a call
    fails, that is raised in its turn; those that have begun come to their end, and no others begin. A
    single item needs no thread.

    Args:
        function: What is called.
        items: Its arguments, taken as they are needed.
        workers: The number of threads.
        name: The prefix of their names.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    if len(first) < 2:
        yield from map(function, first)
        return
    pool = ThreadPoolExecutor(workers, name)
    running: deque[Future[T]] = deque()
    try:
        for item in chain(first, rest):
            running.append(pool.submit(function, item))
            if len(running) == workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
