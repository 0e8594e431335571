"""What users of the map-style dataset notice, on a store in memory."""

from __future__ import annotations

import inspect
import logging
import pickle
from operator import attrgetter, methodcaller

import pytest
import torch
from torch.utils.data import DataLoader

from s3torch.core import S3BucketKeyData, S3Client, S3ClientConfig, S3ReaderConstructor
from s3torch.core.errors import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.core.transports.memory import MemoryStore
from s3torch.datasets import S3IterableDataset, S3MapDataset

KEYS = [f"train/{number}" for number in range(5)]


@pytest.fixture
def dataset(memory, fill):
    fill(*KEYS, "other")
    return S3MapDataset.from_prefix(
        "s3://data/train/",
        region="us-east-1",
        transform=methodcaller("read"),
        s3client_config=memory,
    )


def test_it_has_list_semantics(dataset):
    assert len(dataset) == 5
    assert [dataset[0], dataset[-1], dataset[torch.tensor(2)]] == [b"train/0", b"train/4", b"train/2"]
    assert list(dataset) == [key.encode() for key in KEYS]
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 5 objects"):
            dataset[index]
    with pytest.raises(TypeError, match="slices are not supported"):
        dataset[1:3]
    with pytest.raises(TypeError):
        dataset["0"]


def test_a_batch_keeps_the_order_of_its_indices(dataset):
    assert dataset.__getitems__([3, 0, -1, 0]) == [b"train/3", b"train/0", b"train/4", b"train/0"]
    assert dataset.__getitems__([]) == []
    with pytest.raises(IndexError):
        dataset.__getitems__([0, 9])


def test_objects_are_listed_once(dataset, listings):
    assert listings() == 0
    assert len(dataset) == len(list(dataset)) == 5
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[0] == b"train/0"
    assert listings() == 1


@pytest.mark.promise(5)
def test_an_ordinary_pickle_asks_s3_nothing(dataset, listings):
    assert pickle.loads(pickle.dumps(dataset))[1] == b"train/1"
    assert listings() == 1


def test_the_default_sample_is_an_unread_reader(memory, fill):
    fill("a", "b")
    dataset = S3MapDataset.from_objects(
        ["s3://data/b", "s3://data/a"], region="us-east-1", s3client_config=memory
    )
    batch = pickle.loads(pickle.dumps(dataset.__getitems__([0, 1])))
    assert [(reader.bucket, reader.key, reader.tell()) for reader in batch] == [
        ("data", "b", 0),
        ("data", "a", 0),
    ]
    assert [reader.read() for reader in batch] == [b"b", b"a"]


def test_a_prefix_lists_everything_below_it_and_knows_the_sizes(memory, fill):
    fill("p", "p/", "p/2", "p/10", "pq", "q")
    dataset = S3MapDataset.from_prefix(
        "s3://data/p", region="us-east-1", transform=attrgetter("key", "size"), s3client_config=memory
    )
    assert list(dataset) == [("p", 1), ("p/", 2), ("p/10", 4), ("p/2", 3), ("pq", 2)]


def test_a_prefix_without_objects_is_an_empty_dataset(memory):
    dataset = S3MapDataset.from_prefix("s3://data/none", region="us-east-1", s3client_config=memory)
    assert len(dataset) == 0
    assert list(dataset) == []


def test_a_listed_object_that_was_replaced_is_an_error(dataset, memory):
    assert len(dataset) == 5
    with S3Client(s3client_config=memory).put_object("data", "train/1") as writer:
        writer.write(b"replaced")
    with pytest.raises(ObjectChangedError):
        dataset[1]


def test_objects_may_come_from_any_callable(memory, fill):
    fill("a", "b")

    def chosen(client):
        for page in client.list_objects("data"):
            for info in page.object_info:
                yield S3BucketKeyData("data", info.key, info)

    dataset = S3MapDataset(
        "us-east-1", chosen, None, methodcaller("read"), memory, S3ReaderConstructor.range_based()
    )
    assert [len(dataset), dataset[0], dataset[1], dataset[0]] == [2, b"a", b"b", b"a"]
    assert (dataset.region, dataset.endpoint) == ("us-east-1", None)


class Labelled(S3MapDataset):
    """A subclass as users write them."""

    def __init__(self, region, get_dataset_objects, endpoint=None, **options):
        super().__init__(region, get_dataset_objects, endpoint, **options)

    def __getitem__(self, index):
        return index, super().__getitem__(index)


def test_subclasses_get_their_own_class_and_their_own_samples(memory, fill):
    fill("a", "b")
    dataset = Labelled.from_prefix(
        "s3://data/", region="us-east-1", transform=methodcaller("read"), s3client_config=memory
    )
    assert type(dataset) is Labelled
    assert list(DataLoader(dataset, batch_size=2, collate_fn=list)) == [[(0, b"a"), (1, b"b")]]


