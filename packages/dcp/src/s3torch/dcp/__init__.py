"""PyTorch distributed checkpoints on Amazon S3.

``S3StorageWriter`` and ``S3StorageReader`` are what ``torch.distributed.checkpoint.save`` and ``load``
take as storage; prefix strategies spread the files of large jobs over key prefixes. Importing this
package does not import torch; the first use of a storage class does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.dcp._version import __version__

if TYPE_CHECKING:
    from s3torch.dcp._filesystem import S3FileSystem
    from s3torch.dcp._metadata import CheckpointError
    from s3torch.dcp._prefixes import (
        BinaryPrefixStrategy,
        DefaultPrefixStrategy,
        HexPrefixStrategy,
        NumericPrefixStrategy,
        RoundRobinPrefixStrategy,
        S3PrefixStrategyBase,
    )
    from s3torch.dcp._reader import S3StorageReader
    from s3torch.dcp._writer import S3StorageWriter, StorageMetadata
    from s3torch.dcp.hugging_face._consolidation import consolidate_safetensors_files
    from s3torch.dcp.hugging_face._reader import S3HuggingFaceStorageReader, load_file, load_sharded
    from s3torch.dcp.hugging_face._safetensors import save_file
    from s3torch.dcp.hugging_face._writer import S3HuggingFaceStorageWriter
    from s3torch.dcp.saving._assembly import SaveReport
    from s3torch.dcp.saving._async_saver import AsyncSaver

__all__ = [
    "AsyncSaver",
    "BinaryPrefixStrategy",
    "CheckpointError",
    "DefaultPrefixStrategy",
    "HexPrefixStrategy",
    "NumericPrefixStrategy",
    "RoundRobinPrefixStrategy",
    "S3FileSystem",
    "S3HuggingFaceStorageReader",
    "S3HuggingFaceStorageWriter",
    "S3PrefixStrategyBase",
    "S3StorageReader",
    "S3StorageWriter",
    "SaveReport",
    "StorageMetadata",
    "__version__",
    "consolidate_safetensors_files",
    "load_file",
    "load_sharded",
    "save_file",
]

_MODULES = {
    name: module
    for module, names in {
        "saving._async_saver": "AsyncSaver",
        "_metadata": "CheckpointError",
        "_filesystem": "S3FileSystem",
        "_prefixes": "BinaryPrefixStrategy DefaultPrefixStrategy HexPrefixStrategy "
        "NumericPrefixStrategy RoundRobinPrefixStrategy S3PrefixStrategyBase",
        "_reader": "S3StorageReader",
        "_writer": "S3StorageWriter StorageMetadata",
        "hugging_face._consolidation": "consolidate_safetensors_files",
        "hugging_face._reader": "S3HuggingFaceStorageReader load_file load_sharded",
        "hugging_face._safetensors": "save_file",
        "hugging_face._writer": "S3HuggingFaceStorageWriter",
        "saving._assembly": "SaveReport",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    # Every client asks the plugin of this package for its token; that must not cost the import of torch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
