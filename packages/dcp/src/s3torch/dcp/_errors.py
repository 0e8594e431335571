"""What can be wrong with a checkpoint, beyond what S3 refuses."""

from __future__ import annotations

from s3torch.core.errors import S3Error


class CheckpointError(S3Error):
    """The checkpoint is not whole, or does not have what the state dict asks for.

    A save raises it instead of committing a checkpoint with holes; a load raises it instead of returning
    wrong tensors.
    """
