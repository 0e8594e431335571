"""A transport of someone else, as an unpacked distribution on ``sys.path``."""

from __future__ import annotations

import sys
from textwrap import dedent

import pytest

from s3torch.core import S3ClientConfig
from s3torch.core.errors import TransportError
from s3torch.datasets import S3IterableDataset, S3MapDataset

TAPE = '''
"""Objects on a tape: what a transport owes and nothing more."""

from concurrent.futures import Future
from urllib.parse import parse_qs

from s3torch.core.errors import NotFoundError
from s3torch.core.models import GetResult, HeadObjectResult, ListObjectResult, ObjectInfo
from s3torch.core.plugins import hookimpl

TAPE = {"reel/a": b"first", "reel/b": b"second"}


def wind(request, into):
    if request.operation == "ListObjectsV2":
        [prefix] = parse_qs(request.query)["prefix"]
        found = [
            ObjectInfo(key, f'"{key}"', len(data), 0)
            for key, data in sorted(TAPE.items())
            if key.startswith(prefix)
        ]
        return ListObjectResult(found, [])
    if request.key not in TAPE:
        raise NotFoundError(f"no such key: s3://{request.bucket}/{request.key}")
    data = TAPE[request.key]
    head = HeadObjectResult(f'"{request.key}"', len(data), 0)
    if request.byte_range is not None:
        data = data[request.byte_range.start : request.byte_range.stop]
    if into is not None:
        into[: len(data)] = data
    return GetResult(head, len(data), data if into is None else None)


class Transport:
    def send(self, request, *, body=None, into=None):
        future = Future()
        try:
            future.set_result(wind(request, into))
        except NotFoundError as error:
            future.set_exception(error)
        return future

    def close(self):
        pass


@hookimpl
def s3torch_create_transport(context):
    return Transport()
'''


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Installs a module as the transport of a name, without an installer."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = []

    def make(name, code):
        module = f"thirdparty_{name}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(dedent(code))
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[s3torch.transports]\n{name} = {module}\n")
        return S3ClientConfig(transport=name)

    yield make
    for module in modules:
        sys.modules.pop(module, None)


def data_of(reader):
    return reader.key, reader.read()


def test_it_is_found_by_its_name_and_serves_datasets(distribution):
    config = distribution("tape", TAPE)
    options = {"region": "us-east-1", "transform": data_of, "s3client_config": config}
    expected = [("reel/a", b"first"), ("reel/b", b"second")]
    dataset = S3MapDataset.from_prefix("s3://deck/reel/", **options)
    assert [len(dataset), *dataset] == [2, *expected]
    assert list(S3IterableDataset.from_prefix("s3://deck/reel/", **options)) == expected
    with pytest.raises(FileNotFoundError, match="s3://deck/reel/c"):
        S3MapDataset.from_objects("s3://deck/reel/c", **options)[0]


def test_a_broken_one_hurts_only_who_asks_for_it(distribution):
    tape = distribution("tape", TAPE)
    broken = distribution("broken", "import no_such_driver")
    uri = "s3://deck/reel/"
    assert len(S3MapDataset.from_prefix(uri, region="us-east-1", s3client_config=tape)) == 2
    assert "thirdparty_broken" not in sys.modules
    dataset = S3MapDataset.from_prefix(uri, region="us-east-1", s3client_config=broken)
    with pytest.raises(TransportError, match=r"'broken'.*cannot be imported.*no_such_driver"):
        len(dataset)


def test_an_unknown_name_lists_what_is_installed(distribution):
    distribution("tape", TAPE)
    config = S3ClientConfig(transport="tpae")
    dataset = S3MapDataset.from_prefix("s3://deck/", region="us-east-1", s3client_config=config)
    with pytest.raises(TransportError, match=r"unknown transport 'tpae'.*crt.*tape"):
        len(dataset)
