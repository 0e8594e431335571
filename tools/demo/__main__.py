"""Shows s3torch at work: a training run on S3 that is killed twice and loses nothing.

It starts an S3 server on this machine, puts images there, trains a network on them, kills the training
in the middle of an epoch and in the middle of saving a checkpoint, resumes each time from the last
checkpoint in S3, and ends with what was measured. How the library is used is in training.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from attempts import NotKilledError, Training, TrainingFailedError
from digits import handwritten_digits, upload
from results import GOAL, Result, count_operations, draw
from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.core.observers.live import TransferPanel
from s3torch.testing.faults import FaultProxy
from s3torch.testing.servers import ServerStartError, start_seaweedfs
from terminal import Display, StoppedError, stoppable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.testing.servers import S3Server

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "s3torch-demo"
COUNTERS = "S3TORCH_COUNTERS"


class DemoError(Exception):
    """The demonstration did not show what it should; the text says what."""


FAILURES = (
    ConfigurationError,
    DemoError,
    NotKilledError,
    OSError,
    S3Error,
    ServerStartError,
    TrainingFailedError,
)


def main() -> int:
    """Runs the demonstration; returns the exit code."""
    options = parse_arguments()
    display = Display()
    try:
        with stoppable(), watched(display) if options.watch else nullcontext():
            demonstrate(options, display)
    except StoppedError as stopped:
        display.error("stopped; nothing is left running")
        return stopped.exit_code
    except FAILURES as error:
        display.error(str(error))
        return 1
    return 0


def demonstrate(options: argparse.Namespace, display: Display) -> None:
    """Does one step after the other."""
    start = time.perf_counter()
    options.output.mkdir(parents=True, exist_ok=True)

    display.headline("Start an S3 server on this machine")
    with start_seaweedfs(port=options.port) as server, FaultProxy(server.endpoint) as proxy:
        # The proxy counts the requests, and stalls an upload before one of the kills.
        use_only(server.at(proxy.endpoint))
        server.create_bucket(BUCKET)
        display.say(f"SeaweedFS listens on {server.endpoint}")

        display.headline("Upload images of handwritten digits")
        digits = handwritten_digits()
        before = time.perf_counter()
        with display.bar("uploading", len(digits)) as bar:
            upload(digits, BUCKET, uploaded=bar)
        upload_seconds = time.perf_counter() - before
        display.say(f"{len(digits):,} PNG files, such as s3://{BUCKET}/{digits[-1].key}")

        display.headline("Train on them, be killed, and resume")
        images = sum(digit.is_for_training for digit in digits)
        training = Training(BUCKET, proxy, images=images, epochs=options.epochs, workers=options.workers)
        result = Result(
            attempts=training.run(display),
            uploaded=len(digits),
            upload_seconds=upload_seconds,
            requests=count_operations(proxy.requests()),
            seconds=time.perf_counter() - start,
        )

    display.headline("Results")
    display.show(result.table())
    plot = options.output / "training.png"
    draw(result, plot)
    display.say(f"plot: {plot}")
    check(result)


@contextmanager
def watched(display: Display) -> Iterator[None]:
    """Shows below each bar what s3torch does in this process and in all that it starts, also in workers."""
    with tempfile.TemporaryDirectory(prefix="s3t-counts-", ignore_cleanup_errors=True) as folder:
        os.environ[COUNTERS] = folder
        display.below = (TransferPanel(folder),)
        yield


def use_only(server: S3Server) -> None:
    """Points this process and all that it starts at the server, whatever the user's own settings are."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3TORCH_"))]:
        if name != COUNTERS:
            del os.environ[name]
    os.environ.update(server.environment())
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"


def check(result: Result) -> None:
    """Fails when the demonstration has not shown what it is there for."""
    if result.accuracy < GOAL:
        raise DemoError(
            f"the accuracy is {result.accuracy:.1%}, but should be at least {GOAL:.0%}; "
            "more epochs may help (--epochs)"
        )
    if not all(event["same"] for event in result.of("saved with DCP")):
        raise DemoError("what DCP loaded is not what it saved")


def parse_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(
        prog="demo", description="Train on images in S3, be killed twice, and resume."
    )
    parser.add_argument("--epochs", type=int, default=5, help="at least 3; default: %(default)s")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes that fetch and decode images; default: %(default)s"
    )
    parser.add_argument("--port", type=int, help="of the S3 server; default: one that is free")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "demo-output", help="folder for the plot; default: %(default)s"
    )
    parser.add_argument(
        "--watch", action="store_true", help="show throughput, requests and memory while the training runs"
    )
    options = parser.parse_args()
    if options.epochs < 3:
        parser.error("--epochs must be at least 3, so that there is something to kill and to resume")
    if options.workers < 0:
        parser.error("--workers must not be negative")
    return options


if __name__ == "__main__":
    sys.exit(main())
