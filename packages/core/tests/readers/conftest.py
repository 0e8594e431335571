"""A source of ranges that keeps a ledger and fails on demand."""

from __future__ import annotations

import pytest

from s3torch.core import HeadObjectResult
from s3torch.core.transfer import MemoryBudget, RangeSource


class Ledger(RangeSource):
    """Serves ranges of some bytes, notes every request, and fails those that a test names."""

    bucket = "bucket"
    key = "key"

    def __init__(self, data, *, part_size=10, known=False, limit=10**9):
        self.data = data
        self.part_size = part_size
        self._size = len(data) if known else None
        self.shared = MemoryBudget(limit)
        self.requests = []
        self.waited = []
        self.cancelled = []
        self.heads = 0
        self.failures = {}

    @property
    def known_size(self):
        return self._size

    @known_size.setter
    def known_size(self, size):
        self._size = size

    def head(self):
        if self.known_size is None:
            self.heads += 1
            self.known_size = len(self.data)
        return HeadObjectResult('"etag"', self.known_size, 0)

    def budget(self):
        return self.shared

    def start(self, start, stop, into=None):
        assert 0 <= start < stop
        assert stop - start <= self.part_size
        assert into is None or len(into) >= min(stop, len(self.data)) - start
        self.requests.append((start, stop))
        return _Pending(self, start, stop, into)

    def fail(self, index, error):
        """Makes the request with this number, from 0, fail."""
        self.failures[index] = error


class _Pending:
    def __init__(self, ledger, start, stop, into):
        self.ledger = ledger
        self.number = len(ledger.requests) - 1
        self.range = (start, stop)
        self.into = into

    def wait(self):
        self.ledger.waited.append(self.range)
        error = self.ledger.failures.pop(self.number, None)
        if error is not None:
            if self.into is not None:
                # What is in the buffer of a failed transfer means nothing.
                self.into[:] = b"!" * len(self.into)
            raise error
        self.ledger.known_size = len(self.ledger.data)
        data = self.ledger.data[slice(*self.range)]
        if self.into is None:
            return memoryview(data)
        self.into[: len(data)] = data
        return self.into[: len(data)]

    def cancel(self):
        self.ledger.cancelled.append(self.range)


@pytest.fixture
def ledger():
    """Makes sources."""
    return Ledger


@pytest.fixture
def opened():
    """Opens a reader of a class over a source."""

    def make(cls, source, **options):
        return cls(source, **options)

    return make
