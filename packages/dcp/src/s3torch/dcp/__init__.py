"""PyTorch distributed checkpoints on Amazon S3.

``S3StorageWriter`` and ``S3StorageReader`` are what ``torch.distributed.checkpoint.save`` and ``load``
take as storage; prefix strategies spread the files of large jobs over key prefixes. Importing this
package does not import torch; the first use of a storage class does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.dcp._version import __version__

if TYPE_CHECKING:
    from s3torch.dcp.consolidating import consolidate_safetensors_files
    from s3torch.dcp.errors import CheckpointError
    from s3torch.dcp.filesystem import S3FileSystem
    from s3torch.dcp.hugging_face import S3HuggingFaceStorageReader
    from s3torch.dcp.hugging_face_writer import S3HuggingFaceStorageWriter
    from s3torch.dcp.plan import ItemRange, RangeGroup
    from s3torch.dcp.planned import (
        DCPOptimizedConstructor,
        DCPOptimizedS3Reader,
        DCPS3ReaderConstructorProtocol,
    )
    from s3torch.dcp.prefixes import (
        BinaryPrefixStrategy,
        DefaultPrefixStrategy,
        HexPrefixStrategy,
        NumericPrefixStrategy,
        RoundRobinPrefixStrategy,
        S3PrefixStrategyBase,
    )
    from s3torch.dcp.reader import S3StorageReader
    from s3torch.dcp.state_files import load_file, load_sharded, save_file
    from s3torch.dcp.writer import S3StorageWriter, StorageMetadata

__all__ = [
    "BinaryPrefixStrategy",
    "CheckpointError",
    "DCPOptimizedConstructor",
    "DCPOptimizedS3Reader",
    "DCPS3ReaderConstructorProtocol",
    "DefaultPrefixStrategy",
    "HexPrefixStrategy",
    "ItemRange",
    "NumericPrefixStrategy",
    "RangeGroup",
    "RoundRobinPrefixStrategy",
    "S3FileSystem",
    "S3HuggingFaceStorageReader",
    "S3HuggingFaceStorageWriter",
    "S3PrefixStrategyBase",
    "S3StorageReader",
    "S3StorageWriter",
    "StorageMetadata",
    "__version__",
    "consolidate_safetensors_files",
    "load_file",
    "load_sharded",
    "save_file",
]

_MODULES = {
    "BinaryPrefixStrategy": "prefixes",
    "CheckpointError": "errors",
    "DCPOptimizedConstructor": "planned",
    "DCPOptimizedS3Reader": "planned",
    "DCPS3ReaderConstructorProtocol": "planned",
    "DefaultPrefixStrategy": "prefixes",
    "HexPrefixStrategy": "prefixes",
    "ItemRange": "plan",
    "NumericPrefixStrategy": "prefixes",
    "RangeGroup": "plan",
    "RoundRobinPrefixStrategy": "prefixes",
    "S3FileSystem": "filesystem",
    "S3HuggingFaceStorageReader": "hugging_face",
    "S3HuggingFaceStorageWriter": "hugging_face_writer",
    "S3PrefixStrategyBase": "prefixes",
    "S3StorageReader": "reader",
    "S3StorageWriter": "writer",
    "StorageMetadata": "writer",
    "consolidate_safetensors_files": "consolidating",
    "load_file": "state_files",
    "load_sharded": "state_files",
    "save_file": "state_files",
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
