"""Every S3 operation, once: a request value, and how its answer is read and judged.

A function of this package is an operation. ``Transport.send`` moves what it returns. May import values
(models, config, errors, ranges) and nothing of what sends.
"""

from s3torch.core.requests._listings import (
    list_buckets,
    list_multipart_uploads,
    list_object_versions,
    list_objects,
)
from s3torch.core.requests._objects import (
    announced_length,
    delete_object,
    delete_objects,
    get_headers,
    get_object,
    get_object_tagging,
    head_object,
    put_object_tagging,
)
from s3torch.core.requests._parts import StoredPart, head_first_part, list_part_sizes, list_parts
from s3torch.core.requests._request import (
    Answer,
    Request,
    body_of,
    common_headers,
    request_headers,
    request_target,
    same_etag,
)
from s3torch.core.requests._writes import (
    abort_multipart_upload,
    complete_multipart_upload,
    copy_object,
    create_multipart_upload,
    put_object,
    upload_part,
    upload_part_copy,
)

__all__ = [
    "Answer",
    "Request",
    "StoredPart",
    "abort_multipart_upload",
    "announced_length",
    "body_of",
    "common_headers",
    "complete_multipart_upload",
    "copy_object",
    "create_multipart_upload",
    "delete_object",
    "delete_objects",
    "get_headers",
    "get_object",
    "get_object_tagging",
    "head_first_part",
    "head_object",
    "list_buckets",
    "list_multipart_uploads",
    "list_object_versions",
    "list_objects",
    "list_part_sizes",
    "list_parts",
    "put_object",
    "put_object_tagging",
    "request_headers",
    "request_target",
    "same_etag",
    "upload_part",
    "upload_part_copy",
]
