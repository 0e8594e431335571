"""Which file systems share a client."""

from __future__ import annotations

import pickle

from s3torch.core import PutOptions, S3Client, S3ClientConfig
from s3torch.dcp import S3FileSystem, S3StorageReader, S3StorageWriter

URI = "s3://bucket/checkpoint"


def client_of(*, region="us-east-1", endpoint=None, **settings):
    return S3FileSystem(region, s3client_config=S3ClientConfig(**settings), endpoint=endpoint).client


def test_writers_with_the_same_settings_share_a_client():
    first, second = (S3StorageWriter("us-east-1", URI, S3ClientConfig()) for _ in range(2))
    assert first.fs.client is second.fs.client
    assert S3StorageReader("us-east-1", URI, S3ClientConfig()).fs.client is not first.fs.client


def test_other_settings_are_another_client():
    options = PutOptions(metadata={"a": "b"}, tags={"c": "d"})
    clients = [
        client_of(),
        client_of(region="eu-west-1"),
        client_of(endpoint="http://127.0.0.1:1"),
        client_of(max_attempts=3),
        client_of(put_options=options),
    ]
    assert len(set(map(id, clients))) == len(clients)
    assert client_of(put_options=PutOptions(metadata={"a": "b"}, tags={"c": "d"})) is clients[-1]


def test_another_environment_is_another_client(monkeypatch, tmp_path):
    before = client_of()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    elsewhere = client_of()
    assert elsewhere is not before
    with monkeypatch.context() as there:
        there.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        without = client_of()
        (tmp_path / "config").write_text("[default]\nregion = eu-west-1\n")
        assert client_of() is not without
    assert client_of() is elsewhere


def test_a_client_that_is_given_is_used():
    client = S3Client("us-east-1")
    assert S3FileSystem(None, client).client is client


def test_settings_that_cannot_be_hashed_are_no_error():
    class Function:
        __hash__ = None

        def __call__(self):
            raise NotImplementedError

    assert client_of(credentials=Function()) is not client_of(credentials=Function())


def test_a_writer_that_was_pickled_has_a_client_of_its_own():
    writer = S3StorageWriter("us-east-1", URI)
    assert pickle.loads(pickle.dumps(writer)).fs.client is not writer.fs.client
