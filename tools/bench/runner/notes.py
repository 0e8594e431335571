"""What ``measure.in_child`` notes for the runner, and the proxy that counts requests where it is asked to."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# Where notes go, and whether requests are counted.
NOTES, COUNT = "BENCH_NOTES", "BENCH_COUNT"
_ENDPOINT = "AWS_ENDPOINT_URL"
_MARK = "/bench-begins-here"
_READS = {"GET", "HEAD"}


def note(case: tuple[str, ...], figures: dict[str, Any], *, suffix: str, **more: object) -> None:
    """Notes what a case has measured, or why it failed, if somebody wants to know."""
    target = os.environ.get(NOTES)
    if target is None:
        return
    place = os.environ.get("BENCH_PLACE") or os.environ.get(_ENDPOINT, "").partition("://")[0]
    line = {"place": place, "case": case, "suffix": suffix, "figures": figures, **more}
    with Path(target).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def counting(environment: dict[str, str]) -> Iterator[dict[str, int]]:
    """Counts what a child asks after its mark, if somebody wants to know.

    Args:
        environment: That of the child, which it leads to the proxy.

    Yields:
        What was counted, once the block has ended; nothing if the child has made no mark.
    """
    count: dict[str, int] = {}
    if COUNT not in environment or not environment.get(_ENDPOINT, "").startswith("http://"):
        yield count
        return
    from s3torch.testing.faults import FaultProxy

    with FaultProxy(environment[_ENDPOINT]) as proxy:
        environment[_ENDPOINT] = proxy.endpoint
        yield count
        asked = list(proxy.requests())
    marks = [place for place, request in enumerate(asked) if request.path == _MARK]
    if marks:
        measured = asked[marks[-1] + 1 :]
        reads = [one for one in measured if one.method in _READS and "list-type" not in one.query]
        count["requests"], count["reads"] = len(measured), len(reads)
        count["received"] = sum(one.request_bytes for one in measured)
        count["sent"] = sum(one.response_bytes for one in measured)


def mark() -> None:
    """Says to the proxy that what follows is what is measured."""
    if COUNT in os.environ:
        # The server refuses it, which is all right.
        with contextlib.suppress(urllib.error.URLError):
            urllib.request.urlopen(os.environ[_ENDPOINT] + _MARK).close()  # noqa: S310 - Our own server.
