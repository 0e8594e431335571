"""Archives that are packed in odd ways or claim what is not so: whole samples come, or an error."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from s3torch.core.errors import ConfigurationError
from s3torch.datasets import S3IndexedTarDataset, S3ShardDataset, TarFormat, TarIndex
from s3torch.datasets.formats import DamagedShardError
from s3torch.datasets.shards._tar_archive import (
    ArchiveError,
    ForwardStream,
    GzipStream,
    group_members,
    read_members,
)

MIB = 1024 * 1024
END = bytes(1024)
COMPRESS = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.zst": zstandard.compress}
every_suffix = pytest.mark.parametrize("suffix", COMPRESS)


def header(name, size, kind=tarfile.REGTYPE, layout=tarfile.GNU_FORMAT, **attributes):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    info.pax_headers = attributes
    return info.tobuf(layout)


def member(name, data):
    return header(name, len(data)) + data + bytes(-len(data) % 512)


@pytest.fixture
def samples_of(store, memory):
    """Stores an archive and returns its samples, by the dataset that streams and by the one with an index."""

    def read(archive, suffix=".tar", **options):
        store.put("data", f"train{suffix}/a{suffix}", COMPRESS[suffix](archive))
        uri = f"s3://data/train{suffix}/"
        found = list(S3ShardDataset.from_prefix(uri, s3client_config=memory, **options))
        if suffix == ".tar":
            assert list(S3IndexedTarDataset.from_prefix(uri, s3client_config=memory)) == found
        return found

    return read


@every_suffix
def test_files_of_a_sample_that_are_apart_are_an_error(samples_of, make_tar, suffix):
    names = [f"{number}.{part}" for part in ("jpg", "cls") for number in range(3)]
    with pytest.raises(DamagedShardError, match=f"a{suffix}.*sample '0' are not side by side"):
        samples_of(make_tar([(name, b"x") for name in names]), suffix)


def test_an_index_of_files_that_are_apart_is_refused(memory, store, make_tar):
    store.put("data", "a.tar", make_tar([("0.jpg", b""), ("1.jpg", b""), ("0.cls", b"")]))
    with pytest.raises(DamagedShardError, match="'0' are not side by side"):
        S3IndexedTarDataset.from_prefix("s3://data/", s3client_config=memory)[0]
    columns = {"keys": ["0", "1", "0"], "parts": [1, 1, 1], "suffixes": ["jpg"], "suffix": [0, 0, 0]}
    with pytest.raises(ConfigurationError, match="twice"):
        TarIndex('"e"', 4096, **columns, offset=[512, 1024, 1536], length=[1, 1, 1])


@every_suffix
@pytest.mark.parametrize("name", ["0.__key__", "0.__url__", "d/0.__KEY__"])
def test_a_file_does_not_replace_the_key_of_its_sample(samples_of, make_tar, suffix, name):
    with pytest.raises(DamagedShardError, match="names no file of a sample"):
        samples_of(make_tar([("0.jpg", b"x"), (name, b"forged")]), suffix)


@every_suffix
@pytest.mark.parametrize("padding", [0, 512, 9 * 512, 100])
def test_archives_one_after_the_other_are_read_to_the_end(samples_of, make_tar, suffix, padding):
    one, other = make_tar([("0.jpg", b"a"), ("0.cls", b"b")]), make_tar([("1.jpg", b"c")])
    found = samples_of(one + other + bytes(padding), suffix)
    assert [(sample["__key__"], sample["jpg"]) for sample in found] == [("0", b"a"), ("1", b"c")]


@every_suffix
def test_what_follows_the_end_and_is_no_archive_is_an_error(samples_of, make_tar, suffix):
    for rest in (b"?" * 512, bytes(512) + b"?", make_tar([("1.jpg", b"x" * 600)])[:1024]):
        with pytest.raises(DamagedShardError):
            samples_of(make_tar([("0.jpg", b"a")]) + rest, suffix)


def test_an_iteration_resumes_in_the_second_archive(store, memory, make_tar):
    parts = [make_tar([(f"{number}.txt", b"x") for number in range(first, first + 3)]) for first in (0, 3)]
    store.put("data", "a.tar", b"".join(parts))

    def dataset():
        return S3ShardDataset.from_prefix("s3://data/", s3client_config=memory)

    keys = [sample["__key__"] for sample in dataset()]
    for taken in range(1, 6):
        first, again = dataset(), dataset()
        samples = iter(first)
        for _ in range(taken):
            next(samples)
        again.load_state_dict(first.state_dict())
        assert [sample["__key__"] for sample in again] == keys[taken:]


CLAIMS = {
    "plain": header("a.bin", 1 << 30) + bytes(MIB),
    "base 256": header("a.bin", 1 << 70) + bytes(MIB),
    "pax": header("a.bin", 1 << 40, layout=tarfile.PAX_FORMAT) + bytes(MIB),
    "no sample": header("dir/name", 1 << 40) + bytes(MIB),
    "of no known kind": header("a.bin", 1 << 40, kind=b"Z") + bytes(MIB),
    "a name": header("././@LongLink", 1 << 30, kind=tarfile.GNUTYPE_LONGNAME) + bytes(MIB),
    "attributes": header("pax", 1 << 30, kind=tarfile.XHDTYPE) + bytes(MIB),
}


@every_suffix
@pytest.mark.parametrize("claim", CLAIMS)
def test_what_an_archive_cannot_have_is_refused(samples_of, suffix, claim):
    with pytest.raises(DamagedShardError, match="claims"):
        samples_of(CLAIMS[claim] + END, suffix)


BOMB = """
import resource, sys, tracemalloc
from s3torch.core import S3ClientConfig
from s3torch.core.transports.memory import MemoryStore
from s3torch.datasets import S3ShardDataset

