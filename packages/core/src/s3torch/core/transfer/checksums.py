"""The names of ``s3torch.core.transfer`` at their former place."""

from s3torch.core.transfer import PartedChecksum, checksum

__all__ = ["PartedChecksum", "checksum"]
