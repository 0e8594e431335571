"""Plain state dicts as safetensors files on S3."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from s3torch.core import S3Client
from s3torch.core.ranges import plan_parts
from s3torch.core.transfer.fetching import fetch
from s3torch.core.uri import parse_s3_uri
from s3torch.dcp.errors import CheckpointError
from s3torch.dcp.header_reading import read_headers
from s3torch.dcp.host_values import HostValues
from s3torch.dcp.hugging_face import S3HuggingFaceStorageReader
from s3torch.dcp.pieces import memory_of
from s3torch.dcp.saving import bytes_of
from s3torch.dcp.tensor_files import make_header

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from s3torch.core import PutOptions
    from s3torch.dcp.tensor_files import FileTensor

__all__ = ["load_file", "load_sharded", "save_file"]

# As much as torch's own storage writer copies ahead from an accelerator.
_COPIED_AHEAD = 10_000_000


def save_file(
    tensors: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    options: PutOptions | None = None,
    client: S3Client | None = None,
) -> None:
    """Saves tensors as one safetensors file, as ``safetensors.torch.save_file`` does.

    The tensors are sent from their memory, part by part; the file appears when it is complete.

    Args:
        tensors: The tensors by name, on any device. Those that share memory are stored once each.
        path: The URI of the file.
        metadata: Texts that are stored with them.
        options: How the object is stored.
        client: Serves the requests; ``None`` makes one from the environment.

    Raises:
        CheckpointError: A value is no tensor, or of a type that the format does not have.
    """
    bucket, key = parse_s3_uri(path)
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{name!r} is a {kind}; a safetensors file holds only tensors")
    # The widest elements first, so that each tensor is aligned.
    names = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    described = ((name, tensors[name].dtype, tensors[name].shape) for name in names)
    header, _ = make_header(described, metadata)
    with (client or S3Client()).put_object(bucket, key, options=options) as writer:
        writer.write(header)
        for value in HostValues(names, tensors.__getitem__, ahead=_COPIED_AHEAD):
            if value.is_plain:
                value.send(writer)
            else:
                writer.write(bytes_of(value.data))


def load_file(
    path: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    client: S3Client | None = None,
) -> dict[str, torch.Tensor]:
    """Loads all tensors of a safetensors file, as ``safetensors.torch.load_file`` does.

    Many ranges are in flight, and their bytes go straight into the tensors.

    Args:
        path: The URI of the file.
        device: Where the tensors go.
        client: Serves the requests; ``None`` makes one from the environment.

    Raises:
        NotFoundError: There is no such file.
        CheckpointError: It is not in the format.
    """
    bucket, key = parse_s3_uri(path)
    client = client or S3Client()
    source = client.open_ranges(bucket, key)
    header = read_headers({str(path): source})[str(path)]
    target = torch.device(device)
    pieces = [_Filling(one, target) for one in header.tensors]
    parts = plan_parts(
        [one for one in pieces if one.start < one.stop], part_size=source.part_size, max_gap=None
    )
    loaded = {one.name: one.take() for one in pieces if one.start == one.stop}
    with closing(fetch([(source, parts)])) as arrived:
        for piece in arrived:
            loaded[piece.name] = piece.take()
    return {one.name: loaded[one.name] for one in header.tensors}


def load_sharded(
    path: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    client: S3Client | None = None,
) -> dict[str, torch.Tensor]:
    """Loads all tensors of a folder with safetensors files, as one state dict.

    An index, where there is one, tells which files count; parts of tensors are put together.

    Args:
        path: The URI of the folder.
        device: Where the tensors go.
        client: Serves the requests; ``None`` makes one from the environment.

    Raises:
        NotFoundError: There is no safetensors file.
        CheckpointError: A file is not in the format, or something is missing or there twice.
    """
    reader = S3HuggingFaceStorageReader(None, path, s3_client=client)
    metadata = reader.read_metadata()
    described = sorted(metadata.state_dict_metadata.items())
    loaded = {
        name: torch.empty(one.size, dtype=one.properties.dtype, device=device)
        for name, one in described
        if isinstance(one, TensorStorageMetadata)
    }
    planner = DefaultLoadPlanner()
    planner.set_up_planner(loaded, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(planner.finish_plan(planner.create_local_plan()), planner).wait()
    return loaded


class _Filling:
    """A tensor that is being filled."""

    def __init__(self, place: FileTensor, device: torch.device) -> None:
        self.name = place.name
        self.start = place.start
        self.stop = place.stop
        # What stays on the CPU is the result itself, and not held only for a while.
        self.held = 0 if device.type == "cpu" else place.stop - place.start
        self._place = place
        self._device = device
        self._tensor: torch.Tensor | None = None

    def open(self) -> memoryview:
        """Returns the memory that takes the bytes."""
        return memory_of(self._memory())

    def take(self) -> torch.Tensor:
        """Returns the tensor where it is wanted."""
        tensor, self._tensor = self._memory(), None
        return tensor.to(self._device)

    def _memory(self) -> torch.Tensor:
        if self._tensor is None:
            self._tensor = torch.empty(self._place.sizes, dtype=self._place.dtype)
        return self._tensor
