"""For how long does a save of a Lightning checkpoint of 256 MiB keep training waiting?

What is measured is the call of ``save_checkpoint``, not the upload, which goes on behind an asynchronous one;
the next save comes when it is complete, as it does where saves are rarer than uploads are long.
"""

from __future__ import annotations

import statistics
import time
import warnings
from typing import TYPE_CHECKING, Any

from libraries import BUCKET, CONNECTOR, REGION, connector_config, endpoint
from measure import MIB, Figures, Question, cpu_seconds, main, server_cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 256 * MIB
TENSORS = 64
SAVES = 3
ASYNC = f"{CONNECTOR}, AsyncCheckpointIO"


def connector() -> Any:
    """AsyncCheckpointIO around the plugin of s3torchconnector."""
    from lightning.pytorch.plugins.io import AsyncCheckpointIO

    from s3torchconnector.lightning import S3LightningCheckpoint

    # It takes its endpoint from the environment.
    return AsyncCheckpointIO(S3LightningCheckpoint(REGION, connector_config()))


def ours(**options: Any) -> Any:
    """Our plugin."""
    from s3torch.lightning import S3LightningCheckpoint

    return S3LightningCheckpoint(REGION, endpoint=endpoint(), **options)


def ours_in_lightnings() -> Any:
    """AsyncCheckpointIO around our plugin."""
    from lightning.pytorch.plugins.io import AsyncCheckpointIO

    return AsyncCheckpointIO(ours())


def saves(make: Callable[[], Any]) -> Callable[[], Any]:
    """Makes a plugin and a checkpoint, and returns what saves it several times."""
    import torch

    warnings.simplefilter("ignore")
    plugin = make()
    state = {str(number): torch.randn(SIZE // TENSORS // 4) for number in range(TENSORS)}

    def work() -> list[float]:
        blocked = []
        for number in range(SAVES):
            start = time.perf_counter()
            plugin.save_checkpoint({"state_dict": state}, f"s3://{BUCKET}/{number}.ckpt")
            blocked.append(time.perf_counter() - start)
            # Ends what is under way, and keeps what can be kept.
            getattr(plugin, "wait", plugin.teardown)()
        return blocked

    return work


def blocked(work: Callable[[], Any]) -> Figures:
    """Measures the calls alone; the first one warms up."""
    server, cpu = server_cpu_seconds(), cpu_seconds()
    seconds = statistics.median(work()[1:])
    return Figures(seconds, (cpu_seconds() - cpu) / SAVES, (server_cpu_seconds() - server) / SAVES, 0)


if __name__ == "__main__":
    main(
        Question(
            title="training is blocked by a save of 256 MiB (64 tensors)",
            cases={
                ASYNC: lambda: saves(connector),
                "s3torch, not async": lambda: saves(ours),
                "s3torch, AsyncCheckpointIO": lambda: saves(ours_in_lightnings),
                "s3torch, async_save=True": lambda: saves(lambda: ours(async_save=True)),
            },
            units=SIZE / 1e9,
            unit="GB",
            baseline=ASYNC,
            measured=blocked,
        )
    )
