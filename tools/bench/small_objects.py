"""How fast are many small objects read, one at a time?"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from measure import BUCKET, REGION, Question, client, main

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT = 1000
SIZE = 100 * 1024
PREFIX = "small/"


def prepare(boto: Any) -> None:
    """Puts the objects."""
    body = os.urandom(SIZE)

    def put(number: int) -> None:
        boto.put_object(Bucket=BUCKET, Key=f"{PREFIX}{number:05}", Body=body)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(COUNT)))


def s3torch(endpoint: str) -> Callable[[], object]:
    """Our client."""
    from s3torch.core import S3Client

    return _read_all(S3Client(REGION, endpoint=endpoint))


def connector(endpoint: str) -> Callable[[], object]:
    """The client of s3torchconnector."""
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client

    config = S3ClientConfig(force_path_style=True)
    return _read_all(S3Client(REGION, endpoint=endpoint, s3client_config=config))


def boto3(endpoint: str) -> Callable[[], object]:
    """get_object() of boto3."""
    s3 = client(endpoint)

    def work() -> None:
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=PREFIX):
            for entry in page["Contents"]:
                s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()

    return work


def _read_all(s3: Any) -> Callable[[], object]:
    def work() -> None:
        for page in s3.list_objects(BUCKET, PREFIX):
            for info in page.object_info:
                with s3.get_object(BUCKET, info.key, object_info=info) as reader:
                    reader.read()

    return work


if __name__ == "__main__":
    main(
        Question(
            title=f"{COUNT} objects of 100 KiB, listed and read one at a time",
            cases={"s3torchconnector": connector, "s3torch": s3torch, "boto3": boto3},
            units=COUNT,
            unit="objects",
            prepare=prepare,
        )
    )
