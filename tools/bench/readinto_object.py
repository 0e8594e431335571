"""How fast is one large object read into memory of the caller?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from measure import (
    BUCKET,
    Question,
    boto_client,
    by_library,
    connector_client,
    main,
    obstore_client,
    s3fs_client,
    s3torch_client,
)
from read_object import KEY, SIZE, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

# The buffer is touched before it is measured: what is asked is what the library costs.
_target = bytearray()


def _buffer() -> bytearray:
    if not _target:
        _target.extend(b"\1" * SIZE)
    return _target


def s3torch(transport: str) -> Callable[[], object]:
    """readinto() of our range-based reader."""
    from s3torch.core import S3ReaderConstructor

    s3 = s3torch_client(transport)
    constructor = S3ReaderConstructor.range_based(0)
    return lambda: s3.get_object(BUCKET, KEY, reader_constructor=constructor).readinto(_buffer())


def connector() -> Callable[[], object]:
    """readinto() of s3torchconnector's range-based reader."""
    from s3torchconnector import S3ReaderConstructor

    s3 = connector_client()
    constructor = S3ReaderConstructor.range_based(0)
    return lambda: s3.get_object(BUCKET, KEY, reader_constructor=constructor).readinto(_buffer())


def boto3() -> Callable[[], object]:
    """One GetObject of boto3, its body read into the buffer."""
    s3 = boto_client()

    def work() -> None:
        rest = memoryview(_buffer())
        body = s3.get_object(Bucket=BUCKET, Key=KEY)["Body"]
        while rest:
            rest = rest[body.readinto(rest) :]

    return work


def s3fs() -> Callable[[], object]:
    """readinto() of a file of s3fs."""
    fs = s3fs_client()

    def work() -> None:
        with fs.open(f"{BUCKET}/{KEY}", "rb") as file:
            file.readinto(_buffer())

    return work


def obstore() -> Callable[[], object]:
    """get() of obstore, copied into the buffer: it has no other way."""
    import obstore

    store = obstore_client()

    def work() -> None:
        memoryview(_buffer())[:] = memoryview(obstore.get(store, KEY).bytes())

    return work


if __name__ == "__main__":
    main(
        Question(
            title="readinto() of one object of 256 MiB, into memory that was touched before",
            cases=by_library(connector=connector, s3torch=s3torch, boto3=boto3, s3fs=s3fs, obstore=obstore),
            units=SIZE / 1e9,
            unit="GB",
            size=SIZE,
            prepare=prepare,
        )
    )
