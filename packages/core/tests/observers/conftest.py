"""What the tests of observers share: one that writes down what it is told."""

from __future__ import annotations

import threading

import pytest

from s3torch.core.observers import TransferObserver, observe


class Diary(TransferObserver):
    """Keeps all events, in the order in which they came."""

    def __init__(self):
        self.events = []
        self._lock = threading.Lock()

    def started(self, transfer):
        self._note("started", transfer, None)

    def retried(self, transfer, retry):
        self._note("retried", transfer, retry)

    def progressed(self, transfer, progress):
        self._note("progressed", transfer, progress)

    def ended(self, transfer, end):
        self._note("ended", transfer, end)

    def _note(self, *event):
        with self._lock:
            self.events.append(event)

    def of(self, name, operation=None):
        """The transfers and facts of the events of one kind."""
        return [
            (transfer, fact)
            for event, transfer, fact in self.events
            if event == name and operation in {None, transfer.operation}
        ]


@pytest.fixture
def diary():
    with observe(Diary()) as diary:
        yield diary
