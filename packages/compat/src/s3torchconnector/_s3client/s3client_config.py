"""The settings of a client, as s3torchconnector has them."""

from __future__ import annotations

from s3torch.core import S3ClientConfig as CoreConfig

__all__ = ["TRANSPORT", "S3ClientConfig", "drop_in_config"]

TRANSPORT = "s3torchconnector"


class S3ClientConfig(CoreConfig):
    """The settings of s3torch, with which a client raises errors with the texts of s3torchconnector.

    A ``part_size`` out of range is an ``S3Exception`` at the first use of a client.
    """

    def check_part_size(self) -> None:
        """Checks no more than that it is a number; the transport of the drop-in checks the range.

        Raises:
            TypeError: It is no integer.
        """
        if not isinstance(self.part_size, int):
            raise TypeError(f"part_size must be an int, got {self.part_size!r}")

    @property
    def transport_name(self) -> str:
        """The name of the transport that gives errors the old texts."""
        return TRANSPORT

    @property
    def wrapped_transport_name(self) -> str | None:
        """The name of the transport that is asked for to do the work, ``None`` if none is."""
        return super().transport_name


def drop_in_config(config: CoreConfig | None) -> CoreConfig:
    """Returns the settings that were given, or the defaults of the drop-in."""
    return S3ClientConfig() if config is None else config
