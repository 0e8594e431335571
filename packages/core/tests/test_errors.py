"""Errors: types with facts, which travel between processes."""

from __future__ import annotations

import builtins
import copy
import pickle
import traceback

import pytest

from s3torch.core import errors
from s3torch.core.errors import (
    AccessDeniedError,
    ChecksumMismatchError,
    ConfigurationError,
    ConflictError,
    ForkedProcessError,
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
    TransportError,
    TruncatedError,
    WrongRegionError,
    error_from_response,
)

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, S3Error)]
every_class = pytest.mark.parametrize("cls", CLASSES)
FACTS = {
    "operation": "GetObject",
    "bucket": "training",
    "key": "shards/0001.tar",
    "code": "NoSuchKey",
    "status": 404,
    "request_id": "7F3A",
    "host_id": "host-7",
}


def answer(**facts):
    return error_from_response(**{"operation": "GetObject", "bucket": "b", "key": "k", **facts})


def state(error):
    return type(error), str(error), error.args, vars(error)


@pytest.mark.promise(6)
def test_there_is_a_class_for_each_decision():
    assert len(CLASSES) == 22
    assert {cls.__name__ for cls in CLASSES} == set(errors.__all__) - {"error_from_response"}


@pytest.mark.promise(6)
@every_class
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_a_copy_has_all_facts(cls, again):
    error = cls("it broke", **FACTS)
    error.add_note("a note for the reader")
    assert state(again(error)) == state(error)
    assert again(error).__notes__ == ["a note for the reader"]


@every_class
def test_one_string_is_enough(cls):
    error = cls("text of a worker")
    assert "text of a worker" in str(error)
    assert [getattr(error, name) for name in FACTS] == [None] * len(FACTS)
    assert state(pickle.loads(pickle.dumps(error))) == state(error)


@every_class
def test_no_argument_is_enough(cls):
    assert str(cls()) == ""


@pytest.mark.promise(5)
@every_class
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_works(cls, protocol):
    error = cls("it broke", **FACTS)
    assert state(pickle.loads(pickle.dumps(error, protocol))) == state(error)


@pytest.mark.promise(6)
@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (ConfigurationError, ValueError),
        (TransportError, ImportError),
        (NotFoundError, FileNotFoundError),
        (AccessDeniedError, PermissionError),
        (NoCredentialsError, PermissionError),
        (S3ConnectionError, ConnectionError),
        (S3TimeoutError, TimeoutError),
        (TruncatedError, EOFError),
        (ForkedProcessError, RuntimeError),
    ],
)
def test_the_builtin_class_catches_it(cls, builtin):
    assert issubclass(cls, builtin)
    with pytest.raises(builtin):
        raise cls("x", **FACTS)


def test_an_os_error_with_an_errno_as_text_stays_what_it_is():
    # OSError(2, "text") picks a subclass by the number; ours must not be fooled by its arguments.
    assert type(NotFoundError("2")) is NotFoundError
    assert str(NotFoundError("gone", **FACTS)).startswith("GetObject s3://training/shards/0001.tar: gone")


@pytest.mark.promise(6)
def test_the_text_has_what_happened_to_what_and_the_facts():
    assert (
        str(NotFoundError("no such key", **FACTS))
        == "GetObject s3://training/shards/0001.tar: no such key [NoSuchKey, 404, request 7F3A]"
    )


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({}, "m"),
        ({"operation": "GetObject"}, "GetObject: m"),
        ({"bucket": "b"}, "s3://b/: m"),
        ({"bucket": "b", "key": "k"}, "s3://b/k: m"),
        ({"operation": "ListObjectsV2", "bucket": "b"}, "ListObjectsV2 s3://b/: m"),
        ({"status": 500}, "m [500]"),
        ({"key": "k"}, "m"),
    ],
)
def test_the_text_leaves_out_what_is_not_known(facts, text):
    assert str(S3Error("m", **facts)) == text


def test_the_traceback_shows_the_notes():
    error = S3Error("m")
    error.add_note("and the parts stay")
    assert "and the parts stay" in "".join(traceback.format_exception(error))


