"""The plugin for a Lightning trainer, as s3torchconnector has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.lightning import S3LightningCheckpoint as CoreLightningCheckpoint
from s3torchconnector._s3client.s3client_config import drop_in_config

if TYPE_CHECKING:
    from s3torch.core import S3ClientConfig

__all__ = ["S3LightningCheckpoint"]


class S3LightningCheckpoint(CoreLightningCheckpoint):
    """Saves and loads checkpoints of a trainer on S3; paths are strings, and storage options do nothing.

    Args:
        region: The region of the bucket.
        s3client_config: All other settings.
        endpoint: The URL of a store that speaks S3.
    """

    def __init__(
        self,
        region: str,
        s3client_config: S3ClientConfig | None = None,
        endpoint: str | None = None,
    ) -> None:
        super().__init__(region, drop_in_config(s3client_config), endpoint)

    def save_checkpoint(  # type: ignore[override]
        self,
        checkpoint: dict[str, Any],
        path: str,
        storage_options: Any | None = None,  # noqa: ARG002
    ) -> None:
        """Saves a checkpoint as one object."""
        super().save_checkpoint(checkpoint, _checked(path))

    def load_checkpoint(  # type: ignore[override]
        self,
        path: str,
        map_location: Any | None = None,
        weights_only: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Loads a checkpoint."""
        return super().load_checkpoint(_checked(path), map_location, weights_only)

    def remove_checkpoint(self, path: str) -> None:  # type: ignore[override]
        """Removes a checkpoint; a missing one is fine."""
        super().remove_checkpoint(_checked(path))


def _checked(path: object) -> str:
    if not isinstance(path, str):
        raise TypeError(
            f"{type(path).__name__!r} is not a supported type for 'path'. "
            "Must be a string formatted as an S3 uri."
        )
    return path
