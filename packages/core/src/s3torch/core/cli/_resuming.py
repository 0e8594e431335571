"""Uploads of ``cp --resume``: what an interrupted one leaves in S3, and a note of it on this machine."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from s3torch.core import S3Writer, requests
from s3torch.core._writers import PutObjectStream
from s3torch.core.models import MultipartUpload
from s3torch.core.ranges import planned_part_size
from s3torch.core.transfer._checksums import usable_algorithm
from s3torch.core.transfer._resumed import ResumedUpload, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core import PutOptions, S3Client, S3Uri


def has_parts(client: S3Client, size: int) -> bool:
    """Whether a file of this size is uploaded in more than one part, so that an upload can be resumed."""
    return size > planned_part_size(size, client._handle.get().config.part_size)


@contextmanager
def resumable_writer(
    client: S3Client, source: Path, file: BinaryIO, target: S3Uri, options: PutOptions
) -> Iterator[S3Writer]:
    """Writes an object through the upload that an earlier command began for this file, or a new one.

    If something is raised, the parts that S3 has stay for the next command, unless the file has changed.

    Args:
        client: Serves the requests.
        source: The file.
        file: The same, open.
        target: Where it goes.
        options: How it is stored.
    """
    handle = client._handle
    facts = os.fstat(file.fileno())
    state = (facts.st_size, facts.st_mtime_ns)
    options = client.s3client_config.options_of(options)
    algorithm = usable_algorithm(handle.get().config.upload_checksum)
    # Another file, another state of it and other settings have another note.
    identity = (str(source.resolve()), *state, client.endpoint, target, algorithm, options)
    note = _folder() / hashlib.sha256(repr(identity).encode()).hexdigest()
    upload_id = note.read_text(encoding="utf-8") if note.exists() else ""
    multipart = MultipartUpload(*target, upload_id)
    stored = parts_of(handle, multipart) if upload_id else None
    if stored is None:
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        begin = requests.create_multipart_upload(*target, options=options, checksum_algorithm=algorithm)
        multipart = handle.call(begin)
        note.write_text(multipart.upload_id, encoding="utf-8")
    upload = ResumedUpload(handle, multipart, stored or [], options, expected_size=facts.st_size)
    try:
        with S3Writer(PutObjectStream(upload)) as writer:
            yield writer
    except BaseException:
        facts = os.fstat(file.fileno())
        if (facts.st_size, facts.st_mtime_ns) != state:
            handle.call(requests.abort_multipart_upload(multipart))
            note.unlink()
        raise
    note.unlink()


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "s3torch", "uploads")
