"""How fast is one large object read into memory of the caller?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from measure import BUCKET, REGION, Question, main
from read_object import KEY, SIZE, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

# The buffer is touched before it is measured: what is asked is what the library costs.
_target = bytearray()


def _buffer() -> bytearray:
    if not _target:
        _target.extend(b"\1" * SIZE)
    return _target


def s3torch(endpoint: str) -> Callable[[], object]:
    """readinto() of our range-based reader."""
    from s3torch.core import S3Client, S3ReaderConstructor

    s3 = S3Client(REGION, endpoint=endpoint)
    constructor = S3ReaderConstructor.range_based(0)
    return lambda: s3.get_object(BUCKET, KEY, reader_constructor=constructor).readinto(_buffer())


def connector(endpoint: str) -> Callable[[], object]:
    """readinto() of s3torchconnector's range-based reader."""
    from s3torchconnector import S3ClientConfig, S3ReaderConstructor
    from s3torchconnector._s3client import S3Client

    s3 = S3Client(REGION, endpoint=endpoint, s3client_config=S3ClientConfig(force_path_style=True))
    constructor = S3ReaderConstructor.range_based(0)
    return lambda: s3.get_object(BUCKET, KEY, reader_constructor=constructor).readinto(_buffer())


if __name__ == "__main__":
    main(
        Question(
            title="readinto() of one object of 256 MiB, into memory that was touched before",
            cases={"s3torchconnector": connector, "s3torch": s3torch},
            units=SIZE / 1e9,
            unit="GB",
            prepare=prepare,
        )
    )
