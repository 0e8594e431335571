"""As large as fits here, really done: 10⁶ keys, an object of 64 GB, 16 ranks; time, memory and requests.

hatch run python tools/scale/real.py keys [--count 1000000]
hatch run python tools/scale/real.py sparse [--gigabytes 64]
hatch run python tools/scale/real.py ranks [--ranks 16] [--mib 256]
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import random
import re
import socket
import sys
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from s3torch.core import S3Client, S3ClientConfig, S3ReaderConstructor
from s3torch.core.ranges import GIB, MIB
from scale.model import Job, Node, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_MANY = 1_000_000
_SEED = 7
_LAYERS = 4


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("keys", "sparse", "ranks"))
    parser.add_argument("--count", type=int, default=_MANY)
    parser.add_argument("--gigabytes", type=int, default=64)
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--mib", type=int, default=256)
    arguments = parser.parse_args()
    if arguments.what == "keys":
        list_keys(arguments.count)
    elif arguments.what == "sparse":
        read_sparse(arguments.gigabytes * 10**9)
    else:
        load_on_ranks(arguments.ranks, arguments.mib * MIB)


def list_keys(count: int) -> None:
    """Lists many keys of the store in memory, page by page and with many requests at a time."""
    from s3torch.datasets import S3MapDataset
    from s3torch.testing import MemoryStore

    config = S3ClientConfig(transport="memory", endpoint="http://scale.invalid")
    store = MemoryStore.at(config.endpoint)
    store.create_bucket("bucket")
    _timed(f"put {count:,} keys", lambda: _put_keys(store, count))
    client = S3Client("us-east-1", s3client_config=config)
    before = _memory()
    pages = client.list_objects("bucket")
    entries = _timed("list them, page by page", lambda: [one for page in pages for one in page.object_info])
    print(f"  {len(entries):,} entries, {(_memory() - before) / len(entries):.0f} bytes each")
    del entries
    walked = _timed("walk them, 16 requests at a time", lambda: sum(1 for _ in client.walk("bucket", "")))
    before = _memory()
    dataset = S3MapDataset.from_prefix("s3://bucket/", region="us-east-1", s3client_config=config)
    _timed("make a dataset of them", lambda: len(dataset))
    print(f"  {walked:,} walked; the dataset takes {(_memory() - before) / count:.0f} bytes for each")


def _put_keys(store: Any, count: int) -> None:
    for number in range(count):
        store.put("bucket", f"images/{number % 1000:04}/{number:09}.jpg", b"")


def read_sparse(size: int) -> None:
    """Reads pieces of a huge object all over it, then some GB of it in order, and compares every byte."""
    with _child(_serve_sparse, size) as port:
        config = S3ClientConfig(endpoint=f"http://127.0.0.1:{port}", unsigned=True, force_path_style=True)
        client = S3Client("us-east-1", s3client_config=config)
        before, chance = _memory(), random.Random(_SEED)  # noqa: S311 - Where to read.
        places = [(chance.randrange(size - MIB), chance.randint(1, MIB)) for _ in range(2000)]

        def ranged() -> None:
            with client.get_object(
                "bucket", "huge", reader_constructor=S3ReaderConstructor.range_based(0)
            ) as reader:
                for start, length in places:
                    reader.seek(start)
                    _check(start, reader.read(length))

        def in_order() -> None:
            with client.get_object("bucket", "huge") as reader:
                reader.seek(size - 4 * GIB)
                start = size - 4 * GIB
                while data := reader.read(16 * MIB):
                    _check(start, data)
                    start += len(data)
                assert start == size  # noqa: S101 - What this is for.

        _timed(f"read {len(places):,} pieces of up to 1 MiB of {size / 1e9:,.0f} GB", ranged)
        _timed("read the last 4 GiB in order", in_order)
        print(f"  the process has grown by {(_peak() - before) / MIB:.0f} MiB at its peak")


# Its length is no multiple of anything, so that bytes from the wrong place are noticed.
_BLOCK = random.Random(_SEED).randbytes(1_000_003)  # noqa: S311 - Content.


def _content(start: int, length: int) -> bytes:
    first = start % len(_BLOCK)
    return (_BLOCK * (2 + length // len(_BLOCK)))[first : first + length]


def _check(start: int, data: bytes) -> None:
    if data != _content(start, len(data)):
        raise SystemExit(f"wrong bytes at {start}")


def _serve_sparse(size: int, told: Any) -> None:
    """Answers for one object that nobody stores."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or f"bytes=0-{size - 1}")
            assert found is not None  # noqa: S101 - Our own client.
            start, last = int(found[1]), min(int(found[2]), size - 1)
            self.send_response(206)
            for name, value in (
                ("Content-Length", last - start + 1),
                ("Content-Range", f"bytes {start}-{last}/{size}"),
                ("ETag", '"huge"'),
                ("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT"),
            ):
                self.send_header(name, str(value))
            self.end_headers()
            while start <= last:
                step = min(MIB, last - start + 1)
                self.wfile.write(_content(start, step))
                start += step

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.send(server.server_port)
    server.serve_forever()


