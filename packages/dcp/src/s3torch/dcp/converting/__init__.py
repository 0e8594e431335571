"""Converts checkpoints between DCP, one file of ``torch.save``, and safetensors, on S3 or on a disk.

Tensors go from one to the other in parts of at most 32 MiB, so that memory does not depend on the size of
the checkpoint. Nothing in this package imports it but the command line.
"""

from s3torch.dcp.converting._conversion import convert_checkpoint

__all__ = ["convert_checkpoint"]
