"""What users of the dataset of shards notice, on a store in memory."""

from __future__ import annotations

import json
import pickle
from itertools import chain, islice
from operator import itemgetter

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.errors import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.datasets import S3ShardDataset
from s3torch.datasets.formats import DamagedShardError
from s3torch.datasets.order._epoch import StridedShard
from s3torch.datasets.order._state import BlockProgress, Cursor
from s3torch.datasets.shards._pipeline import BlockShuffler
from s3torch.datasets.shards._tar_format import TarFormat
from s3torch.testing import MemoryStore

KEYS = [[f"d/{shard}-{number}" for number in range(shard + 2)] for shard in range(6)]
ALL = list(chain.from_iterable(KEYS))


def files_of(keys):
    return [file for key in keys for file in ((f"{key}.jpg", key.encode() * 99), (f"{key}.cls.txt", b"7"))]


@pytest.fixture
def make(memory, store, make_tar):
    for number, keys in enumerate(KEYS):
        store.put("data", f"train/{number}.tar", make_tar(files_of(keys)))
    store.put("data", "train/0.tar.index.json", b"a sidecar is no shard")

    def make_dataset(uri="s3://data/train/", **options):
        defaults = {"region": "us-east-1", "s3client_config": memory, "transform": itemgetter("__key__")}
        return S3ShardDataset.from_prefix(uri, **(defaults | options))

    return make_dataset


def ranks_of(make, count, **options):
    return [make(rank=rank, world_size=count, **options) for rank in range(count)]


def test_samples_are_those_of_webdataset(make):
    first = next(iter(make(transform=None)))
    assert first == {
        "__key__": "d/0-0",
        "__url__": "s3://data/train/0.tar",
        "jpg": b"d/0-0" * 99,
        "cls.txt": b"7",
    }
    assert list(make()) == ALL


def test_compressed_archives(make, store, make_tar):
    files = files_of(ALL)
    store.put("data", "more/a.tar.gz", make_tar(files, mode="w:gz"))
    store.put("data", "more/b.tgz", make_tar(files, mode="w:gz"))
    # Two frames, as parallel compressors write them.
    plain = make_tar(files)
    frames = [zstandard.ZstdCompressor().compress(part) for part in (plain[:9000], plain[9000:])]
    store.put("data", "more/c.TAR.ZST", b"".join(frames))
    dataset = make("s3://data/more/")
    assert sorted(dataset) == sorted(ALL * 3)
    samples = iter(dataset)
    taken = [next(samples) for _ in range(40)]
    again = make("s3://data/more/")
    again.load_state_dict(dataset.state_dict())
    assert sorted(taken + list(again)) == sorted(ALL * 3)


def test_shards_of_a_pattern(make, memory):
    options = {"s3client_config": memory, "transform": itemgetter("__key__")}
    assert list(S3ShardDataset.from_glob("s3://data/**/[02].tar", **options)) == KEYS[0] + KEYS[2]


def test_shards_are_shared_out_between_ranks(make):
    for count in (2, 3, 4):
        for shuffle in (False, True):
            parts = [list(dataset) for dataset in ranks_of(make, count, shuffle=shuffle, shuffle_buffer=4)]
            assert sorted(chain.from_iterable(parts)) == sorted(ALL)
            # All samples of a shard are read by one rank.
            shards = [{key.partition("-")[0] for key in part} for part in parts]
            assert sum(len(part) for part in shards) == len(KEYS)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("count", [3, 60])
def test_workers_may_all_yield_the_same_number(make, shuffle, count):
    options = {"shuffle": shuffle, "shuffle_buffer": 4, "samples_per_worker": count}
    for rank in range(2):
        whole = list(make(rank=rank, world_size=2, **options))
        own = set(make(rank=rank, world_size=2, shuffle=shuffle))
        assert len(whole) == count
        assert set(whole) <= own
        # All come before any comes again.
        assert len(set(whole[: len(own)])) == min(count, len(own))
        for stop in range(0, count + 1, 7):
            dataset = make(rank=rank, world_size=2, **options)
            taken = list(islice(iter(dataset), stop))
            again = make(rank=rank, world_size=2, **options)
            again.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
            assert taken + list(again) == whole
    with pytest.raises(ConfigurationError, match="no samples for worker 6 of 7"):
        list(make(rank=6, world_size=7, **options))


def test_a_worker_without_shards_is_told(make, caplog):
    assert list(make(rank=6, world_size=7)) == []
    assert "6 shards are too few" in caplog.text


