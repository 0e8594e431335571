"""What requests say, as parameters of the boto3 client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core.transports._http import encryption_context, tagging

if TYPE_CHECKING:
    from s3torch.core.models import CompletedPart, PutOptions


def storage_params(options: PutOptions) -> dict[str, Any]:
    """Gives the parameters that store an object as the options say, without the conditions."""
    return given_params(
        StorageClass=options.storage_class,
        ContentType=options.content_type,
        Metadata=dict(options.metadata) or None,
        Tagging=tagging(options.tags),
        CacheControl=options.cache_control,
        ContentDisposition=options.content_disposition,
        ContentEncoding=options.content_encoding,
        ContentLanguage=options.content_language,
        Expires=options.expires,
        ACL=options.acl,
        ServerSideEncryption=options.server_side_encryption,
        SSEKMSKeyId=options.kms_key_id,
        SSEKMSEncryptionContext=encryption_context(options.kms_encryption_context),
        BucketKeyEnabled=options.bucket_key,
    )


def condition_params(options: PutOptions) -> dict[str, Any]:
    """Gives the parameters of the conditions under which an object may appear."""
    return given_params(IfNoneMatch=options.if_none_match, IfMatch=options.if_match)


def checksum_params(checksum: tuple[str, str] | None) -> dict[str, Any]:
    """Gives the parameter that carries a checksum."""
    return {} if checksum is None else {f"Checksum{checksum[0]}": checksum[1]}


def part_params(part: CompletedPart, algorithm: str | None) -> dict[str, Any]:
    """Gives how CompleteMultipartUpload names a part."""
    checksum = checksum_params((algorithm, part.checksum) if algorithm and part.checksum else None)
    return {"PartNumber": part.number, "ETag": part.etag, **checksum}


def given_params(**params: Any) -> dict[str, Any]:
    """Leaves out what is ``None``."""
    return {name: value for name, value in params.items() if value is not None}
