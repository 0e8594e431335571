"""The names of ``s3torch.core.transfer`` at their former place."""

from s3torch.core.transfer import ObjectRange, ObjectSource, PendingRange, RangeSource

__all__ = ["ObjectRange", "ObjectSource", "PendingRange", "RangeSource"]
