"""A byte that flips on the way is never handed over in silence, however an object is read."""

from __future__ import annotations

import io
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from s3torch.core import ChecksumMismatchError, S3Checkpoint, S3Client, S3ClientConfig, S3ReaderConstructor
from s3torch.dcp.converting import convert_checkpoint
from s3torch.fsspec import S3FileSystem
from s3torch.testing import Fault

MIB = 2**20
SIZES = {"100-KB": 100_000, "3-MiB": 3 * MIB, "40-MiB": 40 * MIB}


class Place:
    """An object of ``torch.save`` in a store behind a proxy, and what reads it."""

    def __init__(self, proxy, transport, bucket, key, data):
        self.proxy, self.bucket, self.key, self.data = proxy, bucket, key, data
        self.config = S3ClientConfig(transport=transport, max_attempts=1)
        self.client = S3Client("us-east-1", endpoint=proxy.endpoint, s3client_config=self.config)
        self.checkpoint = S3Checkpoint("us-east-1", proxy.endpoint, self.config)
        self.uri = f"s3://{bucket}/{key}"

    def open(self, constructor=None, **facts):
        return self.client.get_object(self.bucket, self.key, reader_constructor=constructor, **facts)

    def file_system(self):
        return S3FileSystem(
            "us-east-1",
            endpoint_url=self.proxy.endpoint,
            s3client_config=self.config,
            skip_instance_cache=True,
        )

    def close(self):
        self.client.close()
        self.checkpoint.close()


def read_into(place):
    buffer = bytearray(len(place.data))
    assert place.open().readinto(buffer) == len(buffer)
    return bytes(buffer)


def read_pieces(reader, size):
    return b"".join(iter(lambda: reader.read(size), b""))


def read_backwards(place):
    size, step = len(place.data), 700_000
    reader = place.open(S3ReaderConstructor.range_based(0))
    pieces = []
    for start in reversed(range(0, size, step)):
        reader.seek(start)
        pieces.append(reader.read(step))
    return b"".join(reversed(pieces))


def copy_of(file):
    copied = io.BytesIO()
    shutil.copyfileobj(file, copied)
    return copied.getvalue()


def planned(place):
    ranges = [(start, min(start + 90_000, len(place.data))) for start in range(0, len(place.data), 90_000)]
    return place.open(S3ReaderConstructor.planned(ranges)).read()


def listed(place):
    ((info,),) = (page.object_info for page in place.client.list_objects(place.bucket, place.key))
    return place.open(object_info=info).read()


def downloaded(place, download):
    with TemporaryDirectory() as folder:
        target = Path(folder, "file")
        download(place.file_system(), place.uri, str(target))
        assert [target] == list(target.parent.iterdir())
        return target.read_bytes()


def converted(place):
    with TemporaryDirectory() as folder:
        target = Path(folder, "file.pt")
        convert_checkpoint(place.uri, target, to="torch", client=place.client)
        return torch.load(target)


def into_a_file(place):
    file = io.BytesIO()
    place.file_system().get_file(place.uri, file)
    return file.getvalue()


WHOLE = {
    "read": lambda place: place.open().read(),
    "read of a listed object": listed,
    "readinto": read_into,
    "read, by ranges": lambda place: place.open(S3ReaderConstructor.range_based()).read(),
    "read, by a plan": planned,
    "fsspec cat_file": lambda place: place.file_system().cat_file(place.uri),
    "fsspec get": lambda place: downloaded(place, S3FileSystem.get),
    "S3Checkpoint.load": lambda place: place.checkpoint.load(place.uri),
    "convert_checkpoint, to load": converted,
    "S3Checkpoint.load, mapped": lambda place: place.checkpoint.load(place.uri, mmap=True),
}
IN_PIECES = {
    "large pieces": lambda place: read_pieces(place.open(), 3 * MIB),
    "small pieces": lambda place: read_pieces(place.open(), 10_000),
    "backwards": read_backwards,
    "copyfileobj": lambda place: copy_of(place.open()),
    "torch.load": lambda place: torch.load(place.open()),
    "fsspec get_file, into an open file": into_a_file,
    "fsspec open": lambda place: copy_of(place.file_system().open(place.uri)),
}


@pytest.fixture(scope="module")
def objects(seaweedfs):
    """Bucket, and the bytes of the stored objects by their names."""
    bucket = seaweedfs.create_bucket()
    client, stored = seaweedfs.client(), {}
    for name, size in SIZES.items():
        file = io.BytesIO()
        tensor = torch.arange(size // 8 - 300, dtype=torch.int64)
        torch.save({"weights": tensor}, file)
        stored[name] = file.getvalue()
        client.put_object(Bucket=bucket, Key=name, Body=stored[name], ChecksumAlgorithm="CRC64NVME")
    return bucket, stored


@pytest.fixture(params=["crt", "http"])
def place(request, name, seaweedfs, objects, fault_proxy, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    bucket, stored = objects
    place = Place(fault_proxy(seaweedfs), request.param, bucket, name, stored[name])
    yield place
    place.close()


def found_by(place, way):
    """The bytes that a way of reading finds; of a checkpoint those of its tensor."""
    found = {**WHOLE, **IN_PIECES}[way](place)
    return found["weights"].numpy().tobytes() if isinstance(found, dict) else found


@pytest.mark.promise(2)
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("way", [*WHOLE, *IN_PIECES])
def test_a_flipped_byte_is_never_silent(place, way, name):
    right = found_by(place, way)
    if "load" not in way:
        assert right == place.data
    # The first answer, and for a large object one in the middle.
    for skip in (0, 2) if name == "40-MiB" else (0,):
        rule = place.proxy.add(
            Fault.flip(20_000), method="GET", match=lambda r: r.key == name, skip=skip, times=1
        )
        if way in WHOLE:
            assert found_by(place, way) == right
        else:
            # torch.load puts an AttributeError in the place of what a file raises.
            with suppress(ChecksumMismatchError, *[AttributeError] * (way == "torch.load")):
                assert found_by(place, way) == right
        assert rule.hits == 1
        place.proxy.heal()
