"""Checkpoints as single objects."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from s3torch.core import (
    PutOptions,
    RangedS3Reader,
    S3Checkpoint,
    S3ClientConfig,
    S3ReaderConstructor,
    SequentialS3Reader,
)
from s3torch.core.errors import ConfigurationError, NotFoundError

URI = "s3://bucket/run/epoch0.pt"


@pytest.fixture
def checkpoint(store):
    config = S3ClientConfig(transport="memory", endpoint=store.endpoint)
    with S3Checkpoint("us-east-1", None, config) as checkpoint:
        yield checkpoint


@pytest.mark.parametrize("uri", [URI, Path(URI)], ids=["text", "path"])
def test_what_is_saved_can_be_loaded(checkpoint, uri):
    assert not checkpoint.exists(uri)
    with checkpoint.writer(uri) as writer:
        pickle.dump({"epoch": 0}, writer)
    assert checkpoint.exists(uri)
    with checkpoint.reader(uri) as reader:
        assert pickle.load(reader) == {"epoch": 0}
    checkpoint.delete(uri)
    checkpoint.delete(uri)
    with pytest.raises(NotFoundError):
        checkpoint.reader(uri).read()


def test_a_save_that_fails_keeps_the_old_one(checkpoint):
    with checkpoint.writer(URI) as writer:
        writer.write(b"old")
    with pytest.raises(pickle.PicklingError), checkpoint.writer(URI) as writer:
        writer.write(b"half of the new")
        raise pickle.PicklingError
    assert checkpoint.reader(URI).read() == b"old"


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", Path("s3://bucket")])
def test_a_key_is_needed(checkpoint, uri):
    for call in (checkpoint.reader, checkpoint.writer, checkpoint.exists, checkpoint.delete):
        with pytest.raises(ConfigurationError, match="key"):
            call(uri)


def test_what_it_was_given(store):
    checkpoint = S3Checkpoint("eu-west-1", "http://localhost:9000")
    assert (checkpoint.region, checkpoint.endpoint) == ("eu-west-1", "http://localhost:9000")
    with pytest.raises(ConfigurationError):
        S3Checkpoint("eu-west-1", "localhost")


@pytest.mark.promise(5)
def test_it_can_be_pickled_after_use(checkpoint, store):
    store.put("bucket", "run/epoch0.pt", b"data")
    assert checkpoint.reader(URI).read() == b"data"
    with pickle.loads(pickle.dumps(checkpoint)) as again:
        assert again.region == checkpoint.region
        assert again.reader(URI).read() == b"data"


def test_the_kind_of_reader(store):
    config = S3ClientConfig(transport="memory", endpoint=store.endpoint)
    assert isinstance(S3Checkpoint("x", None, config).reader(URI), SequentialS3Reader)
    ranged = S3ReaderConstructor.range_based()
    checkpoint = S3Checkpoint("x", s3client_config=config, reader_constructor=ranged)
    assert isinstance(checkpoint.reader(URI), RangedS3Reader)


def test_how_it_is_stored(checkpoint, store):
    options = PutOptions(storage_class="STANDARD_IA", if_none_match="*")
    with checkpoint.writer(URI, options=options) as writer:
        writer.write(b"x")
    assert store.get("bucket", "run/epoch0.pt").options.storage_class == "STANDARD_IA"


def test_a_child_can_use_it(checkpoint, store, in_child):
    store.put("bucket", "run/epoch0.pt", b"data")
    assert checkpoint.reader(URI).read() == b"data"
    assert in_child(lambda: checkpoint.reader(URI).read()) == b"data"


def test_closing_is_not_the_end(checkpoint, store):
    store.put("bucket", "run/epoch0.pt", b"data")
    checkpoint.close()
    checkpoint.close()
    assert checkpoint.exists(URI)
