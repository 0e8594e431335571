"""What saves that were not completed have left, in all folders below one."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from s3torch.core import parse_s3_uri
from s3torch.dcp._filesystem import S3FileSystem, join_path
from s3torch.dcp._metadata import CheckpointError
from s3torch.dcp.manage import _named
from s3torch.dcp.saving._commit import complete_folders, orphans, own_objects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from s3torch.core import ObjectInfo, S3Client


def leftovers_below(client: S3Client, uri: str, older_than: timedelta) -> Iterator[ObjectInfo]:
    """Yields the objects, with their whole keys, that ``sweep_checkpoint`` would remove in each folder.

    A folder whose checkpoint is damaged is left alone, with a warning.
    """
    fs, limit = S3FileSystem(None, client), time.time() - older_than.total_seconds()
    everything = list(fs.walk_objects(uri))
    # What is in no complete checkpoint belongs to the folder above all.
    for folder in {"", *complete_folders(everything)}:
        prefix = f"{folder}/" if folder else ""
        inside = [
            replace(info, key=info.key.removeprefix(prefix))
            for info in everything
            if info.key.startswith(prefix)
        ]
        own = own_objects(inside)
        place = join_path(uri, folder) if folder else uri
        try:
            named = set(_named(fs, place, own))
        except CheckpointError as exc:
            warnings.warn(f"{place} is left alone: {exc}", stacklevel=2)
            continue
        for info in orphans(own, named):
            if info.last_modified < limit:
                yield replace(info, key=parse_s3_uri(join_path(place, info.key)).key)
