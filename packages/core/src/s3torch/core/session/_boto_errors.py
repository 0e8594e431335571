"""What the exceptions of botocore mean; the session has a boto3 client for CreateSession."""

from __future__ import annotations

from typing import Any

from s3torch.core.errors import (
    ChecksumMismatchError,
    ConfigurationError,
    NoCredentialsError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    TruncatedError,
    error_from_response,
)

_NO_CREDENTIALS = (
    "no credentials found in environment variables, the AWS files, web identity, container or instance "
    "metadata; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile, "
    "or use unsigned=True for public data"
)


def error_from_boto(exc: Exception, *, operation: str, bucket: str, key: str | None = None) -> S3Error:
    """Makes our error of an exception that a call of the boto3 client or the reading of a body raised.

    Args:
        exc: The exception; becomes the cause of the result.
        operation: The S3 operation, as in ``"GetObject"``.
        bucket: The bucket that was asked.
        key: The key that was asked for, if any.
    """
    from botocore.exceptions import ClientError

    about: dict[str, Any] = {"operation": operation, "bucket": bucket, "key": key}
    if isinstance(exc, S3Error):
        if exc.bucket is None:
            exc.operation, exc.bucket, exc.key = operation, bucket, key
        return exc
    if isinstance(exc, ClientError):
        error = _from_answer(exc, operation=operation, bucket=bucket, key=key)
    elif isinstance(exc, _no_credentials()):
        text = _NO_CREDENTIALS if type(exc).__name__ == "NoCredentialsError" else str(exc)
        error = NoCredentialsError(text, **about)
    else:
        error = _without_answer(exc)(str(exc) or type(exc).__name__, **about)
    error.__cause__ = exc
    return error


def _no_credentials() -> tuple[type[Exception], ...]:
    """Lists what botocore raises where there are no credentials to sign with."""
    from botocore import exceptions as boto

    return (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.TokenRetrievalError,
        boto.NoAuthTokenError,
        boto.SSOError,
        boto.MetadataRetrievalError,
    )


def _from_answer(exc: Any, *, operation: str, bucket: str, key: str | None) -> S3Error:
    told = exc.response.get("Error", {})
    answer = exc.response.get("ResponseMetadata", {})
    headers = answer.get("HTTPHeaders", {})
    status = answer.get("HTTPStatusCode")
    code = told.get("Code")
    # Where the answer has no body, botocore puts the status and its standard text there.
    described = bool(code) and code != str(status)
    error = error_from_response(
        operation=operation,
        bucket=bucket,
        key=key,
        status=status,
        code=code if described else None,
        message=told.get("Message") if described else None,
        request_id=answer.get("RequestId") or headers.get("x-amz-request-id"),
        host_id=answer.get("HostId") or headers.get("x-amz-id-2"),
        region=headers.get("x-amz-bucket-region") or told.get("Region"),
    )
    if "RetryAttempts" in answer:
        error.attempts = answer["RetryAttempts"] + 1
    return error


def _without_answer(exc: Exception) -> type[S3Error]:
    from botocore import exceptions as boto

    if isinstance(exc, boto.ReadTimeoutError | boto.ConnectTimeoutError | TimeoutError):
        return S3TimeoutError
    if isinstance(exc, boto.FlexibleChecksumError | boto.ChecksumError):
        return ChecksumMismatchError
    if isinstance(exc, boto.IncompleteReadError) or _is_cut_short(exc):
        return TruncatedError
    if isinstance(exc, boto.HTTPClientError | boto.ConnectionError | OSError):
        return S3ConnectionError
    # What is left never reached the network: parameters, endpoints, settings.
    return ConfigurationError if isinstance(exc, boto.BotoCoreError | ValueError) else S3Error


def _is_cut_short(exc: Exception) -> bool:
    """Whether the connection was closed in order, but before the body was complete."""
    from http.client import IncompleteRead

    told = getattr(exc, "kwargs", {}).get("error")
    cause = told.args[-1] if isinstance(told, Exception) and told.args else None
    return isinstance(cause, IncompleteRead)
