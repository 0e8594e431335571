"""The core of s3torch: client, readers, writer, checkpoints, transports and plugins.

Importing it loads neither torch nor awscrt nor boto3, and what a process that only reads does not need is
loaded when it is asked for: workers begin sooner.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from s3torch.core._client import S3Client
from s3torch.core._config import S3ClientConfig, UserAgent
from s3torch.core._uri import S3Uri, parse_s3_uri
from s3torch.core._version import __version__
from s3torch.core.errors import (
    AccessDeniedError,
    CertificateError,
    CheckpointFormatError,
    ChecksumMismatchError,
    ConfigurationError,
    ConflictError,
    ForkedProcessError,
    MissingPackageError,
    NoCredentialsError,
    NotFoundError,
    ObjectChangedError,
    PreconditionFailedError,
    RangeNotSatisfiableError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ServerError,
    ThrottledError,
    TransferCancelledError,
    TransportError,
    TruncatedError,
    WrongRegionError,
)
from s3torch.core.models import (
    Credentials,
    DeleteFailure,
    HeadObjectResult,
    ListObjectResult,
    ListVersionsResult,
    ObjectInfo,
    ObjectVersion,
    PutOptions,
    RestoreStatus,
    S3BucketKeyData,
    UploadInfo,
)
from s3torch.core.operations._globs import Glob
from s3torch.core.operations._listing import ListObjectStream, ListVersionStream
from s3torch.core.readers import (
    RangedS3Reader,
    S3Reader,
    S3ReaderConstructor,
    S3ReaderConstructorProtocol,
    SequentialS3Reader,
)

if TYPE_CHECKING:
    from s3torch.core._checkpoint import S3Checkpoint
    from s3torch.core._writers import PutObjectStream, S3Writer
    from s3torch.core.operations._bulk import Deletion

__all__ = [
    "AccessDeniedError",
    "CertificateError",
    "CheckpointFormatError",
    "ChecksumMismatchError",
    "ConfigurationError",
    "ConflictError",
    "Credentials",
    "DeleteFailure",
    "Deletion",
    "ForkedProcessError",
    "Glob",
    "HeadObjectResult",
    "ListObjectResult",
    "ListObjectStream",
    "ListVersionStream",
    "ListVersionsResult",
    "MissingPackageError",
    "NoCredentialsError",
    "NotFoundError",
    "ObjectChangedError",
    "ObjectInfo",
    "ObjectVersion",
    "PreconditionFailedError",
    "PutObjectStream",
    "PutOptions",
    "RangeNotSatisfiableError",
    "RangedS3Reader",
    "RestoreStatus",
    "S3BucketKeyData",
    "S3Checkpoint",
    "S3Client",
    "S3ClientConfig",
    "S3ConnectionError",
    "S3Error",
    "S3Reader",
    "S3ReaderConstructor",
    "S3ReaderConstructorProtocol",
    "S3TimeoutError",
    "S3Uri",
    "S3Writer",
    "SequentialS3Reader",
    "ServerError",
    "ThrottledError",
    "TransferCancelledError",
    "TransportError",
    "TruncatedError",
    "UploadInfo",
    "UserAgent",
    "WrongRegionError",
    "__version__",
    "parse_s3_uri",
]

_MODULES = {
    "Deletion": "operations._bulk",
    "PutObjectStream": "_writers",
    "S3Checkpoint": "_checkpoint",
    "S3Writer": "_writers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
