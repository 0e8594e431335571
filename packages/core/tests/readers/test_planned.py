"""The planned reader: conformance, and what it asks for."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3torch.core import S3ClientConfig, S3ReaderConstructor, UserAgent
from s3torch.core._client import RuntimeHandle
from s3torch.core.errors import ConfigurationError
from s3torch.core.ranges import ByteRange
from s3torch.core.readers._constructor import PlannedPolicy, planned_reader
from s3torch.core.transfer import ObjectSource
from s3torch.core.transports.memory import MemoryStore
from s3torch.testing.reader_tests import ReaderTests

STORE = "http://planned.invalid"
CONFIG = S3ClientConfig(transport="memory", endpoint=STORE)
DATA = bytes(range(200)) + b"12345"


@pytest.fixture(autouse=True, scope="module")
def planned_store():
    store = MemoryStore.at(STORE)
    store.create_bucket("bucket")
    yield store
    MemoryStore.forget(STORE)


class _Base(ReaderTests):
    ranges = ()
    max_gap = None
    knows_size = False

    connector = RuntimeHandle(region="us-east-1", endpoint=None, config=CONFIG, user_agent=UserAgent())

    def open_reader(self, data):
        store = MemoryStore.at(STORE)
        store.put("bucket", "key", data)
        info = store.get("bucket", "key").info("key") if self.knows_size else None
        source = ObjectSource(self.connector, "bucket", "key", object_info=info)
        source.part_size = 20
        return planned_reader(source, self.ranges, self.max_gap)


class TestWithoutAPlan(_Base):
    pass


class TestAPlanWithGaps(_Base):
    ranges = ((3, 10), (50, 60), (50, 55), (61, 130), (200, 201), (290, 900))
    max_gap = 0


class TestAPlanOfAll(_Base):
    ranges = ((0, 700),)
    knows_size = True


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranges=st.lists(st.tuples(st.integers(0, 220), st.integers(0, 60)), max_size=8),
    reads=st.lists(st.tuples(st.integers(0, 205), st.integers(0, 70)), max_size=12),
    gap=st.sampled_from([None, 0, 7, float("inf")]),
    limit=st.sampled_from([0, 50, 10**9]),
    failing=st.sets(st.integers(0, 20), max_size=4),
)
def test_any_reads_of_any_plan(ranges, reads, gap, limit, failing, ledger, opened):
    source = ledger(DATA, limit=limit)
    for number in failing:
        source.fail(number, ConnectionError())
    plan = [(start, start + size) for start, size in ranges]
    reader = opened(planned_reader, source, ranges=plan, max_gap=gap)
    for position, count in reads:
        reader.seek(position)
        while True:
            try:
                assert reader.read(count) == DATA[position : position + count]
            except ConnectionError:
                assert reader.tell() == position
                continue
            break
    reader.close()
    assert source.shared.used == 0


def test_what_the_plan_has_next_is_on_its_way(ledger, opened):
    source = ledger(DATA, known=True)
    reader = opened(planned_reader, source, ranges=[(100, 125), (0, 5), (150, 160)], max_gap=0)
    assert reader.read(2) == DATA[:2]
    planned = [(0, 5), (100, 110), (110, 120), (120, 125), (150, 160)]
    assert source.requests == planned
    reader.seek(100)
    assert reader.read(25) == DATA[100:125]
    reader.seek(150)
    assert reader.read(10) == DATA[150:160]
    assert source.requests == planned


def test_who_jumps_about_gets_only_what_he_asks_for(ledger, opened):
    source = ledger(DATA, known=True)
    reader = opened(planned_reader, source, ranges=[(at, at + 5) for at in range(0, 200, 20)], max_gap=0)
    for at in (100, 20, 160):
        reader.seek(at)
        assert reader.read(2) == DATA[at : at + 2]
    assert source.requests == [(100, 105), (20, 25), (160, 165)]


def test_neighbours_share_a_request(ledger, opened):
    source = ledger(DATA)
    reader = opened(planned_reader, source, ranges=[ByteRange(0, 2), ByteRange(4, 6)], max_gap=2)
    assert reader.read(1) == DATA[:1]
    reader.seek(5)
    assert reader.read(1) == DATA[5:6]
    assert source.requests == [(0, 6)]


def test_prefetch_asks_and_returns_at_once(ledger, opened):
    source = ledger(DATA)
    reader = opened(planned_reader, source, ranges=[(50, 55), (90, 95)], max_gap=0)
    reader.prefetch()
    assert (source.requests, source.waited) == ([(50, 55), (90, 95)], [])
    reader.seek(50)
    assert reader.read(5) == DATA[50:55]
    assert len(source.requests) == 2


def test_the_kind_of_reader(client, store):
    store.put("bucket", "key", DATA)
    make = S3ReaderConstructor.planned([(10, 20)])
    assert S3ReaderConstructor.get_reader_type_string(make) == "planned"
    reader = client.get_object("bucket", "key", reader_constructor=make)
    assert isinstance(reader._policy, PlannedPolicy)
    reader.seek(10)
    assert reader.read(10) == DATA[10:20]


@pytest.mark.parametrize(
    "options", [{"ranges": [(5, 3)]}, {"ranges": [(-5, 3)]}, {"max_gap": -1}, {"max_gap": float("nan")}]
)
def test_bad_plans(options, ledger, opened):
    with pytest.raises(ConfigurationError):
        opened(planned_reader, ledger(DATA), **options)
