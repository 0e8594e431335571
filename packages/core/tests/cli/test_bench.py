"""``bench`` measures with objects of its own and leaves none; what it says follows from the numbers."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from s3torch.core.cli.bench import _reporting
from s3torch.core.cli.bench._measuring import Cell
from s3torch.core.cli.bench._reporting import bound, throughput_table
from s3torch.core.ranges import MIB
from s3torch.testing import Fault

QUICK = ("--sizes", "1K,64K", "--at-a-time", "1,2", "--seconds", "0.02")


def test_it_measures_and_leaves_nothing(command, put, keys):
    put({"a": b"stays"})
    ran = command("bench", *QUICK, "s3://bucket/here")
    for text in ("HeadObject", "PUT, MiB/s", "GET, MiB/s", "1 at a time", "64.0 KiB", "Gbit/s"):
        assert text in ran.out
    assert max(map(len, ran.lines)) <= 80
    assert "all objects were removed" in ran.err
    assert keys() == ["a"]


def test_json(command):
    documents = command("bench", "--json", *QUICK, "s3://bucket/here").documents
    cells = [one for one in documents if "throughput" in one]
    found = {(one["direction"], one["size"], one["at_a_time"]) for one in cells}
    assert found == {
        (way, size, count) for way in ("PUT", "GET") for size in (1024, 65536) for count in (1, 2)
    }
    assert all(one["objects"] >= one["at_a_time"] for one in cells)
    assert set(documents[-1]["bounds"]) == {"PUT", "GET"}


def test_versions_are_removed_for_good(command, store, client):
    store.create_bucket("kept", keeps_versions=True)
    command("bench", *QUICK, "s3://kept")
    assert [one for page in client.list_object_versions("kept") for one in page.versions] == []


def test_a_plot(command, tmp_path):
    pytest.importorskip("matplotlib")
    command("bench", *QUICK, "--plot", tmp_path / "plot.png", "s3://bucket")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_failed_first_is_told(process, seaweedfs):
    environment = seaweedfs.environment()
    ran = process("bench", "s3://no-such-bucket/x", environment=environment)
    assert ran.code == 3
    assert ran.lines == []
    assert "PutObject s3://no-such-bucket/x" in ran.err
    assert "DeleteObjects" not in ran.err


def test_bars_fit_beside_the_numbers():
    cells = [
        Cell("GET", size, count, 100, 1.0, 0.1, 0) for size in (MIB, 64 * MIB) for count in (1, 4, 16, 64)
    ]
    out = Console(width=80, file=io.StringIO())
    out.print(throughput_table("GET", cells))
    text = out.file.getvalue()
    assert "█" in text
    assert "…" not in text


@pytest.mark.parametrize("sizes", ["0", "1X", "", "1,-2"])
def test_sizes_that_are_none(command, sizes):
    assert "numbers such as 16 or 8M" in command("bench", "--sizes", sizes, "s3://bucket", code=2).err


@pytest.mark.promise(9)
def test_ctrl_c_leaves_nothing(process, seaweedfs, fault_proxy):
    bucket, proxy = seaweedfs.create_bucket(), fault_proxy(seaweedfs)
    proxy.add(Fault(bandwidth=4e6), method="PUT")

    def once_it_stores():
        end = time.monotonic() + 30
        while len(proxy.requests("PUT")) < 24:
            assert time.monotonic() < end
            time.sleep(0.02)

    arguments = ("bench", f"s3://{bucket}/x", "--sizes", "8M", "--at-a-time", "4")
    environment = seaweedfs.at(proxy.endpoint).environment()
    ran = process(*arguments, environment=environment, interrupt=once_it_stores)
    assert ran.code == 130, ran.err
    direct = seaweedfs.client()
    assert direct.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert direct.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


def cell(at_a_time, objects, *, processor=0.1, throttles=0):
    return Cell("GET", 8 * MIB, at_a_time, objects, 1.0, processor, throttles)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([cell(1, 10), cell(4, 40)], "number at a time bounds it"),
        ([cell(1, 10), cell(4, 11)], "network or the store bounds it"),
        ([cell(1, 10), cell(4, 11, processor=4)], "This machine bounds it"),
        ([cell(1, 10), cell(4, 40, processor=1)], "This process bounds it"),
        ([cell(1, 10), cell(4, 40, throttles=3)], "asked 3 times to slow down"),
    ],
)
def test_what_bounds_it(cells, said, monkeypatch):
    monkeypatch.setattr(_reporting.os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(_reporting.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert said in bound("GET", cells)
    monkeypatch.setattr(_reporting.os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    assert ("Other programs" in bound("GET", cells)) == (
        said.startswith(("number", "network", "This process"))
    )
