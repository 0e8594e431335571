"""What exceptions of the session's boto3 client mean, of which CreateSession is the one request."""

from __future__ import annotations

import pytest
from botocore import exceptions as boto
from urllib3.exceptions import ProtocolError

from s3torch.core.errors import (
    ConfigurationError,
    NoCredentialsError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    error_from_response,
)
from s3torch.core.session._bucket_sessions import error_from_boto


def client_error(status, code, headers=None):
    return boto.ClientError(
        {
            "Error": {"Code": code, "Message": "why"},
            "ResponseMetadata": {
                "HTTPStatusCode": status,
                "HTTPHeaders": headers or {},
                "RequestId": "R",
                "HostId": "H",
            },
        },
        "GetObject",
    )


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (boto.NoCredentialsError(), NoCredentialsError),
        (boto.PartialCredentialsError(provider="p", cred_var="v"), NoCredentialsError),
        (boto.CredentialRetrievalError(provider="p", error_msg="e"), NoCredentialsError),
        (boto.UnauthorizedSSOTokenError(), NoCredentialsError),
        (boto.EndpointConnectionError(endpoint_url="u", error="e"), S3ConnectionError),
        (boto.ConnectionClosedError(endpoint_url="u"), S3ConnectionError),
        (boto.SSLError(endpoint_url="u", error="e"), S3ConnectionError),
        (boto.ProxyConnectionError(proxy_url="u", error="e"), S3ConnectionError),
        (boto.HTTPClientError(error="e"), S3ConnectionError),
        (boto.ResponseStreamingError(error=ProtocolError("reset")), S3ConnectionError),
        (boto.ReadTimeoutError(endpoint_url="u"), S3TimeoutError),
        (boto.ConnectTimeoutError(endpoint_url="u"), S3TimeoutError),
        (boto.ParamValidationError(report="r"), ConfigurationError),
        (boto.NoRegionError(), ConfigurationError),
        (boto.UnsupportedS3ArnError(arn="a"), ConfigurationError),
        (ValueError("Invalid endpoint"), ConfigurationError),
        (RuntimeError("no idea"), S3Error),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_exceptions_of_botocore(raised, expected):
    error = error_from_boto(raised, operation="GetObject", bucket="b", key="k")
    assert type(error) is expected
    assert (error.operation, error.bucket, error.key) == ("GetObject", "b", "k")
    assert error.__cause__ is raised
    assert error.message


def test_answer_without_body_has_no_code():
    error = error_from_boto(client_error(404, "404"), operation="HeadObject", bucket="b", key="k")
    same = error_from_response(
        operation="HeadObject", bucket="b", key="k", status=404, request_id="R", host_id="H"
    )
    assert (type(error), vars(error)) == (type(same), vars(same))


def test_region_of_bucket_is_told():
    raised = client_error(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"})
    error = error_from_boto(raised, operation="GetObject", bucket="b")
    assert error.expected_region == "eu-west-1"


def test_our_errors_stay_as_they_are():
    ours = ConfigurationError("no region")
    assert error_from_boto(ours, operation="GetObject", bucket="b", key="k") is ours
    assert (ours.operation, ours.bucket, ours.key) == ("GetObject", "b", "k")
