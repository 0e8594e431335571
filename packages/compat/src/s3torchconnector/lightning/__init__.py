"""Lightning checkpoints, as s3torchconnector has them; needs ``s3torch-lightning``."""

from __future__ import annotations

from s3torchconnector.lightning.s3_lightning_checkpoint import S3LightningCheckpoint

__all__ = ["S3LightningCheckpoint"]
