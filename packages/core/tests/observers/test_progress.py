"""The progress bar, drawn into a string."""

from __future__ import annotations

import io
import re
import sys

import pytest

from s3torch.core import ConfigurationError, NotFoundError
from s3torch.core.observers.progress import TransferProgressBar
from s3torch.core.ranges import MIB

PART = 5 * MIB


def test_a_bar_reaches_its_total(wire):
    client = wire.client()
    size = 2 * PART + 1
    drawn = io.StringIO()
    with TransferProgressBar(size, file=drawn, desc="saving") as saving:
        with client.put_object(wire.bucket, "k") as writer:
            writer.write(wire.content(size))
        assert saving.nbytes == size
    assert re.search(r"saving: 100%\|.*10\.0M/10\.0M", drawn.getvalue().rpartition("\r")[2])
    with TransferProgressBar(size, file=io.StringIO()) as loading:
        assert client.get_object(wire.bucket, "k").read() == wire.content(size)
    assert loading.nbytes == size
    # What comes later is none of its business.
    client.get_object(wire.bucket, "k").read(1)
    assert loading.nbytes == size


def test_several_objects_share_a_bar(client):
    with TransferProgressBar(4000, file=io.StringIO(), direction="read") as bar:
        for number in range(4):
            with client.put_object("bucket", str(number)) as writer:
                writer.write(bytes(1000))
        assert bar.nbytes == 0
        for number in range(4):
            client.get_object("bucket", str(number)).read()
        with pytest.raises(NotFoundError):
            client.get_object("bucket", "missing").read()
    assert bar.nbytes == 4000


def test_a_child_leaves_the_bar_of_its_parent_alone(client, in_child):
    drawn = io.StringIO()

    def child():
        before = drawn.getvalue()
        with client.put_object("bucket", "k") as writer:
            writer.write(bytes(10))
        bar.close()
        return bar.nbytes, drawn.getvalue() == before

    with TransferProgressBar(file=drawn) as bar:
        assert in_child(child) == (0, True)


def test_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ConfigurationError, match=r"s3torch\[progress\]"):
        TransferProgressBar()
