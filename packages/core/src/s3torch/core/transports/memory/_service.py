"""What a store in memory answers to requests, as S3 does it: headers and XML."""

from __future__ import annotations

import base64
import json
from email.utils import formatdate, parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote

from s3torch.core.models import CompletedPart, MultipartUpload, PutOptions, PutResult
from s3torch.core.ranges import ByteRange
from s3torch.core.requests import Answer
from s3torch.core.requests._request import same_etag
from s3torch.core.transports.memory import _documents as xml
from s3torch.core.transports.memory._bucket import options_of_copy, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from s3torch.core._config import S3ClientConfig
    from s3torch.core.requests import Request
    from s3torch.core.transports.memory._bucket import StoredObject
    from s3torch.core.transports.memory._store import MemoryStore

_META = "x-amz-meta-"
_CHECKSUM = "x-amz-checksum-"
_NO_CHECKSUMS = {f"{_CHECKSUM}{name}" for name in ("algorithm", "mode", "type")}


class Service:
    """Answers requests from a store.

    Args:
        store: Where the objects are.
        config: The settings of the client; ``None`` for the defaults.
    """

    def __init__(self, store: MemoryStore, config: S3ClientConfig | None) -> None:
        self._store = store
        self._config = config
        self._operations: Mapping[str, Callable[[Request[Any], _Told, bytes], Answer]] = {
            "GetObject": self._get_object,
            "HeadObject": self._head_object,
            "PutObject": self._put_object,
            "DeleteObject": self._delete_object,
            "DeleteObjects": self._delete_objects,
            "CopyObject": self._copy_object,
            "GetObjectTagging": self._get_object_tagging,
            "PutObjectTagging": self._put_object_tagging,
            "CreateMultipartUpload": self._create_multipart_upload,
            "UploadPart": self._upload_part,
            "UploadPartCopy": self._upload_part_copy,
            "CompleteMultipartUpload": self._complete_multipart_upload,
            "AbortMultipartUpload": self._abort_multipart_upload,
            "ListBuckets": lambda *_: xml.document(
                "ListAllMyBucketsResult", xml.buckets(self._store.buckets())
            ),
            "ListObjectsV2": self._list_objects,
            "ListObjectVersions": self._list_object_versions,
            "ListMultipartUploads": self._list_multipart_uploads,
            "ListParts": self._list_parts,
        }

    def answer(self, request: Request[Any], body: bytes) -> Answer:
        """Does what a request asks.

        Raises:
            S3Error: It is refused.
        """
        operation = self._operations.get(request.operation)
        if operation is None:
            raise refusal(request.operation, request.bucket, request.key, 501, "NotImplemented")
        return operation(request, _Told(request), body)

    @property
    def _customer_key(self) -> bytes | None:
        config = self._config
        return None if config is None or config.sse_customer_key is None else config.customer_key()

    def _find(self, request: Request[Any], version_id: str | None) -> StoredObject:
        return self._store.get(
            request.bucket,
            request.key,
            version_id=version_id,
            customer_key=self._customer_key,
            operation=request.operation,
        )

    def _get_object(self, request: Request[Any], told: _Told, _: bytes) -> Answer:
        stored = self._find(request, told.query.get("versionId"))
        if request.if_match is not None and not same_etag(request.if_match, stored.etag):
            raise refusal(request.operation, request.bucket, request.key, 412, "PreconditionFailed")
        data, headers = stored.data, _headers_of(stored)
        wanted = request.byte_range
        if wanted is not None:
            if wanted.start >= len(data):
                raise refusal(request.operation, request.bucket, request.key, 416, "InvalidRange")
            stop = min(wanted.stop, len(data))
            headers["content-range"] = f"bytes {wanted.start}-{stop - 1}/{len(data)}"
            data = data[wanted.start : stop]
        headers["content-length"] = str(len(data))
        return Answer(200 if wanted is None else 206, headers, data, len(data))

    def _head_object(self, request: Request[Any], told: _Told, _: bytes) -> Answer:
        stored = self._find(request, told.query.get("versionId"))
        return Answer(200, {**_headers_of(stored), "content-length": str(len(stored.data))})

    def _put_object(self, request: Request[Any], told: _Told, body: bytes) -> Answer:
        stored = self._store.put(
            request.bucket,
            request.key,
            body,
            options=told.options,
            checksum=told.checksum,
            customer_key=self._customer_key,
        )
        return _stored(stored)

    def _delete_object(self, request: Request[Any], told: _Told, _: bytes) -> Answer:
        self._store.delete(request.bucket, request.key, version_id=told.query.get("versionId"))
        return Answer(204, {})

    def _delete_objects(self, request: Request[Any], _: _Told, body: bytes) -> Answer:
        for facts in xml.elements(body, "Object"):
            self._store.delete(
                request.bucket,
                facts["Key"],
                version_id=facts.get("VersionId"),
                operation=request.operation,
            )
        return xml.document("DeleteResult", ())

    def _copy_object(self, request: Request[Any], told: _Told, _: bytes) -> Answer:
        src_bucket, src_key, version_id = told.source
        described = told.headers.get("x-amz-metadata-directive") == "REPLACE"
        stored = self._store.copy(
            src_bucket,
            src_key,
            request.bucket,
            request.key,
            options=lambda source: options_of_copy(source, told.options, described=described),
            conditions=told.options,
            version_id=version_id,
            if_match=told.headers.get("x-amz-copy-source-if-match"),
            customer_key=self._customer_key,
        )
        return xml.document("CopyObjectResult", [xml.element("ETag", stored.etag)])

    def _get_object_tagging(self, request: Request[Any], told: _Told, _: bytes) -> Answer:
        tags = self._find(request, told.query.get("versionId")).options.tags
        listed = (xml.group("Tag", Key=name, Value=value) for name, value in tags.items())
        return xml.document("Tagging", ["<TagSet>", *listed, "</TagSet>"])

    def _put_object_tagging(self, request: Request[Any], told: _Told, body: bytes) -> Answer:
        tags = {tag["Key"]: tag.get("Value", "") for tag in xml.elements(body, "Tag")}
        self._store.set_tags(request.bucket, request.key, tags, version_id=told.query.get("versionId"))
        return Answer(200, {})

    def _create_multipart_upload(self, request: Request[Any], told: _Told, _: bytes) -> Answer:
        upload = self._store.create_upload(
            request.bucket, request.key, options=told.options, customer_key=self._customer_key
        )
        return xml.document("InitiateMultipartUploadResult", [xml.element("UploadId", upload.upload_id)])

    def _upload_part(self, _request: Request[Any], told: _Told, body: bytes) -> Answer:
        part = self._store.put_part(told.upload, told.number, body, checksum=told.checksum)
        return Answer(200, {"etag": part.etag})

    def _upload_part_copy(self, request: Request[Any], told: _Told, _: bytes) -> Answer:
        bucket, key, version_id = told.source
        operation = request.operation
        source = self._store.get(
            bucket, key, version_id=version_id, customer_key=self._customer_key, operation=operation
        )
        expected = told.headers.get("x-amz-copy-source-if-match")
        if expected is not None and not same_etag(expected, source.etag):
            raise refusal(operation, bucket, key, 412, "PreconditionFailed")
        wanted = told.source_range
        if wanted.stop > len(source.data):
            raise refusal(operation, bucket, key, 416, "InvalidRange")
        part = self._store.put_part(told.upload, told.number, source.data[wanted.start : wanted.stop])
        return xml.document("CopyPartResult", [xml.element("ETag", part.etag)])

    def _complete_multipart_upload(self, _request: Request[Any], told: _Told, body: bytes) -> Answer:
        parts = [
            CompletedPart(int(facts["PartNumber"]), facts["ETag"]) for facts in xml.elements(body, "Part")
        ]
        stored = self._store.complete_upload(told.upload, parts, options=told.options, checksum=told.checksum)
        document = xml.document("CompleteMultipartUploadResult", [xml.element("ETag", stored.etag)])
        return document._replace(headers={**_stored(stored).headers, **document.headers})

    def _abort_multipart_upload(self, _request: Request[Any], told: _Told, _: bytes) -> Answer:
        self._store.abort_upload(told.upload)
        return Answer(204, {})

    def _list_objects(self, request: Request[Any], told: _Told, _: bytes) -> Answer:
        query = told.query
        page = self._store.list_objects(
            request.bucket,
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            max_keys=int(query["max-keys"]),
            after=query.get("continuation-token") or query.get("start-after", ""),
        )
        entries = [*map(xml.entry, page.object_info), *map(xml.common_prefix, page.common_prefixes)]
        token = page.continuation_token
        following = [] if token is None else [xml.element("NextContinuationToken", token)]
        return xml.listing("ListBucketResult", entries, following, is_truncated=token is not None)

    def _list_object_versions(self, request: Request[Any], told: _Told, _: bytes) -> Answer:
        query = told.query
        page = self._store.list_versions(
            request.bucket,
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            max_keys=int(query["max-keys"]),
            marker=told.marker("version-id-marker"),
        )
        entries = [*map(xml.version, page.versions), *map(xml.common_prefix, page.common_prefixes)]
        following = xml.next_marker(page.next_marker, "NextVersionIdMarker")
        return xml.listing("ListVersionsResult", entries, following, is_truncated=bool(following))

    def _list_multipart_uploads(self, request: Request[Any], told: _Told, _: bytes) -> Answer:
        page = self._store.list_uploads(
            request.bucket,
            prefix=told.query.get("prefix", ""),
            max_uploads=int(told.query["max-uploads"]),
            marker=told.marker("upload-id-marker"),
        )
        entries = [
            xml.group(
                "Upload",
                Key=quote(one.key),
                UploadId=one.upload_id,
                Initiated=xml.time(one.initiated),
                StorageClass=one.storage_class,
            )
            for one in page.uploads
        ]
        following = xml.next_marker(page.next_marker, "NextUploadIdMarker")
        return xml.listing("ListMultipartUploadsResult", entries, following, is_truncated=bool(following))

    def _list_parts(self, _request: Request[Any], told: _Told, _: bytes) -> Answer:
        after = int(told.query.get("part-number-marker", 0))
        found = [part for part in self._store.list_parts(told.upload) if part.number > after]
        page = found[: int(told.query["max-parts"])]
        entries = [
            xml.group(
                "Part",
                PartNumber=part.number,
                ETag=part.etag,
                Size=part.size,
                **{f"Checksum{name}": value for name, value in part.checksums.items()},
            )
            for part in page
        ]
        is_truncated = len(page) < len(found)
        following = [xml.element("NextPartNumberMarker", page[-1].number)] if is_truncated else []
        return xml.listing("ListPartsResult", entries, following, is_truncated=is_truncated)


