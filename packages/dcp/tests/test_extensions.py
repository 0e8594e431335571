"""Stream extensions, which transform each item on its way: both ways, with ours and with torch's own."""

from __future__ import annotations

import zlib
from io import BytesIO, RawIOBase

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import _extension
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex

from s3torch.core import AccessDeniedError, ConfigurationError, S3ReaderConstructor
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


class Zipped(_extension.StreamTransformExtension):
    """Compresses each item; its reader cannot seek."""

    @staticmethod
    def registry_name():
        return "test.zlib"

    @staticmethod
    def from_descriptor(version):
        assert version == "7"
        return Zipped()

    def get_descriptor(self):
        return "test.zlib/7"

    def transform_to(self, output):
        class Writer(RawIOBase):
            packer = zlib.compressobj()

            def write(self, data):
                output.write(self.packer.compress(data))
                return len(memoryview(data).cast("B"))

            def close(self):
                if not self.closed:
                    output.write(self.packer.flush())
                    output.close()
                super().close()

        return Writer()

    def transform_from(self, raw):
        class Reader(BytesIO):
            def seekable(self):
                return False

        return Reader(zlib.decompress(raw.read(-1)))


KINDS = {
    "zlib": [Zipped()],
    "zstandard": [_extension.ZStandard()],
    "both": [Zipped(), _extension.ZStandard()],
}


@pytest.fixture
def registry():
    """Knows the extension of these tests beside those of torch."""
    registry = _extension.ExtensionRegistry()
    registry.register(Zipped)
    return registry


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_ours_reads_ours(place, state, blank_of, are_same, registry, kind, threads):
    writer = place.writer(_extensions=KINDS[kind], thread_count=threads)
    metadata = dcp.save(state | {"zeros": torch.zeros(100_000)}, storage_writer=writer)
    names = [one.get_descriptor() for one in KINDS[kind]]
    assert all(sorted(at.transform_descriptors) == sorted(names) for at in metadata.storage_data.values())
    assert metadata.storage_data[MetadataIndex("zeros", [0])].length < 10_000
    for constructor in (None, S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based()):
        loaded = blank_of(state)
        reader = place.reader(_extension_registry=registry, reader_constructor=constructor)
        dcp.load(loaded, storage_reader=reader)
        assert are_same(loaded, state)


# With several, torch cannot read what it has written itself.
@pytest.mark.parametrize("kind", ["zlib", "zstandard"])
def test_torch_reads_ours(place, state, blank_of, are_same, registry, kind, tmp_path):
    dcp.save(state, storage_writer=place.writer(_extensions=KINDS[kind], thread_count=2))
    place.download("checkpoint", tmp_path)
    for reader in (dcp.FileSystemReader(tmp_path, registry), FsspecReader(f"file://{tmp_path}")):
        reader.transforms.extension_registry = registry
        loaded = blank_of(state)
        dcp.load(loaded, storage_reader=reader)
        assert are_same(loaded, state)


@pytest.mark.parametrize("make", [dcp.FileSystemWriter, FsspecWriter])
@pytest.mark.parametrize("kind", KINDS)
def test_ours_reads_what_torch_wrote(place, state, blank_of, are_same, registry, kind, make, tmp_path):
    folder = tmp_path if make is dcp.FileSystemWriter else f"file://{tmp_path}"
    dcp.save(state, storage_writer=make(folder, _extensions=KINDS[kind]))
    place.upload(tmp_path, "checkpoint")
    loaded = blank_of(state)
    dcp.load(loaded, storage_reader=place.reader(_extension_registry=registry))
    assert are_same(loaded, state)


def test_torch_knows_zstandard_without_being_told(place, state, blank_of, are_same):
    dcp.save(state, storage_writer=place.writer(_extensions=KINDS["zstandard"]))
    loaded = blank_of(state)
    dcp.load(loaded, storage_reader=place.reader())
    assert are_same(loaded, state)


def test_an_extension_that_the_reader_does_not_know(place, state, blank_of):
    dcp.save(state, storage_writer=place.writer(_extensions=KINDS["zlib"]))
    with pytest.raises(CheckpointException, match="Unknown extension name='test.zlib'"):
        dcp.load(blank_of(state), storage_reader=place.reader())


@pytest.mark.parametrize("threads", [1, 2])
def test_an_upload_that_breaks_within_an_extension_is_told_as_it_is(
    seaweed_place, seaweedfs, fault_proxy, threads
):
    proxy = fault_proxy(seaweedfs)
    proxy.add(Fault.error(403, "AccessDenied"), method="PUT", key="__0_0")
    writer = seaweed_place.writer(
        _extensions=KINDS["zstandard"], thread_count=threads, endpoint=proxy.endpoint
    )
    state = {"a": torch.rand(3_000_000), "b": torch.rand(10)}
    with pytest.raises(CheckpointException) as caught:
        dcp.save(state, storage_writer=writer)
    assert isinstance(caught.value.failures[0][0], AccessDeniedError)
    assert "checkpoint/.metadata" not in seaweed_place.listed()


def test_bytes_that_are_damaged(place):
    dcp.save({"a": torch.zeros(1000)}, storage_writer=place.writer(_extensions=KINDS["zstandard"]))
    key = place.key("checkpoint/__0_0.distcp")
    data = bytearray(place.get(key))
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    place.put(key, data)
    with pytest.raises(CheckpointException):
        dcp.load({"a": torch.zeros(1000)}, storage_reader=place.reader())


def test_safetensors_files_have_no_extensions(place):
    with pytest.raises(ConfigurationError, match="TORCH_SAVE only"):
        place.writer(
            _extensions=KINDS["zstandard"],
            serialization_format=dcp.filesystem.SerializationFormat.SAFETENSORS,
        )
