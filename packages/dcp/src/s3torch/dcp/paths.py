"""The URIs of checkpoints and of the files in them."""

from __future__ import annotations

import os

from s3torch.core.uri import parse_s3_uri

__all__ = ["checked_uri", "join_path", "path_text"]


def path_text(path: str | os.PathLike[str]) -> str:
    """Returns a path as a string; a ``pathlib.Path`` made of a URI gets its lost slash back."""
    text = os.fspath(path)
    if isinstance(path, os.PathLike) and text.startswith("s3:/") and not text.startswith("s3://"):
        return "s3://" + text.removeprefix("s3:/")
    return text


def checked_uri(path: str | os.PathLike[str]) -> str:
    """Returns the URI of a checkpoint as a string.

    Raises:
        ConfigurationError: It is no S3 URI. It is a ``ValueError``, too.
    """
    parse_s3_uri(path)
    return path_text(path)


def join_path(path: str | os.PathLike[str], suffix: str) -> str:
    """Joins the URI of a folder and a relative path with exactly one slash."""
    return f"{path_text(path).rstrip('/')}/{suffix.lstrip('/')}"
