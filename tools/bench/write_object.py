"""What does it cost to write one large object?"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from measure import (
    BUCKET,
    MIB,
    Question,
    boto_client,
    by_library,
    connector_client,
    main,
    obstore_client,
    s3fs_client,
    s3torch_client,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 256 * MIB
STEP = 16 * MIB
KEY = "written"


def prepare(boto: Any) -> None:
    """Nothing has to be there."""


def _pieces() -> list[memoryview]:
    data = memoryview(os.urandom(STEP))
    return [data] * (SIZE // STEP)


def s3torch(transport: str) -> Callable[[], object]:
    """Our writer."""
    return _write_all(s3torch_client(transport))


def connector() -> Callable[[], object]:
    """The writer of s3torchconnector."""
    return _write_all(connector_client())


def boto3() -> Callable[[], object]:
    """upload_file() of boto3, from a file in memory."""
    s3 = boto_client()
    descriptor = os.memfd_create("source")
    for piece in _pieces():
        os.write(descriptor, piece)
    return lambda: s3.upload_file(f"/proc/self/fd/{descriptor}", BUCKET, KEY)


def s3fs() -> Callable[[], object]:
    """open("wb") of s3fs."""
    fs = s3fs_client()
    pieces = _pieces()

    def work() -> None:
        with fs.open(f"{BUCKET}/{KEY}", "wb") as file:
            for piece in pieces:
                file.write(piece)

    return work


def obstore() -> Callable[[], object]:
    """put() of obstore, from an iterator."""
    import obstore

    store = obstore_client()
    pieces = [bytes(piece) for piece in _pieces()]
    return lambda: obstore.put(store, KEY, iter(pieces))


def _write_all(s3: Any) -> Callable[[], object]:
    pieces = _pieces()

    def work() -> None:
        with s3.put_object(BUCKET, KEY) as writer:
            for piece in pieces:
                writer.write(piece)

    return work


if __name__ == "__main__":
    main(
        Question(
            title="write() of one object of 256 MiB, in pieces of 16 MiB",
            cases=by_library(connector=connector, s3torch=s3torch, boto3=boto3, s3fs=s3fs, obstore=obstore),
            units=SIZE / 1e9,
            unit="GB",
            size=SIZE,
            prepare=prepare,
        )
    )
