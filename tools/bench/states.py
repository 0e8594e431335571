"""What the questions about ``torch.distributed.checkpoint`` share: state dicts, and the work on them."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from libraries import REGION, connector_config, endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1024 * 1024
# A few large tensors, and hundreds of small ones, as in a model with its optimizer.
SHARES = ((4, 1 / 8), (16, 1 / 64), (32, 1 / 256), (400, 1 / 3200))


def mixed_state(size: int, *, filled: bool = True) -> dict[str, Any]:
    """Returns tensors of many sizes.

    Args:
        size: Bytes of all together, about.
        filled: With random bytes, else with ones.
    """
    import torch

    state = {}
    for number, share in SHARES:
        for index in range(number):
            shape = (max(1, int(size * share) // 1024), 256)
            state[f"t{number}.{index}"] = torch.randn(shape) if filled else torch.full(shape, 1.0)
    return state


def small_state(number: int, *, filled: bool = True) -> dict[str, Any]:
    """Returns many small tensors."""
    import torch

    make = torch.randn if filled else torch.zeros
    return {f"t{index}": make(64, 64) for index in range(number)}


def sharded_state(size: int, ranks: int) -> dict[str, Any]:
    """Returns four large tensors, of which each rank has some rows; all of them with ``ranks=0``."""
    import torch

    state = {f"layer{n}": torch.full((1024, size // 4 // 4 // 1024), float(n)) for n in range(4)}
    if not ranks:
        return state
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks,))
    return {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in state.items()}


def changing_state(size: int) -> dict[str, Any]:
    """Returns frozen tensors with trained ones between them, a 64th of all."""
    import torch

    layers = 32
    return {
        f"{number}.{kind}": torch.randn(size // part // layers // 4)
        for number in range(layers)
        for kind, part in (("base", 1), ("lora", 64))
    }


def changes(state: dict[str, Any]) -> None:
    """Changes what is trained."""
    for name, tensor in state.items():
        if name.endswith(".lora"):
            tensor.add_(1)


def on_ranks(ranks: int, make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """Forks the other ranks, and returns what does the work on all of them, twice at most.

    Args:
        ranks: How many.
        make: Called in each of them; returns its work.
    """
    folder = tempfile.mkdtemp(dir=os.environ["BENCH_SCRATCH"])
    rank = next((number for number in range(1, ranks) if not os.fork()), 0)
    if not rank:
        return _rank(folder, rank, ranks, make)
    try:
        work = _rank(folder, rank, ranks, make)
        for _ in range(2):
            work()
    finally:
        os._exit(0)


def run_ranks(ranks: int, work: Callable[[], object]) -> None:
    """Does something once on each of some ranks."""
    folder = tempfile.mkdtemp(dir=os.environ["BENCH_SCRATCH"])
    started = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            try:
                _rank(folder, rank, ranks, lambda: work)()
                os._exit(0)
            finally:
                os._exit(1)
        started.append(child)
    if sum(os.waitpid(child, 0)[1] for child in started):
        raise SystemExit("a rank has failed")


def _rank(
    folder: str, rank: int, ranks: int, make: Callable[[], Callable[[], object]]
) -> Callable[[], object]:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    work = make()

    def together() -> None:
        dist.barrier()
        work()
        dist.barrier()

    return together


def loading(state: dict[str, Any], make_reader: Callable[[], Any]) -> Callable[[], object]:
    """Returns the work: a load into tensors that are there already."""
    import torch.distributed.checkpoint as dcp

    quiet()
    return lambda: dcp.load(state, storage_reader=make_reader())


def loading_with(transport: str | None, state: dict[str, Any], path: str) -> Callable[[], object]:
    """Returns a load with our storage reader."""
    from s3torch.core import S3ClientConfig
    from s3torch.dcp import S3StorageReader

    config = S3ClientConfig(transport=transport, endpoint=endpoint())
    return loading(state, lambda: S3StorageReader(REGION, path, config))


def loading_with_connector(state: dict[str, Any], path: str) -> Callable[[], object]:
    """Returns a load with the storage reader of s3torchconnector."""
    from s3torchconnector.dcp import S3StorageReader

    return loading(state, lambda: S3StorageReader(REGION, path, connector_config()))


def quiet() -> None:
    """Keeps torch's remarks about a single process out of the figures."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable()


def size_from_environment(default: int) -> int:
    """The size in bytes; ``BENCH_MIB`` overrides it."""
    return int(os.environ.get("BENCH_MIB", default // MIB)) * MIB
