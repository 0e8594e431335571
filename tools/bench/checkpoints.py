"""How fast are checkpoints of one file saved and loaded: those of torch.save, and safetensors?"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from libraries import BUCKET, CONNECTOR, REGION, boto_client, connector_config, endpoint, s3fs_filesystem
from measure import MIB, Question, main
from states import size_from_environment

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = size_from_environment(256 * MIB)
TENSORS = 16
KEY, SAFE = "checkpoint.pt", "model.safetensors"
URI, SAFE_URI = f"s3://{BUCKET}/{KEY}", f"s3://{BUCKET}/{SAFE}"


def _state() -> dict[str, Any]:
    import torch

    return {str(n): torch.full((SIZE // TENSORS // 4,), float(n)) for n in range(TENSORS)}


def prepare(boto: Any) -> None:
    """Puts the checkpoint, in both formats."""
    import safetensors.torch
    import torch

    file = io.BytesIO()
    torch.save(_state(), file)
    boto.upload_fileobj(io.BytesIO(file.getvalue()), BUCKET, KEY)
    boto.upload_fileobj(io.BytesIO(safetensors.torch.save(_state())), BUCKET, SAFE)


def _check(state: Any) -> None:
    # Whoever loads a checkpoint reads all of it once.
    for n in range(TENSORS):
        if float(state[str(n)].amax()) != n:
            raise ValueError(n)


def _load_from(open_file: Callable[[], Any]) -> Callable[[], object]:
    import torch

    def work() -> None:
        with open_file() as file:
            _check(torch.load(file))

    return work


def _save_to(open_file: Callable[[], Any]) -> Callable[[], object]:
    import torch

    state = _state()

    def work() -> None:
        with open_file() as file:
            torch.save(state, file)

    return work


def _ours() -> Any:
    from s3torch.core import S3Checkpoint

    return S3Checkpoint(REGION, endpoint())


def _connector() -> Any:
    from s3torchconnector import S3Checkpoint

    return S3Checkpoint(REGION, endpoint(), connector_config())


def _ours_saving() -> Callable[[], object]:
    checkpoint, state = _ours(), _state()
    return lambda: checkpoint.save(state, "s3://" + BUCKET + "/saved.pt")


def _ours_loading(**options: bool) -> Callable[[], object]:
    checkpoint = _ours()
    return lambda: _check(checkpoint.load(URI, **options))


def _boto_saving() -> Callable[[], object]:
    import torch

    boto, state = boto_client(), _state()

    def work() -> None:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        boto.upload_fileobj(file, BUCKET, "saved.pt")

    return work


def _boto_loading() -> Callable[[], object]:
    import torch

    boto = boto_client()

    def work() -> None:
        file = io.BytesIO()
        boto.download_fileobj(BUCKET, KEY, file)
        file.seek(0)
        _check(torch.load(file))

    return work


def _ours_safetensors() -> Callable[[], object]:
    from s3torch.dcp import load_file

    return lambda: _check(load_file(SAFE_URI))


def _runai() -> Callable[[], object]:
    os.environ["RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"] = "0"
    from runai_model_streamer import SafetensorsStreamer

    def work() -> None:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(SAFE_URI)
            # What it yields is valid until the next one.
            for name, tensor in streamer.get_tensors():
                if float(tensor.amax()) != int(name):
                    raise ValueError(name)

    return work


def _safetensors_through_boto() -> Callable[[], object]:
    import safetensors.torch

    boto = boto_client()
    return lambda: _check(safetensors.torch.load(boto.get_object(Bucket=BUCKET, Key=SAFE)["Body"].read()))


_ONE: dict[str, Any] = {"units": SIZE / 1e9, "unit": "GB", "size": SIZE}

if __name__ == "__main__":
    main(
        Question(
            f"torch.save of {SIZE // MIB} MiB in {TENSORS} tensors",
            {
                CONNECTOR: lambda: _save_to(lambda: _connector().writer(f"s3://{BUCKET}/saved.pt")),
                "s3torch": _ours_saving,
                "s3fs": lambda: _save_to(lambda: s3fs_filesystem().open(f"{BUCKET}/saved.pt", "wb")),
                "boto3": _boto_saving,
            },
            work="save (torch.save)",
            **_ONE,
        ),
        Question(
            f"torch.load of {SIZE // MIB} MiB in {TENSORS} tensors, and reading each number once",
            {
                CONNECTOR: lambda: _load_from(lambda: _connector().reader(URI)),
                "s3torch": _ours_loading,
                "s3torch, mmap=True": lambda: _ours_loading(mmap=True),
                "s3fs": lambda: _load_from(lambda: s3fs_filesystem().open(f"{BUCKET}/{KEY}")),
                "boto3": _boto_loading,
            },
            work="load (torch.load)",
            prepare=prepare,
            **_ONE,
        ),
        Question(
            f"safetensors of {SIZE // MIB} MiB, and reading each number once",
            {
                "s3torch": _ours_safetensors,
                "runai-model-streamer": _runai,
                "boto3": _safetensors_through_boto,
            },
            work="safetensors",
            prepare=prepare,
            baseline="runai-model-streamer",
            **_ONE,
        ),
    )
