"""Ranks that are killed at each moment of a save: afterwards there is the old checkpoint or the new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3torch.core.ranges import MIB
from s3torch.dcp import S3HuggingFaceStorageWriter, load_sharded
from s3torch.dcp.hugging_face._safetensors import INDEX_NAME
from s3torch.dcp.manage import sweep_checkpoint, verify_checkpoint
from s3torch.testing.faults import Fault

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")

PROGRAM = Path(__file__).with_name("saving_program.py")
RESTARTED = Path(__file__).with_name("restarted_program.py")
JOB = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
# Longer than any test.
FOREVER = 3600


class Saves:
    """Jobs that save to one path, whose ranks can be killed; the tensors of each have a number of its own.

    Args:
        program: The program that starts them.
        place: Where they save.
        proxies: What each rank sends its requests through.
        folder: Where the ranks meet.
    """

    def __init__(self, program, place, proxies, folder):
        self.place = place
        self.proxies = proxies
        self.path = "checkpoint"
        self.number = 0
        # Whether S3 copies what has not changed.
        self.reuses = False
        # The checkpoint that is there.
        self.there = None
        self._program = program
        self._folder = folder

    def start(self, *, files=1):
        """Starts a job, and returns the ids of its ranks and the future with their exit codes."""
        self.number += 1
        job = {
            "uri": self.place.uri(self.path),
            "endpoints": [proxy.endpoint for proxy in self.proxies],
            "number": self.number,
            "files": files,
            "reuses": self.reuses,
            "shards": self.shards(),
            "rendezvous": Path(self._folder, str(self.number)).as_uri(),
        }
        return self._program.start(job)

    def shards(self):
        """The URI of shards of which whole files are made."""
        return

    def complete(self, *, files=1):
        """Saves whole."""
        _, ended = self.start(files=files)
        assert set(ended.result()) == {0}
        self.check({self.number})

    def kill(self, rank, fault, *, skip, files=1):
        """Kills a rank while one of its requests hangs; tells whether it has sent so many."""
        rule = self.proxies[rank].add(fault, skip=skip, times=1)
        pids, ended = self.start(files=files)
        while not rule.hits and not ended.done():
            wait([ended], 0.01)
        if rule.hits:
            os.kill(pids[rank], signal.SIGKILL)
        self._settle(ended)
        self.proxies[rank].heal()
        return bool(rule.hits)

    def kill_while(self, rank, busy, **request):
        """Kills a rank while a request of another one is held, and then lets that go on."""
        held, go_on = threading.Event(), threading.Event()

        def hold(_):
            held.set()
            go_on.wait(60)
            return False

        self.proxies[busy].add(Fault(), match=hold, **request)
        pids, ended = self.start()
        try:
            assert held.wait(60)
            os.kill(pids[rank], signal.SIGKILL)
        finally:
            go_on.set()
        self._settle(ended)
        self.proxies[busy].heal()

    def _settle(self, ended):
        codes = ended.result()
        # What has returned on any rank is complete.
        self.check({self.number} if 0 in codes else {self.there, self.number})

    def check(self, allowed):
        """Loads what is there: one of these, and nothing of another."""
        self.there = self._loaded()
        assert self.there in allowed

    def _loaded(self):
        if f"{self.path}/.metadata" not in self.place.listed():
            return None
        reader = self.place.reader(self.path)
        described = reader.read_metadata().state_dict_metadata
        state = {
            name: torch.zeros(one.size, dtype=one.properties.dtype) if hasattr(one, "size") else None
            for name, one in described.items()
        }
        ranks = len(self.proxies)
        assert len(state) == 3 * ranks + len(["large", "same", "step"]) + self.reuses * ranks
        dcp.load(state, storage_reader=reader)
        frozen = [state.pop(name) for name in list(state) if name.startswith("frozen")]
        assert all((tensor == -1).all() for tensor in frozen)
        numbers = {state.pop("step")} | {int(n) for tensor in state.values() for n in tensor.unique()}
        assert len(numbers) == 1, f"a mixture of checkpoints: {numbers}"
        return numbers.pop()

    def assert_nothing_is_left(self):
        """Sweeps, and compares what is there with what the checkpoint has."""
        uri, client = self.place.uri(self.path), self.place.client()
        sweep_checkpoint(uri, older_than=-60, client=client)
        report = verify_checkpoint(uri, client=client)
        assert report.is_whole
        assert len(self.place.listed(f"{self.path}/")) == 1 + report.files


class Consolidations(Saves):
    """Jobs that make whole files of shards."""

    def shards(self):
        uri = self.place.uri(f"shards-{self.number}")
        state = {"large": torch.full((11 * MIB,), self.number, dtype=torch.int8)}
        state |= {f"{n}": torch.full((40,), self.number) for n in range(3)}
        writer = S3HuggingFaceStorageWriter("us-east-1", uri, self.place.config, save_distributed=True)
        dcp.save(state, storage_writer=writer)
        return uri

    def _loaded(self):
        if f"{self.path}/{INDEX_NAME}" not in self.place.listed():
            return None
        state = load_sharded(self.place.uri(self.path), client=self.place.client())
        assert len(state) == 4
        (number,) = {int(n) for tensor in state.values() for n in tensor.unique()}
        return number


@pytest.fixture(scope="module")
def program(start_program):
    """A process that forks others, which save."""
    return start_program(PROGRAM, **JOB)


@pytest.fixture
def saves_of(program, seaweed_place, seaweedfs, fault_proxy, tmp_path):
    """Makes jobs of some ranks."""

    def make(ranks, kind=Saves):
        proxies = [fault_proxy(seaweedfs) for _ in range(ranks)]
        return kind(program, seaweed_place, proxies, tmp_path)

    return make


@pytest.mark.promise(1)
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("ranks", "killed", "side"),
    [
        # Before the server has seen the request, and when only the answer is missing.
        (1, 0, "request"),
        (2, 0, "request"),
        (2, 0, "response"),
        (2, 1, "request"),
    ],
)
def test_a_rank_that_is_killed_at_any_of_its_requests(saves_of, ranks, killed, side):
    saves = saves_of(ranks)
    fault = Fault.stall(FOREVER, side=side)
    # Where nothing was, and over a checkpoint, which may have another number of files.
    counts = []
    for fresh in (True, False):
        step = 0
        while saves.kill(killed, fault, skip=step, files=1 + step % 2):
            step += 1
            if fresh:
                saves.path, saves.there = f"checkpoint-{step}", None
        assert saves.there == saves.number
        counts.append(step)
    # The rank that plans looks and commits, and removes the old files; both write theirs in parts.
    assert counts[0] >= (2 if killed else 4)
    saves.complete(files=3)
    saves.assert_nothing_is_left()


@pytest.mark.promise(1)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("side", ["request", "response"])
def test_a_rank_that_is_killed_at_any_request_of_a_save_that_reuses(saves_of, side):
    saves = saves_of(1)
    saves.reuses = True
    saves.complete()
    # The first time parts of files are copied, and then whole ones.
    step, fault = 0, Fault.stall(FOREVER, side=side)
    while saves.kill(0, fault, skip=step):
        step += 1
    assert saves.there == saves.number
    assert step >= 8
    saves.complete(files=3)
    saves.assert_nothing_is_left()


@pytest.mark.promise(1)
@pytest.mark.timeout(300)
def test_a_process_that_is_killed_at_any_request_of_a_consolidation(saves_of):
    saves = saves_of(1, Consolidations)
    step, fault = 0, Fault.stall(FOREVER, side="response")
    while saves.kill(0, fault, skip=step):
        step += 1
    assert saves.there == saves.number
    # It looks, reads the parts, begins, sends, copies, completes, asks, and commits.
    assert step >= 8
    saves.complete()
    saves.assert_nothing_is_left()


@pytest.mark.timeout(300)
def test_a_rank_that_is_killed_while_another_one_works(saves_of):
    saves = saves_of(2)
    phases = [
        # While the first rank plans, writes and commits, the second waits for it, and the other way round.
        (1, 0, {"method": "HEAD", "key": ".metadata"}),
        (1, 0, {"method": "PUT", "key": ".distcp"}),
        (0, 1, {"method": "PUT", "key": ".distcp"}),
        (1, 0, {"method": "PUT", "key": ".metadata"}),
    ]
    for path in ("new", "old"):
        saves.path, saves.there = path, None
        if path == "old":
            saves.complete(files=2)
        for killed, busy, request in phases:
            saves.kill_while(killed, busy, **request)
    saves.kill_while(1, 0, method="POST")
    saves.complete()
    saves.assert_nothing_is_left()


def test_what_each_rank_sends(saves_of):
    saves = saves_of(2)
    saves.complete()
    first, second = ([(one.method, one.key) for one in proxy.requests()] for proxy in saves.proxies)
    file, other = (saves.place.key(f"checkpoint/__{rank}_0.distcp") for rank in range(2))
    assert first == [("HEAD", "checkpoint/.metadata"), ("PUT", file), ("PUT", "checkpoint/.metadata")]
    # Only its own file, in two parts.
    assert [method for method, _ in second] == ["POST", "PUT", "PUT", "POST"]
    assert {key for _, key in second} == {other}


def test_a_job_under_torchrun_goes_on_from_its_checkpoint(seaweed_place, seaweedfs, fault_proxy, tmp_path):
    proxy = fault_proxy(seaweedfs)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [RESTARTED, seaweed_place.uri("checkpoint"), proxy.endpoint, tmp_path]

    def start():
        environment = dict(os.environ) | JOB
        job = subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.PIPE, text=True)
        return job, ThreadPoolExecutor(1).submit(job.communicate)

    # A file of the third save.
    fault = Fault.stall(FOREVER, side="request")
    rule = proxy.add(fault, method="PUT", key="checkpoint/__1_", skip=2, times=1)
    job, ended = start()
    while not rule.hits and not ended.done():
        wait([ended], 0.01)
    assert rule.hits, ended.result()
    os.kill(int((tmp_path / "1-pid").read_text()), signal.SIGKILL)
    ended.result()
    assert job.returncode
    assert [(tmp_path / f"{rank}-steps").read_text() for rank in range(2)] == ["1 2 3 "] * 2
    job, ended = start()
    _, said = ended.result()
    assert job.returncode == 0, said[-5000:]
    assert [(tmp_path / f"{rank}-steps").read_text() for rank in range(2)] == ["1 2 3 3 4 "] * 2
    loaded = {"weight": torch.zeros(10, 3), "step": 0}
    dcp.load(loaded, storage_reader=seaweed_place.reader())
    assert loaded["step"] == 4
    assert (loaded["weight"] == 4).all()
