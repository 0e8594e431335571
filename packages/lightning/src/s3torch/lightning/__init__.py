"""Lightning checkpoints on Amazon S3.

``S3LightningCheckpoint`` is the plugin for a trainer. Importing this package imports neither Lightning nor
torch; the first use of the class does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.lightning._version import __version__

if TYPE_CHECKING:
    from s3torch.lightning._checkpoint_io import S3LightningCheckpoint

__all__ = ["S3LightningCheckpoint", "__version__"]


def __getattr__(name: str) -> Any:
    # Every client asks the plugin of this package for its token; that must not cost the import of Lightning.
    if name != "S3LightningCheckpoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from s3torch.lightning._checkpoint_io import S3LightningCheckpoint

    globals()[name] = S3LightningCheckpoint
    return S3LightningCheckpoint


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
