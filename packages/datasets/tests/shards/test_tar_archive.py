"""Archives that ``tarfile`` and others write, and what becomes of damaged ones."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.datasets.shards._tar_archive import (
    ArchiveError,
    ForwardStream,
    group_members,
    read_members,
    split_name,
)

NAMES = st.lists(
    st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=120),
    min_size=1,
    max_size=4,
).map("/".join)
FILES = st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8)
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def pack(files, kind=tarfile.PAX_FORMAT):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=kind) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return archive.getvalue()


def unpack(archive, *, seekable=True, chunk=700, start=0, take=lambda number: True, **options):
    stream = ForwardStream(io.BytesIO(archive), seekable=seekable, chunk=chunk)
    stream.skip(start)
    return [
        (member, stream.take(member.size) if take(number) else None)
        for number, member in enumerate(read_members(stream, **options))
    ]


@given(FILES, st.sampled_from(FORMATS[1:]), st.booleans(), st.integers(1, 4000), st.data())
def test_members_are_those_that_were_packed(files, kind, seekable, chunk, data):
    archive = pack(files, kind)
    taken = data.draw(st.lists(st.booleans(), min_size=len(files), max_size=len(files)))
    found = unpack(archive, seekable=seekable, chunk=chunk, take=taken.__getitem__)
    assert [member.name for member, _ in found] == [name for name, _ in files]
    for (member, content), (_, expected) in zip(found, files, strict=True):
        assert content in {None, expected}
        assert archive[member.offset : member.offset + member.size] == expected
    for number, (member, _) in enumerate(found):
        again = unpack(archive, seekable=seekable, start=member.start)
        assert [one for one, _ in again] == [one for one, _ in found[number:]]


@pytest.mark.promise(2)
@given(FILES.filter(len), st.data())
def test_a_truncated_archive_is_never_taken_for_a_whole_one(files, data):
    archive = pack(files)
    end = archive.rstrip(b"\0")
    length = data.draw(st.integers(0, len(end)))
    found = []
    with pytest.raises(ArchiveError):
        for member, content in _lazily(archive[:length]):
            found.append((member.name, content))
    assert found == files[: len(found)]


def _lazily(archive):
    stream = ForwardStream(io.BytesIO(archive), seekable=True)
    for member in read_members(stream):
        content = stream.take(member.size)
        if len(content) == member.size:
            yield member, content


@given(FILES.filter(len), st.data())
def test_a_damaged_header_is_an_error_that_tells_where(files, data):
    archive = bytearray(pack(files, tarfile.GNU_FORMAT))
    members = [member for member, _ in unpack(bytes(archive))]
    chosen = data.draw(st.sampled_from(members))
    # The field of the checksum itself may be written in several ways.
    place = chosen.offset - 512 + data.draw(st.integers(0, 511).filter(lambda at: not 148 <= at < 156))
    archive[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ArchiveError) as caught:
        unpack(bytes(archive))
    assert caught.value.offset == chosen.offset - 512


@pytest.mark.parametrize("layout", FORMATS)
def test_kinds_of_members(layout):
    archive = io.BytesIO()
    long = "/".join(["deep" * 5] * 6)
    with tarfile.open(fileobj=archive, mode="w", format=layout) as tar:
        for name, kind in [("d", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.txt"
            tar.addfile(info)
        for name in ("a.txt", f"{long}/empty.bin"):
            tar.addfile(tarfile.TarInfo(name))
        info = tarfile.TarInfo("p")
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
    found = unpack(archive.getvalue())
    assert [(member.name, data) for member, data in found] == [("a.txt", b""), (f"{long}/empty.bin", b"")]


def test_attributes_of_pax_and_sizes_beyond_octal_digits():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", pax_headers={"comment": "of all"}) as tar:
        info = tarfile.TarInfo("ä" * 200 + ".txt")
        info.size, info.mtime = 4, 1.5
        tar.addfile(info, io.BytesIO(b"data"))
    assert [(member.name, data) for member, data in unpack(archive.getvalue())] == [(info.name, b"data")]
    header = tarfile.TarInfo("huge")
    header.size = 9 * 2**33
    stream = ForwardStream(io.BytesIO(header.tobuf(tarfile.GNU_FORMAT)), seekable=True)
    assert next(read_members(stream)).size == 9 * 2**33


@pytest.mark.parametrize("records", [{"path": "x"}, {"size": "4"}])
def test_global_names_and_sizes_are_refused(records):
    with io.BytesIO() as archive:
        with tarfile.open(fileobj=archive, mode="w", pax_headers=records) as tar:
            tar.addfile(tarfile.TarInfo("a.txt"))
        with pytest.raises(ArchiveError, match="global"):
            unpack(archive.getvalue())


def test_sparse_members_are_refused():
    gnu = tarfile.TarInfo("hole.bin")
    gnu.type = tarfile.GNUTYPE_SPARSE
    pax = tarfile.TarInfo("hole.bin")
    pax.pax_headers = {"GNU.sparse.major": "1"}
    for header in (gnu.tobuf(tarfile.GNU_FORMAT), pax.tobuf(tarfile.PAX_FORMAT)):
        with pytest.raises(ArchiveError, match="sparse"):
            unpack(header + bytes(1024))


def test_an_archive_without_an_end_marker_has_to_be_allowed():
    archive = pack([("a.txt", b"data")])[:1024]
    with pytest.raises(ArchiveError, match="without an end marker"):
        unpack(archive)
    assert [data for _, data in unpack(archive, require_end=False)] == [b"data"]
    with pytest.raises(ArchiveError):
        unpack(archive + b"x", require_end=False)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("a.jpg", ("a", "jpg")),
        ("d.e/a.seg.PNG", ("d.e/a", "seg.png")),
        ("./a.txt", ("./a", "txt")),
        ("a.", ("a", "")),
        ("a", None),
        (".hidden", None),
        ("d/.hidden.txt", None),
        ("__meta.json__", None),
    ],
)
def test_names_are_split_as_webdataset_does(name, split):
    assert split_name(name) == split


SAMPLES = st.lists(
    st.tuples(
        st.text("ab/", min_size=1, max_size=3).map(lambda text: text.strip("/") or "x"),
        st.lists(st.sampled_from(["jpg", "cls", "seg.png", "json"]), min_size=1, unique=True),
    ),
    max_size=10,
)


@given(SAMPLES)
def test_files_that_follow_each_other_are_one_sample(samples):
    samples = [
        (f"{number}{key.replace('//', '/')}", suffixes) for number, (key, suffixes) in enumerate(samples)
    ]
    files = [(f"{key}.{suffix}", suffix.encode()) for key, suffixes in samples for suffix in suffixes]
    stream = ForwardStream(io.BytesIO(pack([*files, ("__end__", b"")])))
    found = list(group_members(read_members(stream), lambda member: stream.take(member.size)))
    assert [(sample.key, list(sample.parts)) for sample in found] == samples
    assert all(data == suffix.encode() for sample in found for suffix, data in sample.parts.items())


def test_the_same_suffix_twice_is_an_error():
    stream = ForwardStream(io.BytesIO(pack([("a.txt", b""), ("a.TXT", b"")])), seekable=True)
    with pytest.raises(ArchiveError, match="two files with the suffix 'txt'"):
        list(group_members(read_members(stream), lambda member: b""))
