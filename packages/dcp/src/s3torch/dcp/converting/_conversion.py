"""One kind of checkpoint made of another."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from s3torch.core import S3Client
from s3torch.core.errors import ConfigurationError
from s3torch.dcp._metadata import CheckpointError
from s3torch.dcp.converting._sources import Contents, Source, open_source
from s3torch.dcp.converting._targets import write_dcp, write_safetensors, write_torch

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import torch

    from s3torch.dcp.loading._bands import Band

Kind = Literal["dcp", "torch", "safetensors"]


def convert_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: Kind,
    prefix: str = "",
    max_shard_size: int | None = None,
    overwrite: bool = False,
    client: S3Client | None = None,
) -> None:
    """Makes a checkpoint of another kind of a checkpoint; either may be on S3 or on a disk.

    What the source is, is seen from what is there: a folder of ``torch.distributed.checkpoint``, a
    safetensors file or a folder of such files, or a file of ``torch.save``. Nothing that is in it runs.
    Tensors are read and written in parts of up to 32 MiB, a few at a time, so that memory does not grow with
    the checkpoint; a file of ``torch.save`` on S3 is first copied to a temporary file (``TMPDIR``). Of
    tensors that shared memory each gets its own. The target appears when it is complete.

    Args:
        source: The URI or the path.
        target: The URI or the path: of a folder for ``"dcp"``, of a file for ``"torch"``; for
            ``"safetensors"`` of a file if it ends in ``.safetensors``, else of a folder with an index.
        to: What it is to become.
        prefix: Takes only values whose names begin so, as in ``"model."``, and leaves that out of their
            names.
        max_shard_size: Bytes of a safetensors file in a folder; ``None`` for one file.
        overwrite: Whether a target that is there may be replaced.
        client: Serves the requests; ``None`` makes one from the environment.

    Raises:
        NotFoundError: There is no checkpoint at the source.
        CheckpointError: It is damaged, nothing in it begins with ``prefix``, or has what the target cannot
            hold.
        FileExistsError: There is something at the target, and ``overwrite`` is false; on S3 it may also be
            ``RuntimeError``, as of the storage writer, or ``PreconditionFailedError``.
    """
    if to not in {"dcp", "torch", "safetensors"}:
        raise ConfigurationError(f"to must be dcp, torch or safetensors, got {to!r}")
    if max_shard_size is not None and (not isinstance(max_shard_size, int) or max_shard_size < 1):
        raise ConfigurationError(f"max_shard_size must be None or at least 1, got {max_shard_size!r}")
    with ExitStack() as stack:
        chosen = client or stack.enter_context(S3Client())
        opened = open_source(source, chosen, stack)
        if prefix:
            opened = _Part(opened, prefix)
        if to == "dcp":
            write_dcp(opened, target, chosen, overwrite=overwrite)
        elif to == "torch":
            write_torch(opened, target, chosen, overwrite=overwrite)
        else:
            write_safetensors(opened, target, chosen, max_shard_size=max_shard_size, overwrite=overwrite)


class _Part:
    """What has names that begin with a prefix, with names without it."""

    def __init__(self, whole: Source, prefix: str) -> None:
        self._whole = whole
        self._prefix = prefix
        contents = whole.contents
        self.contents = Contents(
            {
                name.removeprefix(prefix): one
                for name, one in contents.tensors.items()
                if name.startswith(prefix)
            },
            {
                name.removeprefix(prefix): one
                for name, one in contents.objects.items()
                if name.startswith(prefix)
            },
        )
        if not self.contents.tensors and not self.contents.objects:
            some = ", ".join(sorted([*contents.tensors, *contents.objects])[:5])
            raise CheckpointError(f"no name begins with {prefix!r}; there are {some}, …")

    def read(self, bands: Sequence[Band]) -> list[torch.Tensor]:
        """Reads parts of tensors."""
        return self._whole.read([replace(band, name=self._prefix + band.name) for band in bands])