class _Told:
    """What the query and the headers of a request say."""

    def __init__(self, request: Request[Any]) -> None:
        self._request = request
        self.query = dict(parse_qsl(request.query, keep_blank_values=True))
        self.headers = {name.lower(): value for name, value in request.headers}

    @property
    def upload(self) -> MultipartUpload:
        return MultipartUpload(self._request.bucket, self._request.key, self.query["uploadId"])

    @property
    def number(self) -> int:
        return int(self.query["partNumber"])

    @property
    def checksum(self) -> tuple[str, str] | None:
        found = (name for name in self.headers if name.startswith(_CHECKSUM) and name not in _NO_CHECKSUMS)
        name = next(found, None)
        return None if name is None else (name.removeprefix(_CHECKSUM).upper(), self.headers[name])

    @property
    def source(self) -> tuple[str, str, str | None]:
        path, _, query = self.headers["x-amz-copy-source"].partition("?")
        bucket, _, key = unquote(path).partition("/")
        return bucket, key, dict(parse_qsl(query)).get("versionId")

    @property
    def source_range(self) -> ByteRange:
        first, _, last = self.headers["x-amz-copy-source-range"].removeprefix("bytes=").partition("-")
        return ByteRange(int(first), int(last) + 1)

    def marker(self, second: str) -> tuple[str, str] | None:
        key = self.query.get("key-marker")
        return None if key is None else (key, self.query.get(second, ""))

    @property
    def options(self) -> PutOptions:
        told = self.headers
        metadata = {
            name.removeprefix(_META): value for name, value in self._request.headers if name.startswith(_META)
        }
        encryption = "x-amz-server-side-encryption"
        context = told.get(f"{encryption}-context")
        bucket_key = told.get(f"{encryption}-bucket-key-enabled")
        return PutOptions(
            storage_class=told.get("x-amz-storage-class"),
            content_type=told.get("content-type"),
            metadata=metadata,
            if_none_match=told.get("if-none-match"),
            if_match=told.get("if-match"),
            tags=dict(parse_qsl(told.get("x-amz-tagging", ""), keep_blank_values=True)),
            cache_control=told.get("cache-control"),
            content_disposition=told.get("content-disposition"),
            content_encoding=told.get("content-encoding"),
            content_language=told.get("content-language"),
            expires=parsedate_to_datetime(told["expires"]) if "expires" in told else None,
            acl=told.get("x-amz-acl"),
            server_side_encryption=told.get(encryption),
            kms_key_id=told.get(f"{encryption}-aws-kms-key-id"),
            kms_encryption_context={} if context is None else json.loads(base64.b64decode(context)),
            bucket_key=None if bucket_key is None else bucket_key == "true",
        )


def _headers_of(stored: StoredObject) -> dict[str, str]:
    head = stored.head
    given = {
        "etag": head.etag,
        "last-modified": formatdate(head.last_modified, usegmt=True),
        "content-type": head.content_type,
        "cache-control": head.cache_control,
        "content-disposition": head.content_disposition,
        "content-encoding": head.content_encoding,
        "content-language": head.content_language,
        "expires": head.expires,
        "x-amz-storage-class": head.storage_class,
        "x-amz-version-id": head.version_id,
        "x-amz-server-side-encryption": head.server_side_encryption,
        "x-amz-server-side-encryption-aws-kms-key-id": head.kms_key_id,
        "x-amz-tagging-count": str(head.tag_count) if head.tag_count else None,
        **{_META + name: value for name, value in head.metadata.items()},
        **{_CHECKSUM + name.lower(): value for name, value in head.checksums.items()},
    }
    return {name: value for name, value in given.items() if value is not None}


def _stored(result: PutResult) -> Answer:
    version = {} if result.version_id is None else {"x-amz-version-id": result.version_id}
    return Answer(200, {"etag": result.etag, **version})
