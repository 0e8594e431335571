"""Jobs whose ranks read for each other: what they send to S3, and what happens when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from s3torch.dcp import S3HuggingFaceStorageWriter
from s3torch.testing.faults import Fault

PROGRAM = Path(__file__).with_name("replicas_program.py")
JOB = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
FOREVER = 300.0
# What a test waits for ranks that it has not killed. Most often that is a second.
BOUND = 100

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


@pytest.fixture(scope="module")
def program(start_program):
    """A process that forks others, which load."""
    return start_program(PROGRAM, **JOB)


class Jobs:
    """Jobs of some ranks, each of which sends its requests through a proxy of its own."""

    def __init__(self, program, place, proxies, folder):
        self.place = place
        self.proxies = proxies
        self._program = program
        self._folder = folder

    def start(self, task, path="checkpoint"):
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        job = {
            "task": task,
            "uri": self.place.uri(path),
            "endpoints": [proxy.endpoint for proxy in self.proxies],
            "folder": str(folder),
        }
        for proxy in self.proxies:
            proxy.clear()
        return self._program.start(job, lambda codes: self._found(codes, folder))

    def _found(self, codes, folder):
        return [
            json.loads((folder / str(rank)).read_text()) if code == 0 else code
            for rank, code in enumerate(codes)
        ]

    def run(self, task, path="checkpoint"):
        _, ended = self.start(task, path)
        results = ended.result()
        assert [one["error"] for one in results] == [None] * len(results), results[0]["error"]
        return [one["found"] for one in results]

    def served(self):
        """Bytes that the server has sent to each rank."""
        return [sum(one.response_bytes for one in proxy.requests("GET")) for proxy in self.proxies]

    def requests(self):
        return sum(len(proxy.requests("GET")) for proxy in self.proxies)


@pytest.fixture
def jobs_of(program, seaweed_place, seaweedfs, fault_proxy, tmp_path):
    """Makes jobs of some ranks."""

    def make(ranks):
        proxies = [fault_proxy(seaweedfs) for _ in range(ranks)]
        return Jobs(program, seaweed_place, proxies, tmp_path)

    return make


@pytest.fixture
def saved(seaweed_place):
    """The state that was saved by one rank, and how many bytes that has."""
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        from replicas_program import state_of
    finally:
        sys.path.pop(0)
    state = state_of()
    dcp.save(state, storage_writer=seaweed_place.writer(thread_count=3))
    return state, sum(len(seaweed_place.get(key)) for key in seaweed_place.listed("checkpoint/"))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("ranks", "tasks"), [(2, ["alike", "staged"]), (4, ["alike", "hybrid", "fully_sharded"])]
)
def test_the_server_sends_every_byte_once(jobs_of, saved, ranks, tasks):
    jobs = jobs_of(ranks)
    _, unique = saved
    for task in tasks:
        jobs.run(task)
        served = jobs.served()
        assert sum(served) <= 1.02 * unique, task
        # All ranks have about the same share.
        assert max(served) <= 1.5 * unique / ranks, task
    if ranks == 2:
        jobs.run("apart")
        assert sum(jobs.served()) >= 0.95 * ranks * unique


@pytest.mark.timeout(120)
def test_ranks_that_want_different_things(jobs_of, saved):
    jobs = jobs_of(4)
    _, unique = saved
    jobs.run("uneven")
    metadata = len(jobs.place.get("checkpoint/.metadata"))
    # Not told to do otherwise, every rank reads the metadata.
    assert sum(jobs.served()) <= 1.02 * unique + 3 * metadata
    jobs.run("resharded")
    assert sum(jobs.served()) <= 1.02 * unique + 3 * metadata
    jobs.run("parts_of_the_world")
    assert sum(jobs.served()) <= 1.02 * 5 * unique + 7 * metadata
    jobs.run("in_threads")
    assert sum(jobs.served()) <= 1.02 * 2 * unique + 6 * metadata


def test_checkpoints_of_others(jobs_of, saved, seaweed_place, tmp_path):
    jobs = jobs_of(2)
    state, unique = saved
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path / "stock"))
    seaweed_place.upload(tmp_path / "stock", "stock")
    jobs.run("alike", "stock")
    assert sum(jobs.served()) <= 1.02 * unique
    writer = S3HuggingFaceStorageWriter("us-east-1", seaweed_place.uri("face"), save_distributed=True)
    dcp.save(state["model"], storage_writer=writer)
    jobs.run("hugging_face", "face")
    assert sum(jobs.served()) <= 1.03 * unique


@pytest.mark.promise(7)
def test_one_rank_is_refused(jobs_of, saved):
    jobs = jobs_of(4)
    rule = jobs.proxies[2].add(Fault.error(403, "AccessDenied"), method="GET", key=".distcp")
    found = jobs.run("failing")
    assert rule.hits
    assert all(one == found[0] for one in found)
    assert found[0]["failures"].keys() == {"0", "1", "2", "3"}
    assert found[0]["kinds"]["2"] == "AccessDeniedError"
    for rank in "013":
        text = found[0]["failures"][rank]
        assert "rank 2 could not load" in text
        assert "AccessDenied" in text
        assert ".distcp" in text
        assert "model." in text or "objects." in text
    # All can be done again, with the same group.
    jobs.proxies[2].heal()
    jobs.run("alike")


def test_a_damaged_file(jobs_of, saved, seaweed_place):
    jobs = jobs_of(2)
    key = max(seaweed_place.listed("checkpoint/"), key=lambda key: len(seaweed_place.get(key)))
    seaweed_place.put(key, seaweed_place.get(key)[:-3_000_000])
    (found, other) = jobs.run("failing")
    assert found == other
    assert all(key.rpartition("/")[2] in text for text in found["failures"].values())


@pytest.mark.promise(2)
def test_a_flipped_byte_is_found_by_the_rank_that_reads_it(jobs_of, saved, seaweed_place):
    jobs = jobs_of(2)
    key = max(seaweed_place.listed("checkpoint/"), key=lambda key: len(seaweed_place.get(key)))
    data = bytearray(seaweed_place.get(key))
    data[len(data) // 2] ^= 1
    seaweed_place.put(key, bytes(data))
    (found, other) = jobs.run("failing")
    assert found == other
    assert sorted(found["kinds"].values()) == ["CheckpointError", "ChecksumMismatchError"]
    assert all("is damaged" in text for text in found["failures"].values())


def test_a_mistake_of_one_rank(jobs_of, saved):
    jobs = jobs_of(2)
    found, _ = jobs.run("mistaken")
    assert "cannot take" in found["1"]
    # The other one may have all its bytes already, and then torch alone tells that the load has failed.
    assert "rank 1 could not load" in found.get("0", "rank 1 could not load")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("killed", [1, 3])
def test_a_rank_that_is_killed(jobs_of, saved, killed):
    jobs = jobs_of(4)
    rule = jobs.proxies[killed].add(Fault.stall(FOREVER), method="GET", key=".distcp", skip=1, times=1)
    pids, ended = jobs.start("dying")
    while not rule.hits and not ended.done():
        wait([ended], 0.01)
    assert rule.hits
    os.kill(pids[killed], signal.SIGKILL)
    results = ended.result(BOUND)
    assert results.pop(killed) == -signal.SIGKILL
    for one in results:
        assert one["error"] is None, one["error"]
        assert f"rank {killed} has gone while it loaded" in one["found"]["error"]
        assert one["found"]["again"] == one["found"]["error"]


def test_a_rank_that_is_killed_while_all_agree(jobs_of, saved):
    jobs = jobs_of(4)
    _, ended = jobs.start("dying_while_all_agree")
    results = ended.result(BOUND)
    assert results.pop(1) == -signal.SIGKILL
    for one in results:
        assert one["error"] is None, one["error"]
        assert "rank 1 has gone" in one["found"]["error"]


@pytest.mark.timeout(180)
@pytest.mark.promise(7)
@pytest.mark.parametrize("refused", [0, 1])
def test_each_request_of_a_rank_is_refused_in_turn(jobs_of, saved, refused):
    jobs = jobs_of(2)
    loads = asked = 0

    def is_next(request):
        nonlocal loads, asked
        if request.key.endswith("/begins"):
            loads, asked = loads + 1, 0
        asked += request.method == "GET"
        return request.method == "GET" and asked == loads

    rule = jobs.proxies[refused].add(Fault.error(403, "AccessDenied"), match=is_next)
    # The program loads until a load has fewer requests than there were loads.
    first, second = jobs.run("refused")
    assert first == second == [["0", "1"]] * len(first)
    assert 3 <= len(first) <= rule.hits
