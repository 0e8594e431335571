"""A real bucket instead of a server on loopback: what it will cost, and that it is empty before and after."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runner.questions import Run

# US dollars in us-east-1 (https://aws.amazon.com/s3/pricing/), for 1,000 requests and for a GB that leaves.
_WRITES = 0.005
_READS = 0.0004
_OUT = 0.09
_MAX_DELETES = 1000
# Each case does its work once before it is measured.
_TIMES = 2


@dataclass(frozen=True, slots=True)
class Estimate:
    """What some questions will ask of a bucket.

    Attributes:
        reads: GET and HEAD requests.
        others: PUT, COPY, POST and LIST requests.
        sent: Bytes that the bucket sends.
        received: Bytes that are uploaded.
    """

    reads: int
    others: int
    sent: int
    received: int

    @property
    def dollars(self) -> float:
        """For the requests alone."""
        return (self.reads * _READS + self.others * _WRITES) / 1000

    @property
    def dollars_outside(self) -> float:
        """With the transfer to a machine that is not in the bucket's region."""
        return self.dollars + self.sent / 1e9 * _OUT

    def __str__(self) -> str:
        return (
            f"about {self.reads:,} GET and {self.others:,} other requests, {self.received / 1e9:.1f} GB in"
            f" and {self.sent / 1e9:.1f} GB out: {self.dollars:.2f} $ in the bucket's region,"
            f" {self.dollars_outside:.2f} $ from elsewhere,"
            " besides the objects that are put there first, some thousand, and their storage for some hours"
        )


def estimate(counted: Iterable[Run], rounds: int) -> Estimate:
    """Estimates from runs on loopback whose requests were counted."""
    notes = [note for one in counted for note in one.notes if "requests" in note]
    factor = rounds * _TIMES
    reads = sum(note["reads"] for note in notes)
    return Estimate(
        reads=reads * factor,
        others=(sum(note["requests"] for note in notes) - reads) * factor,
        sent=sum(note["sent"] for note in notes) * factor,
        received=sum(note["received"] for note in notes) * factor,
    )


def agreed(question: str) -> bool:
    """Asks the user; whatever is not yes is no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def bucket_of(uri: str) -> str:
    """Returns the name of a bucket.

    Raises:
        SystemExit: It is no URI of a whole bucket.
    """
    name = uri.removeprefix("s3://").rstrip("/")
    if not uri.startswith("s3://") or not name or "/" in name:
        raise SystemExit(f"--bucket takes a whole bucket, as in s3://my-bench, got {uri}")
    return name


def check_empty(boto: Any, bucket: str) -> None:
    """Refuses a bucket with something in it, because it is emptied afterwards.

    Raises:
        SystemExit: It is not empty.
    """
    if boto.list_objects_v2(Bucket=bucket, MaxKeys=1).get("Contents"):
        raise SystemExit(f"{bucket} is not empty; take a bucket for this alone")


def empty(boto: Any, bucket: str) -> None:
    """Deletes what the questions have left."""
    for page in boto.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        keys = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
        if keys:
            boto.delete_objects(Bucket=bucket, Delete={"Objects": keys[:_MAX_DELETES], "Quiet": True})
