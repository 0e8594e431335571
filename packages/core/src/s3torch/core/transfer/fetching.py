"""The names of ``s3torch.core.transfer`` at their former place."""

from s3torch.core.transfer import Piece, fetch

__all__ = ["Piece", "fetch"]
