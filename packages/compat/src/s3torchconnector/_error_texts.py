"""Errors with the texts that programs written against s3torchconnector compare.

For each error class of s3torch there is one here with the same name that derives from it, and whose ``str()``
is the old text alone. The facts are in the attributes, and in a note that tracebacks show.
"""

from __future__ import annotations

from s3torch.core import errors
from s3torch.core.errors import S3Error

__all__ = ["with_old_text"]

_LISTS_AND_READS = {"GetObject", "ListObjectsV2", "DeleteObject", "DeleteObjects"}
_WITHOUT_BODY = {"HeadObject", "CopyObject"}


class _OldText:
    """Shows the message alone."""

    message: str

    def __str__(self) -> str:
        return self.message


def _derive(cls: type[S3Error]) -> type[S3Error]:
    members = {"__module__": __name__, "__qualname__": cls.__name__, "__doc__": cls.__doc__}
    return type(cls.__name__, (_OldText, cls), members)


_DERIVED = {
    cls: _derive(cls)
    for cls in (getattr(errors, name) for name in errors.__all__)
    if isinstance(cls, type) and issubclass(cls, S3Error)
}
# Under their names in this module, so that they can be pickled.
globals().update({cls.__name__: cls for cls in _DERIVED.values()})


def with_old_text(error: S3Error) -> S3Error:
    """Returns the same error with the text that s3torchconnector gives it.

    The text is made of the class, the operation, the code and the status.
    """
    cls = _DERIVED.get(type(error))
    if cls is None:
        return error
    same = cls(_old_text(error))
    notes = list(getattr(error, "__notes__", []))
    same.__dict__.update(error.__dict__, message=same.message, __notes__=notes)
    same.add_note(str(error))
    return same


def _old_text(error: S3Error) -> str:
    if isinstance(error, errors.NotFoundError):
        return _text_of_missing(error)
    if isinstance(error, errors.NoCredentialsError):
        return "Client error: No signing credentials available, see CRT debug logs"
    if isinstance(error, errors.AccessDeniedError):
        return f"Client error: Forbidden: {error.s3_message or '<no message>'}"
    if isinstance(error, errors.ThrottledError):
        return "Client error: Request throttled"
    if isinstance(error, errors.WrongRegionError):
        return f"Client error: Wrong region (expecting {error.expected_region})"
    if isinstance(error, errors.TransferCancelledError):
        return "Client error: Request canceled"
    return f"Client error: {error}"


def _text_of_missing(error: errors.NotFoundError) -> str:
    if error.operation in _WITHOUT_BODY:
        return "Service error: The object was not found"
    if error.code == "NoSuchBucket":
        if error.operation in _LISTS_AND_READS:
            return "Service error: The bucket does not exist"
        return f"Client error: Unknown response error: {error}"
    if error.operation == "GetObject":
        return "Service error: The key does not exist"
    return f"Client error: {error}"