def test_an_epoch_has_its_own_order(make):
    dataset = make(shuffle=True, shuffle_buffer=5)
    first = list(dataset)
    assert first == list(dataset)
    dataset.set_epoch(1)
    second = list(dataset)
    assert first != second
    assert sorted(first) == sorted(second) == sorted(ALL)
    assert first != list(make(shuffle=True, shuffle_buffer=5, seed=1))


@pytest.fixture(scope="module")
def archives():
    """A store in memory that examples of one test fill for themselves."""
    endpoint = "http://shards.memory"
    store = MemoryStore.at(endpoint)
    store.create_bucket("data")
    return S3ClientConfig(transport="memory", endpoint=endpoint), store


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(0, 5), max_size=6),
    shuffle=st.booleans(),
    buffer=st.integers(1, 7),
    ranks=st.integers(1, 3),
    ahead=st.integers(0, 3),
    stops=st.lists(st.integers(0, 12), max_size=3),
)
def test_a_state_resumes_exactly(archives, make_tar, counts, shuffle, buffer, ranks, ahead, stops):
    memory, store = archives
    uris, expected = [], []
    for shard, count in enumerate(counts):
        keys = [f"{shard}-{number}" for number in range(count)]
        store.put("data", f"{shard}.tar", make_tar([(f"{key}.txt", key.encode()) for key in keys]))
        uris.append(f"s3://data/{shard}.tar")
        expected += keys
    seen = []
    for rank in range(ranks):

        def dataset(rank=rank):
            return S3ShardDataset.from_objects(
                uris,
                s3client_config=memory,
                transform=itemgetter("__key__"),
                shuffle=shuffle,
                shuffle_buffer=buffer,
                shards_ahead=ahead,
                rank=rank,
                world_size=ranks,
            )

        whole, taken, state = list(dataset()), [], None
        for stop in [*stops, 99]:
            part = dataset()
            if state is not None:
                part.load_state_dict(json.loads(json.dumps(state)))
                assert part.state_dict() == state
            # A generator stands still behind the last sample that was asked for.
            taken += islice(iter(part), stop)
            state = part.state_dict()
            if "finished" in state:
                break
        assert taken == whole
        seen += whole
    assert sorted(seen) == sorted(expected)


def test_a_worker_keeps_no_more_samples_than_its_buffer():
    class Sample:
        alive = 0

        def __init__(self):
            Sample.alive += 1

        def __del__(self):
            Sample.alive -= 1

    shuffler = BlockShuffler(10, seed=0, epoch=0, turn=0, share=StridedShard())
    most = 0
    for _, sample in shuffler.shuffle(((Cursor(), Sample()) for _ in range(100)), BlockProgress()):
        most = max(most, sample.alive)
    assert most <= 10 + 2


def test_a_state_at_the_end_of_an_archive_with_a_short_end_marker(make, store, make_tar):
    archive = make_tar(files_of(KEYS[0])).rstrip(b"\0")
    store.put("data", "short/a.tar", archive + bytes(-len(archive) % 512 + 512))
    dataset = make("s3://data/short/")
    samples = iter(dataset)
    taken = [next(samples) for _ in KEYS[0]]
    again = make("s3://data/short/")
    again.load_state_dict(dataset.state_dict())
    assert (taken, list(again)) == (KEYS[0], [])


