"""Transactions: what is stored, copied, moved and removed in one happens at its end, in the same order."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fsspec.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


class S3Transaction(Transaction):
    """Does at the end what was held back, or nothing of it after an exception.

    Other processes may see the first of it before the last: S3 changes one object at a time. Where something
    fails, what comes after it is not done.
    """

    def complete(self, commit: bool = True) -> None:  # noqa: FBT001, FBT002
        # From here on nothing is held back any more.
        self.fs._intrans = False
        super().complete(commit)


class HeldBack:
    """A call that a transaction makes at its end, among the files that it publishes."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def commit(self) -> None:
        self._call()

    def discard(self) -> None:
        """Does nothing: nothing was done."""


def held_back(method: F) -> F:
    """Makes a method of a filesystem wait for the end of the transaction that it is called in."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._intrans:
            return method(self, *args, **kwargs)
        self.transaction.files.append(HeldBack(partial(method, self, *args, **kwargs)))
        return None

    return cast("F", call)
