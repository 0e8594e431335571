"""Writes the items of a file as torch's own writer does: each as a whole archive of ``torch.save``."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult

from s3torch.dcp.archive_frames import archive_frame
from s3torch.dcp.archives import HEAD_SIZE, TensorLayout, find_content
from s3torch.dcp.errors import CheckpointError
from s3torch.dcp.host_values import is_plain
from s3torch.dcp.pieces import memory_of
from s3torch.dcp.plan import NOTE

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import WriteItem

    from s3torch.dcp.host_values import HostValue

__all__ = ["ArchiveWriter"]


class ArchiveWriter:
    """Writes items to one file, one after the other.

    Of a plain tensor only what stands around its bytes is made here. All other tensors, and those that go
    through an extension, are left to ``torch.save``.

    Args:
        stream: The file.
        name: How the metadata calls it.
        transforms: The extensions of torch's writer.
    """

    def __init__(self, stream: Any, name: str, transforms: Any) -> None:
        self._stream = stream
        self._name = name
        self._transforms = transforms

    def write(self, value: HostValue[WriteItem]) -> WriteResult:
        """Writes one item and returns where it is."""
        frame = None
        if value.is_plain and not self._transforms.extensions:
            frame = archive_frame(value.data.dtype, tuple(value.data.shape))
        offset = self._stream.tell()
        if frame is None:
            descriptors, layout = self._write_whole(value.item, value.on_host())
        else:
            descriptors, layout = [], frame.layout
            self._stream.write(frame.head)
            value.send(self._stream)
            self._stream.write(frame.tail)
        length = self._stream.tell() - offset
        place = _StorageInfo(self._name, offset, length, transform_descriptors=descriptors or None)
        if layout is not None:
            setattr(place, NOTE, layout.note())
        return WriteResult(index=value.item.index, size_in_bytes=length, storage_data=place)

    def _write_whole(self, item: WriteItem, data: Any) -> tuple[list[str], TensorLayout | None]:
        target = _Target(self._stream)
        if isinstance(data, torch.Tensor):
            data = _without_rest(data)
        try:
            descriptors = self._write_value(target, item, data)
        except Exception as exc:
            if target.error is None or target.error is exc:
                raise
            raise target.error from exc
        layout = None
        if not descriptors and isinstance(data, torch.Tensor) and is_plain(data):
            start = find_content(bytes(target.head))
            if start is not None:
                layout = TensorLayout(start, data.dtype, tuple(data.shape))
        return descriptors, layout

    def _write_value(self, target: _Target, item: WriteItem, data: Any) -> list[str]:
        stream: Any = target
        descriptors: list[str] = []
        if self._transforms.extensions:
            stream, descriptors = self._transforms.transform_save_stream(item, target)
        if isinstance(data, io.BytesIO):
            stream.write(data.getbuffer())
        elif isinstance(data, torch.Tensor):
            torch.save(data, stream)
        else:
            raise CheckpointError(f"{item.index} is a {type(data).__name__}, not a tensor or a BytesIO")
        if descriptors:
            # The end of the transformed item; torch keeps it from the file itself.
            stream.close()
        return descriptors


class _Target(io.IOBase):
    """What ``torch.save`` writes to. It keeps the first error: torch puts others in its place.

    The C++ code of torch calls ``write``; when that fails, it fails again while it cleans up, with an
    error about an unexpected position.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: BaseException | None = None
        # The first bytes of the item.
        self.head = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if len(self.head) < HEAD_SIZE:
            self.head += memoryview(data).cast("B")[: HEAD_SIZE - len(self.head)]
        try:
            return int(self._stream.write(data))
        except BaseException as exc:
            self.error = self.error or exc
            raise

    def tell(self) -> int:
        return int(self._stream.tell())


def _without_rest(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor whose storage has nothing else; of a view, torch would save the whole storage."""
    if tensor.untyped_storage().size() == tensor.nbytes:
        return tensor
    if is_plain(tensor):
        return torch.frombuffer(memory_of(tensor), dtype=tensor.dtype).view(tensor.shape)
    return tensor.clone()
