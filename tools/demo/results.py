"""What came out of the demonstration: the numbers, the table and the plot."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.box import ROUNDED
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from matplotlib.axes import Axes

    from attempts import Attempt, Event
    from s3torch.testing.faults import Request

__all__ = ["GOAL", "Result", "count_operations", "draw"]

# The share of held-out digits that has to be read right.
GOAL = 0.95
MB = 1_000_000
MOST_COMMON = 2
BLUE, RED, GREEN, GREY = "#1f6fb4", "#c8352b", "#2a8a4a", "#6b7280"
# Operations of S3, told from the requests on the wire.
PLAIN = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
# With one of these parameters, a request means something else.
SPECIAL = {
    ("GET", "list-type"): "ListObjectsV2",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("PUT", "partNumber"): "UploadPart",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
}


@dataclass(frozen=True)
class Result:
    """All that was measured.

    Attributes:
        attempts: One for each time that the training process was started.
        uploaded: The number of images put into S3.
        upload_seconds: How long that took.
        requests: How many requests s3torch sent, by operation.
        seconds: How long all took until here.
    """

    attempts: list[Attempt]
    uploaded: int
    upload_seconds: float
    requests: Counter[str]
    seconds: float

    def of(self, name: str) -> list[Event]:
        """Returns the events of all attempts with a name."""
        return [event for attempt in self.attempts for event in attempt.of(name)]

    @property
    def accuracy(self) -> float:
        """The share of held-out digits that the network reads right in the end."""
        return float(self.of("validated")[-1]["accuracy"])

    def repeated_steps(self) -> list[tuple[float, float]]:
        """Returns the losses of each step that was done, lost with its process, and done again."""
        done: dict[tuple[int, int], float] = {}
        pairs = []
        for step in self.of("step"):
            place = step["epoch"], step["images"]
            if place in done:
                pairs.append((done[place], step["loss"]))
            done[place] = step["loss"]
        return pairs

    def table(self) -> Table:
        """Returns the table at the end of the demonstration."""
        table = Table(show_header=False, box=ROUNDED)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        rates = [event["images"] / event["seconds"] for event in self.of("trained")]
        validated = self.of("validated")[-1]
        saved, resumed = self.of("saved"), self.of("resumed")
        (dcp,) = self.of("saved with DCP")
        repeated = self.repeated_steps()
        same = sum(first == second for first, second in repeated)
        size = f"{saved[-1]['bytes'] / MB:.1f}"
        verdict = "the same bit for bit" if dcp["same"] else "NOT THE SAME"
        kills = ", ".join(attempt.killed for attempt in self.attempts if attempt.killed)
        common = self.requests.most_common(MOST_COMMON)
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in common)
        others = self.requests.total() - sum(number for _, number in common)
        return [
            ("Upload", f"{self.uploaded:,} PNG files, {self.uploaded / self.upload_seconds:,.0f} images/s"),
            ("Training", f"{median(rates):,.0f} images/s (median of {len(rates)} epochs)"),
            ("Accuracy", f"{self.accuracy:.1%} of {validated['images']} held-out digits"),
            ("S3Checkpoint", f"{size} MB, saved in {_median(saved)}, loaded in {_median(resumed)}"),
            ("DCP", f"saved in {dcp['seconds']:.2f} s, loaded in {dcp['load_seconds']:.2f} s, {verdict}"),
            ("Killed", kills),
            ("Resumed", f"{len(resumed)} times; {same} of {len(repeated)} repeated steps had the same loss"),
            ("Requests", f"{self.requests.total():,}: {kinds}, {others} others"),
            ("Time", f"{self.seconds:.0f} s"),
        ]


def _median(events: list[Event]) -> str:
    return f"{median(event['seconds'] for event in events):.2f} s"


def count_operations(requests: Iterable[Request]) -> Counter[str]:
    """Counts requests by operation."""
    return Counter(operation(request) for request in requests)


def operation(request: Request) -> str:
    """Returns the name of the operation that a request is for."""
    for (method, parameter), name in SPECIAL.items():
        if request.method == method and parameter in request.query:
            return name
    return PLAIN.get(request.method, request.method)


def draw(result: Result, path: Path) -> None:
    """Writes a PNG file, which appears whole or not at all."""
    figure = Figure(figsize=(10, 7.5), dpi=120, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[1.25, 1])
    draw_loss(figure.add_subplot(grid[0, :]), result)
    draw_accuracy(figure.add_subplot(grid[1, 0]), result)
    draw_throughput(figure.add_subplot(grid[1, 1]), result)
    figure.suptitle("A training run on S3, killed twice and resumed", fontsize=14)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(unfinished, format="png")
    unfinished.replace(path)


def draw_loss(axes: Axes, result: Result) -> None:
    """Draws the loss of each step; steps that were lost with their process lie behind their repetition."""
    per_epoch = result.of("trained")[0]["images"]
    for attempt, following in zip(result.attempts, [*result.attempts[1:], None], strict=True):
        last = following.first_epoch - 1 if following else attempt.last_epoch
        kept = [step for step in attempt.of("step") if step["epoch"] <= last]
        lost = [step for step in attempt.of("step") if step["epoch"] > last]
        axes.plot(*curve(kept, per_epoch), color=BLUE, linewidth=1.3, zorder=3)
        axes.plot(*curve(lost, per_epoch), color=RED, linewidth=5, alpha=0.35, zorder=2)
    for attempt in result.attempts[:-1]:
        mark_kill(axes, attempt, per_epoch)
    for attempt in result.attempts[1:]:
        axes.axvline(attempt.first_epoch - 1, color=GREEN, linestyle=":", linewidth=1.5)
    axes.set(xlabel="epochs", yscale="log")
    axes.set_xlim(0, result.attempts[-1].last_epoch + 0.05)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(handles=legend(), loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=4)
    finish(axes, "Training loss of each step")


def curve(steps: list[Event], per_epoch: int) -> tuple[list[float], list[float]]:
    """Returns where steps are on the axis of epochs, and their losses."""
    return [progress(step, per_epoch) for step in steps], [step["loss"] for step in steps]


def progress(step: Event, per_epoch: int) -> float:
    """Returns how many epochs are done after a step."""
    return float(step["epoch"] - 1 + step["images"] / per_epoch)


def mark_kill(axes: Axes, attempt: Attempt, per_epoch: int) -> None:
    """Marks the last step of a process that was killed, and says when that was."""
    place = progress(attempt.of("step")[-1], per_epoch)
    axes.axvline(place, color=RED, linestyle="--", linewidth=1.5)
    axes.annotate(
        textwrap.fill(f"killed {attempt.killed}".replace("epoch ", "epoch\N{NO-BREAK SPACE}"), 12),
        (place, 0.97),
        xycoords=axes.get_xaxis_transform(),
        xytext=(5, 0),
        textcoords="offset points",
        color=RED,
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        zorder=4,
    )


def legend() -> list[Line2D]:
    """Returns what the lines of the upper plot mean."""
    return [
        Line2D([], [], color=BLUE, linewidth=1.3, label="kept"),
        Line2D([], [], color=RED, linewidth=5, alpha=0.35, label="lost and repeated"),
        Line2D([], [], color=RED, linestyle="--", linewidth=1.5, label="killed (SIGKILL)"),
        Line2D([], [], color=GREEN, linestyle=":", linewidth=1.5, label="resumed from S3"),
    ]


def draw_accuracy(axes: Axes, result: Result) -> None:
    """Draws the accuracy on the held-out digits after each epoch."""
    last = {event["epoch"]: event["accuracy"] for event in result.of("validated")}
    axes.plot(list(last), list(last.values()), color=BLUE, marker="o")
    axes.axhline(GOAL, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(
        f"goal: {GOAL:.0%}",
        (max(last), GOAL),
        xytext=(0, -4),
        textcoords="offset points",
        color=GREY,
        ha="right",
        va="top",
    )
    axes.set_xlabel("epoch")
    axes.set_ylim(min(0.8, *last.values()) - 0.02, 1.005)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    finish(axes, "Accuracy on held-out digits")


def draw_throughput(axes: Axes, result: Result) -> None:
    """Draws how many images each epoch read, decoded and trained on in a second."""
    rates = [event["images"] / event["seconds"] for event in result.of("trained")]
    places = range(len(rates))
    bars = axes.bar(places, rates, color=BLUE, width=0.65)
    axes.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=9)
    axes.set_xlabel("epoch, in the order in which they ran")
    axes.set_xticks(places, [str(event["epoch"]) for event in result.of("trained")])
    axes.margins(y=0.12)
    finish(axes, "Images per second, from S3 until trained on")


def finish(axes: Axes, title: str) -> None:
    """Gives a plot the common look."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