@pytest.mark.promise(6)
@pytest.mark.parametrize(
    ("code", "status", "cls"),
    [
        ("NoSuchKey", 404, NotFoundError),
        ("NoSuchBucket", 404, NotFoundError),
        ("NoSuchUpload", 404, NotFoundError),
        ("AccessDenied", 403, AccessDeniedError),
        ("InvalidAccessKeyId", 403, AccessDeniedError),
        ("SignatureDoesNotMatch", 403, AccessDeniedError),
        ("ExpiredToken", 400, AccessDeniedError),
        ("InvalidObjectState", 403, AccessDeniedError),
        ("PreconditionFailed", 412, PreconditionFailedError),
        ("ConditionalRequestConflict", 409, ConflictError),
        ("InvalidRange", 416, RangeNotSatisfiableError),
        ("PermanentRedirect", 301, WrongRegionError),
        ("AuthorizationHeaderMalformed", 400, WrongRegionError),
        ("SlowDown", 503, ThrottledError),
        ("InternalError", 500, ServerError),
        ("RequestTimeout", 400, S3TimeoutError),
        ("BadDigest", 400, ChecksumMismatchError),
        # A HEAD has no body, hence no code.
        (None, 301, WrongRegionError),
        (None, 403, AccessDeniedError),
        (None, 404, NotFoundError),
        (None, 409, ConflictError),
        (None, 412, PreconditionFailedError),
        (None, 416, RangeNotSatisfiableError),
        (None, 429, ThrottledError),
        (None, 503, ThrottledError),
        (None, 500, ServerError),
        (None, 599, ServerError),
        (None, 400, S3Error),
        (None, None, S3Error),
        # The code says more than the status.
        ("SlowDown", 500, ThrottledError),
        ("NoSuchKey", 500, NotFoundError),
        # An unknown code leaves the status.
        ("FromTheFuture", 404, NotFoundError),
        ("FromTheFuture", 502, ServerError),
        ("FromTheFuture", 418, S3Error),
    ],
)
def test_code_and_status_choose_the_class(code, status, cls):
    error = answer(code=code, status=status)
    assert type(error) is cls
    assert (error.code, error.status) == (code, status)
    assert (error.operation, error.bucket, error.key) == ("GetObject", "b", "k")


def test_an_object_that_changed_is_a_failed_precondition():
    assert issubclass(ObjectChangedError, PreconditionFailedError)


@pytest.mark.parametrize(
    ("status", "code"), [(301, "PermanentRedirect"), (301, None), (400, "AuthorizationHeaderMalformed")]
)
def test_the_wrong_region_names_the_right_one(status, code):
    error = answer(status=status, code=code, region="eu-west-3")
    assert type(error) is WrongRegionError
    assert error.expected_region == "eu-west-3"
    assert "eu-west-3" in str(error)
    assert pickle.loads(pickle.dumps(error)).expected_region == "eu-west-3"


def test_a_head_with_a_region_and_400_is_the_wrong_region():
    assert answer(operation="HeadObject", status=400, region="eu-west-3").expected_region == "eu-west-3"


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_head_that_tells_no_reason_says_so(status):
    assert "no reason in the answer to a HEAD" in str(answer(operation="HeadObject", status=status))
    assert "HEAD" not in str(answer(operation="HeadObject", status=status, code="AccessDenied"))
    assert "HEAD" not in str(answer(status=status))


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_says_where_to_but_no_secret(status):
    text = str(answer(status=status, location="https://me:word@a.example/k\x07?X-Amz-Signature=sealed#x"))
    assert "redirects to https://a.example/k?:" in text
    assert not [secret for secret in ("word", "sealed", "\x07") if secret in text]
    assert len(str(answer(status=status, location="x" * 9999))) < 400


def test_the_wrong_region_may_be_unknown():
    assert answer(status=301).expected_region is None


@pytest.mark.parametrize(
    ("code", "cls"),
    [("ExpiredToken", AccessDeniedError), ("BadDigest", ChecksumMismatchError), ("KeyTooLong", S3Error)],
)
def test_a_region_beside_another_error_does_not_change_it(code, cls):
    # S3 names the region of the bucket in many answers.
    assert type(answer(status=400, code=code, region="us-east-1")) is cls


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (400, "KeyTooLongError"), (503, None), (400, "BadDigest")]
)
def test_the_text_has_what_s3_said(status, code):
    said = "User: arn:aws:iam::1:user/x is not authorized to perform: s3:GetObject"
    assert said in str(answer(status=status, code=code, message=said))


def test_builtin_names_are_not_shadowed():
    assert not set(errors.__all__) & set(dir(builtins))
