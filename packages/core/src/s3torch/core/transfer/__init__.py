"""The transfer engine: parts, order, windows and checks. The rest of core and other packages import it.

It knows requests and memory; readers, the writer and checkpoints are built on it.
"""

from s3torch.core._config import checksum_type
from s3torch.core._memory import MemoryBudget, advise_huge_pages, default_memory_limit, new_bytes
from s3torch.core.transfer._checksums import (
    PartedChecksum,
    PieceChecksums,
    checksum,
    combine_crcs,
    compute_crc,
    encoded_crc,
    is_computable,
    piece_algorithm,
    read_again,
)
from s3torch.core.transfer._ranges import (
    InOrder,
    ObjectRange,
    PendingRange,
    RangeSource,
    Wanted,
    receive,
)
from s3torch.core.transfer._source import ObjectSource
from s3torch.core.transfer._window import Fetch, FetchSource, InFlightTarget, Piece, fetch, run_ahead

__all__ = [
    "Fetch",
    "FetchSource",
    "InFlightTarget",
    "InOrder",
    "MemoryBudget",
    "ObjectRange",
    "ObjectSource",
    "PartedChecksum",
    "PendingRange",
    "Piece",
    "PieceChecksums",
    "RangeSource",
    "Wanted",
    "advise_huge_pages",
    "checksum",
    "checksum_type",
    "combine_crcs",
    "compute_crc",
    "default_memory_limit",
    "encoded_crc",
    "fetch",
    "is_computable",
    "new_bytes",
    "piece_algorithm",
    "read_again",
    "receive",
    "run_ahead",
]