def load_on_ranks(ranks: int, size: int) -> None:
    """Saves a sharded state dict from many gloo ranks to SeaweedFS, loads it, and counts the requests."""
    from s3torch.testing import FaultProxy, start_seaweedfs

    with start_seaweedfs(volume_mib=1024) as server, FaultProxy(server.endpoint) as proxy:
        bucket = server.create_bucket()
        os.environ.update(server.at(proxy.endpoint).environment())
        path = f"s3://{bucket}/checkpoint"
        predicted = load(Job(nodes=1, node=Node(gpus=ranks)), size, tensors=_LAYERS).requests
        for what in ("save", "load"):
            proxy.clear()
            begin = time.perf_counter()
            peaks = _on_ranks(what, ranks, size, path)
            seconds = time.perf_counter() - begin
            counted = Counter(request.method for request in proxy.requests())
            longest, grown = (max(one[name] for one in peaks) for name in ("seconds", "grown"))
            print(f"{what} of {size / MIB:.0f} MiB on {ranks} ranks, {size / ranks / MIB:.0f} MiB each:")
            print(f"  {longest:.1f} s, {seconds:.0f} s with the start of all processes; {dict(counted)}")
            print(f"  a rank grew by up to {grown / MIB:.0f} MiB at its peak", flush=True)
        print(f"  the model says {predicted} GET for the load")


def _on_ranks(what: str, ranks: int, size: int, path: str) -> list[dict[str, float]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    told: Any = context.SimpleQueue()
    arguments = [(what, rank, ranks, size, path, port, told) for rank in range(ranks)]
    processes = [context.Process(target=_rank, args=each) for each in arguments]
    for process in processes:
        process.start()
    figures = [told.get() for _ in processes]
    for process in processes:
        process.join()
    return figures


def _rank(what: str, rank: int, ranks: int, size: int, path: str, port: int, told: Any) -> None:
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from s3torch.dcp import S3StorageReader, S3StorageWriter

    torch.set_num_threads(1)
    os.environ["LOCAL_WORLD_SIZE"] = str(ranks)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    layers, rows = _LAYERS, 1024
    whole = torch.arange(size // layers // 4, dtype=torch.float32).reshape(rows, -1)
    # Zeros for a load, which then has to fill them.
    values = [(whole + n) * (what == "save") for n in range(layers)]
    state = {f"layer{n}": distribute_tensor(value, mesh, [Shard(0)]) for n, value in enumerate(values)}
    dist.barrier()
    before, begin = _memory(), time.perf_counter()
    if what == "save":
        dcp.save(state, storage_writer=S3StorageWriter("us-east-1", path))
    else:
        dcp.load(state, storage_reader=S3StorageReader("us-east-1", path))
        local = torch.chunk(whole, ranks)[rank]
        for n in range(layers):
            if not torch.equal(state[f"layer{n}"].to_local(), local + n):
                raise SystemExit(f"rank {rank} has loaded something else")
    told.put({"seconds": time.perf_counter() - begin, "grown": _peak() - before})
    dist.destroy_process_group()


@contextmanager
def _child(target: Callable[..., None], *arguments: object) -> Iterator[Any]:
    """Runs a function in a process of its own, and yields what it tells first."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    try:
        yield mine.recv()
    finally:
        process.kill()
        process.join()


def _timed(what: str, work: Callable[[], T]) -> T:
    """Does something and tells how long it took, and how large the process was at its peak."""
    gc.collect()
    cpu, begin = time.process_time(), time.perf_counter()
    result = work()
    seconds, used = time.perf_counter() - begin, time.process_time() - cpu
    print(f"{what}: {seconds:.1f} s, {used:.1f} processor seconds, peak {_peak() / MIB:,.0f} MiB", flush=True)
    return result


def _memory() -> int:
    gc.collect()
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


if __name__ == "__main__":
    main()