store = MemoryStore.at("http://bomb.memory")
store.create_bucket("data")
with open(sys.argv[1], "rb") as file:
    store.put("data", sys.argv[2], file.read())
config = S3ClientConfig(transport="memory", endpoint="http://bomb.memory")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(S3ShardDataset.from_prefix("s3://data/", s3client_config=config))
except Exception as exc:
    print(type(exc).__name__)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.zst"])
def test_a_small_archive_does_not_fill_the_memory(tmp_path, suffix):
    data = header("a.bin", 256 * MIB) + bytes(256 * MIB) + END
    (tmp_path / "bomb").write_bytes(
        gzip.compress(data, 1) if suffix == ".tar.gz" else zstandard.ZstdCompressor(1).compress(data)
    )
    command = [sys.executable, "-c", BOMB, str(tmp_path / "bomb"), f"a{suffix}"]
    error, taken = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert error == "DamagedShardError"
    assert int(taken) < 64


def test_the_limit_of_compressed_files_can_be_moved(samples_of, make_tar):
    archive = make_tar([("0.bin", bytes(100_000))])
    with pytest.raises(DamagedShardError, match="claims 100000 bytes"):
        samples_of(archive, ".tar.gz", format=TarFormat(max_file_size=99_999))
    (sample,) = samples_of(archive, ".tar.gz", format=TarFormat(max_file_size=100_000))
    assert sample["bin"] == bytes(100_000)
    # A plain archive has the bytes that it claims.
    assert samples_of(archive, format=TarFormat(max_file_size=0))
    for size in (-1, 1.5, True):
        with pytest.raises(ConfigurationError, match="max_file_size"):
            TarFormat(max_file_size=size)


def test_padding_without_end_is_refused(store, memory):
    compressor = zstandard.ZstdCompressor(1)
    store.put("data", "a.tar.zst", member_of_zeros(compressor, 1100 * MIB))
    with pytest.raises(DamagedShardError, match="the padding"):
        list(S3ShardDataset.from_prefix("s3://data/", s3client_config=memory))


def member_of_zeros(compressor, size):
    target = io.BytesIO()
    with compressor.stream_writer(target, closefd=False) as writer:
        for _ in range(size // MIB):
            writer.write(bytes(MIB))
    return target.getvalue()


def pax(body):
    return header("pax", len(body), kind=tarfile.XHDTYPE) + body + bytes(-len(body) % 512)


@pytest.mark.parametrize(
    "records",
    [
        b"9" * 6000,
        b"9" * 6000 + b" size=1\n",
        b"6010 size=" + b"9" * 5999 + b"\n",
        b"12 size=-55\n",
        b"11 size=1_0\n"[:-1] + b"\n",
        b"0 a=b\n",
        b"99 a=b\n",
        b"a=b\n",
    ],
    ids=range(8),
)
def test_numbers_of_attributes_are_checked(samples_of, records):
    with pytest.raises(DamagedShardError):
        samples_of(pax(records) + member("a.bin", b"x" * 55) + END)


@pytest.mark.parametrize("number", [b"0o17", b"+7", b"-7", b"1_0", b"9", b"1 1"])
def test_numbers_of_headers_are_checked(samples_of, number):
    block = bytearray(header("a.bin", 8))
    block[124:136] = number.ljust(11, b" ") + b"\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(DamagedShardError, match="number"):
        samples_of(bytes(block) + bytes(512) + END)


@pytest.mark.parametrize("kind", [b"0", b"K", b"Z"])
@pytest.mark.parametrize("seekable", [True, False])
def test_sizes_beyond_every_file_are_refused(kind, seekable):
    stream = ForwardStream(io.BytesIO(header("a.bin", 1 << 63, kind) + bytes(1024)), seekable=seekable)
    with pytest.raises(ArchiveError, match="claims 9223372036854775808 bytes"):
        list(read_members(stream))


def test_many_small_attributes_take_little_time(samples_of):
    # Quadratic work would run into the timeout of the test.
    body = b"6 a=b\n" * (MIB // 6)
    assert samples_of(pax(body) + member("a.bin", b"x") + END)


PIECES = st.one_of(
    st.binary(max_size=600),
    st.builds(member, st.sampled_from(["a.txt", "a.cls", "b.txt", "c", "d/"]), st.binary(max_size=600)),
    st.builds(
        header,
        st.sampled_from(["a.b", "c.d"]),
        st.integers(0, 1 << 80),
        st.sampled_from(list(b"05xgLKSZ")).map(lambda kind: bytes([kind])),
    ),
    st.builds(pax, st.binary(max_size=100)),
    st.sampled_from([END, bytes(512), b"20 path=some/name.x\n"]),
)


@settings(max_examples=300)
@given(st.lists(PIECES, max_size=6), st.booleans(), st.booleans())
def test_whatever_an_archive_holds_only_our_error_comes(pieces, compressed, seekable):
    data = b"".join(pieces)
    file = GzipStream(io.BytesIO(gzip.compress(data))) if compressed else io.BytesIO(data)
    stream = ForwardStream(file, seekable=seekable and not compressed, chunk=1000)
    with suppress(ArchiveError):
        for sample in group_members(read_members(stream), lambda one: stream.take(min(one.size, len(data)))):
            assert {"__key__", "__url__"}.isdisjoint(sample.parts)
