"""PyTorch datasets on Amazon S3.

``S3MapDataset`` has a length and reads any sample by its index, ``S3IterableDataset`` streams the samples in
order and shares them out between ranks and ``DataLoader`` workers, ``S3ShardDataset`` those of tar archives
and Parquet files. Transforms and labels are in ``s3torch.datasets.transforms``; what authors of shard formats
need is in ``s3torch.datasets.formats``. Importing this package does not import torch; the first use of a
dataset class does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.datasets._version import __version__

if TYPE_CHECKING:
    from s3torch.datasets._cache import CacheUsage, DiskCache
    from s3torch.datasets._iterable import S3IterableDataset
    from s3torch.datasets._map_style import S3MapDataset
    from s3torch.datasets.formats import DamagedShardError
    from s3torch.datasets.order._loader import ResumableLoader, S3Sampler
    from s3torch.datasets.order._merging import merge_states
    from s3torch.datasets.shards._dataset import S3ShardDataset
    from s3torch.datasets.shards._indexed_tar import S3IndexedTarDataset
    from s3torch.datasets.shards._parquet import ParquetFormat
    from s3torch.datasets.shards._tar_format import TarFormat, TarIndex
    from s3torch.datasets.sources._manifest import Manifest, ManifestChanges
    from s3torch.datasets.sources._sources import (
        GlobSource,
        ListingProgress,
        ObjectSource,
        ObjectsSource,
        PrefixSource,
        ReportedSource,
        Selection,
        VersionedInfo,
    )
    from s3torch.datasets.sources._table import DatasetSummary, describe_objects

__all__ = [
    "CacheUsage",
    "DamagedShardError",
    "DatasetSummary",
    "DiskCache",
    "GlobSource",
    "ListingProgress",
    "Manifest",
    "ManifestChanges",
    "ObjectSource",
    "ObjectsSource",
    "ParquetFormat",
    "PrefixSource",
    "ReportedSource",
    "ResumableLoader",
    "S3IndexedTarDataset",
    "S3IterableDataset",
    "S3MapDataset",
    "S3Sampler",
    "S3ShardDataset",
    "Selection",
    "TarFormat",
    "TarIndex",
    "VersionedInfo",
    "__version__",
    "describe_objects",
    "merge_states",
]

_MODULES = {
    "_cache": "CacheUsage DiskCache",
    "_iterable": "S3IterableDataset",
    "_map_style": "S3MapDataset",
    "formats": "DamagedShardError",
    "order._loader": "ResumableLoader S3Sampler",
    "order._merging": "merge_states",
    "shards._dataset": "S3ShardDataset",
    "shards._indexed_tar": "S3IndexedTarDataset",
    "shards._parquet": "ParquetFormat",
    "shards._tar_format": "TarFormat TarIndex",
    "sources._manifest": "Manifest ManifestChanges",
    "sources._sources": "GlobSource ListingProgress ObjectSource ObjectsSource PrefixSource"
    " ReportedSource Selection VersionedInfo",
    "sources._table": "DatasetSummary describe_objects",
}


def __getattr__(name: str) -> Any:
    # Every client asks the plugin of this package for its token; that must not cost the import of torch.
    import gc
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names.split():
            if name.startswith("S3"):
                import torch.utils.data  # noqa: F401 - Before collections pause, as it makes garbage.
            # A collection now would go through all of torch, and all that is imported here stays.
            was_enabled = gc.isenabled()
            gc.disable()
            try:
                value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            finally:
                if was_enabled:
                    gc.enable()
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
