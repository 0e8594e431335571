"""Listings of several requests at a time: all keys, each once, in order, and in few requests."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3torch.core.errors import NotFoundError
from s3torch.core.operations._globs import Glob
from s3torch.core.operations._listing import EveryBranch, TreeListing
from s3torch.core.transports.memory import MemoryStore


class Pages:
    """Small pages of a bucket in memory, and what was asked for."""

    def __init__(self, keys, page=3):
        self.store = MemoryStore()
        self.store.create_bucket("b")
        for key in keys:
            self.store.put("b", key, b"")
        self.page = page
        self.asked = []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.together = set()
        self.barrier = threading.Barrier(3)

    def ask(self, *, prefix, delimiter, continuation_token):
        with self.lock:
            self.asked.append((prefix, delimiter))
            self.running += 1
            self.most = max(self.most, self.running)
            waits = prefix in self.together
            self.together.discard(prefix)
        if waits:
            self.barrier.wait(20)
        page = self.store.list_objects(
            "b", prefix=prefix, delimiter=delimiter, max_keys=self.page, after=continuation_token or ""
        )
        with self.lock:
            self.running -= 1
        return page

    def listing(self, prefixes=("",), *, branches=None, requests=4, ordered=True):
        return TreeListing(
            self.ask, prefixes, branches=branches or EveryBranch(), in_flight=requests, ordered=ordered
        )


def keys_of(listing):
    return [info.key for page in listing.pages() for info in page]


keys = st.lists(st.text("ab/", min_size=1, max_size=6), max_size=40, unique=True)


@settings(max_examples=60)
@given(keys, st.integers(1, 6), st.sampled_from(["", "a", "a/", "b/a"]))
def test_all_keys_in_order(keys, requests, prefix):
    pages = Pages(keys)
    found = keys_of(pages.listing([prefix], requests=requests))
    assert found == sorted(key for key in keys if key.startswith(prefix))
    assert pages.most <= requests


@settings(max_examples=40)
@given(keys, st.integers(1, 6))
def test_all_keys_in_any_order(keys, requests):
    found = keys_of(Pages(keys).listing(requests=requests, ordered=False))
    assert sorted(found) == sorted(keys)


@settings(max_examples=60)
@given(keys, st.sampled_from(["*", "a/*", "*/a", "a*/**", "**/b", "*/a/*", "{a,b}/*b", "[!a]/?/*"]))
def test_pruning_loses_nothing(keys, pattern):
    glob = Glob(pattern)
    listing = Pages(keys).listing(glob.prefixes, branches=glob)
    assert [key for key in keys_of(listing) if glob.matches(key)] == sorted(filter(glob.matches, keys))


def test_what_fits_into_a_page_is_one_request():
    pages = Pages(["a/1", "b/c/2", "d"])
    assert keys_of(pages.listing()) == ["a/1", "b/c/2", "d"]
    assert pages.asked == [("", "")]


def test_large_folders_are_listed_side_by_side():
    keys = [f"{folder}/{number}" for folder in "abcd" for number in range(9)]
    pages = Pages(keys)
    # They are answered only when all three are under way.
    pages.together = {"a/", "b/", "c/"}
    assert keys_of(pages.listing()) == keys
    # One that tells that there is much, the folders in two pages, and each of them in three; towards the end
    # some are asked for folders of their own, which they do not have.
    assert pages.asked[:2] == [("", ""), ("", "/")]
    assert 1 + 2 + 4 * 3 <= len(pages.asked) <= 1 + 2 + 4 * 4


def test_a_long_way_down_is_not_listed_at_every_step():
    keys = [f"a/b/c/d/{number}" for number in range(9)]
    pages = Pages(keys)
    assert keys_of(pages.listing()) == keys
    assert (
        pages.asked
        == [("", ""), ("", "/"), ("a/", "/"), ("a/b/", "/"), ("a/b/c/", "/")] + [("a/b/c/d/", "/")] * 3
    )


def test_a_pattern_spares_folders_that_cannot_match():
    keys = [
        f"runs/{run}/{kind}/{number}" for run in range(9) for kind in ("log", "pt") for number in range(9)
    ]
    glob = Glob("runs/*/pt/1*")
    pages = Pages(keys)
    found = keys_of(pages.listing(glob.prefixes, branches=glob))
    assert [key for key in found if glob.matches(key)] == [f"runs/{run}/pt/1" for run in range(9)]
    assert not any("log" in prefix for prefix, _ in pages.asked)
    assert len(pages.asked) == 1 + 3 + 9


def test_pages_that_come_too_early_are_bounded(monkeypatch):
    monkeypatch.setattr("s3torch.core.operations._listing._PAGE", 3)
    keys = [f"{folder:02}/{number}" for folder in range(60) for number in range(9)]
    pages = Pages(keys, page=30)
    listing = pages.listing(requests=2).pages()
    next(listing)
    # Two requests may be under way, and two pages wait; what else is there has not been asked for.
    assert len(pages.asked) < 15
    assert sum(map(len, listing)) > len(keys) - 31


@pytest.mark.promise(7)
def test_an_error_is_raised_where_it_is_waited_for():
    pages = Pages(["a"])
    pages.store.delete_bucket("b")
    with pytest.raises(NotFoundError):
        keys_of(pages.listing())


def test_nothing_more_is_asked_for_when_nobody_listens():
    pages = Pages([f"{folder}/{number}" for folder in "abcdefgh" for number in range(9)])
    listing = pages.listing(requests=1).pages()
    next(listing)
    listing.close()
    asked = len(pages.asked)
    assert list(listing) == []
    assert len(pages.asked) <= asked + 1
