"""Counts the source files that a warm operation passes: what has to be read to follow it.

Each operation runs once before it is counted, so that imports and connections are out of the way: a GET of
100 kB, and ``dcp.load`` and ``dcp.save`` of 16 small tensors on one rank, over plain HTTP on loopback. Each
transport is counted in a process of its own, where no thread of another one comes in between.

    python3 tools/dev.py passed-files
    python3 tools/dev.py passed-files --transport http --json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial, wraps
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from s3torch.testing.servers import S3Server

__all__ = ["Passed"]

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    str(path): str(path.relative_to(ROOT / "packages")) for path in ROOT.glob("packages/*/src/**/*.py")
}
TRANSPORTS = ("crt", "http")
REGION = "us-east-1"
SIZE = 100_000
TENSORS = 16
RUNS = 3


class Passed:
    """The files whose functions were called, on whichever thread, while counting."""

    def __init__(self) -> None:
        self._files: set[str] | None = None
        # Before any thread starts: those of a warm operation are there already.
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        self._follow_native_threads()

    def count(self, work: Callable[[], object]) -> list[str]:
        """Returns the files, relative to ``packages``, that the work passes when it runs again.

        It is counted several times, because not every run opens a connection or waits for a thread.
        """
        work()
        files: set[str] = set()
        self._files = files
        for _ in range(RUNS):
            work()
        self._files = None
        return sorted(SOURCES[file] for file in files & SOURCES.keys())

    def _note(self, frame: FrameType, event: str, _argument: object) -> None:
        if self._files is not None and event == "call":
            # Not the file of the code: what dataclasses generate has none.
            self._files.add(frame.f_globals.get("__file__", ""))

    def _follow_native_threads(self) -> None:
        """Sets the profile on threads of the CRT, which Python did not start, as they enter its callbacks."""
        import awscrt.s3

        def followed(callback: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(callback)
            def enter(*arguments: Any, **options: Any) -> Any:
                sys.setprofile(self._note)
                return callback(*arguments, **options)

            return enter

        core = awscrt.s3._S3RequestCore
        for name, callback in list(vars(core).items()):
            if name.startswith("_on_"):
                setattr(core, name, followed(callback))


@contextmanager
def operations(server: S3Server, transport: str) -> Iterator[dict[str, Callable[[], object]]]:
    """Yields the operations to count, by name."""
    import torch
    import torch.distributed.checkpoint as dcp

    from s3torch.core import S3Client, S3ClientConfig
    from s3torch.dcp import S3StorageReader, S3StorageWriter

    bucket = server.create_bucket()
    config = S3ClientConfig(transport=transport)
    state = {f"tensor-{number}": torch.zeros(64, 64) for number in range(TENSORS)}
    numbers = count()

    def save(path: str) -> None:
        dcp.save(state, storage_writer=S3StorageWriter(REGION, f"s3://{bucket}/{path}", config))

    with S3Client(REGION, s3client_config=config) as client:
        with client.put_object(bucket, "object") as writer:
            writer.write(bytes(SIZE))
        save("loaded")
        yield {
            "get": lambda: client.get_object(bucket, "object").read(),
            "dcp.load": lambda: dcp.load(
                state, storage_reader=S3StorageReader(REGION, f"s3://{bucket}/loaded", config)
            ),
            "dcp.save": lambda: save(f"saved-{next(numbers)}"),
        }


def counted(server: str, transport: str) -> dict[str, list[str]]:
    """Returns the files that each operation passes over one transport."""
    warnings.simplefilter("ignore")  # torch's remarks about a single process.
    passed = Passed()
    from s3torch.testing import servers

    with servers.start_moto() if server == "moto" else servers.start_seaweedfs() as started:
        os.environ.update(started.environment())
        with operations(started, transport) as works:
            return {name: passed.count(work) for name, work in works.items()}


def main() -> None:
    """Counts what the command line asks for."""
    parser = argparse.ArgumentParser(description="Count the source files that a warm operation passes.")
    parser.add_argument("--transport", choices=TRANSPORTS, help="default: each in turn")
    parser.add_argument("--server", choices=("moto", "seaweedfs"), default="seaweedfs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    transports = [options.transport] if options.transport else TRANSPORTS
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        each = pool.map(partial(counted, options.server), transports)
        found = dict(zip(transports, each, strict=True))
    if options.json:
        print(json.dumps({"files": len(SOURCES), "passed": found}, indent=1))
        return
    for transport, works in found.items():
        for name, files in works.items():
            print(f"{name} over {transport}: {len(files)} files")
            print(*(f"    {file}" for file in files), sep="\n")
    print(f"of {len(SOURCES)} files in all packages")


if __name__ == "__main__":
    main()
