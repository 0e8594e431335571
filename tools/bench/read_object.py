"""How fast is one large object read with read()?"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from measure import BUCKET, MIB, REGION, Question, client, main

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 256 * MIB
KEY = "large"


def prepare(boto: Any) -> None:
    """Puts the object."""
    boto.upload_fileobj(io.BytesIO(bytes(range(256)) * (SIZE // 256)), BUCKET, KEY)


def s3torch(endpoint: str) -> Callable[[], object]:
    """read() of our sequential reader."""
    from s3torch.core import S3Client

    s3 = S3Client(REGION, endpoint=endpoint)
    return lambda: s3.get_object(BUCKET, KEY).read()


def connector(endpoint: str) -> Callable[[], object]:
    """read() of s3torchconnector's sequential reader."""
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client

    s3 = S3Client(REGION, endpoint=endpoint, s3client_config=S3ClientConfig(force_path_style=True))
    return lambda: s3.get_object(BUCKET, KEY).read()


def boto3(endpoint: str) -> Callable[[], object]:
    """One GetObject of boto3."""
    s3 = client(endpoint)
    return lambda: s3.get_object(Bucket=BUCKET, Key=KEY)["Body"].read()  # noqa: PLW0108


def s3fs(endpoint: str) -> Callable[[], object]:
    """cat_file() of s3fs."""
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=endpoint)
    return lambda: fs.cat_file(f"{BUCKET}/{KEY}")


def obstore(endpoint: str) -> Callable[[], object]:
    """get() of obstore."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(BUCKET, endpoint=endpoint, region=REGION, client_options={"allow_http": True})
    return lambda: bytes(obstore.get(store, KEY).bytes())


READ = Question(
    title="read() of one object of 256 MiB",
    cases={
        "s3torchconnector": connector,
        "s3torch": s3torch,
        "boto3": boto3,
        "s3fs": s3fs,
        "obstore": obstore,
    },
    units=SIZE / 1e9,
    unit="GB",
    prepare=prepare,
)

if __name__ == "__main__":
    main(READ)
