"""Places to keep checkpoints, and state dicts to put there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.planner import SavePlanner

from s3torch.core import S3Client, S3ClientConfig
from s3torch.core.transports.memory import MemoryStore
from s3torch.dcp import S3FileSystem, S3StorageReader, S3StorageWriter

REGION = "us-east-1"
SAVE_ID = re.compile(r"-[0-9a-f]{16}(?=\.\w+$)")


@dataclass(frozen=True)
class Place:
    """A bucket, and how to reach it."""

    config: S3ClientConfig
    bucket: str

    def client(self):
        return S3Client(REGION, s3client_config=self.config)

    def uri(self, path=""):
        return f"s3://{self.bucket}/{path}"

    def fs(self, **options):
        return S3FileSystem(REGION, s3client_config=self.config, **options)

    def writer(self, path="checkpoint", **options):
        return S3StorageWriter(REGION, self.uri(path), self.config, **options)

    def reader(self, path="checkpoint", **options):
        return S3StorageReader(REGION, self.uri(path), self.config, **options)

    def listed(self, prefix=""):
        pages = self.client().list_objects(self.bucket, prefix)
        return sorted(info.key for page in pages for info in page.object_info)

    def plain(self, prefix=""):
        """The keys without the ids of saves."""
        return [SAVE_ID.sub("", key) for key in self.listed(prefix)]

    def key(self, plain):
        """The key of the only file with a name, whatever the id of its save."""
        (found,) = (key for key in self.listed() if SAVE_ID.sub("", key) == plain)
        return found

    def weight_map(self, index):
        """The map of an index, with the names of the files without the ids of saves."""
        found = json.loads(self.get(index))["weight_map"]
        return {name: SAVE_ID.sub("", file) for name, file in found.items()}

    def get(self, key):
        with self.client().get_object(self.bucket, key) as reader:
            return reader.read()

    def put(self, key, data):
        with self.client().put_object(self.bucket, key) as writer:
            writer.write(data)

    def download(self, path, folder):
        for key in self.listed(f"{path}/"):
            target = Path(folder, key.removeprefix(f"{path}/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.get(key))

    def upload(self, folder, path):
        for file in Path(folder).rglob("*"):
            if file.is_file():
                self.put(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())


@pytest.fixture
def place():
    """A bucket in the memory of this process."""
    endpoint = f"http://{uuid.uuid4()}"
    MemoryStore.at(endpoint).create_bucket("bucket")
    config = S3ClientConfig(transport="memory", endpoint=endpoint, part_size=5 * 1024**2)
    yield Place(config, "bucket")
    MemoryStore.forget(endpoint)


def pytest_collection_modifyitems(items):
    """Old releases of torch warn of what they do themselves."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"))


def place_on(server, monkeypatch):
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return Place(S3ClientConfig(max_attempts=2), server.create_bucket())


@pytest.fixture
def seaweed_place(seaweedfs, monkeypatch):
    """A bucket on SeaweedFS; processes that are started find it, too."""
    return place_on(seaweedfs, monkeypatch)


@pytest.fixture
def server_place(s3_server, monkeypatch):
    """A bucket on each of the servers."""
    return place_on(s3_server, monkeypatch)


@pytest.fixture
def state():
    """A state dict with all kinds of values."""
    torch.manual_seed(7)
    wide = torch.randn(60, 40)
    return {
        "model": {
            "weight": torch.nn.Parameter(torch.randn(33, 17)),
            "half": torch.randn(12, 5).half(),
            "bfloat": torch.randn(3, 9).bfloat16(),
            "double": torch.randn(4).double(),
            "small": torch.arange(-5, 5, dtype=torch.int8),
            "bytes": torch.arange(256).to(torch.uint8),
            "large": torch.tensor([2**62, -(2**61)]),
            "mask": torch.rand(50) > 0.5,
            "complex": torch.randn(6, dtype=torch.complex64),
            "scalar": torch.tensor(3.5),
        },
        "views": [wide[10:20], wide.t(), wide[::3, 1::2], wide.expand(2, 60, 40)],
        "empty": [torch.empty(0), torch.empty(4, 0, 3, dtype=torch.int16)],
        "objects": {"step": 17, "name": "run", "raw": b"\x00\x01", "list": [1, {"a": None}]},
    }


@pytest.fixture(autouse=True)
def no_cached_plans():
    """Empties torch's caches of plans, which all planners of a process share."""
    yield
    for name in [name for name in vars(SavePlanner) if name.startswith("_cached")]:
        getattr(SavePlanner, name).clear()


def blank(value):
    """Makes a state dict of the same form, with nothing in it."""
    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape, dtype=value.dtype)
    if isinstance(value, dict):
        return {name: blank(item) for name, item in value.items()}
    if isinstance(value, list):
        return [blank(item) for item in value]
    return None


def same(left, right):
    """Compares two state dicts bit for bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@pytest.fixture
def blank_of():
    """Makes a state dict of the same form, with nothing in it."""
    return blank


@pytest.fixture
def are_same():
    """Compares two state dicts bit for bit."""
    return same


class Program:
    """A program that takes jobs from its standard input and forks processes for each.

    A job that does not end, because its test has failed, is killed before the next one: nothing waits for it.
    """

    def __init__(self, path, environment):
        self._path = path
        self._environment = environment
        self._thread = ThreadPoolExecutor(1)
        self._process = self._ended = None

    def start(self, job, found=lambda codes: codes):
        """Returns the ids of the processes, and a future of what is found when they have ended."""
        if self._ended is not None and not self._ended.done():
            self._kill()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, self._path],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
            )
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        pids, codes = (self._thread.submit(self._process.stdout.readline) for _ in range(2))
        self._ended = self._thread.submit(lambda: found(json.loads(codes.result())))
        return json.loads(pids.result()), self._ended

    def close(self):
        if self._process is not None:
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            self._kill()
        self._thread.shutdown()

    def _kill(self):
        # Its children as well, which have its output open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        wait([self._ended] if self._ended else [])
        self._process.stdout.close()
        self._process = self._ended = None


@pytest.fixture(scope="module")
def start_program(seaweedfs):
    """Makes programs that take jobs."""
    with contextlib.ExitStack() as started:

        def start(path, **variables):
            program = Program(path, dict(os.environ) | seaweedfs.environment() | variables)
            started.callback(program.close)
            return program

        yield start
