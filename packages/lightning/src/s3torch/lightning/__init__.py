"""Lightning checkpoints on Amazon S3.

``S3LightningCheckpoint`` is the plugin for a trainer, ``S3ModelCheckpoint`` the callback. Importing this
package imports neither Lightning nor torch; the first use of a class does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from s3torch.lightning._version import __version__

if TYPE_CHECKING:
    from s3torch.lightning._checkpoint_io import S3LightningCheckpoint
    from s3torch.lightning._model_checkpoint import S3ModelCheckpoint

__all__ = ["S3LightningCheckpoint", "S3ModelCheckpoint", "__version__"]

_MODULES = {"S3LightningCheckpoint": "_checkpoint_io", "S3ModelCheckpoint": "_model_checkpoint"}


def __getattr__(name: str) -> Any:
    # Every client asks the plugin of this package for its token; that must not cost the import of Lightning.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
