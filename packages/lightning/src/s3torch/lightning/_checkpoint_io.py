"""Checkpoints of a Lightning trainer on S3.

Lightning comes as ``lightning`` and as ``pytorch_lightning``, and a trainer of one does not know the classes
of the other. The plugin derives from the interface of the one that is in use, and is registered with both.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, cast

import torch

from s3torch.core import ConfigurationError, S3Client, UserAgent, parse_s3_uri
from s3torch.lightning.plugin import lightning_class, lightning_version

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from typing import IO

    from s3torch.core import S3ClientConfig, S3Reader

# The modules that define the interface.
_INTERFACES = ("lightning.fabric.plugins.io.checkpoint_io", "lightning_fabric.plugins.io.checkpoint_io")
# What makes a sharded checkpoint complete, and its other files: those of torch, and one of Lightning.
_METADATA = ".metadata"
_SHARDED_FILE = re.compile(r"(?:.*/)?[^/]*\d(?:-[0-9a-f]{16})?\.distcp|meta\.pt")


if TYPE_CHECKING:
    from lightning.fabric.plugins import CheckpointIO
else:
    CheckpointIO = lightning_class("CheckpointIO", *_INTERFACES)


class S3LightningCheckpoint(CheckpointIO):
    """Saves and loads checkpoints of a trainer on S3.

    Give it to a trainer: ``Trainer(plugins=[S3LightningCheckpoint("us-east-1")],
    default_root_dir="s3://bucket/run/")``. A checkpoint appears whole or not at all: when saving fails, what
    was there before stays. It works inside ``AsyncCheckpointIO``, can be pickled, and sends nothing before it
    is used.

    Lightning asks fsspec about folders and logs whatever the plugin is. That finds its region and endpoint in
    the usual AWS places, as in ``AWS_REGION`` and ``AWS_ENDPOINT_URL``, or in the configuration of fsspec.

    Args:
        region: The region of the bucket; ``None`` takes the usual AWS places.
        s3client_config: The settings of the client.
        endpoint: The URL of a store that speaks S3, for others than AWS.
        reader_constructor: How checkpoints are read; ``None`` is the sequential reader.
        storage_class: The storage class of new checkpoints, as in ``"INTELLIGENT_TIERING"``.
    """

    def __init__(
        self,
        region: str | None,
        s3client_config: S3ClientConfig | None = None,
        endpoint: str | None = None,
        *,
        reader_constructor: Callable[..., S3Reader] | None = None,
        storage_class: str | None = None,
    ) -> None:
        _register_everywhere(type(self))
        self.region = region
        self._reader_constructor = reader_constructor
        self._storage_class = storage_class
        self._client = S3Client(
            region,
            endpoint=endpoint,
            user_agent=UserAgent(["lightning", lightning_version() or ""]),
            s3client_config=s3client_config,
        )
        # Checkpoints that are single objects: removing one takes one request, and no listing.
        self._saved: set[tuple[str, str]] = set()

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a checkpoint as one object; a failure leaves the object that was there before.

        Args:
            checkpoint: What ``torch.save`` takes.
            path: The S3 URI; a path object is repaired where ``pathlib`` has taken a slash.
            storage_options: May have ``storage_class``.

        Raises:
            ConfigurationError: The path is no URI of an object, or an option is unknown.
            S3Error: The checkpoint could not be stored.
        """
        bucket, key = _split(path)
        options = dict(storage_options or {})
        storage_class = options.pop("storage_class", self._storage_class)
        if options:
            raise ConfigurationError(
                f"unknown storage_options {', '.join(sorted(options))}; known is storage_class"
            )
        with self._client.put_object(bucket, key, storage_class) as writer:
            torch.save(checkpoint, cast("IO[bytes]", writer))
        self._saved.add((bucket, key))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Loads a checkpoint.

        Args:
            path: The S3 URI.
            map_location: As ``torch.load`` takes it.
            weights_only: As ``torch.load`` takes it. ``None`` leaves it to torch from Lightning 2.6 on, and
                is False before.

        Raises:
            NotFoundError: There is no such checkpoint.
            S3Error: It could not be read.
        """
        bucket, key = _split(path)
        if weights_only is None and not _passes_none_to_torch():
            weights_only = False
        with self._client.get_object(bucket, key, reader_constructor=self._reader_constructor) as reader:
            checkpoint: dict[str, Any] = torch.load(
                cast("IO[bytes]", reader), map_location, weights_only=weights_only
            )
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a checkpoint: the object, and the files of a sharded one; a missing one is fine.

        A sharded one has ``.metadata`` below its path. That goes first, then the ``.distcp`` files and what
        Lightning has put beside them. All other objects there stay, and so do other checkpoints below it.

        Args:
            path: The S3 URI.

        Raises:
            S3Error: Something could not be removed.
        """
        bucket, key = _split(path)
        self._client.delete_object(bucket, key)
        if (bucket, key) in self._saved:
            self._saved.discard((bucket, key))
            return
        folder = f"{key.rstrip('/')}/"
        pages = self._client.list_objects(bucket, folder)
        names = [info.key.removeprefix(folder) for page in pages for info in page.object_info]
        if _METADATA not in names:
            return
        others = tuple(name.removesuffix(_METADATA) for name in names if name.endswith(f"/{_METADATA}"))
        files = [name for name in names if _SHARDED_FILE.fullmatch(name) and not name.startswith(others)]
        self._client.delete_object(bucket, folder + _METADATA)
        for failure in self._client.delete_objects(bucket, [folder + name for name in files]):
            raise failure.error(bucket)

    def teardown(self) -> None:
        """Closes the connections; the next use opens new ones, because a trainer may run again."""
        self._client.close()


def _split(path: str | os.PathLike[str]) -> tuple[str, str]:
    bucket, key = parse_s3_uri(path)
    # Without a key, the checkpoint would be the whole bucket.
    if not key.strip("/"):
        raise ConfigurationError(f"expected s3://bucket/key of a checkpoint, got {path!r}")
    return bucket, key


def _passes_none_to_torch() -> bool:
    """Whether this Lightning leaves ``weights_only=None`` to torch; it meant False before 2.6."""
    major, minor = (lightning_version() or "2.6").split(".")[:2]
    return (int(major), int(minor)) >= (2, 6)


def _register_everywhere(cls: type) -> None:
    """Makes a class pass as a ``CheckpointIO`` in every distribution of Lightning that is in use."""
    for module in map(sys.modules.get, _INTERFACES):
        if module is not None and not issubclass(cls, module.CheckpointIO):
            module.CheckpointIO.register(cls)
