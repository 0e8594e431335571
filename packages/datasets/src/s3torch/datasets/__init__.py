"""PyTorch datasets on Amazon S3.

``S3MapDataset`` has a length and reads any sample by its index, ``S3IterableDataset`` streams the samples in
order and shares them out between ranks and ``DataLoader`` workers, ``S3ShardDataset`` those of tar archives
and Parquet files. Importing this package does not import
torch; the first use of a dataset class does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.datasets._version import __version__

if TYPE_CHECKING:
    from s3torch.datasets.indexed_tar import S3IndexedTarDataset
    from s3torch.datasets.iterable import S3IterableDataset
    from s3torch.datasets.manifest import Manifest
    from s3torch.datasets.map_style import S3MapDataset
    from s3torch.datasets.resume import ResumableLoader, merge_states
    from s3torch.datasets.sampler import S3Sampler
    from s3torch.datasets.selection import Selection
    from s3torch.datasets.shards import S3ShardDataset

__all__ = [
    "Manifest",
    "ResumableLoader",
    "S3IndexedTarDataset",
    "S3IterableDataset",
    "S3MapDataset",
    "S3Sampler",
    "S3ShardDataset",
    "Selection",
    "__version__",
    "merge_states",
]

_MODULES = {
    "Manifest": "s3torch.datasets.manifest",
    "ResumableLoader": "s3torch.datasets.resume",
    "S3IndexedTarDataset": "s3torch.datasets.indexed_tar",
    "S3IterableDataset": "s3torch.datasets.iterable",
    "S3MapDataset": "s3torch.datasets.map_style",
    "S3Sampler": "s3torch.datasets.sampler",
    "S3ShardDataset": "s3torch.datasets.shards",
    "Selection": "s3torch.datasets.selection",
    "merge_states": "s3torch.datasets.resume",
}


def __getattr__(name: str) -> Any:
    # Every client asks the plugin of this package for its token; that must not cost the import of torch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
