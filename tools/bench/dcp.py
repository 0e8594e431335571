"""How fast are distributed checkpoints saved and loaded?"""

from __future__ import annotations

import os
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from libraries import BUCKET, CONNECTOR, REGION, connector_config, endpoint
from measure import MIB, Question, main
from states import (
    changes,
    changing_state,
    loading,
    mixed_state,
    on_ranks,
    quiet,
    run_ranks,
    sharded_state,
    size_from_environment,
    small_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = size_from_environment(256 * MIB)
RANKS = 4
SMALL, FILES = 500, 8
WHOLE, MANY, SHARDED = (f"s3://{BUCKET}/{name}" for name in ("whole", "many", "sharded"))
_numbers = count()


def _new_path() -> str:
    return f"s3://{BUCKET}/save-{os.getpid()}-{next(_numbers)}"


def _writer(path: str, transport: str | None = None, **options: Any) -> Any:
    from s3torch.core import S3ClientConfig
    from s3torch.dcp import S3StorageWriter

    return S3StorageWriter(REGION, path, S3ClientConfig(transport=transport, endpoint=endpoint()), **options)


def _reader(path: str, transport: str | None = None, **options: Any) -> Any:
    from s3torch.core import S3ClientConfig
    from s3torch.dcp import S3StorageReader

    return S3StorageReader(REGION, path, S3ClientConfig(transport=transport, endpoint=endpoint()), **options)


def _connector_writer(path: str, **options: Any) -> Any:
    from s3torchconnector.dcp import S3StorageWriter

    return S3StorageWriter(REGION, path, connector_config(), **options)


def _connector_reader(path: str) -> Any:
    from s3torchconnector.dcp import S3StorageReader

    return S3StorageReader(REGION, path, connector_config())


def _fsspec(kind: str, path: str, **options: Any) -> Any:
    """Torch's own, on s3fs."""
    from torch.distributed.checkpoint import _fsspec_filesystem

    client = {"endpoint_url": endpoint(), "region_name": REGION}
    return getattr(_fsspec_filesystem, kind)(path, client_kwargs=client, **options)


WRITERS: dict[str, Callable[..., Any]] = {
    CONNECTOR: _connector_writer,
    "s3torch (crt)": partial(_writer, transport="crt"),
    "s3torch (http)": partial(_writer, transport="http"),
    "torch (fsspec)": partial(_fsspec, "FsspecWriter"),
}
READERS: dict[str, Callable[..., Any]] = {
    CONNECTOR: _connector_reader,
    "s3torch (crt)": partial(_reader, transport="crt"),
    "s3torch (http)": partial(_reader, transport="http"),
    "torch (fsspec)": partial(_fsspec, "FsspecReader"),
}


def saves(make_state: Callable[[], Any], **options: Any) -> dict[str, Any]:
    """The cases of a save, each time to a path of its own."""

    def case(make: Callable[..., Any]) -> Callable[[], object]:
        import torch.distributed.checkpoint as dcp

        quiet()
        state = make_state()
        return lambda: dcp.save(state, storage_writer=make(_new_path(), **options))

    return {name: partial(case, make) for name, make in WRITERS.items()}


def loads(make_state: Callable[[], Any], path: str) -> dict[str, Any]:
    """The cases of a load, into tensors that are there already."""
    return {name: partial(_loading, make_state, partial(make, path)) for name, make in READERS.items()}


def _loading(make_state: Callable[[], Any], make_reader: Callable[[], Any]) -> Callable[[], object]:
    return loading(make_state(), make_reader)


def _save_again(make_writer: Callable[[str], Any]) -> Callable[[], object]:
    import torch.distributed.checkpoint as dcp

    quiet()
    state, folder = changing_state(SIZE), _new_path()

    def work() -> None:
        changes(state)
        dcp.save(state, storage_writer=make_writer(f"{folder}/{next(_numbers)}"))

    return work


def _replicas(make_reader: Callable[[], Any]) -> Callable[[], object]:
    return on_ranks(RANKS, lambda: loading(_blank(), make_reader))


def _shared_reader() -> Any:
    import torch.distributed as dist

    return _reader(WHOLE, replicas="broadcast", process_group=dist.group.WORLD)


def _blank() -> dict[str, Any]:
    return mixed_state(SIZE, filled=False)


def _part() -> dict[str, Any]:
    return {name: tensor for name, tensor in _blank().items() if name.startswith("t16.")}


def save_whole(_: Any) -> None:
    """Saves a checkpoint in one file, as the default is."""
    _saved(mixed_state(SIZE), WHOLE)


def save_many(_: Any) -> None:
    """Saves many small tensors in several files."""
    _saved(small_state(SMALL), MANY, thread_count=FILES)


def save_sharded(_: Any) -> None:
    """Saves tensors of which each of 4 ranks has some rows."""
    run_ranks(RANKS, lambda: _saved(sharded_state(SIZE, RANKS), SHARDED))


def _saved(state: Any, path: str, **options: Any) -> None:
    import torch.distributed.checkpoint as dcp

    quiet()
    dcp.save(state, storage_writer=_writer(path, **options))


_GB: dict[str, Any] = {"units": SIZE / 1e9, "unit": "GB", "size": SIZE}
_MIB = SIZE // MIB
_LOAD: dict[str, Any] = {**_GB, "reads_back": True}

if __name__ == "__main__":
    main(
        Question(f"dcp.load of {_MIB} MiB", loads(_blank, WHOLE), work="load", prepare=save_whole, **_LOAD),
        Question(f"dcp.save of {_MIB} MiB", saves(lambda: mixed_state(SIZE)), work="save", **_GB),
        Question(
            f"dcp.save of {_MIB} MiB in 4 files",
            saves(lambda: mixed_state(SIZE), thread_count=4),
            work="save, 4 files",
            **_GB,
        ),
        Question(
            f"dcp.load of {SMALL} small tensors in {FILES} files",
            loads(lambda: small_state(SMALL, filled=False), MANY),
            work="load, many small",
            prepare=save_many,
            reads_back=True,
            on=("https", "http", "memory-20"),
        ),
        Question(
            f"dcp.save of {SMALL} small tensors",
            saves(lambda: small_state(SMALL)),
            work="save, many small",
        ),
        Question(
            f"dcp.load of what {RANKS} ranks have saved, {_MIB} MiB, by one",
            loads(lambda: sharded_state(SIZE, 0), SHARDED),
            work="load, resharded",
            prepare=save_sharded,
            **_LOAD,
        ),
        Question(
            f"dcp.load of a quarter of {_MIB} MiB",
            loads(_part, WHOLE),
            work="load, partial",
            prepare=save_whole,
            **_LOAD,
        ),
        Question(
            f"dcp.load of {_MIB} MiB by each of {RANKS} ranks; processor time and memory of the first",
            {
                **{
                    name: partial(_replicas, partial(READERS[name], WHOLE))
                    for name in (CONNECTOR, "s3torch (http)")
                },
                "s3torch, once for all": partial(_replicas, _shared_reader),
            },
            work=f"load, {RANKS} replicas",
            prepare=save_whole,
            on=("http", "slow-line"),
            **_LOAD,
        ),
        Question(
            f"dcp.save of {_MIB} MiB of which a 64th has changed",
            {
                CONNECTOR: partial(_save_again, _connector_writer),
                "s3torch": partial(_save_again, _writer),
                "s3torch, reuse": partial(_save_again, partial(_writer, reuse="latest")),
            },
            work="save, little changed",
            reads_back=True,
            **_GB,
        ),
    )
