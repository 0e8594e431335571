"""Transactions: everything of one happens at its end, or nothing of it."""

from __future__ import annotations

from contextlib import suppress

import pytest


class StopHereError(Exception):
    """Raised by the tests in the middle of a transaction."""


@pytest.fixture
def tree(fs, root):
    fs.pipe({f"{root}/{name}": name.encode() for name in ("a", "b", "d/c")})
    return root


def contents(fs, root):
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


def change(fs, root):
    fs.pipe_file(f"{root}/new", b"new")
    fs.mv(f"{root}/a", f"{root}/moved")
    fs.rm(f"{root}/b")
    fs.rm(f"{root}/d", recursive=True)
    fs.copy(f"{root}/new", f"{root}/copy")
    fs.rm_file(f"{root}/new")
    fs.merge(f"{root}/merged", [f"{root}/moved", f"{root}/copy"])
    fs.setxattr(f"{root}/moved", one="1")


def test_removals_moves_and_copies_happen_at_the_end(fs, tree):
    before = contents(fs, tree)
    with fs.transaction:
        change(fs, tree)
        assert contents(fs, tree) == before
    assert contents(fs, tree) == {"moved": b"a", "copy": b"new", "merged": b"anew"}
    assert fs.metadata(f"{tree}/moved") == {"one": "1"}
    fs.rm_file(f"{tree}/copy")
    assert not fs.exists(f"{tree}/copy")


@pytest.mark.promise(1)
def test_a_transaction_that_fails_removes_nothing(fs, tree):
    before = contents(fs, tree)
    with suppress(StopHereError), fs.transaction:
        change(fs, tree)
        raise StopHereError
    assert contents(fs, tree) == before


def test_what_comes_after_a_failure_is_not_done(fs, tree):
    with pytest.raises(FileNotFoundError), fs.transaction:
        fs.copy(f"{tree}/none", f"{tree}/copy")
        fs.rm(f"{tree}/a")
        fs.pipe_file(f"{tree}/new", b"")
    assert sorted(contents(fs, tree)) == ["a", "b", "d/c"]
    # The transaction has ended.
    fs.rm_file(f"{tree}/a")
    assert not fs.exists(f"{tree}/a")


def test_an_exclusive_file_of_a_transaction_is_refused_at_its_end(fs, tree):
    with pytest.raises(FileExistsError), fs.transaction:
        fs.pipe_file(f"{tree}/x", b"mine", mode="create")
        fs.client.copy_object(*f"{tree}/a".split("/", 1), *f"{tree}/x".split("/", 1))
    assert fs.cat_file(f"{tree}/x") == b"a"
