"""Files on S3 or on a disk: found, read and written in the same way."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from s3torch.core import parse_s3_uri
from s3torch.core.errors import NotFoundError, S3Error
from s3torch.core.models import PutOptions
from s3torch.core.ranges import MIB
from s3torch.core.transfer import read_again
from s3torch.dcp._filesystem import join_path, path_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core import S3Client

_PIECE = 8 * MIB


def is_s3(place: str | os.PathLike[str]) -> bool:
    """Whether a place is on S3."""
    return path_text(place).startswith("s3://")


def below(folder: str | os.PathLike[str], name: str) -> str:
    """Returns the place of a file in a folder."""
    return join_path(folder, name) if is_s3(folder) else str(Path(folder, name))


def names_in(folder: str | os.PathLike[str], client: S3Client) -> list[str]:
    """Lists the names of the files directly in a folder; of what is no folder there are none."""
    if not is_s3(folder):
        return sorted(path.name for path in Path(folder).iterdir()) if Path(folder).is_dir() else []
    bucket, key = parse_s3_uri(folder)
    prefix = f"{key.rstrip('/')}/" if key else ""
    pages = client.list_objects(bucket, prefix, "/")
    return [info.key.removeprefix(prefix) for page in pages for info in page.object_info]


def exists(place: str | os.PathLike[str], client: S3Client) -> bool:
    """Whether there is such a file."""
    return client.exists(*parse_s3_uri(place)) if is_s3(place) else Path(place).is_file()


def read_all(place: str | os.PathLike[str], client: S3Client) -> bytes:
    """Reads a small file."""
    return bytes(client.get_object(*parse_s3_uri(place)).read()) if is_s3(place) else Path(place).read_bytes()


def download(place: str | os.PathLike[str], target: Path, client: S3Client) -> None:
    """Writes an object to a file."""

    def fetch() -> None:
        with client.get_object(*parse_s3_uri(place)) as reader, target.open("wb") as file:
            while data := reader.read(_PIECE):
                file.write(data)

    read_again(fetch)


@contextmanager
def written(place: str | os.PathLike[str], client: S3Client, *, size: int, overwrite: bool) -> Iterator[Any]:
    """Writes a file, which appears at the end, whole; after an exception an older one stays.

    Args:
        place: Where it is to be.
        client: Serves the requests.
        size: About how long it will be.
        overwrite: Whether it may take the place of another.

    Raises:
        FileExistsError: There is one on the disk already.
        PreconditionFailedError: There is one on S3 already.
    """
    if is_s3(place):
        options = PutOptions() if overwrite else PutOptions(if_none_match="*")
        with client.put_object(*parse_s3_uri(place), options=options, expected_size=size) as writer:
            yield writer
        return
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:100]}.{uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            yield file
        if overwrite:
            part.replace(path)
        else:
            os.link(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


@contextmanager
def fresh_folder(place: str, is_own: Callable[[str], bool], *, overwrite: bool) -> Iterator[str]:
    """Fills a folder on a disk, which appears at the end, whole; after an exception an older one stays.

    Args:
        place: Where it is to be.
        is_own: Whether a file of this name belongs to such a checkpoint.
        overwrite: Whether it may take the place of another.

    Raises:
        FileExistsError: There is something that must not be replaced.
    """
    path = Path(place)
    others = [one.name for one in path.iterdir()] if path.exists() else []
    if others and not (overwrite and all(map(is_own, others))):
        why = f"other files than those of a checkpoint, such as {others[0]}" if overwrite else "files already"
        raise FileExistsError(f"{place} has {why}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:100]}.{uuid4().hex}.part")
    part.mkdir()
    try:
        yield str(part)
        if path.exists():
            old = path.with_name(f"{part.name}.old")
            path.rename(old)
            part.rename(path)
            shutil.rmtree(old)
        else:
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def removed_on_error(client: S3Client) -> Iterator[list[str]]:
    """Deletes the objects whose URIs the block has noted, where it raises."""
    made: list[str] = []
    try:
        yield made
    except BaseException:
        for bucket in {parse_s3_uri(uri).bucket for uri in made}:
            keys = [parse_s3_uri(uri).key for uri in made if parse_s3_uri(uri).bucket == bucket]
            with suppress(S3Error):
                client.delete_objects(bucket, keys)
        raise


def missing(place: str | os.PathLike[str]) -> NotFoundError:
    """Makes the error for a place where no checkpoint is."""
    return NotFoundError(f"there is no checkpoint at {path_text(place)}")
