"""A table of objects is a sequence of what was put in, whatever that was."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import ObjectInfo, RestoreStatus, S3BucketKeyData
from s3torch.datasets.sources._sources import VersionedInfo
from s3torch.datasets.sources._table import ObjectTable


@dataclass(frozen=True)
class InfoOfAUser:
    """What a user's own source tells of an object."""

    size: int


etags = st.one_of(
    st.just('"d41d8cd98f00b204e9800998ecf8427e"'),
    st.just('"d41d8cd98f00b204e9800998ecf8427e-12"'),
    st.just('"D41D8CD98F00B204E9800998ECF8427E"'),
    st.text(max_size=300),
)
versions = st.none() | st.text(max_size=300) | st.just("3sL4kqtJlcpXroDTDmJ+rmSpXd3dIbrHY")
restored = st.none() | st.just(RestoreStatus(in_progress=True))
classes = st.none() | st.sampled_from(["STANDARD", "GLACIER"]) | st.text(max_size=3)


@st.composite
def items(draw):
    bucket, key = draw(st.sampled_from(["a", "b"])), draw(st.text(max_size=20))
    kind = draw(st.sampled_from(["listed", "named", "odd"]))
    if kind == "named":
        return S3BucketKeyData(bucket, key)
    if kind == "odd":
        return S3BucketKeyData(bucket, key, InfoOfAUser(draw(st.integers(0, 9))))
    size, time = draw(st.integers(0, 2**45)), draw(st.integers(0, 2**33))
    facts = key, draw(etags), size, time, draw(classes), draw(restored)
    version = draw(versions)
    info = ObjectInfo(*facts) if version is None else VersionedInfo(*facts, version_id=version)
    return S3BucketKeyData(bucket, key, info)


@given(st.lists(items(), max_size=30))
def test_it_gives_back_what_was_put_in(objects):
    table = ObjectTable.of(iter(objects))
    assert list(table) == objects
    assert [table[number - len(objects)] for number in range(len(objects))] == objects
    assert table[1:5] == objects[1:5]
    assert list(pickle.loads(pickle.dumps(table))) == objects
    for index in (len(objects), -len(objects) - 1):
        with pytest.raises(IndexError):
            table[index]


@given(objects=st.lists(items(), max_size=10))
def test_a_file_of_it_can_be_mapped(tmp_path_factory, objects):
    path = tmp_path_factory.getbasetemp() / "table"
    with path.open("wb") as file:
        file.write(ObjectTable.of(objects).buffer)
    with path.open("rb") as file:
        assert list(ObjectTable.mapped(file)) == objects


def test_an_object_takes_its_key_and_42_bytes():
    info = ObjectInfo("k" * 10, '"d41d8cd98f00b204e9800998ecf8427e"', 1, 1, "STANDARD")
    table = ObjectTable.of(S3BucketKeyData("b", "k" * 10, info) for _ in range(10_000))
    assert len(table.buffer) / 10_000 < 10 + 42 + 1


def test_something_else_is_no_table():
    with pytest.raises(ValueError, match="not a table"):
        ObjectTable(bytes(100))
