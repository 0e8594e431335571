"""Comparing the files of a checkpoint with what is known of them: sizes, and checksums of all pieces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from s3torch.core import parse_s3_uri
from s3torch.core.errors import S3Error
from s3torch.core.ranges import MIB
from s3torch.core.transfer import (
    PartedChecksum,
    checksum,
    checksum_type,
    compute_crc,
    encoded_crc,
    is_computable,
)
from s3torch.dcp._filesystem import join_path
from s3torch.dcp._metadata import CHECKSUMS, ItemChecksums
from s3torch.dcp.loading._checking import Check

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.distributed.checkpoint.metadata import Metadata

    from s3torch.core import S3Client
    from s3torch.dcp._metadata import FileFacts

Depth = Literal["sizes", "checksums", "bytes"]
_BUFFER = 16 * MIB


@dataclass(slots=True)
class KnownFile:
    """What is known of a file.

    Attributes:
        least: How many bytes it has at least.
        facts: What its writer has noted of it as a whole.
        checks: The checksums of its pieces.
    """

    least: int = 0
    facts: FileFacts | None = None
    checks: list[Check] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many bytes it should have, as far as that is known."""
        return self.least if self.facts is None else self.facts.size


def files_of(metadata: Metadata, facts: Mapping[str, FileFacts]) -> dict[str, KnownFile]:
    """Returns what the metadata of a checkpoint tells of its files, by their names.

    Raises:
        CheckpointError: What is noted is damaged.
    """
    files: dict[str, KnownFile] = {}
    for index, info in (metadata.storage_data or {}).items():
        file = files.setdefault(info.relative_path, KnownFile(facts=facts.get(info.relative_path)))
        file.least = max(file.least, info.offset + info.length)
        noted = ItemChecksums.of(getattr(info, CHECKSUMS, None), info.length)
        if noted is not None and is_computable(noted.algorithm):
            file.checks += (
                Check(info.offset + start, info.offset + stop, noted.algorithm, crc, index.fqn)
                for start, stop, crc in noted.pieces(info.length, 0, info.length)
            )
    return files


def compare_files(
    client: S3Client, uri: str, files: Mapping[str, KnownFile], sizes: Mapping[str, int], depth: Depth
) -> tuple[list[str], list[str]]:
    """Returns what is wrong with files, and of which there is no checksum."""
    problems: list[str] = []
    unchecked: list[str] = []
    for name, known in files.items():
        wrong = _wrong_size(name, sizes.get(name), known)
        if wrong is not None:
            problems.append(wrong)
        elif depth != "sizes":
            compare = _compare_stored if depth == "checksums" else _compare_bytes
            found = list(compare(client, join_path(uri, name), known))
            if depth == "bytes" and any(found):
                # What flipped on the way is right the next time.
                found = list(compare(client, join_path(uri, name), known))
            problems += (f"{name} {problem}" for problem in found if problem is not None)
            if None in found:
                unchecked.append(name)
    return problems, unchecked


def _wrong_size(name: str, found: int | None, known: KnownFile) -> str | None:
    if found is None:
        return f"{name} is missing"
    if known.facts is not None and found != known.size:
        return f"{name} has {found} bytes, not {known.size}"
    short = found < known.least
    return f"{name} has {found} bytes, but its items end at {known.least}" if short else None


def _compare_stored(client: S3Client, uri: str, known: KnownFile) -> Iterator[str | None]:
    """Yields what is wrong with the checksum that S3 has, and ``None`` where there is none to compare."""
    noted = None if known.facts is None else known.facts.checksum
    if noted is None:
        yield None
        return
    place = parse_s3_uri(uri)
    try:
        found = client.head_object(place.bucket, place.key).checksums.get(noted[0])
    except S3Error as exc:
        yield f"cannot be read: {exc}"
    else:
        yield from (None,) if found is None else _unlike(noted, found)


def _compare_bytes(client: S3Client, uri: str, known: KnownFile) -> Iterator[str | None]:
    """Yields what is wrong with the bytes, and ``None`` where some have no checksum."""
    place = parse_s3_uri(uri)
    noted = None if known.facts is None else known.facts.checksum
    # Of a checksum of the parts' checksums nothing tells where the parts were.
    noted = None if noted is None or "-" in noted[1] else noted
    if noted is None and not known.checks:
        yield None
        return
    try:
        with client.get_object(place.bucket, place.key) as reader:
            if noted is not None and checksum_type(noted[0]) == "COMPOSITE":
                found = checksum(noted[0], memoryview(reader.read()))
                yield from _unlike(noted, found[1] if found is not None else None)
            else:
                yield from _compare_pieces(reader, known, noted)
    except S3Error as exc:
        yield f"cannot be read: {exc}"


def _compare_pieces(reader: Any, known: KnownFile, noted: tuple[str, str] | None) -> Iterator[str | None]:
    parts = PartedChecksum(noted[0]) if noted is not None else None
    buffer = memoryview(bytearray(min(_BUFFER, max(1, known.size))))
    is_damaged = False
    for start, stop, check in _segments(known):
        if stop - start > len(buffer):
            buffer = memoryview(bytearray(stop - start))
        piece = buffer[: stop - start]
        filled = 0
        while filled < len(piece) and (count := reader.readinto(piece[filled:])):
            filled += count
        crc = None
        if check is not None:
            crc = compute_crc(check.algorithm, piece)
            if crc != check.crc:
                is_damaged = True
                found, saved = (encoded_crc(check.algorithm, one) for one in (crc, check.crc))
                where = f"in {check.name}: the bytes {start} to {stop}"
                yield f"has the {check.algorithm} {found}, not {saved}, {where}"
        elif parts is None:
            yield None
        if parts is not None and noted is not None:
            parts.add(piece, crc if check is not None and check.algorithm == noted[0] else None)
    if parts is not None and noted is not None and not is_damaged:
        yield from _unlike(noted, parts.value[1])


def _segments(known: KnownFile) -> Iterator[tuple[int, int, Check | None]]:
    """Yields all bytes of a file in order, with the checksums of those that have one."""
    position = 0
    for check in sorted(known.checks, key=lambda one: one.start):
        if check.start < position or check.stop > known.size:
            continue
        yield from (
            (at, min(at + _BUFFER, check.start), None) for at in range(position, check.start, _BUFFER)
        )
        yield check.start, check.stop, check
        position = check.stop
    yield from ((at, min(at + _BUFFER, known.size), None) for at in range(position, known.size, _BUFFER))


def _unlike(noted: tuple[str, str], found: str | None) -> Iterator[str]:
    if found != noted[1]:
        yield f"has the {noted[0]} {found}, not {noted[1]}"
