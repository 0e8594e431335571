"""Fuzzes what datasets read: tar archives, manifests, indexes of archives and states.

Whatever the bytes are, only errors of s3torch may come out, in bounded time and memory. It needs ``atheris``,
which is no dependency of the project::

    pip install atheris
    python tools/fuzz/datasets.py -max_total_time=3600 -timeout=10 -rss_limit_mb=2048 corpus/

The arguments are those of libFuzzer. The first byte of an input chooses the target, ``TARGETS`` in order.
"""

# ruff: noqa: S101 - a fuzzer looks for assertions that do not hold

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

with atheris.instrument_imports(include=["s3torch.datasets"]):
    from s3torch.core.errors import ConfigurationError
    from s3torch.datasets._private_files import path_for_key
    from s3torch.datasets.order._epoch import Place, WorkerShard
    from s3torch.datasets.order._loader import S3Sampler
    from s3torch.datasets.order._merging import merge_states
    from s3torch.datasets.order._state import ObjectState, ShardState
    from s3torch.datasets.shards._tar_archive import (
        ArchiveError,
        ArchiveLimits,
        ForwardStream,
        GzipStream,
        group_members,
        read_members,
    )
    from s3torch.datasets.shards._tar_format import TarIndex
    from s3torch.datasets.sources._manifest import Manifest, format_of

if TYPE_CHECKING:
    from collections.abc import Callable

_MIB = 1024 * 1024


def _read_archive(file: object, limits: ArchiveLimits, *, seekable: bool) -> None:
    stream = ForwardStream(file, seekable=seekable, chunk=700, limits=lambda: limits)
    taken = 0

    def load(member: object) -> bytes:
        nonlocal taken
        data = stream.take(member.size)  # type: ignore[attr-defined]
        taken += len(data)
        return data

    keys = set()
    with suppress(ArchiveError):
        for sample in group_members(read_members(stream), load):
            assert not {"__key__", "__url__"} & sample.parts.keys()
            assert sample.key not in keys
            keys.add(sample.key)
    assert taken <= limits.end


class _Clamped(io.BytesIO):
    """Stays at its end, as readers of objects do."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return super().seek(min(offset, len(self.getbuffer())), whence)


def _tar(data: bytes) -> None:
    _read_archive(_Clamped(data), ArchiveLimits(len(data), len(data), "it"), seekable=True)
    _read_archive(io.BytesIO(data), ArchiveLimits(len(data), len(data), "it"), seekable=False)


def _compressed_tar(data: bytes) -> None:
    # The format makes a DamagedShardError of these.
    with suppress(EOFError, OSError, zlib.error):
        _read_archive(GzipStream(io.BytesIO(data)), ArchiveLimits(_MIB, 4 * _MIB, "it"), seekable=False)


def _tar_headers(data: bytes) -> None:
    """Gives each header a checksum that is right, which no mutation would find."""
    blocks = bytearray(data + bytes(-len(data) % 512))
    for start in range(0, len(blocks), 512):
        block = blocks[start : start + 512]
        if block[257:262] == b"ustar" or block[0] & 1:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            blocks[start : start + 512] = block
    _tar(bytes(blocks))
    _tar(bytes(blocks) + bytes(1024))


def _read_manifest(suffix: str, data: bytes) -> None:
    try:
        manifest = Manifest(format_of(suffix).decode(data))
    except ConfigurationError:
        return
    again = Manifest(format_of(suffix).decode(format_of(suffix).encode(manifest)))
    assert again.identity == manifest.identity


def _manifest(data: bytes) -> None:
    _read_manifest(".jsonl", data)


def _compressed_manifest(data: bytes) -> None:
    _read_manifest(".jsonl.gz", data)


def _index(data: bytes) -> None:
    try:
        index = TarIndex.from_json(data)
    except ConfigurationError:
        return
    assert TarIndex.from_json(index.to_json()).to_json() == index.to_json()
    for number in range(len(index)):
        place = index[number]
        assert 0 <= place.start <= place.stop <= index.size


def _state(data: bytes) -> None:
    try:
        state = json.loads(data)
    except (ValueError, RecursionError):
        return
    shard = WorkerShard(Place(), Place(0, 2))
    for read in (
        lambda: ObjectState.from_dict(state).resumed().for_shard(shard),
        lambda: ShardState.from_dict(state).taken_up([shard.strided]).to_dict(),
        lambda: S3Sampler(range(4)).load_state_dict(state),
        lambda: merge_states([state, state]),
    ):
        with suppress(ConfigurationError):
            read()


def _key(data: bytes) -> None:
    bucket, _, key = data.decode("utf-8", "surrogateescape").partition("\n")
    parts = path_for_key(bucket, key, ".index.json")
    place = Path("/folder").joinpath(*parts)
    assert len(parts) > 1
    assert place.parts[:2] == ("/", "folder")
    assert len(place.parts) == 2 + len(parts)
    assert all(len(part.encode()) <= 255 and part not in {"", ".", ".."} for part in parts)


TARGETS: list[Callable[[bytes], None]] = [
    _tar,
    _tar_headers,
    _compressed_tar,
    _manifest,
    _compressed_manifest,
    _index,
    _state,
    _key,
]


def _seeds() -> list[tuple[Callable[[bytes], None], bytes]]:
    archive = io.BytesIO()
    for layout in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(fileobj=archive, mode="w", format=layout) as tar:
            for name in ("d/a.jpg", "d/a.cls", "\xe4" * 120 + ".txt"):
                member = tarfile.TarInfo(name[:40] if layout == tarfile.USTAR_FORMAT else name)
                member.size = 5
                tar.addfile(member, io.BytesIO(b"bytes"))
    plain = archive.getvalue().rstrip(b"\0") + bytes(1024)
    line = b'{"bucket": "b", "key": "k", "size": 1, "etag": "e", "last_modified": 5, "version_id": "v"}\n'
    index = TarIndex("e", 4096, keys=["a"], parts=[1], suffixes=["jpg"], suffix=[0], offset=[512], length=[9])
    worker = WorkerShard().strided
    states = [
        ObjectState({}).to_dict(),
        ShardState({}).taken_up([worker]).to_dict(),
        S3Sampler(range(4)).state_dict(),
    ]
    return [
        *((target, plain) for target in (_tar, _tar_headers)),
        (_compressed_tar, gzip.compress(plain)),
        (_manifest, line),
        (_compressed_manifest, gzip.compress(line)),
        (_index, index.to_json()),
        *((_state, json.dumps(state).encode()) for state in states),
        (_key, b"bucket\n../../key"),
    ]


def run(data: bytes) -> None:
    """Runs the target that the first byte chooses."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


def main() -> None:
    """Writes the first inputs into the corpus, if there is one, and fuzzes."""
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    for folder in folders[:1]:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (target, data) in enumerate(_seeds()):
            (folder / f"seed-{number}").write_bytes(bytes([TARGETS.index(target)]) + data)
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
