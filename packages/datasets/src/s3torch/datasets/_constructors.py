"""What makes datasets of all kinds of the objects that a source lists."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from s3torch.core import parse_s3_uri
from s3torch.datasets.manifest import Manifest, ManifestSource
from s3torch.datasets.sources import GlobSource

if TYPE_CHECKING:
    import os
    from typing import Self

    from s3torch.datasets.sources import ObjectSource

_log = logging.getLogger(__name__)


class SourceConstructors:
    """Base of all datasets; not for direct use."""

    if TYPE_CHECKING:

        def __init__(self, region: str | None, get_dataset_objects: ObjectSource, **options: Any) -> None: ...

    @classmethod
    def from_glob(cls, s3_uri: str | os.PathLike[str], *, region: str | None = None, **options: Any) -> Self:
        """Makes a dataset of all objects that match a pattern, in listing order.

        ``*`` and ``?`` match within a folder, ``**/`` any number of folders, ``[a-z]`` one character,
        ``{a,b}`` either; see ``s3torch.core.globs``. Only what can match is listed.

        Args:
            s3_uri: As in ``"s3://bucket/train/**/*.jpg"``.
            region: The region.
            options: The other arguments of the class.

        Raises:
            ConfigurationError: The URI or another argument is wrong.
        """
        _log.info("Building %s from_glob s3_uri=%r", cls.__name__, s3_uri)
        return cls(region, GlobSource(parse_s3_uri(s3_uri)), **options)

    @classmethod
    def from_manifest(
        cls, manifest: str | os.PathLike[str] | Manifest, *, region: str | None = None, **options: Any
    ) -> Self:
        """Makes a dataset of the objects of a manifest, in its order; S3 is not asked for a listing.

        Every read is pinned to the ETag in the manifest: an object that was replaced since raises
        ``ObjectChangedError``, unless the manifest has its version, which is read then. States of the dataset
        can be resumed with the same manifest only.

        Args:
            manifest: The manifest, or where it was saved: an S3 URI or a local path, read at the first use.
            region: The region.
            options: The other arguments of the class.

        Raises:
            ConfigurationError: An argument is wrong.
        """
        _log.info("Building %s from_manifest", cls.__name__)
        return cls(region, ManifestSource(manifest), **options)
