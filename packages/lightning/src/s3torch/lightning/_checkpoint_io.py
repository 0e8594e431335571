"""Checkpoints of a Lightning trainer on S3.

Lightning comes as ``lightning`` and as ``pytorch_lightning``, and a trainer of one does not know the classes
of the other. The plugin derives from the interface of the one that is in use, and is registered with both.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from s3torch.core import ConfigurationError, PutOptions, S3Client, S3Uri, UserAgent
from s3torch.core.transfer import read_again
from s3torch.lightning._background import BackgroundSaves
from s3torch.lightning._paths import METADATA, checkpoint_uri
from s3torch.lightning._shared_load import load_from_rank_0, ranks_are_many
from s3torch.lightning.plugin import lightning_class, lightning_version

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from typing import IO

    from s3torch.core import S3ClientConfig, S3Reader
    from s3torch.lightning._background import StagingBuffer

# The modules that define the interface.
_INTERFACES = ("lightning.fabric.plugins.io.checkpoint_io", "lightning_fabric.plugins.io.checkpoint_io")
# The files of a sharded checkpoint besides the metadata: those of torch, and one of Lightning.
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

    With ``async_save=True`` training goes on as soon as a checkpoint was copied into memory of this process,
    which is used again for later ones; a thread uploads them in their order. A checkpoint is removed only
    when the one that was saved before is complete. An upload that fails is raised by the next save, which is
    carried out nevertheless, by a load of that checkpoint, by ``wait()``, and at the end of ``fit``, which
    waits for all. Whoever kills the process in between finds the newest complete checkpoint.

    When a trainer restores a checkpoint in several ranks, one downloads it and hands it to the others.

    Lightning asks fsspec about folders and logs whatever the plugin is. That finds its region and endpoint in
    the usual AWS places, as in ``AWS_REGION`` and ``AWS_ENDPOINT_URL``, or in the configuration of fsspec.

    Args:
        region: The region of the bucket; ``None`` takes the usual AWS places.
        s3client_config: The settings of the client.
        endpoint: The URL of a store that speaks S3, for others than AWS.
        reader_constructor: How checkpoints are read; ``None`` is the sequential reader.
        storage_class: The storage class of new checkpoints, as in ``"INTELLIGENT_TIERING"``.
        async_save: Uploads in the background.
        max_pending: How many checkpoints may be in memory for that; a save waits until there are fewer.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    def __init__(
        self,
        region: str | None,
        s3client_config: S3ClientConfig | None = None,
        endpoint: str | None = None,
        *,
        reader_constructor: Callable[..., S3Reader] | None = None,
        storage_class: str | None = None,
        async_save: bool = False,
        max_pending: int = 2,
    ) -> None:
        _register_everywhere(type(self))
        self.region = region
        self._reader_constructor = reader_constructor
        self._storage_class = storage_class
        self._background = BackgroundSaves(max_pending) if async_save else None
        self._client = S3Client(
            region,
            endpoint=endpoint,
            user_agent=UserAgent(["lightning", lightning_version() or ""]),
            s3client_config=s3client_config,
        )
        # Checkpoints that are single objects: removing one takes one request, and no listing.
        self._saved: set[S3Uri] = set()
        # Whether all ranks load now, as they do while a trainer restores its state.
        self._all_ranks_load = False

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
            S3Error: The checkpoint could not be stored; with ``async_save``, an earlier one.
        """
        uri = checkpoint_uri(path)
        options = dict(storage_options or {})
        storage_class = options.pop("storage_class", self._storage_class)
        if options:
            raise ConfigurationError(
                f"unknown storage_options {', '.join(sorted(options))}; known is storage_class"
            )
        if self._background is not None:
            self._background.save(uri, checkpoint, partial(self._store, uri, storage_class))
            return
        with self._client.put_object(*uri, storage_class) as writer:
            torch.save(checkpoint, cast("IO[bytes]", writer))
        self._saved.add(uri)

    def _store(self, uri: S3Uri, storage_class: str | None, buffer: StagingBuffer) -> None:
        with self._client.put_object(*uri, storage_class, expected_size=len(buffer)) as writer:
            for piece in buffer.pieces():
                writer.lend(piece)
        self._saved.add(uri)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Loads a checkpoint, after all saves in the background are done.

        Args:
            path: The S3 URI.
            map_location: As ``torch.load`` takes it.
            weights_only: As ``torch.load`` takes it. ``None`` leaves it to torch from Lightning 2.6 on, and
                is False before.

        Raises:
            NotFoundError: There is no such checkpoint.
            S3Error: It could not be read, or it could not be saved before.
        """
        uri, together = checkpoint_uri(path), self._all_ranks_load
        return self._load(uri, map_location, weights_only=weights_only, together=together)

    def _load(
        self, uri: S3Uri, map_location: Any, *, weights_only: bool | None, together: bool
    ) -> dict[str, Any]:
        self._wait_for(uri)
        open_reader = partial(self._client.get_object, *uri, reader_constructor=self._reader_constructor)

        def load() -> dict[str, Any]:
            with load_from_rank_0(open_reader) if together and ranks_are_many() else open_reader() as opened:
                file = cast("IO[bytes]", opened)
                try:
                    checkpoint: dict[str, Any] = torch.load(
                        file, map_location, weights_only=as_torch_takes_it(weights_only)
                    )
                except AttributeError:
                    # torch puts it in the place of what a file raises; a reader that failed raises again.
                    file.read(0)
                    raise
            return checkpoint

        return read_again(load)

    def _wait_for(self, uri: S3Uri) -> None:
        if self._background is not None:
            self._background.wait()
            self._background.raise_failures(uri)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a checkpoint: the object, and the files of a sharded one; a missing one is fine.

        A sharded one has ``.metadata`` below its path. That goes first, then the ``.distcp`` files and what
        Lightning has put beside them. All other objects there stay, and so do other checkpoints below it.
        With ``async_save`` this happens when the checkpoint that was saved last is complete; if that has
        failed, nothing is removed.

        Args:
            path: The S3 URI.

        Raises:
            S3Error: Something could not be removed.
        """
        uri = checkpoint_uri(path)
        if self._background is None:
            self._remove(uri)
        else:
            self._background.remove(uri, partial(self._remove, uri))

    def wait(self) -> None:
        """Waits for saves in the background and raises what has failed; does nothing without ``async_save``.

        A trainer does so at the end of ``fit``. Call it after ``Trainer.save_checkpoint`` outside of that.

        Raises:
            S3Error: A checkpoint could not be stored or removed.
        """
        if self._background is not None:
            self._background.wait()
            self._background.raise_failures()

    def teardown(self) -> None:
        """Waits as ``wait()`` does, and closes the connections.

        The next use opens new ones, because a trainer may run again.
        """
        try:
            if self._background is not None:
                self._background.close()
        finally:
            self._client.close()

    def _copy(self, source: S3Uri, target: S3Uri) -> None:
        """Makes a second checkpoint of one, within S3, of the storage class of new ones."""

        def work() -> None:
            options = None if self._storage_class is None else PutOptions(storage_class=self._storage_class)
            self._client.copy_object(*source, *target, options=options)
            self._saved.add(target)

        if self._background is None:
            work()
        else:
            self._background.copy(target, work)

    def _is_pending(self, uri: S3Uri) -> bool:
        return self._background is not None and self._background.is_pending(uri)

    def _remove(self, uri: S3Uri) -> None:
        self._client.delete_object(*uri)
        if uri in self._saved:
            self._saved.discard(uri)
        else:
            self._remove_shards(uri)

    def _remove_shards(self, uri: S3Uri) -> None:
        bucket, folder = uri.bucket, f"{uri.key.rstrip('/')}/"
        pages = self._client.list_objects(bucket, folder)
        names = [info.key.removeprefix(folder) for page in pages for info in page.object_info]
        if METADATA not in names:
            return
        others = tuple(name.removesuffix(METADATA) for name in names if name.endswith(f"/{METADATA}"))
        files = [name for name in names if _SHARDED_FILE.fullmatch(name) and not name.startswith(others)]
        self._client.delete_object(bucket, folder + METADATA)
        for failure in self._client.delete_objects(bucket, [folder + name for name in files]):
            raise failure.error(bucket)


def s3_plugin(strategy: Any) -> S3LightningCheckpoint | None:
    """Returns the plugin of a strategy, also where it is inside of another one."""
    plugin = strategy.checkpoint_io
    plugin = getattr(plugin, "checkpoint_io", plugin)
    return plugin if isinstance(plugin, S3LightningCheckpoint) else None


def as_torch_takes_it(weights_only: bool | None) -> bool | None:  # noqa: FBT001 - What Lightning passes.
    """Returns ``weights_only`` for torch: ``None`` is left to torch; before Lightning 2.6 it meant False."""
    major, minor = (lightning_version() or "2.6").split(".")[:2]
    return False if weights_only is None and (int(major), int(minor)) < (2, 6) else weights_only


def _register_everywhere(cls: type) -> None:
    """Makes a class pass as a ``CheckpointIO`` in every distribution of Lightning that is in use."""
    for module in map(sys.modules.get, _INTERFACES):
        if module is not None and not issubclass(cls, module.CheckpointIO):
            module.CheckpointIO.register(cls)
