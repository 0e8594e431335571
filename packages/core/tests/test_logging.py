"""What a client writes to the log: each operation at DEBUG, nothing else, and no secret."""

from __future__ import annotations

import logging


def test_each_operation_is_told_at_debug(client, store, caplog):
    caplog.set_level(logging.DEBUG, "s3torch")
    with client.put_object("bucket", "a") as writer:
        writer.write(b"data")
    info = client.head_object("bucket", "a")
    client.get_object("bucket", "a").read()
    client.get_object("bucket", "a", object_info=info).read()
    list(client.list_objects("bucket", "a"))
    client.copy_object("bucket", "a", "bucket", "b")
    client.delete_object("bucket", "a")
    told = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert told == [
        (logging.DEBUG, text)
        for text in (
            "PutObject s3://bucket/a",
            "HeadObject s3://bucket/a",
            "GetObject s3://bucket/a, object_info is None=True",
            "GetObject s3://bucket/a, object_info is None=False",
            "ListObjects s3://bucket/a",
            "CopyObject s3://bucket/a to s3://bucket/b",
            "DeleteObject s3://bucket/a",
        )
    ]


def test_success_says_nothing(wire, caplog, capfd):
    caplog.set_level(logging.INFO, "s3torch")
    client = wire.client()
    with client.put_object(wire.bucket, "k") as writer:
        writer.write(b"data")
    assert client.get_object(wire.bucket, "k").read() == b"data"
    client.delete_object(wire.bucket, "k")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
