"""Where the tensors of a conversion go: each kind of checkpoint, written part by part."""

from __future__ import annotations

import io
import math
import mmap
import pickle
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch.distributed.checkpoint._hf_utils import FORMAT_KEY, FORMAT_VALUE, _gen_file_name
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.serialization import skip_data

from s3torch.core.models import PutOptions
from s3torch.core.ranges import MIB
from s3torch.dcp._filesystem import S3FileSystem, path_text
from s3torch.dcp._metadata import METADATA_NAME, CheckpointError
from s3torch.dcp._tensors import bytes_of
from s3torch.dcp._writer import S3StorageWriter
from s3torch.dcp.converting._places import below, exists, fresh_folder, is_s3, removed_on_error, written
from s3torch.dcp.converting._sources import SUFFIX
from s3torch.dcp.hugging_face._safetensors import INDEX_NAME, Index, make_header, make_index, parse_index
from s3torch.dcp.loading._bands import Band, bands_of, windows
from s3torch.dcp.saving._commit import Commit

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    from torch.distributed.checkpoint.metadata import Metadata

    from s3torch.core import S3Client
    from s3torch.dcp.converting._sources import Shape, Source

# Bytes of tensors that are in memory at a time, for each file that is written.
WINDOW = 32 * MIB
_FILES = 4
_SHOWN = 5
# Linux: the pages of what is never touched are not accounted for.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


def _send(source: Source, names: Iterable[str], writer: Any) -> None:
    """Writes the bytes of tensors one after the other."""
    tensors = source.contents.tensors
    bands = (
        band
        for name in names
        for band in bands_of(name, tensors[name].dtype, tensors[name].sizes, limit=WINDOW)
    )
    for window in windows(bands, limit=WINDOW):
        for tensor in source.read(window):
            writer.write(bytes_of(tensor))


def write_safetensors(
    source: Source,
    target: str | os.PathLike[str],
    client: S3Client,
    *,
    max_shard_size: int | None,
    overwrite: bool,
) -> None:
    """Writes one file, or a folder of files with an index.

    Raises:
        CheckpointError: There is something else than tensors.
    """
    contents = source.contents
    if contents.objects:
        some = ", ".join(sorted(contents.objects)[:_SHOWN])
        raise CheckpointError(
            f"safetensors files hold only tensors, and {len(contents.objects)} values are not ({some}, …); "
            "choose a part of the checkpoint with a prefix, such as 'model.'"
        )
    place = path_text(target)
    if place.endswith(SUFFIX):
        _write_tensor_file(source, sorted(contents.tensors), place, client, overwrite=overwrite)
        return
    shards = _shards(contents.tensors, max_shard_size)
    plain = [_gen_file_name(number, len(shards)) for number in range(1, len(shards) + 1)]
    if not is_s3(place):
        with fresh_folder(place, _is_tensor_file, overwrite=overwrite) as folder:
            body = _write_shards(source, dict(zip(plain, shards, strict=True)), folder, client)
            Path(folder, INDEX_NAME).write_bytes(body)
        return
    index = below(place, INDEX_NAME)
    fs = S3FileSystem(None, client)
    commit = Commit(fs, place, INDEX_NAME, PutOptions(), lambda old: parse_index(old, uri=index).files)
    replaces = commit.exists(overwrite=overwrite)
    # As S3HuggingFaceStorageWriter names them: no file of a visible checkpoint is written over.
    save_id = uuid4().hex[:16]
    names = [f"{name.removesuffix(SUFFIX)}-{save_id}{SUFFIX}" for name in plain]
    with removed_on_error(client) as made:
        made += [below(place, name) for name in names]
        body = _write_shards(source, dict(zip(names, shards, strict=True)), place, client)
        commit.run(body, overwrite=overwrite, is_new=not replaces)


def _is_tensor_file(name: str) -> bool:
    return name == INDEX_NAME or name.endswith(SUFFIX)


def _write_shards(source: Source, shards: Mapping[str, list[str]], folder: str, client: S3Client) -> bytes:
    """Writes files with tensors; returns the index of them."""
    for file, names in shards.items():
        _write_tensor_file(source, names, below(folder, file), client, overwrite=False)
    weight_map = {name: file for file, names in shards.items() for name in names}
    total = sum(one.size for one in source.contents.tensors.values())
    return make_index(Index(weight_map), total_size=total)


