"""The index of a checkpoint in the layout of Hugging Face: which file has which tensor; pure functions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint._hf_utils import _metadata_fn

from s3torch.core.errors import ConfigurationError
from s3torch.dcp.errors import CheckpointError
from s3torch.dcp.metadata import FileFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["INDEX_NAME", "Index", "file_count", "make_index", "parse_index"]

INDEX_NAME = _metadata_fn

# What we add to the metadata of an index; others have entries of their own there, too.
_NOTE = "s3torch_files"


@dataclass(frozen=True, slots=True)
class Index:
    """What an index tells.

    Attributes:
        weight_map: The name of the file of each tensor.
        facts: Sizes and checksums of the files by their names, where our writer has noted them.
    """

    weight_map: Mapping[str, str]
    facts: Mapping[str, FileFacts] = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        """The names of all files."""
        return set(self.weight_map.values())


def file_count(numbers: Mapping[str, int] | None) -> int:
    """Returns how many files there are, from the number of the file for each tensor; ``None`` for one.

    Raises:
        ConfigurationError: A number is out of range. It is a ``ValueError``, too.
    """
    found = set((numbers or {}).values())
    for number in found:
        if not isinstance(number, int) or number < 1:
            raise ConfigurationError(f"the numbers of files begin with 1, got {number!r}")
    return max(found, default=1)


def make_index(index: Index, *, total_size: int) -> bytes:
    """Returns the bytes of an index.

    Args:
        index: What it tells.
        total_size: The bytes of all tensors.
    """
    metadata: dict[str, Any] = {"total_size": total_size}
    if index.facts:
        metadata[_NOTE] = {
            name: {"size": facts.size, "checksum": facts.checksum}
            for name, facts in sorted(index.facts.items())
        }
    content = {"metadata": metadata, "weight_map": dict(sorted(index.weight_map.items()))}
    return json.dumps(content, indent=2).encode()


def parse_index(body: bytes, *, uri: str) -> Index:
    """Reads an index.

    Args:
        body: Its bytes.
        uri: Where they are from.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        content = json.loads(body)
        weight_map = {str(name): str(file) for name, file in content["weight_map"].items()}
        noted = (content.get("metadata") or {}).get(_NOTE) or {}
        facts = {str(name): _facts(entry) for name, entry in noted.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise CheckpointError(f"{uri} is damaged: {exc!r}") from exc
    return Index(weight_map, facts)


def _facts(entry: Mapping[str, Any]) -> FileFacts:
    checksum = entry["checksum"]
    return FileFacts(int(entry["size"]), None if checksum is None else (str(checksum[0]), str(checksum[1])))
