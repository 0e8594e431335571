"""Names of checkpoints and folders on S3, as users and Lightning write them."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from s3torch.core import ConfigurationError, S3Uri, parse_s3_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCHEME = "s3://"
# What ``pathlib`` and ``os.path`` make of a URI: a slash is lost, and a folder may stand before it.
_MANGLED = re.compile(r"(?:.*/)?s3:/(?=[^/])")
# Lightning puts a slash between ``default_root_dir``, which may end with one, and this name.
_DOUBLE_SLASH = re.compile(r"//(?=hpc_ckpt_\d+\.ckpt$)")
# What makes a sharded checkpoint complete.
METADATA = ".metadata"


def repaired(path: str | os.PathLike[str]) -> str:
    """Returns a path; where it is a URI that has lost a slash, with that slash."""
    text = os.fspath(path)
    return text if text.startswith(_SCHEME) else _MANGLED.sub(_SCHEME, text, count=1)


def is_on_s3(path: str | os.PathLike[str]) -> bool:
    """Whether this is a URI, perhaps one that has lost a slash."""
    return repaired(path).startswith(_SCHEME)


def checkpoint_uri(path: str | os.PathLike[str]) -> S3Uri:
    """Returns bucket and key of a checkpoint.

    Raises:
        ConfigurationError: The path is no S3 URI, or names no object.
    """
    bucket, key = parse_s3_uri(_DOUBLE_SLASH.sub("/", repaired(path)))
    # Without a key, the checkpoint would be the whole bucket.
    if not key.strip("/"):
        raise ConfigurationError(f"expected s3://bucket/key of a checkpoint, got {path!r}")
    return S3Uri(bucket, key)


def resumed_uri(path: str | os.PathLike[str]) -> S3Uri:
    """Returns what ``checkpoint_uri`` does; a sharded checkpoint may also be named by its ``.metadata``."""
    return checkpoint_uri(repaired(path).removesuffix(f"/{METADATA}"))


def check_folders(trainer: Any) -> None:
    """Refuses folders of a trainer, its loggers and its callbacks that are local by mistake.

    Raises:
        ConfigurationError: A URI has lost a slash, so that everything would go to a local folder ``s3:``.
    """
    for name, folder in _folders(trainer):
        if folder is not None and not os.fspath(folder).startswith(_SCHEME) and is_on_s3(folder):
            raise ConfigurationError(
                f"{name} is {os.fspath(folder)!r}, a local folder; give the URI as a string, not a Path"
            )


def _folders(trainer: Any) -> Iterator[tuple[str, str | os.PathLike[str] | None]]:
    yield "default_root_dir", trainer.default_root_dir
    for logger in trainer.loggers:
        yield f"the folder of {type(logger).__name__}", logger.save_dir
    for callback in trainer.checkpoint_callbacks:
        yield f"the folder of {type(callback).__name__}", getattr(callback, "dirpath", None)