def _shards(tensors: Mapping[str, Shape], limit: int | None) -> list[list[str]]:
    """Shares tensors out in the order of their names; one that is larger than a file has one of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(tensors):
        if shards[-1] and limit is not None and filled + tensors[name].size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensors[name].size
    return shards


def _write_tensor_file(
    source: Source, names: list[str], place: str | os.PathLike[str], client: S3Client, *, overwrite: bool
) -> None:
    tensors = source.contents.tensors
    # The widest elements first, so that each tensor is aligned.
    ordered = sorted(names, key=lambda name: (-tensors[name].dtype.itemsize, name))
    described = ((name, tensors[name].dtype, tensors[name].sizes) for name in ordered)
    header, _ = make_header(described, {FORMAT_KEY: FORMAT_VALUE})
    size = len(header) + sum(tensors[name].size for name in names)
    with written(place, client, size=size, overwrite=overwrite) as writer:
        writer.write(header)
        _send(source, ordered, writer)


def write_torch(source: Source, target: str | os.PathLike[str], client: S3Client, *, overwrite: bool) -> None:
    """Writes one file as ``torch.save`` does, without the CRC-32 of the records, which torch ignores.

    torch writes a file without the bytes of the tensors first, in which their places are left out; then it is
    copied with them.
    """
    contents = source.contents
    if not overwrite and exists(target, client):
        raise FileExistsError(f"{path_text(target)} already exists")
    flat: dict[str, Any] = {name: _hollow(shape) for name, shape in contents.tensors.items()}
    flat |= contents.objects
    paths = contents.paths
    state = flat if paths is None else unflatten_state_dict(flat, {name: paths[name] for name in flat})
    with tempfile.TemporaryDirectory(prefix="s3torch-") as folder:
        frame = Path(folder, "frame")
        with skip_data():
            torch.save(state, frame)
        places = _places(frame, flat, contents.tensors, paths)
        with (
            frame.open("rb") as holes,
            written(target, client, size=frame.stat().st_size, overwrite=overwrite) as writer,
        ):
            for start, name in places:
                writer.write(holes.read(start - holes.tell()))
                _send(source, [name], writer)
                holes.seek(start + contents.tensors[name].size)
            writer.write(holes.read())


def _hollow(shape: Shape) -> torch.Tensor:
    """Makes a tensor whose memory nobody touches, so that it takes none."""
    if not shape.size:
        return torch.empty(shape.sizes, dtype=shape.dtype)
    pages = mmap.mmap(-1, shape.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    return torch.frombuffer(pages, dtype=torch.uint8).view(shape.dtype).view(shape.sizes)


def _places(
    frame: Path,
    flat: Mapping[str, Any],
    tensors: Mapping[str, Shape],
    paths: Mapping[str, tuple[Any, ...]] | None,
) -> list[tuple[int, str]]:
    """Returns where in the file the bytes of each tensor belong, in that order."""
    reader: Any = torch._C.PyTorchFileReader(str(frame))
    records = _RecordNames(io.BytesIO(reader.get_record("data.pkl"))).load()
    places = []
    for name in flat:
        if name in tensors and tensors[name].size:
            record = records
            for step in (name,) if paths is None else paths[name]:
                record = record[step]
            places.append((int(reader.get_record_offset(f"data/{record}")), name))
    return sorted(places)


class _RecordNames(pickle.Unpickler):
    """Reads what was written a moment ago, with the names of their records in place of the tensors."""

    def persistent_load(self, pid: Any, /) -> Any:
        return pid[2]

    def find_class(self, module: str, name: str, /) -> Any:
        if name == "_rebuild_tensor_v2":
            return lambda record, *_: record
        return super().find_class(module, name)


def write_dcp(source: Source, target: str | os.PathLike[str], client: S3Client, *, overwrite: bool) -> None:
    """Writes a checkpoint as one rank does; large tensors in several parts."""
    place = path_text(target)
    if not is_s3(place):
        with fresh_folder(place, _is_dcp_file, overwrite=overwrite) as folder:
            # Several threads of torch's writer would lose the errors of each other.
            _save(source, FileSystemWriter(folder, thread_count=1))
        return
    writer = S3StorageWriter(None, place, s3_client=client, thread_count=_FILES, overwrite=overwrite)
    with removed_on_error(client) as made:
        writer.fs = _Recorded(client, made)
        _save(source, writer)


def _is_dcp_file(name: str) -> bool:
    return name == METADATA_NAME or name.endswith(".distcp")


def _save(source: Source, writer: Any) -> None:
    """Does what torch's save does for one rank; it would warn that there is only one."""
    planner = _BandPlanner(source)
    writer.set_up_storage_writer(is_coordinator=True)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    (plan,) = writer.prepare_global_plan(plans)
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])


class _Recorded(S3FileSystem):
    """Notes the data files that are written through it."""

    def __init__(self, client: S3Client, made: list[str]) -> None:
        super().__init__(None, client)
        self._made = made

    def create_stream(self, path: Any, mode: str, **how: Any) -> Any:
        text = path_text(path)
        if mode == "wb" and not text.endswith(METADATA_NAME):
            self._made.append(text)
        return super().create_stream(path, mode, **how)


class _BandPlanner(SavePlanner):
    """Plans a save of tensors that are read when their turn comes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._bands: dict[MetadataIndex, Band] = {}

    def set_up_planner(self, *_: Any, **__: Any) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        contents = self._source.contents
        items = [
            self._item(shape, band)
            for name, shape in contents.tensors.items()
            for band in self._cut(name, shape)
        ]
        items += [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in contents.objects]
        return SavePlan(items)

    @staticmethod
    def _cut(name: str, shape: Shape) -> Iterator[Band]:
        if not math.prod(shape.sizes):
            yield Band(name, shape.dtype, (0,) * len(shape.sizes), shape.sizes)
        yield from bands_of(name, shape.dtype, shape.sizes, limit=WINDOW)

    def _item(self, shape: Shape, band: Band) -> WriteItem:
        index = MetadataIndex(band.name, torch.Size(band.offsets))
        self._bands[index] = band
        chunk = ChunkStorageMetadata(torch.Size(band.offsets), torch.Size(band.sizes))
        data = TensorWriteData(chunk, TensorProperties(dtype=shape.dtype), torch.Size(shape.sizes))
        return WriteItem(index, WriteItemType.SHARD, tensor_data=data)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, metadata = create_default_global_save_plan(all_plans)
        contents = self._source.contents
        names = [*contents.tensors, *contents.objects]
        metadata.planner_data = contents.paths or {name: (name,) for name in names}
        return plans, metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            content = io.BytesIO()
            torch.save(self._source.contents.objects[write_item.index.fqn], content)
            return content
        band = self._bands[MetadataIndex(write_item.index.fqn, write_item.index.offset)]
        if 0 in band.sizes:
            return torch.empty(band.sizes, dtype=band.dtype)
        return self._source.read([band])[0]
