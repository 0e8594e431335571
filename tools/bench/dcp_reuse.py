"""What does a save send of which most has not changed, and how many requests does it take?

A table of requests and bytes, counted at a proxy before SeaweedFS: a first save of frozen tensors with
trained ones between them, and then two with ``reuse``. ``BENCH_MIB`` is how much is frozen (1024), of which a
64th is trained in addition. It needs nothing but the packages: ``python tools/bench/dcp_reuse.py``.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from s3torch.core.ranges import MIB
from s3torch.dcp import S3StorageReader, S3StorageWriter
from s3torch.testing.faults import FaultProxy
from s3torch.testing.servers import start_seaweedfs
from states import quiet, size_from_environment

LAYERS = 32
FROZEN = size_from_environment(1024 * MIB)


def model() -> dict[str, Any]:
    """Returns frozen tensors with trained ones between them."""
    state = {}
    for number in range(LAYERS):
        state[f"{number}.base"] = torch.randn(FROZEN // LAYERS // 4)
        state[f"{number}.lora"] = torch.randn(FROZEN // 64 // LAYERS // 4)
        state[f"{number}.norm"] = torch.randn(1024)
    return state


def train(state: dict[str, Any]) -> int:
    """Changes what is trained, and returns its bytes."""
    changed = [tensor for name, tensor in state.items() if name.endswith(".lora")]
    for tensor in changed:
        tensor.add_(1)
    return sum(tensor.nbytes for tensor in changed)


def main() -> None:
    """Prints the table."""
    quiet()
    with start_seaweedfs(volume_mib=1024) as server, FaultProxy(server.endpoint) as proxy:
        os.environ.update(server.environment() | {"AWS_ENDPOINT_URL": proxy.endpoint})
        bucket, state, changed = server.create_bucket(), model(), 0
        print(f"{'save':<8}{'seconds':>9}{'requests':>10}{'bytes sent':>14}{'sent / changed':>16}  requests")
        for step in (1, 2, 3):
            if step > 1:
                changed = train(state)
            proxy.clear()
            begin = time.perf_counter()
            reuse = "latest" if step > 1 else None
            writer = S3StorageWriter("us-east-1", f"s3://{bucket}/run/{step}", reuse=reuse)
            dcp.save(state, storage_writer=writer)
            seconds, requests, sent = time.perf_counter() - begin, proxy.requests(), proxy.bytes_received
            kinds = Counter(one.method + " copy" * ("x-amz-copy-source" in one.headers) for one in requests)
            ratio = f"{sent / changed:.3f}" if changed else ""
            print(f"{step:<8}{seconds:>9.2f}{len(requests):>10}{sent:>14}{ratio:>16}  {dict(kinds)}")
        loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        dcp.load(loaded, storage_reader=S3StorageReader("us-east-1", f"s3://{bucket}/run/3"))
        print("loaded as saved:", all(torch.equal(loaded[name], state[name]) for name in state))


if __name__ == "__main__":
    main()
