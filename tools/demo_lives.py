"""Run the training, kill it twice, and run it again each time until it comes to its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from demo_process import Life, TrainingProcess
from s3torch.core import S3Client
from s3torch.testing.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo_console import Bar, Display
    from demo_process import Event
    from s3torch.testing.faults import FaultProxy, Request

    # Looks at each event and says where the process has to die now; nothing lets it live.
    Fate = Callable[[Event], str]

__all__ = ["NotKilledError", "Training"]

MB = 1_000_000
# How much of the second part of a checkpoint gets through before the process is killed.
LAST_BYTES = 1 * MB
PATIENCE = 30.0


class NotKilledError(Exception):
    """The process could not be killed where it was meant to be."""


class Training:
    """The training as a whole, over the lives of several processes.

    Args:
        bucket: Where the images are.
        proxy: What the processes reach S3 through.
        images: The number of images for training.
        epochs: How many epochs to train.
        workers: How many processes fetch images.
    """

    def __init__(self, bucket: str, proxy: FaultProxy, *, images: int, epochs: int, workers: int) -> None:
        self._bucket = bucket
        self._proxy = proxy
        self._images = images
        self._epochs = epochs
        self._arguments = [f"s3://{bucket}", f"--epochs={epochs}", f"--workers={workers}"]

    def run(self, display: Display) -> list[Life]:
        """Train to the end; returns what each process has told."""
        middle = max(2, self._epochs // 2)
        first = self._live(display, self._dies_in_epoch(middle))
        second = self._live(display, self._dies_saving(middle + 1))
        self._look_for(checkpoint_key(middle + 1), display)
        return [first, second, self._live(display, lambda _: "")]

    def _live(self, display: Display, fate: Fate) -> Life:
        life = Life()
        with TrainingProcess(self._arguments) as process, display.bar("training", self._images) as bar:
            bar(0, "starting")
            for event in process.events():
                life.events.append(event)
                show(event, display, bar)
                life.death = fate(event)
                if life.death:
                    process.kill()
                    break
        if life.death:
            display.say(f"killed {life.death}", style="red")
        return life

    def _dies_in_epoch(self, epoch: int) -> Fate:
        def fate(event: Event) -> str:
            if event["event"] != "step" or event["epoch"] != epoch or event["images"] < self._images / 2:
                return ""
            return f"in the middle of epoch {epoch}"

        return fate

    def _dies_saving(self, epoch: int) -> Fate:
        key = checkpoint_key(epoch)

        def is_second_part(request: Request) -> bool:
            return request.key == key and request.query.get("partNumber") == "2"

        stall = Fault.stall(PATIENCE, after=LAST_BYTES, side="request")
        self._proxy.add(stall, match=is_second_part, times=1)

        def fate(event: Event) -> str:
            if event["event"] != "validated" or event["epoch"] != epoch:
                return ""
            self._wait_until_halfway(key)
            return f"while saving epoch {epoch}"

        return fate

    def _wait_until_halfway(self, key: str) -> None:
        """Wait until the first part of a checkpoint is in S3, and the second on its way."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            parts = {part.query.get("partNumber"): part for part in self._proxy.requests("PUT", key=key)}
            first, second = parts.get("1"), parts.get("2")
            if first and first.status and second and second.request_bytes >= LAST_BYTES:
                return
            time.sleep(0.005)
        raise NotKilledError(f"the upload of {key} did not get as far as its second part")

    def _look_for(self, key: str, display: Display) -> None:
        """Make sure that an object of which only a part was uploaded is not there."""
        with S3Client() as client:
            if client.exists(self._bucket, key):
                raise NotKilledError(f"{key} is there, although its upload was not finished")
        sent = sum(request.request_bytes for request in self._proxy.requests("PUT", key=key))
        display.say(f"{sent / MB:.1f} MB of {key} had been sent; nothing of it is visible")


def checkpoint_key(epoch: int) -> str:
    """Return where the training keeps the checkpoint of an epoch."""
    return f"checkpoints/epoch-{epoch:02}.pt"


def show(event: Event, display: Display, bar: Bar) -> None:
    """Show an event to the user."""
    match event:
        case {"event": "resumed", "epoch": epoch, "seconds": seconds}:
            display.say(f"resumed after epoch {epoch}, whose checkpoint was loaded in {seconds:.2f} s")
        case {"event": "step", "epoch": epoch, "images": images, "loss": loss}:
            bar(images, f"epoch {epoch}, loss {loss:.3f}")
        case {"event": "trained", "epoch": epoch, "images": images}:
            bar(images, f"epoch {epoch}, validating and saving")
        case {"event": "validated", "epoch": epoch, "accuracy": accuracy}:
            display.say(f"epoch {epoch}: {accuracy:.1%} of the held-out digits are read right")
        case {"event": "saved"}:
            bar(0, "fetching the next images")
        case {"event": "saved with DCP", "seconds": seconds}:
            display.say(f"saved with DCP in {seconds:.2f} s")