def test_the_size_of_a_state_is_bounded(make):
    dataset = make(shuffle=True)
    samples = iter(dataset)
    sizes = {len(json.dumps(dataset.state_dict())) // 50 for _ in samples}
    assert max(sizes) < 10


@pytest.mark.parametrize("workers", [0, 2])
# torchdata calls what torch has deprecated.
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_torchdata_resumes_exactly(make, workers):
    def loader():
        return StatefulDataLoader(
            make(shuffle=True, shuffle_buffer=3),
            batch_size=2,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            collate_fn=list,
        )

    first = loader()
    batches = iter(first)
    seen = [next(batches) for _ in range(4)]
    state = first.state_dict()
    rest = list(batches)
    again = loader()
    again.load_state_dict(state)
    assert list(again) == rest
    assert sorted(chain.from_iterable(seen + rest)) == sorted(ALL)


def test_workers_share_the_shards(make):
    dataset = pickle.loads(pickle.dumps(make()))
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert sorted(loader) == sorted(ALL)


def test_a_state_that_does_not_fit_is_refused(make, store, make_tar):
    dataset = make(shuffle=True)
    next(iter(dataset))
    state = dataset.state_dict()
    with pytest.raises(ConfigurationError, match="order would differ"):
        make().load_state_dict(state)
    with pytest.raises(ConfigurationError, match="not a state"):
        make().load_state_dict({"epoch": 1})
    one, other = (make(shuffle=True, rank=0, world_size=size) for size in (2, 3))
    next(iter(one))
    other.load_state_dict(one.state_dict())
    with pytest.raises(ConfigurationError, match=r"merge_states\(\) of all ranks"):
        iter(other)
    store.put("data", "train/9.tar", make_tar([]))
    changed = make(shuffle=True)
    changed.load_state_dict(state)
    with pytest.raises(ConfigurationError, match="they have changed"):
        next(iter(changed))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_shard_names_object_and_offset(make, store, make_tar, compressed):
    whole = make_tar(files_of(KEYS[5]), mode="w:gz" if compressed else "w")
    key = "bad/a.tar.gz" if compressed else "bad/a.tar"
    store.put("data", key, whole[: len(whole) // 2] if compressed else whole[:1700])
    store.put("data", "bad/b.tar", make_tar(files_of(KEYS[0])))
    with pytest.raises(DamagedShardError, match=rf"s3://data/{key}.*damaged at offset \d+") as caught:
        list(make("s3://data/bad/"))
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.bucket, error.key) == ("data", key)
    assert error.offset == caught.value.offset > 0
    # The whole samples before the damage come, and the other shards.
    left = list(make("s3://data/bad/", on_error="skip"))
    assert left[-2:] == KEYS[0]
    assert left[:-2] == KEYS[5][: len(left) - 2]


def test_a_truncated_frame_is_an_error(make, store, make_tar):
    whole = zstandard.ZstdCompressor().compress(make_tar(files_of(ALL)))
    store.put("data", "bad/a.tar.zst", whole[:-100])
    with pytest.raises(DamagedShardError):
        list(make("s3://data/bad/"))


def test_other_damage_is_an_error(make, store):
    store.put("data", "bad/a.tar.gz", b"this was never compressed")
    with pytest.raises(DamagedShardError, match="decompressed"):
        list(make("s3://data/bad/"))
    store.put("data", "bad/a.tar.gz", b"")
    with pytest.raises(DamagedShardError):
        list(make("s3://data/bad/", format=TarFormat()))


def test_missing_and_changed_shards(make, memory, store, make_tar):
    dataset, strict = make(on_error="skip", shards_ahead=0), make(shards_ahead=0)
    samples, strict_samples = iter(dataset), iter(strict)
    assert next(samples) == next(strict_samples) == ALL[0]
    with S3Client(s3client_config=memory) as client:
        client.delete_object("data", "train/1.tar")
    store.put("data", "train/2.tar", make_tar([]))
    assert list(samples) == [key for key in ALL[1:] if key[2] not in "12"]
    assert dataset.skipped == 2
    with pytest.raises(NotFoundError):
        list(strict_samples)
    with pytest.raises(ObjectChangedError):
        changed = make()
        next(iter(changed))
        store.put("data", "train/3.tar", make_tar([]))
        list(changed)


def test_a_transform_that_raises_names_the_sample(make):
    def breaking(error):
        def transform(sample):
            raise error

        return transform

    for error, expected in ((LookupError("broken"), LookupError), (StopIteration(), RuntimeError)):
        with pytest.raises(expected) as caught:
            next(iter(make(transform=breaking(error))))
        text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
        assert "d/0-0 of s3://data/train/0.tar" in text


def test_arguments_are_checked(make, memory):
    for options, text in [
        ({"format": "zip"}, r"unknown format of shards 'zip'; installed are: parquet, tar"),
        ({"shuffle_buffer": 0}, "shuffle_buffer"),
        ({"shards_ahead": -1}, "shards_ahead"),
        ({"samples_per_worker": 0}, "samples_per_worker"),
        ({"on_error": "ignore"}, "on_error"),
        ({"transform": 3}, "callable"),
    ]:
        with pytest.raises(ConfigurationError, match=text):
            make(**options)
    dataset = S3ShardDataset.from_objects("s3://data/a.zip", s3client_config=memory)
    with pytest.raises(ConfigurationError, match=r"'a.zip'; known suffixes are: .*\.parquet.*\.tar"):
        list(dataset)