@pytest.mark.parametrize("error", [ValueError, KeyError, IndexError])
def test_an_error_of_a_transform_keeps_its_class_and_names_the_object(memory, fill, error):
    fill("a", "b")

    def fail(reader):
        raise error("no label")

    dataset = S3MapDataset.from_prefix(
        "s3://data/", region="us-east-1", transform=fail, s3client_config=memory
    )
    for use in (lambda: dataset[1], lambda: dataset.__getitems__([1, 0]), lambda: list(dataset)):
        with pytest.raises(error) as caught:
            use()
        assert "s3://data/" in caught.value.__notes__[0]


def test_stop_iteration_of_a_transform_does_not_end_the_data(memory, fill):
    fill("a", "b")
    dataset = S3MapDataset.from_prefix(
        "s3://data/", region="us-east-1", transform=lambda _: next(iter([])), s3client_config=memory
    )
    with pytest.raises(RuntimeError, match="StopIteration for s3://data/a"):
        list(DataLoader(dataset))


def test_a_missing_object_is_an_error_of_its_class(memory):
    dataset = S3MapDataset.from_objects(
        "s3://data/none", region="us-east-1", transform=methodcaller("read"), s3client_config=memory
    )
    with pytest.raises(NotFoundError, match="s3://data/none"):
        dataset[0]


def test_the_client_may_be_replaced(dataset):
    config = S3ClientConfig(transport="memory", endpoint="http://replacement.memory")
    MemoryStore.at("http://replacement.memory").create_bucket("data")
    with S3Client(s3client_config=config) as client:
        dataset._client = client
        with client.put_object("data", "train/mine") as writer:
            writer.write(b"mine")
        assert list(dataset) == [b"mine"]


def test_a_closed_dataset_connects_again(dataset):
    with dataset:
        assert dataset[0] == b"train/0"
    dataset.close()
    assert dataset[1] == b"train/1"


@pytest.mark.parametrize(("kind", "cls"), [("map", S3MapDataset), ("iterable", S3IterableDataset)])
def test_requests_say_which_dataset_they_come_from(memory, kind, cls):
    for constructor, name in (
        (None, "sequential"),
        (S3ReaderConstructor.range_based(), "range_based"),
        (lambda **options: None, "unknown"),
    ):
        dataset = cls.from_prefix(
            "s3://data", region="us-east-1", s3client_config=memory, reader_constructor=constructor
        )
        assert f"(md/dataset#{kind} md/reader_type#{name})" in dataset._client.user_agent_prefix


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_building_one_is_logged_and_sends_nothing(cls, caplog):
    caplog.set_level(logging.INFO, logger="s3torch")
    unreachable = "http://127.0.0.1:9"
    cls.from_prefix("s3://data/p", region="us-east-1", endpoint=unreachable)
    dataset = cls.from_objects(["s3://data/p"], region="us-east-1", endpoint=unreachable)
    assert caplog.messages == [
        f"Building {cls.__name__} from_prefix s3_uri='s3://data/p'",
        f"Building {cls.__name__} from_objects",
    ]
    assert dataset.endpoint == unreachable
    for name in ("region", "endpoint"):
        with pytest.raises(AttributeError):
            setattr(dataset, name, "other")


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
@pytest.mark.parametrize(
    "wrong",
    [{"transform": None}, {"prefetch": -1}, {"region": ""}, {"endpoint": "localhost:9000"}],
)
def test_wrong_arguments_are_reported_at_once(cls, wrong):
    with pytest.raises(ConfigurationError):
        cls.from_prefix("s3://data", **({"region": "us-east-1"} | wrong))
    with pytest.raises(ConfigurationError, match="get_dataset_objects must be callable"):
        cls("us-east-1", ["s3://data/a"])


def test_the_positional_order_of_the_constructors_is_kept():
    common = ["self", "region", "get_dataset_objects", "endpoint", "transform", "s3client_config"]
    for cls, names in (
        (S3MapDataset, [*common, "reader_constructor"]),
        (S3IterableDataset, [*common, "enable_sharding", "reader_constructor"]),
    ):
        parameters = inspect.signature(cls.__init__).parameters.values()
        assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == names
        for make in (cls.from_prefix, cls.from_objects):
            first, *others = inspect.signature(make).parameters.values()
            assert first.kind is first.POSITIONAL_OR_KEYWORD
            assert all(p.kind in {p.KEYWORD_ONLY, p.VAR_KEYWORD} for p in others)


@pytest.mark.parametrize("cls", [S3MapDataset, S3IterableDataset])
def test_an_option_that_there_is_not_is_a_type_error(cls):
    with pytest.raises(TypeError, match="prefech"):
        cls.from_prefix("s3://data/", prefech=3)
