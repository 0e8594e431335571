"""Lightning checkpoints on Amazon S3.

``S3LightningCheckpoint`` is the plugin for a trainer, ``S3ModelCheckpoint`` the callback, and
``S3ModelParallelStrategy`` and ``S3FSDPStrategy`` are for models that are shared between ranks. Importing
this package imports neither Lightning nor torch; the first use of a class does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from s3torch.lightning._version import __version__

if TYPE_CHECKING:
    from s3torch.lightning._checkpoint_io import S3LightningCheckpoint
    from s3torch.lightning._model_checkpoint import S3ModelCheckpoint
    from s3torch.lightning._strategies import S3FSDPStrategy, S3ModelParallelStrategy

__all__ = [
    "S3FSDPStrategy",
    "S3LightningCheckpoint",
    "S3ModelCheckpoint",
    "S3ModelParallelStrategy",
    "__version__",
]

_MODULES = {
    "S3FSDPStrategy": "_strategies",
    "S3LightningCheckpoint": "_checkpoint_io",
    "S3ModelCheckpoint": "_model_checkpoint",
    "S3ModelParallelStrategy": "_strategies",
}


def __getattr__(name: str) -> Any:
    # Every client asks the plugin of this package for its token; that must not cost the import of Lightning.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
