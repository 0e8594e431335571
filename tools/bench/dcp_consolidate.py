"""What goes through the client when the parts of four ranks become whole safetensors files?

A table of requests and bytes, counted at a proxy before SeaweedFS: once S3 copies, and once it refuses to.
Each tensor is cut along its first dimension, as FSDP does. ``BENCH_MIB`` is how much there is (1024). It
needs nothing but the packages: ``python tools/bench/dcp_consolidate.py``.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

import torch

from s3torch.core.ranges import MIB
from s3torch.dcp import consolidate_safetensors_files, load_sharded, save_file
from s3torch.testing.faults import Fault, FaultProxy
from s3torch.testing.servers import start_seaweedfs
from states import quiet, size_from_environment

if TYPE_CHECKING:
    from s3torch.testing.faults import Request

RANKS = 4
LAYERS = 16
SIZE = size_from_environment(1024 * MIB)


def model() -> dict[str, torch.Tensor]:
    """Returns large matrices, and small vectors between them."""
    state = {}
    for number in range(LAYERS):
        state[f"{number}.weight"] = torch.randn(SIZE // LAYERS // 4096, 1024)
        state[f"{number}.norm"] = torch.randn(1024)
    return state


def save_parts(state: dict[str, torch.Tensor], uri: str) -> None:
    """Saves the rows of each rank in a file of its own."""
    for rank in range(RANKS):
        parts, offsets = {}, {}
        for name, tensor in state.items():
            rows = -(-len(tensor) // RANKS)
            parts[name] = tensor[rank * rows : (rank + 1) * rows]
            offsets[name] = {"saved_offsets": [rank * rows, *(0 for _ in tensor.shape[1:])]}
        name = f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
        save_file(parts, f"{uri}/{name}", {"DCP_SHARDING_INFO": json.dumps(offsets)})


def is_copy(request: Request) -> bool:
    """Whether S3 is asked to copy."""
    return "x-amz-copy-source" in request.headers


def main() -> None:
    """Prints the table."""
    quiet()
    with start_seaweedfs(volume_mib=1024) as server, FaultProxy(server.endpoint) as proxy:
        os.environ.update(server.environment() | {"AWS_ENDPOINT_URL": proxy.endpoint})
        bucket, state = server.create_bucket(), model()
        save_parts(state, f"s3://{bucket}/parts")
        print(f"{'S3':<10}{'seconds':>9}{'requests':>10}{'bytes read':>14}{'bytes sent':>14}  requests")
        for title in ("copies", "refuses"):
            if title == "refuses":
                proxy.add(Fault.error(501, "NotImplemented"), match=is_copy)
            proxy.clear()
            begin = time.perf_counter()
            report = consolidate_safetensors_files(f"s3://{bucket}/parts", f"s3://{bucket}/{title}")
            seconds, requests = time.perf_counter() - begin, proxy.requests()
            read = sum(one.response_bytes for one in requests if one.method == "GET")
            kinds = Counter(one.method + " copy" * is_copy(one) for one in requests)
            counted = f"{len(requests):>10}{read:>14}{proxy.bytes_received:>14}  {dict(kinds)}"
            print(f"{title:<10}{seconds:>9.2f}{counted}\n{'':<10}{report}")
            loaded = load_sharded(f"s3://{bucket}/{title}")
            print(" " * 9, "loaded as saved:", all(torch.equal(loaded[name], state[name]) for name in state))


if __name__ == "__main__":
    main()
