"""Runs the training, kills it twice, and starts it again each time until it comes to its end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from s3torch.core import S3Client
from s3torch.testing.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from s3torch.testing.faults import FaultProxy, Request
    from terminal import Bar, Display

    # Looks at each event and says where the process is to be killed now; nothing when it may go on.
    WhenToKill = Callable[["Event"], str]

__all__ = ["Attempt", "Event", "NotKilledError", "Training", "TrainingFailedError", "TrainingProcess"]

MB = 1_000_000
SCRIPT = Path(__file__).with_name("training.py")
LAST_LINES = 30
# Killed workers count as present until the first process of the machine has noted their end.
END_TIMEOUT = 2.0
# Seconds without an event after which the training is taken to hang.
SILENCE_TIMEOUT = 100
# How much of the second part of a checkpoint gets through before the process is killed.
BYTES_BEFORE_KILL = 1 * MB
UPLOAD_TIMEOUT = 30.0

Event = dict[str, Any]


@dataclass
class Attempt:
    """What one training process has reported, from its start until it ended or was killed."""

    events: list[Event] = field(default_factory=list)
    killed: str = ""

    @property
    def first_epoch(self) -> int:
        """The epoch that it began with."""
        return int(self.of("step")[0]["epoch"])

    @property
    def last_epoch(self) -> int:
        """The epoch that it was in when it ended."""
        return int(self.of("step")[-1]["epoch"])

    def of(self, name: str) -> list[Event]:
        """Returns the events with a name."""
        return [event for event in self.events if event["event"] == name]


class TrainingFailedError(Exception):
    """The training process has failed by itself; the text ends with what it wrote last."""


class TrainingProcess:
    """A run of the training script with its workers, in a process group of its own.

    Ctrl-C in a terminal does not reach that group. Leaving the ``with`` block ends it and removes what it
    left behind.

    Args:
        arguments: The arguments of the script.
    """

    def __init__(self, arguments: list[str]) -> None:
        # A killed process does not clean up, so its temporary files go into a folder of their own. The name
        # is short, because DataLoader workers make sockets there, whose paths have at most 104 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="s3t-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name) / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPT), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "TMPDIR": self._folder.name},
                process_group=0,
            )

    def events(self) -> Iterator[Event]:
        """Yields what the process reports until it ends or is killed from here.

        Raises:
            TrainingFailedError: It ended with an error, or reports nothing any more.
        """
        for line in self._lines():
            yield json.loads(line)
        # Its workers write to the same pipe, so the end of it means that they have ended as well.
        code = self._process.wait()
        if code:
            raise TrainingFailedError(f"the training ended with code {code}:\n{self._last_output()}")

    def _lines(self) -> Iterator[bytes]:
        assert self._process.stdout is not None  # noqa: S101  (for mypy)
        pipe = self._process.stdout.fileno()
        rest = b""
        while select.select([pipe], [], [], SILENCE_TIMEOUT)[0]:
            chunk = os.read(pipe, 65536)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
        raise TrainingFailedError(
            f"the training has reported nothing for {SILENCE_TIMEOUT} s:\n{self._last_output()}"
        )

    def _last_output(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LAST_LINES:])

    def kill(self) -> None:
        """Kills the process and its workers with SIGKILL, and waits until none of them is left."""
        group = self._process.pid
        if self._process.returncode is None:
            # Its number cannot be given to another group before it is waited for.
            os.killpg(group, signal.SIGKILL)
            self._process.wait()
            deadline = time.monotonic() + END_TIMEOUT
            while _exists(group) and time.monotonic() < deadline:
                time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


class NotKilledError(Exception):
    """The process could not be killed at the intended moment."""


class Training:
    """The training as a whole, over several processes.

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

    def run(self, display: Display) -> list[Attempt]:
        """Trains to the end; returns what each process has reported."""
        middle = max(2, self._epochs // 2)
        first = self._start(display, self._in_epoch(middle))
        second = self._start(display, self._while_saving(middle + 1))
        self._check_invisible(checkpoint_key(middle + 1), display)
        return [first, second, self._start(display, lambda _: "")]

    def _start(self, display: Display, when_to_kill: WhenToKill) -> Attempt:
        attempt = Attempt()
        with TrainingProcess(self._arguments) as process, display.bar("training", self._images) as bar:
            bar(0, "starting")
            for event in process.events():
                attempt.events.append(event)
                show(event, display, bar)
                attempt.killed = when_to_kill(event)
                if attempt.killed:
                    process.kill()
                    break
        if attempt.killed:
            display.say(f"killed {attempt.killed}", style="red")
        return attempt

    def _in_epoch(self, epoch: int) -> WhenToKill:
        def when_to_kill(event: Event) -> str:
            if event["event"] != "step" or event["epoch"] != epoch or event["images"] < self._images / 2:
                return ""
            return f"in the middle of epoch {epoch}"

        return when_to_kill

    def _while_saving(self, epoch: int) -> WhenToKill:
        key = checkpoint_key(epoch)

        def is_second_part(request: Request) -> bool:
            return request.key == key and request.query.get("partNumber") == "2"

        stall = Fault.stall(UPLOAD_TIMEOUT, after=BYTES_BEFORE_KILL, side="request")
        self._proxy.add(stall, match=is_second_part, times=1)

        def when_to_kill(event: Event) -> str:
            if event["event"] != "validated" or event["epoch"] != epoch:
                return ""
            self._wait_for_second_part(key)
            return f"while saving epoch {epoch}"

        return when_to_kill

    def _wait_for_second_part(self, key: str) -> None:
        """Waits until the first part of a checkpoint is in S3, and the second in flight."""
        deadline = time.monotonic() + UPLOAD_TIMEOUT
        while time.monotonic() < deadline:
            parts = {part.query.get("partNumber"): part for part in self._proxy.requests("PUT", key=key)}
            first, second = parts.get("1"), parts.get("2")
            if first and first.status and second and second.request_bytes >= BYTES_BEFORE_KILL:
                return
            time.sleep(0.005)
        raise NotKilledError(f"the upload of {key} did not get as far as its second part")

    def _check_invisible(self, key: str, display: Display) -> None:
        """Fails if an object is there of which only a part was uploaded."""
        with S3Client() as client:
            if client.exists(self._bucket, key):
                raise NotKilledError(f"{key} is there, although its upload was not finished")
        sent = sum(request.request_bytes for request in self._proxy.requests("PUT", key=key))
        display.say(f"{sent / MB:.1f} MB of {key} had been sent; nothing of it is visible")


def checkpoint_key(epoch: int) -> str:
    """Returns where the training keeps the checkpoint of an epoch."""
    return f"checkpoints/epoch-{epoch:02}.pt"


def show(event: Event, display: Display, bar: Bar) -> None:
    """Shows an event to the user."""
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
