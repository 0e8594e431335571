"""Keys of every kind arrive as they are, in the order of S3."""

from __future__ import annotations

from operator import methodcaller

from s3torch.datasets import S3IterableDataset, S3MapDataset

# In the order of their UTF-8 bytes, with the marker of a folder; moto keeps names and order exactly.
KEYS = ["p/", "p/A b+c%20.txt", "p/Z", "p//x", "p/a", "p/ä", "p/日本", "p/😀"]


def test_prefixes_and_objects_take_any_key(moto, monkeypatch):
    for name, value in moto.environment().items():
        monkeypatch.setenv(name, value)
    bucket = moto.create_bucket()
    client = moto.client()
    for key in KEYS:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    client.close()
    options = {"region": moto.region, "endpoint": moto.endpoint, "transform": methodcaller("read")}
    expected = [key.encode() for key in sorted(KEYS, key=str.encode)]
    assert list(S3IterableDataset.from_prefix(f"s3://{bucket}/p/", **options)) == expected
    uris = [f"s3://{bucket}/{key}" for key in KEYS]
    dataset = S3MapDataset.from_objects(uris, **options)
    assert dataset.__getitems__(range(len(KEYS))) == [key.encode() for key in KEYS]
