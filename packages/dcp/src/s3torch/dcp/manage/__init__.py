"""The checkpoints of a run: listed, verified, deleted, thinned out.

A checkpoint is there from the moment at which its metadata is, which is written last, and deleted first:
torch's ``.metadata``, or in the layout of Hugging Face ``model.safetensors.index.json``. So only complete
checkpoints are ever listed. (What each rank has saved for itself, with ``use_collectives=False``, has no
common metadata, and of safetensors files without an index nothing tells whether all are there; neither is
listed.) What ``enable_consolidation`` leaves in ``sharded`` belongs to the checkpoint above it. All functions
take a ``client``; ``None`` makes one from the environment.
"""

from __future__ import annotations

from s3torch.dcp.manage._checkpoints import (
    CheckpointInfo,
    delete_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    sweep_checkpoint,
    verify_checkpoint,
)
from s3torch.dcp.manage._contents import CheckpointReport

__all__ = [
    "CheckpointInfo",
    "CheckpointReport",
    "delete_checkpoint",
    "latest_checkpoint",
    "list_checkpoints",
    "prune_checkpoints",
    "sweep_checkpoint",
    "verify_checkpoint",
]
