"""A byte that flips on the way from files of which nobody has noted checksums of the pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save as safetensors_save
from torch.distributed.checkpoint.api import CheckpointException

from s3torch.core import ChecksumMismatchError
from s3torch.core.ranges import MIB
from s3torch.core.transfer import checksum
from s3torch.dcp import CheckpointError, S3HuggingFaceStorageReader, load_file, load_sharded
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")

FILE = "model/a.safetensors"


def file_loaded(place, _):
    return load_file(place.uri(FILE), client=place.client())


def folder_loaded(place, _):
    return load_sharded(place.uri("model"), client=place.client())


def state_loaded(place, state):
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(loaded, storage_reader=S3HuggingFaceStorageReader("us-east-1", place.uri("model"), place.config))
    return loaded


@pytest.fixture(params=["crt", "http"])
def proxied(request, seaweed_place, seaweedfs, fault_proxy):
    proxy = fault_proxy(seaweedfs)
    settings = {"endpoint": proxy.endpoint, "transport": request.param, "part_size": 5 * MIB}
    return replace(seaweed_place, config=replace(seaweed_place.config, **settings)), proxy


@pytest.mark.promise(2)
@pytest.mark.parametrize("load", [file_loaded, folder_loaded, state_loaded])
@pytest.mark.parametrize("rows", [100, 2000], ids=["one part", "parts"])
def test_a_flipped_byte_is_never_silent(proxied, load, rows):
    """A load of all tensors has all bytes, of which the store keeps a checksum."""
    place, proxy = proxied
    state = {"w": torch.randn(rows, 1000), "b": torch.arange(1000)}
    place.put(FILE, safetensors_save(state))
    proxy.clear()
    load(place, state)
    requests = proxy.requests(key=FILE)
    gets = sum(request.method == "GET" for request in requests)
    # The header, the tensors, and for several parts the question for the checksum.
    assert (gets, len(requests)) == ((2, 2) if rows == 100 else (3, 4))

    def flipped(skip, index):
        rule = proxy.add(Fault.flip(index), method="GET", key=FILE, skip=skip, times=1)
        loaded = load(place, state)
        proxy.remove(rule)
        assert rule.hits == 1
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)

    for skip in range(gets):
        flipped(skip, 50_000)
    proxy.add(Fault.flip(50_000), method="GET", key=FILE, skip=1)
    with pytest.raises((ChecksumMismatchError, CheckpointException), match="was stored"):
        load(place, state)


def test_parts_of_unequal_sizes_are_no_damage(proxied, seaweedfs):
    place, proxy = proxied
    state = {"w": torch.randn(3 * MIB)}
    data, client = safetensors_save(state), seaweedfs.client()
    upload = {"Bucket": place.bucket, "Key": FILE}
    begun = client.create_multipart_upload(**upload, ChecksumAlgorithm="CRC32", ChecksumType="COMPOSITE")
    upload["UploadId"], parts = begun["UploadId"], []
    for number, part in enumerate((data[: 5 * MIB], data[5 * MIB :]), start=1):
        told = {"ChecksumCRC32": checksum("CRC32", memoryview(part))[1]}
        etag = client.upload_part(**upload, PartNumber=number, Body=part, **told)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag, **told})
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, ChecksumType="COMPOSITE")
    for load in (file_loaded, folder_loaded, state_loaded):
        assert torch.equal(load(place, state)["w"], state["w"])
        proxy.add(Fault.flip(50_000), method="GET", key=FILE, match=lambda r: "attributes" not in r.query)
        with pytest.raises((ChecksumMismatchError, CheckpointException)):
            load(place, state)
        proxy.heal()


def test_a_part_of_a_file_is_loaded_as_before(proxied):
    place, proxy = proxied
    state = {"w": torch.randn(100, 1000), "b": torch.arange(1000)}
    place.put(FILE, safetensors_save(state))
    proxy.clear()
    assert torch.equal(state_loaded(place, {"b": state["b"]})["b"], state["b"])
    # Without the header, which nothing could be compared with.
    assert not proxy.requests("GET", key=FILE)[-1].headers["range"].startswith("bytes=0-")


@pytest.mark.promise(2)
@pytest.mark.parametrize("load", [file_loaded, folder_loaded])
def test_a_header_that_is_another_one_is_read_again(proxied, load):
    place, proxy = proxied
    state = {"w": torch.zeros(1000)}
    data = safetensors_save(state)
    place.put(FILE, data)
    etag = place.client().head_object(place.bucket, FILE).etag
    wrong = Fault.answer(data.replace(b'"w"', b'"v"').decode()) | Fault.header("ETag", etag)
    rule = proxy.add(wrong, method="GET", key=FILE, times=1)
    loaded = load(place, state)
    assert rule.hits == 1
    assert loaded.keys() == {"w"}
    assert torch.equal(loaded["w"], state["w"])


def test_a_header_that_cannot_be_read_is_an_error(proxied):
    place, proxy = proxied
    place.put(FILE, safetensors_save({"w": torch.ones(10)}))
    proxy.add(Fault.flip(8), method="GET", key=FILE, times=1)
    with pytest.raises(CheckpointError, match="the header of .* is damaged"):
        file_loaded(place, None)
