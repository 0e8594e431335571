"""Lightning's interface for checkpoints, from whichever distribution of Lightning is there.

Lightning comes as ``lightning`` and as ``pytorch_lightning``, and a trainer of the one does not know the
classes of the other.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

__all__ = ["CheckpointIO", "lightning_version", "passes_none_to_torch", "register_everywhere"]

# The modules that define the interface, and the distributions they come from.
_FABRICS = {"lightning.fabric": "lightning", "lightning_fabric": "pytorch-lightning"}
_PLUGINS = "{}.plugins.io.checkpoint_io"


def _interface() -> Any:
    # What is imported already is what the program uses.
    for fabric in sorted(_FABRICS, key=lambda name: name not in sys.modules):
        try:
            return import_module(_PLUGINS.format(fabric)).CheckpointIO
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(
        "No module named 'lightning'; install s3torch-lightning, lightning or pytorch-lightning",
        name="lightning",
    )


if TYPE_CHECKING:
    from lightning.fabric.plugins import CheckpointIO
else:
    CheckpointIO = _interface()


def lightning_version() -> str | None:
    """Returns the version of Lightning, without importing it; ``None`` where there is none."""
    for distribution in _FABRICS.values():
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def passes_none_to_torch() -> bool:
    """Tells whether this Lightning leaves ``weights_only=None`` to torch; it meant False before 2.6."""
    major, minor = (lightning_version() or "2.6").split(".")[:2]
    return (int(major), int(minor)) >= (2, 6)


def register_everywhere(cls: type) -> None:
    """Makes a class pass as a ``CheckpointIO`` in every distribution of Lightning that is in use."""
    for name in _FABRICS:
        module = sys.modules.get(_PLUGINS.format(name))
        if module is not None and not issubclass(cls, module.CheckpointIO):
            module.CheckpointIO.register(cls)
